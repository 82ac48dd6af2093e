// Virtual time: what happens when, in one thread. Equal moments keep the order in which they were
// asked for, so a seed replays a whole cluster.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <utility>

#include "core/clock.h"
#include "core/philox.h"

namespace saesweep::sim {

class Timeline {
 public:
  TimePoint now() const { return now_; }
  void at(TimePoint when, std::function<void()> what) {
    waiting_.emplace(std::pair(std::max(when, now_), ++count_), std::move(what));
  }
  void after(Duration wait, std::function<void()> what) { at(now_ + wait, std::move(what)); }
  // Does the next thing. False: nothing is left to happen.
  bool step() {
    if (waiting_.empty()) return false;
    auto next = waiting_.extract(waiting_.begin());
    now_ = next.key().first;
    next.mapped()();
    return true;
  }
  std::uint64_t steps() const { return count_ - waiting_.size(); }

 private:
  TimePoint now_{std::chrono::hours(1)};
  std::uint64_t count_ = 0;
  std::map<std::pair<TimePoint, std::uint64_t>, std::function<void()>> waiting_;
};

// The monotonic clock of a machine: begins anywhere, and goes too fast or too slow by a little.
struct LocalClock {
  TimePoint began;  // by the timeline
  Duration offset{};
  double rate = 1;

  static LocalClock draw(Rng& rng, TimePoint now, double drift) {
    return {now, std::chrono::seconds(rng.below(100'000)), 1 + drift * (2 * rng.uniform() - 1)};
  }
  TimePoint at(TimePoint now) const {
    return began + offset + std::chrono::duration_cast<Duration>((now - began) * rate);
  }
};

}  // namespace saesweep::sim
