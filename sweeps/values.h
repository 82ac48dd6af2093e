// How a sweep file writes numbers: counts (200k), sizes (4GiB), times (60s), shares (5%), reals.
// A message says what is wrong and what would be right; the caller adds where.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "core/result.h"

namespace saesweep::sweeps {

// 200, 200k, 1.5M, 2G, 1e6: thousands, exact; at most 2^63 - 1 so that JSON readers agree.
Result<std::uint64_t> parse_count(std::string_view text);
// Bytes: 512, 4KiB, 1.5GiB.
Result<std::uint64_t> parse_size(std::string_view text);
// Seconds: 60, 60s, 1.5m, 2h.
Result<double> parse_seconds(std::string_view text);
// Finite: 0.01, 3e-4.
Result<double> parse_real(std::string_view text);
// A share in per cent: "5%" is 5; "0.05" is 5.
Result<double> parse_share_percent(std::string_view text);

// A number of steps, or a share of the run that becomes one when the run's length is known.
struct StepCount {
  bool is_share = false;
  double percent = 0;
  std::uint64_t steps = 0;
  std::uint64_t of(std::uint64_t run_steps) const;  // shares are rounded down
  std::string to_string() const;                    // "1000" or "5%"
  bool operator==(const StepCount&) const = default;
};
Result<StepCount> parse_steps(std::string_view text);

// Shortest text that reads back as the same double.
std::string shortest(double value);

}  // namespace saesweep::sweeps
