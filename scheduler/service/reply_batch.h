// Replies that leave together, as few messages: what a worker may have unanswered is counted in
// messages.
#pragma once

#include <vector>

#include "scheduler/decisions/decide.h"

namespace saesweep::scheduler {

// ASSIGN and RESULT_ACK become part of the message before them to the same peer if that is one of
// the same type and stays below a MiB. What each peer hears, and in which order, is the same.
std::vector<Reply> put_together(std::vector<Reply> replies);

}  // namespace saesweep::scheduler
