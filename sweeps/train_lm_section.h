// `train_lm` of a sweep file: the job that trains a model instead of dictionaries.
#pragma once

#include <filesystem>
#include <optional>

#include "sweeps/section.h"
#include "sweeps/spec.h"

namespace saesweep::sweeps {

// Nothing if it is wrong, which is reported.
std::optional<TrainLmSpec> read_train_lm(const Section& top, const std::filesystem::path& directory,
                                         Problems& problems);

}  // namespace saesweep::sweeps
