#include "scheduler/service/row_feed.h"

#include <filesystem>

#include "core/log.h"
#include "scheduler/decisions/decide.h"

namespace saesweep::scheduler {
namespace {

constexpr std::size_t kIdDigits = 12;

Json end_of(const std::string& sweep, const std::string& trial, std::uint32_t number,
            const SubjectOutcome& outcome) {
  // Stopped early is what the sweep asked for.
  const bool is_well = outcome.state == "done" || outcome.state == "stopped";
  Json event{{"event", is_well ? "trial.finished" : "trial.failed"},
             {"sweep", sweep},
             {"trial", trial},
             {"number", number},
             {"state", outcome.state}};
  if (outcome.state != "done") event["reason"] = outcome.reason;
  return event;
}

Json end_of_model(const SweepState& state, const journal::Sweep& sweep) {
  const journal::Task& task = *state.find_task(sweep.lm_task());
  SubjectOutcome outcome{"done", ""};
  if (task.has_diverged()) outcome = {"diverged", task.diverged().reason()};
  if (task.has_failed()) outcome = {"failed", task.failed().reason()};
  if (task.has_cancelled()) outcome = {"cancelled", task.cancelled().reason()};
  return end_of(sweep.name(), std::filesystem::path(task.spec().directory()).filename(), 0,
                outcome);
}

}  // namespace

void RowFeed::index(const SweepState& state, const std::string& name) {
  if (!indexed_.insert(name).second) {
    std::erase_if(settled_, [&](const Row& row) { return row.first == name; });
    for (auto& [task, rows] : rows_of_)
      std::erase_if(rows, [&](const Row& row) { return row.first == name; });
  }
  const journal::Sweep& sweep = state.sweeps().at(name);
  if (!sweep.lm_task().empty()) rows_of_[sweep.lm_task()].push_back({name, -1});
  for (int i = 0; i < sweep.subjects_size(); ++i) {
    const journal::Subject& subject = sweep.subjects(i);
    if (!subject.train_task().empty()) rows_of_[subject.train_task()].push_back({name, i});
    for (const std::string& task : subject.evaluate_tasks()) rows_of_[task].push_back({name, i});
    if (outcome_of(state, sweep, subject).state != "unfinished") settled_.insert({name, i});
  }
}

void RowFeed::finished(const SweepState& state, const std::string& task, const Tell& tell) {
  const auto rows = rows_of_.find(task);
  if (rows == rows_of_.end()) return;
  for (const Row& row : rows->second) {
    const auto sweep = state.sweeps().find(row.first);
    if (sweep == state.sweeps().end()) continue;
    if (row.second < 0) {
      tell(end_of_model(state, sweep->second));
      continue;
    }
    const journal::Subject& subject = sweep->second.subjects(row.second);
    const SubjectOutcome outcome = outcome_of(state, sweep->second, subject);
    if (outcome.state == "unfinished" || !settled_.insert(row).second) continue;
    const std::string id = subject.identity().substr(0, kIdDigits);
    if (!subject.baseline())
      tell(end_of(row.first, id, subject.number(), outcome));
    else if (outcome.state != "done")
      log::warn("baseline.failed sweep={} baseline={} reason={}", row.first, id, outcome.reason);
  }
}

void RowFeed::reopen(const std::string& task) {
  const auto rows = rows_of_.find(task);
  if (rows == rows_of_.end()) return;
  for (const Row& row : rows->second) settled_.erase(row);
}

}  // namespace saesweep::scheduler
