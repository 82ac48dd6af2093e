// Rows of sweeps as they settle: what those who watch hear of a trial once nothing of it is open.
#pragma once

#include <functional>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/json.h"
#include "scheduler/decisions/sweep_state.h"

namespace saesweep::scheduler {

class RowFeed {
 public:
  // Hears trial.finished and trial.failed, as events.schema.json has them without "time".
  using Tell = std::function<void(const Json& event)>;

  // The rows of the sweep as they are now; those that are settled already are not told.
  void index(const SweepState& state, const std::string& name);
  // A task is finished: tells the rows that it settled.
  void finished(const SweepState& state, const std::string& task, const Tell& tell);
  // A task is to be done once more: its rows are open again.
  void reopen(const SweepState& state, const std::string& task);

 private:
  std::unordered_map<std::string, std::vector<bool>>
      settled_;  // of sweeps that were indexed, by row
};

}  // namespace saesweep::scheduler
