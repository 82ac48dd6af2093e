#include "sweeps/nearest.h"

#include <fmt/format.h>

#include <algorithm>

namespace saesweep::sweeps {

int edit_distance(std::string_view a, std::string_view b) {
  a = a.substr(0, 64);
  b = b.substr(0, 64);
  const std::size_t width = b.size() + 1;
  std::vector<int> before(width), last(width), row(width);
  for (std::size_t j = 0; j < width; ++j) last[j] = static_cast<int>(j);
  for (std::size_t i = 1; i <= a.size(); ++i) {
    row[0] = static_cast<int>(i);
    for (std::size_t j = 1; j < width; ++j) {
      const int replace = last[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      row[j] = std::min({replace, last[j] + 1, row[j - 1] + 1});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        row[j] = std::min(row[j], before[j - 2] + 1);
    }
    std::swap(before, last);
    std::swap(last, row);
  }
  return last[b.size()];
}

std::string_view nearest_word(std::string_view word, std::span<const std::string_view> words) {
  std::string_view best;
  int best_distance = 0;
  for (const std::string_view candidate : words) {
    const int distance = edit_distance(word, candidate);
    if (distance <= std::max<int>(1, static_cast<int>(candidate.size()) / 3) &&
        (best.empty() || distance < best_distance)) {
      best = candidate;
      best_distance = distance;
    }
  }
  return best;
}

std::string suggestion(std::string_view word, std::span<const std::string_view> words) {
  const std::string_view best = nearest_word(word, words);
  if (!best.empty()) return fmt::format("did you mean '{}'?", best);
  if (words.size() == 1) return fmt::format("{} would be right", words[0]);
  return fmt::format("one of {} would be right", fmt::join(words, ", "));
}

}  // namespace saesweep::sweeps
