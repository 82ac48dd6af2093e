// The word somebody probably meant: suggestions for misspelt keys, hooks and names.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace saesweep::sweeps {

// Steps to turn one into the other: insert, delete, replace, swap neighbours. Words longer than 64
// characters are compared by their first 64.
int edit_distance(std::string_view a, std::string_view b);

// The closest of `words`, or empty if none is close (more than a third of its letters differ).
std::string_view nearest_word(std::string_view word, std::span<const std::string_view> words);

// "did you mean 'batch'?" or, if nothing is close, "one of a, b, c would be right".
std::string suggestion(std::string_view word, std::span<const std::string_view> words);

}  // namespace saesweep::sweeps
