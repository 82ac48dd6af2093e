#include "scheduler/decisions/sweep_state.h"

#include <algorithm>

#include "core/check.h"

namespace saesweep::scheduler {

using journal::Task;

bool is_finished(const Task& task) {
  switch (task.phase_case()) {
    case Task::kSucceeded:
    case Task::kDiverged:
    case Task::kFailed:
    case Task::kSkipped:
      return true;
    default:
      return false;
  }
}

bool is_leased(const Task& task) { return task.has_assigned() || task.has_running(); }

bool is_due(const Task& task, TimePoint now) {
  return task.has_ready() || (task.has_backoff() && task.backoff().until_ns() <= to_ns(now));
}

bool is_passing(const journal::Event& event) {
  return event.what_case() >= journal::Event::kWorkerJoined;
}

std::vector<std::string> tasks_of(const journal::Sweep& sweep) {
  std::vector<std::string> tasks;
  std::set<std::string> seen;
  const auto add = [&](const std::string& task) {
    if (!task.empty() && seen.insert(task).second) tasks.push_back(task);
  };
  add(sweep.lm_task());
  for (const auto& subject : sweep.subjects()) {
    add(subject.train_task());
    for (const auto& task : subject.evaluate_tasks()) add(task);
  }
  return tasks;
}

std::uint64_t to_ns(TimePoint time) {
  return static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(time.time_since_epoch()).count());
}

TimePoint from_ns(std::uint64_t ns) {
  return TimePoint(std::chrono::duration_cast<Duration>(std::chrono::nanoseconds(ns)));
}

// ---- reading ------------------------------------------------------------------------------------

const Task* SweepState::find_task(const std::string& id) const {
  const auto found = tasks_.find(id);
  return found == tasks_.end() ? nullptr : &found->second;
}

const journal::Run* SweepState::find_run(std::uint64_t id) const {
  const auto found = runs_.find(id);
  return found == runs_.end() ? nullptr : &found->second;
}

const std::set<std::string>& SweepState::wanted_by(const std::string& task) const {
  static const std::set<std::string> kNobody;
  const auto found = wanted_by_.find(task);
  return found == wanted_by_.end() ? kNobody : found->second;
}

const journal::Sweep* SweepState::active_sweep_of(const std::string& task) const {
  const journal::Sweep* newest = nullptr;
  for (const std::string& name : wanted_by(task)) {
    const journal::Sweep& sweep = sweeps_.at(name);
    if (sweep.active() && (newest == nullptr || sweep.submission() > newest->submission()))
      newest = &sweep;
  }
  return newest;
}

// ---- indexes ------------------------------------------------------------------------------------

void SweepState::unindex(const Task& task) {
  const auto group = ready_.find({task.spec().kind(), task.spec().group()});
  if (group == ready_.end()) return;
  group->second.erase({task.order(), task.spec().id()});
  if (group->second.empty()) ready_.erase(group);
}

void SweepState::index(const Task& task) {
  const bool can_be_leased = (task.has_ready() || task.has_backoff()) && task.run() == 0 &&
                             active_sweep_of(task.spec().id()) != nullptr;
  if (can_be_leased)
    ready_[{task.spec().kind(), task.spec().group()}].emplace(task.order(), task.spec().id());
  else
    unindex(task);
}

void SweepState::load(journal::Sweep sweep) {
  const std::string name = sweep.name();
  sweeps_[name] = std::move(sweep);
}

void SweepState::load(Task task) {
  const std::string id = task.spec().id();
  tasks_[id] = std::move(task);
}

void SweepState::load(journal::Run run) {
  const std::uint64_t id = run.id();
  runs_[id] = std::move(run);
}

void SweepState::settle_indexes() {
  wanted_by_.clear();
  dependents_.clear();
  ready_.clear();
  for (const auto& [name, sweep] : sweeps_)
    for (const std::string& task : tasks_of(sweep)) wanted_by_[task].insert(name);
  for (const auto& [id, task] : tasks_) {
    if (!task.spec().needs().empty()) dependents_[task.spec().needs()].insert(id);
    index(task);
  }
}

