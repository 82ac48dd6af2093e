// Named scores with their intervals: what an evaluation answers and scores.json holds.
//
// Intervals are those of a delete-one-block jackknife: the sample is cut into contiguous blocks of
// documents, the score is computed once without each block, and the spread of these values gives a
// standard error. This holds for any score that is a smooth function of sums, ratios of means among
// them, and needs no formula of its own for each.
// Source: Efron & Stein, "The jackknife estimate of variance" (1981).
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>

#include "core/json.h"

namespace saesweep::metrics {

// Below this many blocks an interval would be mostly luck: there is none.
inline constexpr std::size_t kFewestBlocks = 8;
inline constexpr std::size_t kMostBlocks = 32;

// Blocks that `documents` documents are cut into.
std::size_t block_count(std::size_t documents);
// The block of document `index`: contiguous, sizes differ by at most 1.
std::size_t block_of(std::size_t index, std::size_t documents);

// Quantile .975 of Student's t; degrees of freedom 7..31.
double student_t_975(std::size_t degrees_of_freedom);

// sqrt((B - 1) / B * sum_j (v_j - mean v)^2) over the values without block j.
double jackknife_error(std::span<const double> without_block);

struct Score {
  double value = 0;  // NaN is written as null
  std::optional<double> low = std::nullopt, high = std::nullopt;
  std::uint64_t n = 0;  // values averaged
  int version = 1;      // of the metric's definition
};

// value +- t(blocks - 1, .975) * error. No interval below kFewestBlocks or where one of the values
// is not finite.
Score with_interval(double value, std::span<const double> without_block, std::uint64_t n,
                    int version);

using Scores = std::map<std::string, Score>;
// {name: {"value", "low", "high", "n", "version"}}
Json to_json(const Scores& scores);

}  // namespace saesweep::metrics
