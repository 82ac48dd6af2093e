#include "worker/training/learning_rate.h"

#include <cmath>
#include <numbers>

namespace saesweep::worker {

double learning_rate(const sweeps::TrainingSpec& spec, std::uint64_t step) {
  constexpr double kCosineEnd = 0.1;
  const std::uint64_t steps = spec.steps();
  if (step < spec.warmup_steps)
    return spec.lr * static_cast<double>(step) / static_cast<double>(spec.warmup_steps);
  if (step < spec.decay_start || spec.decay_start >= steps) return spec.lr;
  const auto whole = static_cast<double>(steps - spec.decay_start);
  if (spec.lr_schedule == sweeps::LrSchedule::kLinear)
    return spec.lr * static_cast<double>(steps - step) / whole;
  const double gone = static_cast<double>(step - spec.decay_start) / whole;
  return spec.lr * (kCosineEnd + (1 - kCosineEnd) * (1 + std::cos(std::numbers::pi * gone)) / 2);
}

}  // namespace saesweep::worker
