#include "scheduler/cli/selectors.h"

#include <algorithm>
#include <charconv>

namespace saesweep::cli {
namespace {

constexpr std::size_t kIdDigits = 12, kFewestDigits = 4;

bool is_hex(std::string_view text) {
  return std::ranges::all_of(
      text, [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}
bool is_decimal(std::string_view text) {
  return !text.empty() && std::ranges::all_of(text, [](char c) { return c >= '0' && c <= '9'; });
}

}  // namespace

Result<std::size_t> select_trial(std::string_view selector,
                                 const std::vector<scheduler::SubjectResult>& subjects) {
  std::string_view prefix;
  if (selector.starts_with("id:")) {
    prefix = selector.substr(3);
    if (prefix.size() < kFewestDigits || prefix.size() > 64 || !is_hex(prefix))
      return fail(ErrorCode::kInvalidArgument,
                  "trial '{}': after id: come at least {} of the digits 0-9 a-f", selector,
                  kFewestDigits);
  } else if (selector.size() == kIdDigits && is_hex(selector)) {
    prefix = selector;
  } else if (!is_decimal(selector)) {
    return fail(ErrorCode::kInvalidArgument,
                "trial '{}': a number as tables show it (3), all 12 digits of an id "
                "(3fa91c0a77d2), or id: and at least 4 of them (id:3fa9) would be right",
                selector);
  }

  if (prefix.empty()) {
    std::uint32_t wanted = 0;
    const auto [end, problem] =
        std::from_chars(selector.data(), selector.data() + selector.size(), wanted);
    std::size_t trials = 0;
    for (std::size_t i = 0; i < subjects.size(); ++i) {
      if (subjects[i].baseline) continue;
      ++trials;
      if (problem == std::errc() && subjects[i].number == wanted) return i;
    }
    return fail(ErrorCode::kNotFound, "trial {}: the sweep has {} trials, numbered from 0",
                selector, trials);
  }

  std::vector<std::size_t> found;
  for (std::size_t i = 0; i < subjects.size(); ++i)
    if (!subjects[i].baseline && std::string_view(subjects[i].identity).starts_with(prefix))
      found.push_back(i);
  if (found.empty())
    return fail(ErrorCode::kNotFound, "no trial of the sweep has the id {}", prefix);
  if (found.size() == 1) return found.front();
  std::string candidates;
  for (const std::size_t i : found)
    candidates += fmt::format("{}{} ({})", candidates.empty() ? "" : ", ",
                              subjects[i].identity.substr(0, kIdDigits), subjects[i].number);
  return fail(ErrorCode::kInvalidArgument, "'{}' fits {} trials: {}", selector, found.size(),
              candidates);
}

}  // namespace saesweep::cli
