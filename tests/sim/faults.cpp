#include "tests/sim/faults.h"

namespace saesweep::sim {
namespace {

using namespace std::chrono_literals;

}  // namespace

Faults Faults::draw(Rng& rng) {
  Faults faults;
  const auto enabled = [&] { return rng.below(2) == 0; };
  const auto between = [&](Duration least, Duration most) {
    return least + std::chrono::duration_cast<Duration>((most - least) * rng.uniform());
  };
  const auto maybe = [&](Duration least, Duration most) {
    const Duration mean = between(least, most);
    return enabled() ? mean : Duration{};
  };
  faults.loss = enabled() ? 0.2 * rng.uniform() * rng.uniform() : 0;
  faults.duplicate = enabled() ? 0.2 * rng.uniform() : 0;
  faults.delay = between(1ms, enabled() ? 500ms : 10ms);
  faults.heavy_tail = enabled();
  faults.reconnect = maybe(20s, 300s);
  faults.one_way_cut = maybe(60s, 600s);
  faults.both_ways_cut = maybe(60s, 600s);
  faults.scheduler_crash = maybe(60s, 600s);
  faults.scheduler_pause = maybe(120s, 900s);
  faults.worker_crash = maybe(60s, 600s);
  faults.worker_pause = maybe(120s, 900s);
  faults.worker_leaves = maybe(120s, 900s);
  faults.executor_crash = maybe(60s, 300s);
  faults.executor_hang = maybe(120s, 900s);
  faults.disk_full = maybe(200s, 900s);
  faults.command = maybe(15s, 120s);
  faults.crash_at_commit = enabled() ? 0.02 * rng.uniform() : 0;
  faults.damage = enabled() ? 0.1 * rng.uniform() * rng.uniform() : 0;
  faults.wall_jump = maybe(60s, 600s);
  faults.drift = enabled() ? 0.02 * rng.uniform() : 0;
  return faults;
}

}  // namespace saesweep::sim
