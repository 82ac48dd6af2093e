// The decisions of early stopping once more, from the reports that the journal has: what a rule
// said then, the same reports say again. Slow and plain on purpose, and apart from what decided.
#pragma once

#include <string>

#include "scheduler/decisions/sweep_state.h"

namespace saesweep::scheduler {

// What is wrong with a decision about a trial that follows on `before`; empty if it is right, or if
// the event is none.
std::string broken_decision(const SweepState& before, const journal::Event& event);

}  // namespace saesweep::scheduler
