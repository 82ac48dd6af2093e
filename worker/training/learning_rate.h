// The learning rate of a step, as recipes state it.
#pragma once

#include <cstdint>

#include "sweeps/spec.h"

namespace saesweep::worker {

double learning_rate(const sweeps::TrainingSpec& spec, std::uint64_t step);

}  // namespace saesweep::worker
