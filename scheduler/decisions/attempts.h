// The history of a task: one attempt for each lease, and how it ended.
//
//   class          what it means                                counts against the task
//   crash, deadly  its executor died alone                      yes: deaths of the run
//   out_of_memory  an allocation failed                         yes: smaller runs, more memory
//   trouble        disk, files, devices                         yes: tries since a checkpoint
//   refused        the worker did not take it                   only if it says that it never will
//   lost           its worker fell silent or forgot it          no
//   preempted      its worker left and said so                  no
//   drained, paused, interrupted                                no: it goes on from its checkpoint
//   at_rung        it is trained as far as it was told          no: neither does it wait in turn
//   done, diverged, failed, cancelled, stopped                  the end
#pragma once

#include <string>
#include <string_view>

#include "scheduler/decisions/journal.pb.h"

namespace saesweep::scheduler {

inline constexpr int kMostAttemptsKept = 32;

std::string_view to_string(journal::Ending ending);  // "out_of_memory"; "running" while it goes on

void begin_attempt(journal::Task& task, const journal::Run& run, double time);
// Of the newest attempt, if it goes on.
void end_attempt(journal::Task& task, journal::Ending ending, const std::string& reason,
                 double time);
// The newest attempt goes on after all.
void continue_attempt(journal::Task& task);

}  // namespace saesweep::scheduler
