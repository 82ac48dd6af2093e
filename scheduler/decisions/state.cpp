#include "scheduler/decisions/state.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/check.h"

namespace saesweep::scheduler {

bool is_over(Phase phase) {
  return phase == journal::SUCCEEDED || phase == journal::DIVERGED || phase == journal::FAILED ||
         phase == journal::CANCELLED || phase == journal::SKIPPED;
}

bool is_leased(Phase phase) { return phase == journal::ASSIGNED || phase == journal::RUNNING; }

std::string_view to_string(Phase phase) {
  switch (phase) {
    case journal::BLOCKED:
      return "blocked";
    case journal::READY:
      return "ready";
    case journal::ASSIGNED:
      return "assigned";
    case journal::RUNNING:
      return "running";
    case journal::SUCCEEDED:
      return "succeeded";
    case journal::DIVERGED:
      return "diverged";
    case journal::FAILED:
      return "failed";
    case journal::CANCELLED:
      return "cancelled";
    case journal::SKIPPED:
      return "skipped";
    default:
      return "unknown";
  }
}

void SweepState::load(journal::Sweep sweep) {
  std::string name = sweep.name();
  sweeps_[std::move(name)] = std::move(sweep);
}

void SweepState::load(journal::Task task) {
  if (!task.needs().empty()) needed_by_[task.needs()].insert(task.id());
  std::string id = task.id();
  tasks_[std::move(id)] = std::move(task);
}

void SweepState::load(journal::Group group) {
  const std::uint64_t id = group.id();
  groups_[id] = std::move(group);
}

const journal::Task* SweepState::task(const std::string& id) const {
  const auto found = tasks_.find(id);
  return found == tasks_.end() ? nullptr : &found->second;
}

const journal::Group* SweepState::group(std::uint64_t id) const {
  const auto found = groups_.find(id);
  return found == groups_.end() ? nullptr : &found->second;
}

std::vector<std::string> SweepState::needed_by(const std::string& task) const {
  const auto found = needed_by_.find(task);
  if (found == needed_by_.end()) return {};
  return {found->second.begin(), found->second.end()};
}

journal::Task& SweepState::mutable_task(const std::string& id) {
  const auto found = tasks_.find(id);
  SAE_CHECK(found != tasks_.end(), "an event about {}, which nobody submitted", id);
  changes_.tasks.insert(id);
  return found->second;
}

void SweepState::close(const std::string& task) {
  for (auto it = runs.begin(); it != runs.end();) {
    it->second.open.erase(task);
    it = it->second.open.empty() ? runs.erase(it) : std::next(it);
  }
}

std::uint32_t SweepState::free_slots(const Worker& worker) const {
  const auto busy = std::count_if(runs.begin(), runs.end(), [&](const auto& entry) {
    return entry.second.worker == worker.peer;
  });
  return worker.slots - std::min<std::uint32_t>(worker.slots, static_cast<std::uint32_t>(busy));
}

std::vector<const journal::Task*> SweepState::wanted() const {
  std::vector<const journal::Sweep*> sweeps;
  for (const std::string& name : active_)
    if (const auto found = sweeps_.find(name); found != sweeps_.end())
      sweeps.push_back(&found->second);
  std::sort(sweeps.begin(), sweeps.end(),
            [](const auto* a, const auto* b) { return a->order() < b->order(); });
  std::vector<const journal::Task*> tasks;
  std::set<std::string> seen;
  const auto add = [&](const std::string& id) {
    const journal::Task* found = id.empty() ? nullptr : task(id);
    if (found != nullptr && seen.insert(id).second) tasks.push_back(found);
  };
  for (const auto* sweep : sweeps) {
    add(sweep->model_task());
    for (const auto& subject : sweep->subjects()) add(subject.train_task());
    for (const auto& subject : sweep->subjects())
      for (const std::string& id : subject.evaluate_tasks()) add(id);
  }
  return tasks;
}

bool SweepState::all_over(const journal::Sweep& sweep) const {
  const auto over = [&](const std::string& id) {
    const journal::Task* found = task(id);
    return id.empty() || (found != nullptr && is_over(found->phase()));
  };
  if (!over(sweep.model_task())) return false;
  for (const auto& subject : sweep.subjects()) {
    if (!over(subject.train_task())) return false;
    for (const std::string& id : subject.evaluate_tasks())
      if (!over(id)) return false;
  }
  return true;
}

SweepState::Changes SweepState::take_changes() { return std::exchange(changes_, {}); }

void SweepState::apply(const journal::Event& event) {
  switch (event.body_case()) {
    case journal::Event::kEpochBegun:
      meta_.set_epoch(event.epoch_begun().epoch());
      changes_.meta = true;
      break;
    case journal::Event::kSubmitted: {
      const auto& submitted = event.submitted();
      for (const auto& task : submitted.tasks()) {
        if (tasks_.contains(task.id())) continue;  // one per identity, whoever asks for it
        changes_.tasks.insert(task.id());
        load(task);
      }
      changes_.sweeps.insert(submitted.sweep().name());
      meta_.set_next_order(std::max(meta_.next_order(), submitted.sweep().order() + 1));
      changes_.meta = true;
      load(submitted.sweep());
      break;
    }
    case journal::Event::kGranted: {
      const auto& grant = event.granted();
      journal::Group& group = groups_[grant.group()];
      group.set_id(grant.group());
      group.clear_tasks();
      Run run{grant.run_id(), grant.group(), grant.worker(), {}};
      for (const std::string& id : grant.tasks()) {
        journal::Task& task = mutable_task(id);
        task.set_phase(journal::ASSIGNED);
        task.set_fence(task.fence() + 1);
        task.set_attempts(task.attempts() + 1);
        task.set_group(grant.group());
        group.add_tasks(id);
        run.open.insert(id);
      }
      runs[run.id] = std::move(run);
      meta_.set_next_group(std::max(meta_.next_group(), grant.group() + 1));
      meta_.set_next_run(std::max(meta_.next_run(), grant.run_id() + 1));
      changes_.meta = true;
      changes_.groups.insert(grant.group());
      break;
    }
    case journal::Event::kStarted:
      if (journal::Task& task = mutable_task(event.started().task());
          task.phase() == journal::ASSIGNED)
        task.set_phase(journal::RUNNING);
      break;
    case journal::Event::kCheckpointed: {
      journal::Task& task = mutable_task(event.checkpointed().task());
      *task.mutable_checkpoint() = event.checkpointed().checkpoint();
      if (task.group() != 0) {
        groups_[task.group()].set_progressed(true);
        changes_.groups.insert(task.group());
      }
      break;
    }
    case journal::Event::kEnded: {
      const auto& ended = event.ended();
      journal::Task& task = mutable_task(ended.task());
      task.set_phase(ended.phase());
      task.set_reason(ended.reason());
      task.set_summary(ended.summary());
      *task.mutable_artifacts() = ended.artifacts();
      task.clear_checkpoint();
      close(ended.task());
      break;
    }
    case journal::Event::kReturned: {
      const auto& returned = event.returned();
      journal::Task& task = mutable_task(returned.task());
      task.set_phase(journal::READY);
      task.set_reason(returned.reason());
      if (returned.counts_as_retry()) task.set_retries(task.retries() + 1);
      if (returned.fresh_group()) task.set_group(0);
      close(returned.task());
      break;
    }
    case journal::Event::kUnblocked: {
      journal::Task& task = mutable_task(event.unblocked().task());
      if (task.phase() == journal::BLOCKED) task.set_phase(journal::READY);
      break;
    }
    case journal::Event::kDied: {
      journal::Group& group = groups_[event.died().group()];
      if (event.died().counts()) group.set_deaths(group.deaths() + 1);
      group.set_progressed(false);
      changes_.groups.insert(event.died().group());
      break;
    }
    case journal::Event::kSplit: {
      const auto& split = event.split();
      groups_.erase(split.group());
      changes_.groups.insert(split.group());
      for (const auto* half : {&split.first(), &split.second()}) {
        const std::uint64_t id = std::max<std::uint64_t>(1, meta_.next_group());
        meta_.set_next_group(id + 1);
        journal::Group& group = groups_[id];
        group.set_id(id);
        for (const std::string& task : *half) {
          group.add_tasks(task);
          mutable_task(task).set_group(id);
        }
        changes_.groups.insert(id);
      }
      changes_.meta = true;
      break;
    }
    case journal::Event::kSweepEnded:
      if (const auto found = sweeps_.find(event.sweep_ended().sweep()); found != sweeps_.end()) {
        found->second.set_ended(event.sweep_ended().time());
        changes_.sweeps.insert(found->first);
      }
      break;
    default:
      SAE_CHECK(false, "an event of an unknown kind: {}", static_cast<int>(event.body_case()));
  }
}

std::vector<std::string> check_invariants(const SweepState& state) {
  std::vector<std::string> broken;
  std::map<std::string, std::uint64_t> holders;
  for (const auto& [id, run] : state.runs) {
    if (run.open.empty()) broken.push_back(fmt::format("run {} waits for nothing", id));
    for (const std::string& task : run.open)
      if (const auto [at, first] = holders.emplace(task, id); !first)
        broken.push_back(fmt::format("{} is in runs {} and {}", task, at->second, id));
  }
  for (const auto& [id, task] : state.tasks()) {
    const bool held = holders.contains(id);
    if (is_leased(task.phase()) && !held)
      broken.push_back(fmt::format("{} is {} in no run", id, to_string(task.phase())));
    if (!is_leased(task.phase()) && held)
      broken.push_back(fmt::format("{} is {} and in a run", id, to_string(task.phase())));
    if (is_leased(task.phase()) && task.fence() == 0)
      broken.push_back(fmt::format("{} is leased without a fence", id));
    if (task.phase() == journal::SUCCEEDED && task.fence() == 0)
      broken.push_back(fmt::format("{} succeeded and was never granted", id));
    if (task.phase() == journal::BLOCKED && task.needs().empty())
      broken.push_back(fmt::format("{} is blocked by nothing", id));
    if (task.phase() != journal::BLOCKED && task.phase() != journal::SKIPPED &&
        task.phase() != journal::CANCELLED && !task.needs().empty()) {
      const auto* input = state.task(task.needs());
      if (input == nullptr || input->phase() != journal::SUCCEEDED)
        broken.push_back(fmt::format("{} is {} without its input", id, to_string(task.phase())));
    }
  }
  for (const auto& [peer, worker] : state.workers) {
    const auto running = std::count_if(state.runs.begin(), state.runs.end(),
                                       [&](const auto& run) { return run.second.worker == peer; });
    if (static_cast<std::uint32_t>(running) > worker.slots)
      broken.push_back(
          fmt::format("{} runs on {} slots of {}", running, worker.slots, worker.name));
  }
  return broken;
}

}  // namespace saesweep::scheduler
