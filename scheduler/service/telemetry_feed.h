// What the state and the agents say, as numbers on the metrics page and as progress for people.
#pragma once

#include <map>
#include <optional>
#include <string>

#include "core/clock.h"
#include "core/json.h"
#include "scheduler/decisions/sweep_state.h"

namespace saesweep::metrics {
class Telemetry;
}

namespace saesweep::scheduler {

class TelemetryFeed {
 public:
  explicit TelemetryFeed(metrics::Telemetry* telemetry) : telemetry_(telemetry) {}

  // Gauges.
  void show(const SweepState& state);
  // The same, at most a few times a second, and less often when there is much to count.
  void show_if_due(const SweepState& state, TimePoint now);
  void observe(const std::string& worker, const protocol::AgentCounters& counters, TimePoint now);
  void forget(const std::string& worker);
  void count(protocol::TaskKind kind, protocol::Outcome outcome);

 private:
  metrics::Telemetry* telemetry_;  // may be null
  TimePoint due_{};
  struct Tokens {
    std::uint64_t trained = 0;
    TimePoint when;
    double rate = 0;
  };
  std::map<std::string, Tokens> tokens_;  // by worker
};

// stage.progress of a whole sweep, put together from what its runs say.
class ProgressFeed {
 public:
  // An event, unless one of this stage was made a moment ago; rarer when there is much to add up.
  std::optional<Json> hear(const SweepState& state, const protocol::Progress& progress,
                           TimePoint now);

 private:
  Json train(const SweepState& state);
  // Looks at held-out rows that no event has told of yet, the newest of each trial.
  Json new_looks(const SweepState& state);
  Json evaluate(const SweepState& state) const;
  Json sum_of_runs(const std::string& stage) const;
  double rate_of(const std::string& stage) const;

  std::map<std::uint64_t, protocol::Progress> runs_;  // newest of each leased run
  std::map<std::string, TimePoint> due_;              // by stage
  std::map<std::string, double> told_;                // by task: at which tokens it was looked
};

}  // namespace saesweep::scheduler
