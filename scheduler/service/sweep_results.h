// What the journal knows of a sweep, as people ask for it.
#pragma once

#include <filesystem>
#include <string>

#include "scheduler/decisions/state.h"
#include "scheduler/service/scheduler_service.h"

namespace saesweep::scheduler {

// Errors: kNotFound with the names there are; kCorrupted.
Result<SweepResult> result_of(const SweepState& state, const std::string& sweep,
                              const std::filesystem::path& state_directory);

// "done", "diverged", "failed", "cancelled", "unfinished", with the reason.
std::pair<std::string, std::string> state_of(const SweepState& state,
                                             const journal::Subject& subject);

}  // namespace saesweep::scheduler
