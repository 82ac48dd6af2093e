// A SweepResult as it travels from a scheduler to those who ask for a leaderboard.
#pragma once

#include "core/json.h"
#include "core/result.h"
#include "scheduler/service/scheduler_service.h"

namespace saesweep::scheduler {

Json to_json(const SweepResult& sweep);
// Errors: kCorrupted, naming what is missing or of another kind.
Result<SweepResult> result_from_json(const Json& json);

}  // namespace saesweep::scheduler
