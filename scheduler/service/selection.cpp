#include "scheduler/service/selection.h"

#include <algorithm>
#include <charconv>
#include <numeric>
#include <optional>

namespace saesweep::scheduler {
namespace {

constexpr std::size_t kIdDigits = 12, kFewestDigits = 4;

bool is_hex(std::string_view text) {
  return std::ranges::all_of(
      text, [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

// Nothing if it is no number; the highest there is for one beyond all.
std::optional<std::uint32_t> to_number(std::string_view text) {
  if (text.empty() || !std::ranges::all_of(text, [](char c) { return c >= '0' && c <= '9'; }))
    return std::nullopt;
  std::uint32_t number = 0;
  const auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), number);
  return problem == std::errc() ? number : ~std::uint32_t{0};
}

Result<std::vector<std::size_t>> by_number(std::string_view selector, std::uint32_t first,
                                           std::uint32_t last, std::span<const Selectable> trials) {
  if (first > last)
    return fail(ErrorCode::kInvalidArgument, "trials '{}': {}-{} would be right", selector, last,
                first);
  std::vector<std::size_t> found;
  std::uint32_t highest = 0;
  for (std::size_t i = 0; i < trials.size(); ++i) {
    if (trials[i].number >= first && trials[i].number <= last) found.push_back(i);
    highest = std::max(highest, trials[i].number);
  }
  // The ends of a range have to be there; what lies between may have gaps.
  if (found.empty() || trials.empty() || last > highest)
    return fail(ErrorCode::kNotFound, "trial {}: the sweep has {} trials, numbered from 0",
                selector, trials.size());
  return found;
}

Result<std::vector<std::size_t>> by_id(std::string_view selector, std::string_view prefix,
                                       std::span<const Selectable> trials) {
  std::vector<std::size_t> found;
  for (std::size_t i = 0; i < trials.size(); ++i)
    if (std::string_view(trials[i].identity).starts_with(prefix)) found.push_back(i);
  if (found.empty())
    return fail(ErrorCode::kNotFound, "no trial of the sweep has the id {}", prefix);
  if (found.size() == 1) return found;
  std::string candidates;
  for (const std::size_t i : found)
    candidates += fmt::format("{}{} ({})", candidates.empty() ? "" : ", ",
                              trials[i].identity.substr(0, kIdDigits), trials[i].number);
  return fail(ErrorCode::kInvalidArgument, "'{}' fits {} trials: {}", selector, found.size(),
              candidates);
}

}  // namespace

Result<std::vector<std::size_t>> select_trials(std::string_view selector,
                                               std::span<const Selectable> trials) {
  if (selector == "all") {
    std::vector<std::size_t> every(trials.size());
    std::iota(every.begin(), every.end(), std::size_t{0});
    return every;
  }
  if (selector == "last") {
    if (trials.empty()) return fail(ErrorCode::kNotFound, "trial last: the sweep has no trials");
    const auto last = std::ranges::max_element(trials, {}, &Selectable::number);
    return std::vector<std::size_t>{static_cast<std::size_t>(last - trials.begin())};
  }
  if (selector.starts_with("id:")) {
    const std::string_view prefix = selector.substr(3);
    if (prefix.size() < kFewestDigits || prefix.size() > 64 || !is_hex(prefix))
      return fail(ErrorCode::kInvalidArgument,
                  "trial '{}': after id: come at least {} of the digits 0-9 a-f", selector,
                  kFewestDigits);
    return by_id(selector, prefix, trials);
  }
  if (selector.size() == kIdDigits && is_hex(selector)) return by_id(selector, selector, trials);
  if (const auto number = to_number(selector)) return by_number(selector, *number, *number, trials);
  if (const auto dash = selector.find('-'); dash != selector.npos) {
    const auto first = to_number(selector.substr(0, dash));
    const auto last = to_number(selector.substr(dash + 1));
    if (first && last) return by_number(selector, *first, *last, trials);
  }
  return fail(ErrorCode::kInvalidArgument,
              "trial '{}': a number as tables show it (3), a range (1-10), all, last, all 12 "
              "digits of an id (3fa91c0a77d2), or id: and at least 4 of them (id:3fa9) would be "
              "right",
              selector);
}

Result<std::vector<std::size_t>> select_trials(std::span<const std::string> selectors,
                                               std::span<const Selectable> trials) {
  std::vector<std::size_t> chosen;
  std::vector<bool> taken(trials.size(), false);
  for (const std::string& selector : selectors) {
    SAE_TRY(const auto found, select_trials(selector, trials));
    for (const std::size_t index : found) {
      if (taken[index]) continue;
      taken[index] = true;
      chosen.push_back(index);
    }
  }
  return chosen;
}

}  // namespace saesweep::scheduler
