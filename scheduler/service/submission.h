// From a plan to the tasks of its sweep.
#pragma once

#include "scheduler/decisions/decide.h"
#include "sweeps/sweep_plan.h"

namespace saesweep::scheduler {

// Trials and baselines as subjects; a train task for each trial and for random_model, an evaluate
// task for each evaluation of each subject. `lost` is left empty.
Submission to_submission(const sweeps::SweepPlan& plan);

}  // namespace saesweep::scheduler
