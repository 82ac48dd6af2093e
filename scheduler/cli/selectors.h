// Which trial a word on the command line means: its number in the sweep, all 12 hex digits of its
// id, or "id:" and at least 4 of them.
#pragma once

#include <cstddef>
#include <string_view>
#include <vector>

#include "core/result.h"
#include "scheduler/service/scheduler_service.h"

namespace saesweep::cli {

// Index into `subjects`; baselines are never meant.
// Errors: kInvalidArgument if it is no selector or fits several trials (which); kNotFound.
Result<std::size_t> select_trial(std::string_view selector,
                                 const std::vector<scheduler::SubjectResult>& subjects);

}  // namespace saesweep::cli
