// A sweep as the state has it, in the words of scheduler_service.h.
#pragma once

#include <filesystem>
#include <string>

#include "core/result.h"
#include "scheduler/decisions/sweep_state.h"
#include "scheduler/service/scheduler_service.h"

namespace saesweep::scheduler {

// An empty name: the sweep submitted last. Errors: kNotFound, with the names there are; kCorrupted
// for JSON that cannot be read. `store` holds the artifacts.
Result<SweepResult> to_result(const SweepState& state, const std::string& name,
                              const std::filesystem::path& store);

// Newest first.
std::vector<std::string> names_of(const SweepState& state);

}  // namespace saesweep::scheduler
