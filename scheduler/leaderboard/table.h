// The leaderboard for a terminal: at most 100 columns wide, best first, one block per hook.
#pragma once

#include <string>

#include "scheduler/leaderboard/leaderboard.h"

namespace saesweep::scheduler {

struct TableOptions {
  bool color = false;  // ANSI
};

// `board` has been ranked (and perhaps filtered or sorted anew). "*" marks the front, "~" a row
// whose interval overlaps that of the row above. Columns that no row fills are left out; where
// trials differ in the seed alone, "seeds" is the standard deviation of their qualities.
std::string leaderboard_table(const Leaderboard& board, const TableOptions& options = {});

}  // namespace saesweep::scheduler
