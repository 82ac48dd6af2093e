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
  const journal::Sweep& sweep = state.sweeps().at(name);
  std::vector<bool>& settled = settled_[name];
  settled.clear();
  for (const journal::Subject& subject : sweep.subjects())
    settled.push_back(settled_outcome_of(state, sweep, subject).has_value());
}

void RowFeed::finished(const SweepState& state, const std::string& task, const Tell& tell) {
  for (const SweepState::Want& want : state.wants(task)) {
    const journal::Sweep& sweep = state.sweep_of(want);
    const auto indexed = settled_.find(sweep.name());
    if (indexed == settled_.end()) continue;
    if (want.subject < 0) {
      tell(end_of_model(state, sweep));
      continue;
    }
    std::vector<bool>& settled = indexed->second;
    const journal::Subject& subject = sweep.subjects(want.subject);
    const auto outcome = settled_outcome_of(state, sweep, subject);
    if (!outcome || settled[want.subject]) continue;
    settled[want.subject] = true;
    const std::string id = subject.identity().substr(0, kIdDigits);
    if (!subject.baseline())
      tell(end_of(sweep.name(), id, subject.number(), *outcome));
    else if (outcome->state == "failed" || outcome->state == "diverged")
      log::warn("baseline.failed sweep={} baseline={} reason={}", sweep.name(), id,
                outcome->reason);
  }
}

void RowFeed::reopen(const SweepState& state, const std::string& task) {
  for (const SweepState::Want& want : state.wants(task)) {
    const auto indexed = settled_.find(state.sweep_of(want).name());
    if (indexed != settled_.end() && want.subject >= 0) indexed->second[want.subject] = false;
  }
}

}  // namespace saesweep::scheduler
