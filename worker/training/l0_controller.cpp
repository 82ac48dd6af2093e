#include "worker/training/l0_controller.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"

namespace saesweep::worker {
namespace {

constexpr double kGain = 0.02;
constexpr std::uint64_t kEvery = 100, kTimes = 1000;

}  // namespace

L0Controller::L0Controller(const sweeps::TrainingSpec& spec)
    : target_(spec.l0_target.value_or(1)),
      every_(std::clamp<std::uint64_t>(spec.steps() / kTimes, 1, kEvery)),
      first_(spec.sparsity_warmup_steps),
      end_(spec.steps() - spec.steps() / 5) {
  SAE_CHECK(target_ > 0, "l0_target {}", target_);
}

void L0Controller::note(std::uint64_t step, double l0) {
  if (step <= first_ || step > end_) return;
  sum_ += l0;
  ++count_;
  if (step % every_ != 0) return;
  const double off = (sum_ / static_cast<double>(count_) - target_) / target_;
  factor_ *= std::exp(kGain * std::clamp(off, -1.0, 1.0));
  sum_ = 0;
  count_ = 0;
}

Json L0Controller::state() const { return {{"factor", factor_}, {"sum", sum_}, {"count", count_}}; }

Result<void> L0Controller::set_state(const Json& json) {
  for (const char* key : {"factor", "sum", "count"})
    if (!json.is_object() || !json.contains(key) || !json[key].is_number())
      return fail(ErrorCode::kCorrupted, "a checkpoint without controller.{}", key);
  factor_ = json["factor"].get<double>();
  sum_ = json["sum"].get<double>();
  count_ = json["count"].get<std::uint64_t>();
  return {};
}

}  // namespace saesweep::worker
