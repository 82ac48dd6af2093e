// Time by the door: whoever needs it is given a Clock. Durations come from the monotonic clock;
// wall time is for display.
#pragma once

#include <chrono>

namespace saesweep {

using TimePoint = std::chrono::steady_clock::time_point;
using Duration = std::chrono::steady_clock::duration;

class Clock {
 public:
  virtual ~Clock() = default;
  virtual TimePoint now() const = 0;
};

class SystemClock final : public Clock {
 public:
  TimePoint now() const override { return std::chrono::steady_clock::now(); }
};

}  // namespace saesweep
