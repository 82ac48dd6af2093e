// What a step is told, and what it finds. Both lie on the device: the launches of a step are the
// same whichever step it is, and can be replayed.
#pragma once

#include "worker/device/kernels/block.h"

namespace saesweep::worker::device {

struct AdamRates {
  float rate, beta1, beta2, epsilon;
  float rest1, rest2;  // 1 - beta, rounded once
  float root;          // square root of 1 / (1 - beta2^t); that of beta1 is in the rate

  SAE_DEVICE void move(float gradient, float& weight, float& first, float& second) const {
    first = beta1 * first + rest1 * gradient;
    second = beta2 * second + rest2 * gradient * gradient;
    weight -= rate * first / (sqrtf(second) * root + epsilon);
  }
};

// What changes from step to step.
struct StepTerms {
  AdamRates rates;
  double penalty;    // its coefficient by now
  double p, next_p;  // of a penalty on sums of f^p, and the p after it; below 0: there is none
};

struct SetTerms {
  static constexpr int kThreads = 32;
  using Shared = Nothing;

  StepTerms terms;
  StepTerms* to;

  template <class Block>
  SAE_DEVICE void run(Block& block, Shared&) const {
    block.each([&](int thread) {
      if (thread == 0) *to = terms;
    });
  }
};

// Of one pass, and of the step made of it; all 0 before.
struct StepSums {
  double squared_error;      // in all rows
  double optimised_error;    // what is minimised in its place: of nested prefixes, weighted; of
                             // transcoders its share of the variance, times rows
  double penalty;            // as added to the loss
  double bent, next_bent;    // of a penalty on sums of f^p: these, at p and at the next p
  double auxiliary;          // weighted
  double active;             // activations > 0 in all rows
  double smallest;           // of those kept: mean over rows that have any, or of the batch
  double variance;           // of what is reconstructed
  double norm;               // of the gradient, before clipping
  std::uint32_t not_finite;  // an activation was not
  std::uint32_t applied;
  std::uint32_t dead;  // latents silent for longer than `dead_after`, after the step
  float clip;
};

}  // namespace saesweep::worker::device
