// Rules that stop a trial by its learning curve alone, or by its curve among the others'. Pure, as
// in rungs.h: values are loss-like, what is not finite counts as the worst.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "scheduler/early_stopping/rungs.h"

namespace saesweep::scheduler {

struct CurvePoint {
  std::uint64_t tokens = 0;  // rises from point to point
  double value = 0;
};
using Curve = std::vector<CurvePoint>;

// Stops a trial whose best value so far is strictly worse than a percentile (50: the median) over
// the other trials of their running mean up to the same number of tokens.
// Source: Golovin et al., "Google Vizier", KDD 2017, section 3.2.2.
struct PercentileRule {
  double percentile = 50;      // of 0 (best) to 100 (worst)
  std::uint64_t warmup = 0;    // tokens before which nobody is stopped
  std::size_t min_trials = 5;  // others that came as far
  bool stops(const std::map<TrialIndex, Curve>& curves, TrialIndex trial) const;
  // The same with this curve of the trial in place of the one among `curves`.
  bool stops(const std::map<TrialIndex, Curve>& curves, TrialIndex trial, const Curve& own) const;
};

// Stops a trial whose best value did not improve by `min_delta` over its last `reports` points.
struct PatienceRule {
  std::size_t reports = 5;
  double min_delta = 0;
  bool stops(const Curve& curve) const;
};

// Stops a trial whose value left [low, high] after the warm-up. Values as they are, no sign turned.
struct ThresholdRule {
  std::optional<double> low;
  std::optional<double> high;
  std::uint64_t warmup = 0;
  bool stops(const Curve& curve) const;
};

// Ranks points of which both numbers are better when lower: by non-dominated front, then by
// crowding distance (rarer is better), then by place in `points`. The best first.
// Source: Deb et al., "A fast and elitist multiobjective genetic algorithm: NSGA-II", 2002.
struct TwoValues {
  double first = 0, second = 0;
};
std::vector<std::size_t> rank_by_fronts(const std::vector<TwoValues>& points);

}  // namespace saesweep::scheduler
