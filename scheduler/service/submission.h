// From a plan to the tasks of its sweep.
#pragma once

#include <string>
#include <string_view>

#include "core/result.h"
#include "scheduler/decisions/decide.h"
#include "sweeps/sweep_plan.h"

namespace saesweep::scheduler {

// Trials and baselines as subjects; a train task for each trial and for random_model, an evaluate
// task for each evaluation of each subject. `lost` is left empty.
Submission to_submission(const sweeps::SweepPlan& plan);

// As a client sends it: a journal::SweepSubmitted.
std::string to_payload(Submission submission);
// Everything that later code relies on is checked: names, identities, references, folders.
// Errors: kInvalidArgument, saying what is wrong.
Result<Submission> parse_submission(std::string_view payload);
// The same of one that is taken apart already.
Result<void> check_submission(const Submission& submission);

}  // namespace saesweep::scheduler
