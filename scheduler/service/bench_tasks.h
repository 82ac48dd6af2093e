// How many tasks the scheduler brings through a second when the tasks themselves do nothing:
// submitted, leased, answered and committed with a synced journal, over encrypted sockets.
#pragma once

#include <cstdint>
#include <filesystem>

#include "core/json.h"
#include "core/result.h"

namespace saesweep::scheduler {

struct TasksBench {
  std::filesystem::path directory;  // scratch, on the disk whose journal is meant; emptied again
  std::uint32_t slots = 1000;       // of all agents together
  std::uint64_t tasks = 100'000;    // a round
  std::uint32_t agents = 0;         // 0: one for each 125 slots
  unsigned rounds = 5;
  unsigned latencies = 200;  // sweeps of one task each, one after the other
  double task_s = 0;         // > 0: tasks take so long, each a run of its own; one round
};

// An agent (see bench_cluster.h) answers each run that it is assigned at once: accepted, and
// every member done. A round is timed from the first to the last answer to a result, apart from
// submitting. The baseline is the same core and journal without sockets: the same decisions and
// synced commits, by one thread.
//
//   {"tasks_per_s": median, "tasks_per_s_all": [...], "slots", "agents", "tasks", "rounds",
//    "submit_s": median, "latency_ms": {"p50", "p99"} of a sweep of one task, from submitting it to
//    the answer to its result, "baseline": {"name": "core", "tasks_per_s"}, "ratio"}
//
// With tasks that take a while: {"slots", "agents", "tasks", "task_s", "submit_s", "seconds" from
// submitting to the last answer, "over_ideal": how much longer than full slots would take (0.01:
// one percent), "baseline": {"name": "ideal", "seconds"}, "ratio"}.
//
// Errors: kInvalidArgument; kResourceExhausted if the disk is full; kUnavailable.
Result<Json> bench_tasks(const TasksBench& given);

}  // namespace saesweep::scheduler
