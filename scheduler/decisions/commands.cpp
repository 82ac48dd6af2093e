// What people ask for: sweeps and rows cancelled, paused, resumed, tried again; whose turn it is;
// workers drained.
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "scheduler/decisions/decider.h"
#include "scheduler/decisions/standings.h"

namespace saesweep::scheduler {
namespace {

using journal::Task;

constexpr std::size_t kNamesShown = 10;
constexpr const char* kByPerson = "by a person";

// The tasks of chosen rows; of the whole sweep its model's too.
std::vector<std::string> tasks_of_rows(const journal::Sweep& sweep, const std::set<int>& chosen,
                                       bool whole) {
  std::vector<std::string> tasks;
  if (whole && !sweep.lm_task().empty()) tasks.push_back(sweep.lm_task());
  std::set<std::string> seen;
  const auto add = [&](const std::string& id) {
    if (!id.empty() && seen.insert(id).second) tasks.push_back(id);
  };
  for (const int i : chosen) {
    add(sweep.subjects(i).train_task());
    for (const std::string& id : sweep.subjects(i).evaluate_tasks()) add(id);
  }
  return tasks;
}

std::string hex(const std::string& bytes) {
  std::string text;
  for (const char byte : bytes) text += fmt::format("{:02x}", static_cast<unsigned char>(byte));
  return text;
}

std::string some_of(const std::vector<std::string>& names, const char* none) {
  if (names.empty()) return none;
  const std::size_t shown = std::min(names.size(), kNamesShown);
  return fmt::format(
      "there is {}{}",
      fmt::join(names.begin(), names.begin() + static_cast<std::ptrdiff_t>(shown), ", "),
      shown < names.size() ? ", ..." : "");
}

}  // namespace

void Decider::refuse(ErrorCode code, std::string why) {
  decision_.answer.emplace().error = Error{code, std::move(why)};
}

const journal::Sweep* Decider::find_sweep(const std::string& name) {
  const auto found = state_.sweeps().find(name);
  if (found != state_.sweeps().end()) return &found->second;
  std::vector<std::string> names;
  for (const auto& [other, sweep] : state_.sweeps()) names.push_back(other);
  refuse(ErrorCode::kNotFound,
         fmt::format("no sweep {}; {}", name, some_of(names, "none was submitted")));
  return nullptr;
}

// False, and an answer that says so, if a row is not there.
bool Decider::choose(const journal::Sweep& sweep, const SweepCommand& command,
                     std::set<int>& chosen) {
  std::map<std::string, int> rows;
  for (int i = 0; i < sweep.subjects_size(); ++i) rows[sweep.subjects(i).identity()] = i;
  if (command.trials.empty())
    for (const auto& [identity, row] : rows) chosen.insert(row);
  for (const std::string& trial : command.trials) {
    const auto row = rows.find(trial);
    if (row == rows.end()) {
      refuse(ErrorCode::kNotFound, fmt::format("no trial {} in sweep {}", trial, sweep.name()));
      return false;
    }
    chosen.insert(row->second);
  }
  return true;
}

void Decider::hear(const SweepCommand& command) {
  const journal::Sweep* sweep = find_sweep(command.sweep);
  if (sweep == nullptr) return;
  std::set<int> chosen;
  if (!choose(*sweep, command, chosen)) return;
  decision_.answer.emplace().details = {{"sweep", command.sweep}, {"verb", command.verb}};
  if (command.verb == "cancel")
    cancel(*sweep, command, chosen);
  else if (command.verb == "pause")
    pause(*sweep, command, chosen);
  else if (command.verb == "resume")
    resume(*sweep, command, chosen);
  else if (command.verb == "retry")
    try_again(*sweep, command, chosen);
  else
    refuse(ErrorCode::kInvalidArgument,
           fmt::format("unknown verb {}; cancel, pause, resume and retry are known", command.verb));
}

void Decider::cancel(const journal::Sweep& sweep, const SweepCommand& command,
                     const std::set<int>& chosen) {
  const bool whole = command.trials.empty();
  auto& changed = *event().mutable_sweep_changed();
  changed.set_sweep(sweep.name());
  changed.set_cancelled(true);
  for (const std::string& trial : command.trials) changed.add_subjects(trial);
  const auto is_wanted_by_others = [&](const std::string& id) {
    return std::ranges::any_of(state_.wants(id), [&](const SweepState::Want& want) {
      const bool is_one_of_these =
          &state_.sweep_of(want) == &sweep && (whole || chosen.contains(want.subject));
      return !is_one_of_these && state_.is_wanted(want);
    });
  };
  std::uint64_t kept = 0;
  journal::TasksCancelled cancelled;
  cancelled.set_reason(kByPerson);
  for (const std::string& id : tasks_of_rows(sweep, chosen, whole)) {
    const Task& task = *state_.find_task(id);
    if (is_finished(task)) continue;
    if (is_wanted_by_others(id)) {
      ++kept;
      continue;
    }
    if (is_leased(task)) control(task, "cancel");
    cancelled.add_tasks(id);
  }
  Json& details = decision_.answer->details;
  std::uint64_t rows = 0;
  for (const int i : chosen)
    rows += outcome_of(state_, sweep, sweep.subjects(i)).state == "unfinished";
  details["trials"] = rows;
  details["tasks"] = cancelled.tasks_size();
  details["kept_for_others"] = kept;
  if (cancelled.tasks_size() > 0) *event().mutable_tasks_cancelled() = std::move(cancelled);
}

void Decider::pause(const journal::Sweep& sweep, const SweepCommand& command,
                    const std::set<int>& chosen) {
  const bool whole = command.trials.empty();
  auto& changed = *event().mutable_sweep_changed();
  changed.set_sweep(sweep.name());
  changed.set_paused(true);
  for (const std::string& trial : command.trials) changed.add_subjects(trial);
  // What runs makes a checkpoint and stops, unless somebody else wants it now.
  std::uint64_t running = 0;
  for (const std::string& id : tasks_of_rows(sweep, chosen, whole)) {
    const Task& task = *state_.find_task(id);
    const bool goes_on = std::ranges::any_of(state_.wants(id), [&](const SweepState::Want& want) {
      const bool is_one_of_these =
          &state_.sweep_of(want) == &sweep && (whole || chosen.contains(want.subject));
      return !is_one_of_these && state_.is_working(want);
    });
    if (!is_leased(task) || goes_on) continue;
    ++running;
    control(task, "pause");
  }
  decision_.answer->details["trials"] = chosen.size();
  decision_.answer->details["running"] = running;
}

void Decider::resume(const journal::Sweep& sweep, const SweepCommand& command,
                     const std::set<int>& chosen) {
  if (sweep.cancelled())
    return refuse(ErrorCode::kInvalidArgument,
                  fmt::format("sweep {} was cancelled; retry begins its rows again", sweep.name()));
  if (sweep.paused() && !command.trials.empty())
    return refuse(ErrorCode::kInvalidArgument,
                  fmt::format("the whole of sweep {} is paused; resume it", sweep.name()));
  auto& changed = *event().mutable_sweep_changed();
  changed.set_sweep(sweep.name());
  changed.set_paused(false);
  changed.set_active(true);
  for (const std::string& trial : command.trials) changed.add_subjects(trial);
  decision_.answer->details["trials"] = chosen.size();
}

// What failed, and of rows that are named, or of a sweep that was cancelled, what was cancelled or
// stopped too.
void Decider::try_again(const journal::Sweep& sweep, const SweepCommand& command,
                        const std::set<int>& chosen) {
  const bool all_kinds = !command.trials.empty() || sweep.cancelled();
  const bool named = !command.trials.empty();
  const auto is_chosen = [&](const Task& task) {
    return task.has_failed() || (all_kinds && task.has_cancelled()) ||
           (named && task.has_stopped());
  };
  // A trial that was stopped early and is named is trained to its end.
  const auto is_stopped = [&](const journal::Subject& subject) {
    const Task* task = state_.find_task(subject.train_task());
    const journal::Standing* standing =
        task == nullptr || !named ? nullptr : standing_of(*task, sweep.name());
    return standing != nullptr && !standing->stopped().empty();
  };
  for (const int i : chosen) {
    if (!is_stopped(sweep.subjects(i))) continue;
    promote(sweep, {static_cast<TrialIndex>(i),
                    static_cast<std::size_t>(sweep.early_stopping().rungs_size()), kByPerson});
    decision_.events.back().mutable_trial_promoted()->set_by_person(true);
  }
  journal::TasksAgain again;
  for (const std::string& id : tasks_of_rows(sweep, chosen, command.trials.empty()))
    if (is_chosen(*state_.find_task(id))) again.add_tasks(id);
  std::uint64_t rows = 0;
  for (const int i : chosen) {
    const auto& subject = sweep.subjects(i);
    const auto counts = [&](const std::string& id) {
      return !id.empty() && is_chosen(*state_.find_task(id));
    };
    rows += (all_kinds && subject.cancelled()) || is_stopped(subject) ||
            counts(subject.train_task()) || std::ranges::any_of(subject.evaluate_tasks(), counts);
  }
  auto& changed = *event().mutable_sweep_changed();
  changed.set_sweep(sweep.name());
  changed.set_active(true);
  if (all_kinds) changed.set_cancelled(false);
  for (const std::string& trial : command.trials) changed.add_subjects(trial);
  decision_.answer->details["trials"] = rows;
  decision_.answer->details["tasks"] = again.tasks_size();
  if (again.tasks_size() > 0) *event().mutable_tasks_again() = std::move(again);
}

void Decider::hear(const SweepPriority& command) {
  const journal::Sweep* sweep = find_sweep(command.sweep);
  if (sweep == nullptr) return;
  if (command.priority < -kMostPriority || command.priority > kMostPriority)
    return refuse(ErrorCode::kInvalidArgument,
                  fmt::format("priority {}; -{} to {} would be right", command.priority,
                              kMostPriority, kMostPriority));
  if (!std::isfinite(command.weight) || command.weight <= 0)
    return refuse(ErrorCode::kInvalidArgument,
                  fmt::format("weight {}; a positive number would be right", command.weight));
  auto& changed = *event().mutable_sweep_changed();
  changed.set_sweep(command.sweep);
  changed.set_priority(command.priority);
  changed.set_weight(command.weight);
  decision_.answer.emplace().details = {{"sweep", command.sweep},
                                        {"verb", "priority"},
                                        {"priority", command.priority},
                                        {"weight", command.weight}};
}

void Decider::hear(const WishGranted& wish) {
  auto& granted = *event().mutable_wish_granted();
  granted.set_key(wish.key);
  granted.set_answer(canonical_json(wish.answer));
}

void Decider::hear(const WorkerCommand& command) {
  const bool drain = command.verb == "drain";
  if (!drain && command.verb != "undrain")
    return refuse(ErrorCode::kInvalidArgument,
                  fmt::format("unknown verb {}; drain and undrain are known", command.verb));
  std::vector<std::string> names;
  Json found = Json::array();
  std::uint64_t runs = 0;
  for (const auto& [session, worker] : state_.workers()) {
    names.push_back(worker.name);
    if (command.worker != worker.name && command.worker != session &&
        command.worker != hex(session))
      continue;
    found.push_back(worker.name);
    auto& drained = *event().mutable_worker_drained();
    drained.set_worker(session);
    drained.set_draining(drain);
    if (!drain) continue;
    runs += worker.runs.size();
    for (const std::uint64_t id : worker.runs) control(session, id, "pause");
  }
  if (found.empty())
    return refuse(ErrorCode::kNotFound, fmt::format("no worker {}; {}", command.worker,
                                                    some_of(names, "none is connected")));
  decision_.answer.emplace().details = {
      {"verb", command.verb}, {"workers", std::move(found)}, {"runs", runs}};
}

}  // namespace saesweep::scheduler
