// Rows of sweeps as they settle: what those who watch hear of a trial once nothing of it is open.
#pragma once

#include <functional>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/json.h"
#include "scheduler/decisions/sweep_state.h"

namespace saesweep::scheduler {

class RowFeed {
 public:
  // Hears trial.finished and trial.failed, as events.schema.json has them without "time".
  using Tell = std::function<void(Json event)>;

  // The rows of the sweep as they are now; those that are settled already are not told.
  void index(const SweepState& state, const std::string& sweep);
  // A task is finished: tells the rows that it settled.
  void finished(const SweepState& state, const std::string& task, const Tell& tell);
  // A task is to be done once more: its rows are open again.
  void reopen(const std::string& task);

 private:
  using Row = std::pair<std::string, int>;                     // sweep, position; -1: its model
  std::unordered_map<std::string, std::vector<Row>> rows_of_;  // by task
  std::set<Row> settled_;
  std::set<std::string> indexed_;  // sweeps
};

}  // namespace saesweep::scheduler
