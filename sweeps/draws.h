// Points of a search space: grid, random, Latin hypercube, Sobol.
//
// Point i depends on (search seed, strategy, the axes sorted by name with their ranges, i) and on
// nothing else, so more samples keep the earlier points (not for `lhs`, which divides each range
// into as many parts as there are samples, nor for `grid`). The randomness is counter-based.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "core/json.h"

namespace saesweep::sweeps {

enum class Strategy : std::uint8_t { kGrid, kRandom, kLatinHypercube, kSobol };
std::string_view to_string(Strategy strategy);  // "grid", "random", "lhs", "sobol"
std::optional<Strategy> parse_strategy(std::string_view text);

struct DrawnAxis {
  enum class Kind : std::uint8_t { kUniform, kLogUniform, kIntUniform, kChoice };
  std::string name;
  Kind kind = Kind::kUniform;
  double low = 0, high = 0;                 // kUniform, kLogUniform
  std::uint64_t int_low = 0, int_high = 0;  // kIntUniform, both ends included
  Json choices;                             // kChoice: the values, as they are drawn
};

// kUniform, kLogUniform: double; kIntUniform: the integer; kChoice: the index of the choice.
using DrawnValue = std::variant<double, std::uint64_t>;

inline constexpr std::size_t kMaxSobolAxes = 23;

class PointSource {
 public:
  // Sorts the axes by name. samples > 0; sobol: at most kMaxSobolAxes axes; grid: one axis.
  PointSource(Strategy strategy, std::uint64_t seed, std::vector<DrawnAxis> axes,
              std::uint64_t samples);

  const std::vector<DrawnAxis>& axes() const { return axes_; }
  std::uint64_t samples() const { return samples_; }
  // One value per axis, in the order of axes(). index < samples().
  std::vector<DrawnValue> point(std::uint64_t index) const;

 private:
  double position(std::size_t axis, std::uint64_t index) const;  // in [0, 1)

  Strategy strategy_;
  std::uint64_t seed_;
  std::vector<DrawnAxis> axes_;
  std::uint64_t samples_;
  std::string purpose_;  // names the axes and ranges, so that another space has other points
};

// Coordinate `dimension` (from 0) of point `index` of the Sobol sequence, as 32 bits of a fraction.
// Source: Joe and Kuo, "Constructing Sobol sequences with better two-dimensional projections"
// (SIAM J. Sci. Comput. 2008), direction numbers new-joe-kuo-6.21201; points in Gray-code order.
std::uint32_t sobol_bits(std::size_t dimension, std::uint32_t index);

}  // namespace saesweep::sweeps
