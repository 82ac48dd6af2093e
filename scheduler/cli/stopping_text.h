// What a sweep's early stopping would do, for those who look before they submit.
#pragma once

#include <string>

#include "core/json.h"
#include "scheduler/service/submission.h"
#include "sweeps/sweep_plan.h"

namespace saesweep::cli {

// {"rule", "mode": "promote"|"stop", "metrics", "rungs": tokens, "brackets"}; null: none.
Json stopping_json(const sweeps::SweepPlan& plan, const scheduler::Submission& submission);
// "asha: one in 3 goes on at 500k, 1.50M tokens, by core.ce_loss_score (max)".
std::string stopping_text(const sweeps::SweepPlan& plan, const scheduler::Submission& submission);

}  // namespace saesweep::cli
