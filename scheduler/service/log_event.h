// What the log says of events, before they are durable.
#pragma once

#include "scheduler/decisions/journal.pb.h"

namespace saesweep::scheduler {

void log_event(const journal::Event& event);

}  // namespace saesweep::scheduler
