// The version of the metrics of an evaluation. It rises when a definition or its bytes change; it
// is part of a score's identity, so that old scores are computed anew and never mixed with new
// ones.
#pragma once

#include <string_view>

namespace saesweep::metrics {

// `evaluation`: "core" | "board".
constexpr int metric_version(std::string_view evaluation) {
  constexpr int kCore = 1, kBoard = 1;
  return evaluation == "core" ? kCore : kBoard;
}

}  // namespace saesweep::metrics
