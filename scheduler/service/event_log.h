// What the scheduler's log says of an event: the life of runs and trials, not every step.
#pragma once

#include "scheduler/decisions/journal.pb.h"

namespace saesweep::scheduler {

void log_event(const journal::Event& event);

}  // namespace saesweep::scheduler
