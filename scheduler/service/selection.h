// Which trials the words of a command line mean: 5 (number in the sweep), 1-10, all, last (the one
// with the highest number), all 12 hex digits of an id, or "id:" and at least 4 of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"

namespace saesweep::scheduler {

struct Selectable {
  std::uint32_t number = 0;
  std::string identity;  // 64 hex digits
};

// Indexes into `trials` that one word means, in their order.
// Errors: kInvalidArgument if it is no selector, or an id that fits several trials (which);
// kNotFound if a trial it names is not there.
Result<std::vector<std::size_t>> select_trials(std::string_view selector,
                                               std::span<const Selectable> trials);

// Of all words together, each index once, in the order of first mention. Errors: as above.
Result<std::vector<std::size_t>> select_trials(std::span<const std::string> selectors,
                                               std::span<const Selectable> trials);

}  // namespace saesweep::scheduler
