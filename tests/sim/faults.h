// What goes wrong in a run of the simulation, drawn from its seed: each run enables a random subset
// with random rates (swarm testing), until `end`.
#pragma once

#include <cstdint>

#include "core/clock.h"
#include "core/philox.h"

namespace saesweep::sim {

struct Faults {
  // Of a frame.
  double loss = 0;
  double duplicate = 0;
  double damage = 0;        // a bit of its body is another
  Duration delay{};         // mean
  bool heavy_tail = false;  // a delay in fifty is a hundred times longer
  // Mean time between, of the whole cluster; zero: never.
  Duration reconnect{};  // frames of the old connection meet those of the new one
  Duration one_way_cut{};
  Duration both_ways_cut{};
  Duration scheduler_crash{};
  Duration scheduler_pause{};
  Duration worker_crash{};
  Duration worker_pause{};
  Duration worker_leaves{};  // BYE, after checkpoints
  Duration executor_crash{};
  Duration executor_hang{};
  Duration disk_full{};
  Duration command{};          // a person's
  Duration wall_jump{};        // of the scheduler's wall clock, by hours
  double crash_at_commit = 0;  // of a commit
  double drift = 0;            // of monotonic clocks: at most so much too fast or too slow
  bool is_over = false;

  static Faults draw(Rng& rng);
};

}  // namespace saesweep::sim
