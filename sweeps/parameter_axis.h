// What stands under one parameter of training: a value, a list of values (a grid axis), or a range
// to draw from.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "sweeps/draws.h"
#include "sweeps/known_keys.h"
#include "sweeps/section.h"

namespace saesweep::sweeps {

// monostate: `none` (grad_clip). Vector: fractions. String: a word, or a path as written.
using ParameterValue = std::variant<std::monostate, std::uint64_t, double, StepCount,
                                    std::array<double, 2>, std::vector<double>, std::string>;
std::string to_string(const ParameterValue& value);

struct ParameterAxis {
  ParameterId id = ParameterId::kTokens;
  const YamlNode* node = nullptr;      // where it stands; outlives this
  std::string path;                    // "train.lr", "trials[0].k"
  std::vector<ParameterValue> values;  // of a drawn axis: its choices, if it has any
  std::optional<DrawnAxis> draw;
  std::uint64_t samples = 0;  // of a drawn axis
};

// Nothing if it is wrong, which is reported.
std::optional<ParameterAxis> read_axis(const Parameter& parameter, const YamlNode& node,
                                       const std::string& path, Problems& problems);

// Seeds: a number, a list, or {range: [first, past the last]}.
std::optional<std::vector<std::uint64_t>> read_seeds(const YamlNode& node, const std::string& path,
                                                     Problems& problems);

}  // namespace saesweep::sweeps
