// A cluster in one thread with virtual time: one scheduler, workers, people who give orders, and
// everything that goes wrong, all drawn from one seed. After a while the faults stop, and every
// sweep that nobody cancelled has to finish.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tests/sim/scheduler_node.h"
#include "tests/sim/worker_node.h"

namespace saesweep::sim {

struct Outcome {
  std::string violation;   // what did not hold; empty: everything did
  std::uint64_t hash = 0;  // of all that became durable
  std::uint64_t events = 0, frames = 0, steps = 0, restarts = 0, workers = 0, tasks = 0;
  double hours = 0;  // of virtual time
  bool operator==(const Outcome&) const = default;
};
Outcome simulate(std::uint64_t seed);

}  // namespace saesweep::sim
