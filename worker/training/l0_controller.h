// Steers a penalty's coefficient so that about `l0_target` latents are active a row: every so many
// steps it grows or shrinks by at most 2 %, by how far the mean L0 since the last time is off. It
// waits for the penalty's warm-up and stands still in the last fifth of a run, so that the
// dictionary settles under one loss.
//
//   factor *= exp(0.02 * clip((L0 - target) / target, -1, 1))
//
// Every 100 steps, more often in runs of less than 100 000: some eight hundred times at least,
// which is enough to change the coefficient a million-fold.
#pragma once

#include <cstdint>

#include "core/json.h"
#include "core/result.h"
#include "sweeps/spec.h"

namespace saesweep::worker {

class L0Controller {
 public:
  // spec.l0_target is there and steps() > 0.
  explicit L0Controller(const sweeps::TrainingSpec& spec);

  double factor() const { return factor_; }  // of the coefficient
  // After a step that counts: steps done, and its L0.
  void note(std::uint64_t step, double l0);

  Json state() const;
  // Errors: kCorrupted.
  Result<void> set_state(const Json& json);

 private:
  double target_;
  std::uint64_t every_, first_, end_;  // steers at multiples of every_ in (first_, end_]
  double factor_ = 1;
  double sum_ = 0;  // of L0 since the last time
  std::uint64_t count_ = 0;
};

}  // namespace saesweep::worker
