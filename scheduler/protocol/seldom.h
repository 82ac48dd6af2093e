// Lets one of many events through a minute, for the log, and counts the rest.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>

#include "core/clock.h"

namespace saesweep::protocol {

class Seldom {
 public:
  // How many there were since the last one that was let through, this one included; nothing if it
  // is too early for another.
  std::optional<std::uint64_t> let_through(TimePoint now) {
    ++since_;
    if (last_ && now - *last_ < std::chrono::minutes(1)) return std::nullopt;
    last_ = now;
    return std::exchange(since_, 0);
  }

 private:
  std::optional<TimePoint> last_;
  std::uint64_t since_ = 0;
};

}  // namespace saesweep::protocol
