#include "scheduler/service/progress_report.h"

#include <algorithm>

namespace saesweep::scheduler {

void ProgressReport::hear(const protocol::Progress& report) {
  for (const auto& member : report.members()) tokens_[member.task()] = member.tokens();
  newest_[report.run_id()] = report;
}

void ProgressReport::publish(const SweepState& state) {
  struct Stage {
    std::uint64_t done = 0, total = 0;
    std::string unit;
    double rate = 0;
  };
  std::map<std::string, Stage> stages;
  for (const auto& [run, report] : newest_) {
    if (!state.runs.contains(run)) continue;
    Stage& stage = stages[report.stage()];
    stage.done += report.done();
    stage.total += report.total();
    stage.unit = report.unit();
    stage.rate += report.rate();
  }
  std::erase_if(newest_, [&](const auto& entry) { return !state.runs.contains(entry.first); });
  training_rate_ = stages.contains("train") ? stages["train"].rate : 0;

  // Training and scoring are counted over the whole sweep, not over the runs of the moment.
  std::uint64_t trained = 0, to_train = 0, scored = 0, to_score = 0;
  for (const journal::Task* task : state.wanted()) {
    if (task->kind() == protocol::TASK_KIND_EVALUATE) {
      ++to_score;
      scored += is_over(task->phase()) ? 1 : 0;
    } else if (task->kind() == protocol::TASK_KIND_TRAIN) {
      to_train += task->budget();
      const auto found = tokens_.find(task->id());
      trained += is_over(task->phase()) ? task->budget()
                                        : std::max(found == tokens_.end() ? 0 : found->second,
                                                   task->checkpoint().tokens());
    }
  }
  for (const auto& [name, stage] : stages) {
    if (name == "train")
      tell(name, trained, to_train, "tokens", stage.rate);
    else if (name == "evaluate")
      tell(name, scored, to_score, "scores", 0);
    else
      tell(name, stage.done, stage.total, stage.unit.empty() ? "tokens" : stage.unit, stage.rate);
  }
}

void ProgressReport::tell(const std::string& stage, std::uint64_t done, std::uint64_t total,
                          const std::string& unit, double rate) {
  if (!observer_) return;
  Json event{{"event", "stage.progress"},
             {"stage", stage},
             {"done", done},
             {"total", total},
             {"unit", unit}};
  if (rate > 0) event["rate"] = rate;
  observer_(event);
}

}  // namespace saesweep::scheduler
