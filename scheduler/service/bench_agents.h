// How a scheduler bears many agents: that only live, that tell of their progress, and that all come
// back at once.
#pragma once

#include <cstdint>
#include <filesystem>

#include "core/json.h"
#include "core/result.h"

namespace saesweep::scheduler {

struct AgentsBench {
  std::filesystem::path directory;  // scratch, on the disk whose journal is meant; emptied again
  std::uint32_t agents = 512;
  std::uint32_t slots = 1024;  // of all agents together
  std::uint32_t members = 10;  // of a run
  unsigned seconds = 5;        // of each look
};

// Scheduler and agents as in bench_cluster.h. The shares are of one core, of the scheduler's
// thread.
//
//   {"agents", "slots",
//    "idle": {"scheduler_cpu_share"},          a heartbeat a second each
//    "progress": {"points_per_s", "scheduler_cpu_share", "ask_ms": {"p50", "p99"}},
//                                              every slot has a run that tells of each member twice
//                                              a second; "ask_ms": of a question at the same time
//    "reconnect": {"seconds", "tasks", "tasks_begun_anew"}}
//                                              from when a new scheduler listens until every agent
//                                              is known to it; tasks whose lease did not hold
//
// Errors: kInvalidArgument; kResourceExhausted if the disk is full; kUnavailable.
Result<Json> bench_agents(const AgentsBench& bench);

}  // namespace saesweep::scheduler
