// How far the work is, summed over runs and told as stage.progress events.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "scheduler/decisions/state.h"
#include "scheduler/service/scheduler_service.h"

namespace saesweep::scheduler {

class ProgressReport {
 public:
  explicit ProgressReport(const Observer& observer) : observer_(observer) {}

  void hear(const protocol::Progress& report);
  // Tells the observer about every stage that something was heard of since the last time.
  void publish(const SweepState& state);
  double training_rate() const { return training_rate_; }  // tokens a second, all runs

 private:
  void tell(const std::string& stage, std::uint64_t done, std::uint64_t total,
            const std::string& unit, double rate);

  Observer observer_;
  std::map<std::uint64_t, protocol::Progress> newest_;  // by run
  std::map<std::string, std::uint64_t> tokens_;         // by task
  double training_rate_ = 0;
};

}  // namespace saesweep::scheduler
