// Which rows are best, and which cannot be told apart.
#pragma once

#include <vector>

#include "scheduler/leaderboard/leaderboard.h"

namespace saesweep::scheduler {

// Sets `front` and `tied` and puts the rows in order.
//
// front: among the trials that are done and share model and hook, those that no other beats in both
// core.l0 (low) and quality (high). Baselines are never on a front and beat nothing.
// Order: hook; trials before baselines; front first; quality descending, absent last; then the id
// (baselines: name, d_sae).
// tied: the interval of quality overlaps that of the row before, of the same hook.
void rank(std::vector<LeaderboardRow>& rows);

// Trials that differ in the seed alone, and how far their qualities spread.
struct SeedSpread {
  std::size_t seeds = 0;  // trials with a quality
  double mean = 0;
  double deviation = 0;  // sample standard deviation; 0 for one seed
};
// One per row; nothing for baselines and for trials without a quality.
std::vector<std::optional<SeedSpread>> seed_spreads(const std::vector<LeaderboardRow>& rows);

}  // namespace saesweep::scheduler
