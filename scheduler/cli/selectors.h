// Which trials of a sweep the words on the command line mean, see scheduler/service/selection.h.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"
#include "scheduler/service/scheduler_service.h"

namespace saesweep::cli {

// Index into `subjects`; baselines are never meant.
// Errors: kInvalidArgument if it is no selector or means several trials (which); kNotFound.
Result<std::size_t> select_trial(std::string_view selector,
                                 const std::vector<scheduler::SubjectResult>& subjects);

// Of all words together, each once.
Result<std::vector<std::size_t>> select_trials(
    const std::vector<std::string>& selectors,
    const std::vector<scheduler::SubjectResult>& subjects);

}  // namespace saesweep::cli
