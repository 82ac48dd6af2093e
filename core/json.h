// JSON: parse with limits, write canonically. Numbers are written so that reading them back gives
// the same double.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "core/result.h"

namespace saesweep {

using Json = nlohmann::json;  // object keys are kept sorted

// Errors: kCorrupted for text that is not JSON, is nested deeper than `max_depth`, repeats a key of
// an object, or is longer than `max_bytes`.
Result<Json> parse_json(std::string_view text, std::size_t max_depth = 64,
                        std::size_t max_bytes = std::size_t{256} << 20);

// Sorted keys, no spaces, shortest numbers that read back the same: the form that is hashed.
// NaN and infinities become null.
std::string canonical_json(const Json& value);

// The same with an indent of one space, for files people open.
std::string pretty_json(const Json& value);

}  // namespace saesweep
