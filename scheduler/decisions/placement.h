// Which ready tasks go together, and to whom: cohorts of one stream, cut over the free slots.
#pragma once

#include "scheduler/decisions/decide.h"

namespace saesweep::scheduler {

// Adds the grants and the ASSIGN that follow from who is free now.
void place(const SweepState& state, Decision& decision);

}  // namespace saesweep::scheduler
