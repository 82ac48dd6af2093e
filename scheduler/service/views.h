// The state as those who ask see it: JSON objects with "schema": 1, whose schemas are in
// sweeps/schema/. Pure: the same state and moment give the same answer.
#pragma once

#include <string>

#include "core/clock.h"
#include "core/json.h"
#include "core/result.h"
#include "scheduler/decisions/sweep_state.h"

namespace saesweep::scheduler {

// The sweep that a word means: its name, or "" and "last" for the one submitted last.
// Errors: kNotFound, with the names there are.
Result<const journal::Sweep*> find_sweep(const SweepState& state, const std::string& word);

// One sweep in numbers: name, state, trials by what became of them, tokens, times.
Json sweep_summary(const SweepState& state, const journal::Sweep& sweep);

// status.schema.json: every sweep, newest first, and how many workers there are.
Json status_view(const SweepState& state);
// The same with the trials of one sweep: number, id, state, reason, tokens, worker, attempt.
Json sweep_view(const SweepState& state, const journal::Sweep& sweep);
// workers.schema.json
Json workers_view(const SweepState& state, TimePoint now);
// top.schema.json: sweeps that are not over, workers, and what runs.
Json top_view(const SweepState& state, TimePoint now);

}  // namespace saesweep::scheduler
