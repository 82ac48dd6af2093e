// The numbers we publish about ourselves, and their page in Prometheus' text format.
//
// Every series exists from the start with the value 0, so that an alert never waits for a series to
// appear. Labels are the enumerations below and nothing else: no trial, worker or user text, so the
// page has a fixed size (about a hundred series). A counter never falls while the process lives.
//
//   saesweep_build_info{component,version,commit}    1
//   saesweep_sweeps{state}                           sweeps now in a state
//   saesweep_tasks{kind,state}                       tasks now in a state
//   saesweep_task_attempts_total{kind,outcome}       attempts that ended
//   saesweep_workers                                 agents heard of and not forgotten
//   saesweep_trained_tokens_total                    tokens trained on, summed over trials
//   saesweep_trained_tokens_per_second               lately
//   saesweep_harvested_tokens_total                  tokens run through the subject model
//   saesweep_training_seconds_total                  spent in training steps, all runs
//   saesweep_waiting_seconds_total                   of these, waiting for rows of the stream
//   saesweep_cache_{hits,misses,corrupt_chunks,refused_writes,evicted_bytes}_total
//   saesweep_cache_bytes                             on disk now, all agents
//   saesweep_executor_restarts_total                 executors replaced after a crash
//   process_start_time_seconds                       Unix time
//
// Thread-safe. Nothing here throws or fails: a name prometheus-cpp refuses is our own bug.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace saesweep::metrics {

enum class SweepPhase : std::uint8_t {
  kOpen,
  kRunning,
  kPaused,
  kDraining,
  kDone,
  kFailed,
  kCancelled
};
enum class TaskKind : std::uint8_t { kTrain, kEvaluate, kTrainLm };
enum class TaskPhase : std::uint8_t {
  kBlocked,
  kReady,
  kBackoff,
  kAssigned,
  kRunning,
  kPausing,
  kPaused,
  kStopping,
  kQuarantined,
  kSucceeded,
  kStopped,
  kFailed,
  kCancelled,
  kSkipped
};
enum class AttemptOutcome : std::uint8_t { kDone, kDiverged, kFailed, kLost, kRetry };

inline constexpr std::size_t kSweepPhases = 7;
inline constexpr std::size_t kTaskKinds = 3;
inline constexpr std::size_t kTaskPhases = 14;
inline constexpr std::size_t kAttemptOutcomes = 5;

// As the labels spell them: "train", "evaluate", "train_lm"; "ready", "running", ...
std::string_view to_string(SweepPhase value);
std::string_view to_string(TaskKind value);
std::string_view to_string(TaskPhase value);
std::string_view to_string(AttemptOutcome value);

// What an agent has counted since it started. It sends totals, so a lost message loses nothing.
struct AgentTotals {
  std::uint64_t cache_hits = 0;
  std::uint64_t cache_misses = 0;
  std::uint64_t cache_bytes = 0;  // on disk now, the only one that may fall
  std::uint64_t cache_evicted_bytes = 0;
  std::uint64_t cache_corrupt_chunks = 0;
  std::uint64_t cache_refused_writes = 0;
  std::uint64_t chunks_fetched = 0;  // from caches of other workers
  std::uint64_t chunk_bytes_fetched = 0;
  std::uint64_t chunks_served = 0;  // to other workers
  std::uint64_t chunk_bytes_served = 0;
  std::uint64_t chunk_fetches_failed = 0;
  std::uint64_t executor_restarts = 0;
  std::uint64_t trained_tokens = 0;
  std::uint64_t harvested_tokens = 0;
  std::uint64_t training_us = 0;  // of training steps
  std::uint64_t waiting_us = 0;   // of these, for rows of the stream
};

struct ProcessIdentity {
  std::string component;  // "scheduler", "run", "worker"
  std::string version;
  std::string commit;
  double start_time_s = 0;  // Unix time
};

class Telemetry {
 public:
  explicit Telemetry(const ProcessIdentity& process);
  ~Telemetry();
  Telemetry(const Telemetry&) = delete;
  Telemetry& operator=(const Telemetry&) = delete;

  void set_sweeps(SweepPhase phase, std::uint64_t count);
  void set_tasks(TaskKind kind, TaskPhase phase, std::uint64_t count);
  void count_attempt(TaskKind kind, AttemptOutcome outcome);
  void set_trained_tokens_per_second(double rate);

  // Adds what `worker` counted since it was last heard. A total that fell means that the agent
  // started again: the whole new total is added.
  void observe_agent(std::string_view worker, const AgentTotals& totals);
  // Its counts stay; its cache and the agent itself are no longer part of the gauges.
  void forget_agent(std::string_view worker);

  // The page, families and series sorted by name. Content type: kContentType.
  std::string expose() const;
  static constexpr std::string_view kContentType = "text/plain; version=0.0.4; charset=utf-8";

 private:
  struct State;  // keeps prometheus-cpp out of every file that includes this one
  std::unique_ptr<State> state_;
};

}  // namespace saesweep::metrics
