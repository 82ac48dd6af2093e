// The scheduler's disk: rows and events as the journal keeps them. A batch is there whole or not at
// all; what was not synced when the process died is lost, the last batch too if it was torn.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "scheduler/decisions/sweep_state.h"

namespace saesweep::sim {

class Disk {
 public:
  bool full = false;

  // False if the disk is full: nothing was written.
  bool commit(const scheduler::SweepState& state, const std::vector<journal::Event>& events,
              const scheduler::Changes& changes);
  // As a process finds it when it starts.
  scheduler::SweepState load() const;

  const std::vector<std::string>& events() const { return events_; }
  // What the events make, if it is not what is stored; empty: it is.
  std::string broken() const;
  std::optional<journal::Task> task(const std::string& id) const;

 private:
  std::map<std::string, std::string> rows_;
  std::vector<std::string> events_;
};

}  // namespace saesweep::sim
