// Early stopping: what its events do.
#include <limits>
#include <map>

#include "core/check.h"
#include "scheduler/decisions/applier.h"
#include "scheduler/decisions/attempts.h"
#include "scheduler/decisions/standings.h"

namespace saesweep::scheduler {

using journal::Standing;

void Applier::take_part(const journal::Sweep& old, const journal::Sweep& sweep) {
  const bool same_rules =
      old.has_early_stopping() && sweep.has_early_stopping() &&
      old.early_stopping().SerializeAsString() == sweep.early_stopping().SerializeAsString();
  std::map<std::string, Standing> before;
  if (old.has_early_stopping()) {
    for (const std::string& id : tasks_of(old)) {
      auto* const named = state_.tasks_.find(id);
      SAE_CHECK(named != nullptr, "no task {}", id);
      Task& task = named->second.task;
      auto& standings = *task.mutable_standings();
      for (int i = 0; i < standings.size(); ++i) {
        if (standings[i].sweep() != sweep.name()) continue;
        before[id] = standings[i];
        standings.DeleteSubrange(i, 1);
        changes_.tasks.insert(named);
        break;
      }
    }
  }
  if (sweep.has_early_stopping()) {
    for (int row = 0; row < sweep.subjects_size(); ++row) {
      const journal::Subject& subject = sweep.subjects(row);
      if (subject.baseline()) continue;
      Task& task = task_at(subject.train_task());
      Standing& standing = *task.add_standings();
      const auto kept = before.find(subject.train_task());
      const bool is_same = same_rules && kept != before.end() &&
                           kept->second.batch() == subject.batch() &&
                           kept->second.bracket() == subject.bracket();
      if (is_same) standing = kept->second;
      standing.set_sweep(sweep.name());
      standing.set_row(static_cast<std::uint32_t>(row));
      standing.set_batch(subject.batch());
      standing.set_bracket(subject.bracket());
      if (!is_same) standing.set_rung(subject.bracket());
    }
  }
  count_anew(sweep.name());
}

void Applier::count_anew(const std::string& name) {
  const journal::Sweep& sweep = state_.sweeps_.at(name);
  state_.contests_.erase(name);
  if (sweep.has_early_stopping()) state_.contests_.emplace(name, contest_of(state_, sweep));
}

void Applier::count_anew(const Task& task) {
  for (const Standing& standing : task.standings()) count_anew(standing.sweep());
}

// The train task of a row, and the scores that it is wanted for.
void Applier::file_row(const Task& task, const std::string& name) {
  state_.file(task);
  const journal::Sweep& sweep = state_.sweeps_.at(name);
  const Standing& standing = *standing_of(task, name);
  for (const std::string& id : sweep.subjects(static_cast<int>(standing.row())).evaluate_tasks())
    state_.file(state_.tasks_.at(id));
}

void Applier::reported(const journal::TaskReported& event) {
  const protocol::TaskResult& result = event.result();
  Task& task = task_at(result.task());
  continue_attempt(task);  // it may have been taken for lost
  end_attempt(task, journal::ENDING_AT_RUNG, "", time_);
  if (task.run() != 0) run_at(task.run()).set_checkpointed(true);
  leave_run(task);
  *task.mutable_checkpoint() = result.checkpoint();
  task.set_retries(0);
  task.set_reported_fence(result.fence());
  for (const auto& entry : event.entries()) {
    Standing& standing = *standing_of(task, entry.sweep());
    const journal::RungReport& report = entry.report();
    standing.set_rung(report.rung());
    standing.set_waits(true);
    standing.set_scores(entry.scores());
    *standing.add_reports() = report;
    state_.contests_.at(entry.sweep())
        .report(standing.row(), report.rung(), report.tokens(),
                {report.values().begin(), report.values().end()});
  }
  wait(task, 0);
  state_.file(task);
}

void Applier::promoted(const journal::TrialPromoted& event) {
  Task& task = task_at(event.task());
  Standing& standing = *standing_of(task, event.sweep());
  standing.set_rung(event.rung());
  standing.set_waits(false);
  standing.clear_stopped();
  Contest& contest = state_.contests_.at(event.sweep());
  if (contest.waits(standing.row()))
    contest.went_on(standing.row());
  else
    count_anew(event.sweep());
  file_row(task, event.sweep());
  reopen_sweeps_of(task.spec().id());
}

void Applier::trial_stopped(const journal::TrialStopped& event) {
  Task& task = task_at(event.task());
  Standing& standing = *standing_of(task, event.sweep());
  standing.set_waits(false);
  standing.set_stopped(event.reason());
  state_.contests_.at(event.sweep()).leave(standing.row());
  file_row(task, event.sweep());
}

// It ranks last at the rung that it did not reach.
void Applier::report_divergence(Task& task) {
  for (Standing& standing : *task.mutable_standings()) {
    const journal::Sweep& sweep = state_.sweeps_.at(standing.sweep());
    Contest& contest = state_.contests_.at(standing.sweep());
    if (!contest.is_on_the_way(standing.row())) continue;
    const auto tokens = tokens_at(sweep, task, standing, standing.rung());
    if (!tokens) continue;
    journal::RungReport& report = *standing.add_reports();
    report.set_rung(standing.rung());
    report.set_tokens(*tokens);
    for (int i = 0; i < sweep.early_stopping().metrics_size(); ++i)
      report.add_values(std::numeric_limits<double>::quiet_NaN());
    contest.report(standing.row(), report.rung(), *tokens,
                   {report.values().begin(), report.values().end()});
  }
}

void Applier::end_standings(Task& task) {
  for (const Standing& standing : task.standings()) {
    Contest& contest = state_.contests_.at(standing.sweep());
    if (task.has_succeeded())
      contest.finish(standing.row());
    else
      contest.leave(standing.row());
  }
}

}  // namespace saesweep::scheduler