SweepState replay(std::span<const journal::Event> log) {
  SweepState state;
  for (const journal::Event& event : log) state.apply(event);
  return state;
}

// ---- rules --------------------------------------------------------------------------------------

namespace {

std::string broken_rule_of_task(const SweepState& state, const std::string& id, const Task& task) {
  if (task.spec().id() != id) return fmt::format("task {} is filed under {}", task.spec().id(), id);
  if (task.phase_case() == Task::PHASE_NOT_SET) return fmt::format("{} has no phase", id);
  if (task.attempt() > task.fence())
    return fmt::format("{}: attempt {} at fence {}", id, task.attempt(), task.fence());
  const Task* needed = task.spec().needs().empty() ? nullptr : state.find_task(task.spec().needs());
  if (!task.spec().needs().empty() && needed == nullptr)
    return fmt::format("{} needs {}, which is not there", id, task.spec().needs());
  const bool inputs_are_there = needed == nullptr || needed->has_succeeded();
  if ((task.has_ready() || task.has_backoff()) && !inputs_are_there)
    return fmt::format("{} is ready without its input", id);
  if (task.has_blocked() && (needed == nullptr || is_finished(*needed)))
    return fmt::format("{} waits for nothing", id);
  if (task.has_skipped() && (needed == nullptr || !is_finished(*needed) || inputs_are_there))
    return fmt::format("{} is skipped for no reason", id);
  if (task.has_succeeded() && task.result().fence() != task.fence())
    return fmt::format("{} succeeded with a result of fence {}, not {}", id, task.result().fence(),
                       task.fence());
  const journal::Run* run = task.run() == 0 ? nullptr : state.find_run(task.run());
  if (task.run() != 0 && run == nullptr)
    return fmt::format("{} is of run {}, which is not there", id, task.run());
  if (run != nullptr && std::ranges::count(run->tasks(), id) != 1)
    return fmt::format("run {} does not know its task {}", task.run(), id);
  if (is_leased(task) != (run != nullptr && !run->worker().empty()))
    return fmt::format("{} is leased without a run, or the other way round", id);
  if ((is_finished(task) || task.has_blocked()) && run != nullptr)
    return fmt::format("{} is of run {} although nothing is to do", id, task.run());
  return {};
}

}  // namespace

std::string SweepState::broken_invariant() const {
  for (const auto& [id, task] : tasks_)
    if (auto broken = broken_rule_of_task(*this, id, task); !broken.empty()) return broken;
  std::map<std::string, std::uint32_t> runs_of;
  for (const auto& [id, run] : runs_) {
    if (run.id() != id || id == 0 || id > meta_.last_run())
      return fmt::format("run {} is filed under {}", run.id(), id);
    if (run.tasks().empty()) return fmt::format("run {} is empty", id);
    for (const std::string& name : run.tasks())
      if (const Task* task = find_task(name); task == nullptr || task->run() != id)
        return fmt::format("run {} names {}, which is not its own", id, name);
    if (run.worker().empty()) continue;
    const auto worker = workers_.find(run.worker());
    if (worker == workers_.end()) return fmt::format("run {} is leased to nobody", id);
    if (++runs_of[run.worker()] > worker->second.slots)
      return fmt::format("more runs than slots at worker {}", worker->second.name);
  }
  for (const auto& [name, sweep] : sweeps_)
    for (const std::string& id : tasks_of(sweep)) {
      const Task* task = find_task(id);
      if (task == nullptr) return fmt::format("sweep {} names {}, which is not there", name, id);
      if (sweep.ended() != 0 && !is_finished(*task))
        return fmt::format("sweep {} ended before {}", name, id);
    }
  SweepState anew = *this;
  anew.settle_indexes();
  if (anew.ready_ != ready_) return "the index of ready tasks is not what the tasks say";
  if (anew.wanted_by_ != wanted_by_) return "the index of wanted tasks is not what the sweeps say";
  if (anew.dependents_ != dependents_) return "the index of inputs is not what the tasks say";
  return {};
}

}  // namespace saesweep::scheduler
