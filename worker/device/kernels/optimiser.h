// From gradients to the next step: silence of latents, projection, norm, clip, Adam, unit norm.
// What a step decides (finite or not, how much is clipped) stays on the device; the host reads a
// report when all is done.
#pragma once

#include "worker/device/kernels/step.h"

namespace saesweep::worker::device {

// Tokens since each latent last fired, after this batch; and how many have been silent for long.
// 256 latents a block. `dead` is 0 before.
struct AdvanceSilence {
  static constexpr int kThreads = 256;
  using Shared = Counter;

  const std::uint8_t* fired;
  const std::int64_t* silence;
  std::int64_t* next;
  std::int64_t latents, rows, dead_after;
  std::uint32_t* dead;  // or nullptr

  template <class Block>
  SAE_DEVICE void run(Block& block, Shared& shared) const {
    const std::int64_t first = block.index * kThreads;
    count_in<kThreads>(
        block, shared, first, first + kThreads < latents ? first + kThreads : latents,
        [&](std::int64_t latent) {
          next[latent] = fired[latent] != 0 ? 0 : silence[latent] + rows;
          return next[latent] >= dead_after;
        },
        [&](std::uint32_t found) {
          if (dead != nullptr) block.add(dead, found);
        });
  }
};

// The factor of the gradient of weight * |error|^2 / variance: of dead latents that reconstruct a
// residual (Gao et al. 2024), of transcoders; 0 where there is no variance. One thread.
struct ScaleByVariance {
  static constexpr int kThreads = 32;
  using Shared = Nothing;

  const double* variance;  // in all rows
  double weight;
  float* factor;

  template <class Block>
  SAE_DEVICE void run(Block& block, Shared&) const {
    block.each([&](int thread) {
      if (thread == 0) *factor = *variance > 0 ? static_cast<float>(2 * weight / *variance) : 0.0F;
    });
  }
};

// What a pass over kept activations found; one block.
struct SumPass {
  static constexpr int kThreads = 256;
  struct Shared {
    double error[kThreads], prefixes[kThreads], missed[kThreads], active[kThreads];
    double smallest[kThreads], full[kThreads];
  };

  std::int64_t rows;
  const double* row_squares;
  const double* row_prefixes;  // of all prefixes, weighted; nullptr: there are none
  bool share_of_variance;      // is what is optimised
  const std::int32_t* counts;
  const float* smallest;      // of each row
  bool over_batch;            // the smallest of all, not their mean
  const double* variance;     // of what is reconstructed
  const std::uint32_t* dead;  // of the revival; nullptr: there is none
  const double* missed_squares;
  const double* residual_variance;
  double weight;
  StepSums* sums;

  template <class Block>
  SAE_DEVICE void run(Block& block, Shared& shared) const {
    sum_over<kThreads>(block, shared.error, rows,
                       [&](std::int64_t row) { return row_squares[row]; });
    sum_over<kThreads>(block, shared.prefixes, row_prefixes == nullptr ? 0 : rows,
                       [&](std::int64_t row) { return row_prefixes[row]; });
    sum_over<kThreads>(block, shared.missed, dead == nullptr ? 0 : rows,
                       [&](std::int64_t row) { return missed_squares[row]; });
    sum_over<kThreads>(block, shared.active, rows, [&](std::int64_t row) { return counts[row]; });
    block.each([&](int thread) {
      double least = 0, full = 0;
      for (std::int64_t row = thread; row < rows; row += kThreads) {
        if (counts[row] == 0) continue;
        least = !over_batch             ? least + smallest[row]
                : full == 0             ? smallest[row]
                : smallest[row] < least ? smallest[row]
                                        : least;
        full += 1;
      }
      shared.smallest[thread] = least;
      shared.full[thread] = full;
    });
    for (int half = kThreads / 2; half > 0; half /= 2)
      block.each([&](int thread) {
        if (thread >= half) return;
        const double other = shared.smallest[thread + half], others = shared.full[thread + half];
        double& own = shared.smallest[thread];
        if (!over_batch)
          own += other;
        else if (shared.full[thread] == 0 || (others > 0 && other < own))
          own = other;
        shared.full[thread] += others;
      });
    block.each([&](int thread) {
      if (thread != 0) return;
      sums->squared_error = shared.error[0];
      sums->optimised_error = row_prefixes != nullptr ? shared.prefixes[0]
                              : share_of_variance     ? of_variance(shared.error[0])
                                                      : shared.error[0];
      sums->active = shared.active[0];
      sums->variance = *variance;
      sums->smallest = shared.full[0] == 0 ? 0
                       : over_batch        ? shared.smallest[0]
                                           : shared.smallest[0] / shared.full[0];
      if (dead != nullptr && *dead > 0 && *residual_variance > 0)
        sums->auxiliary = weight * shared.missed[0] / *residual_variance;
    });
  }

  // A batch without variance has no share of it: not a number, and the step is skipped.
  SAE_DEVICE double of_variance(double error) const {
    return *variance > 0 ? error / *variance * static_cast<double>(rows) : double{NAN};
  }
};

// b_dec's gradient: the sums of the reconstruction's, less what comes through the encoder where
// b_dec is subtracted before it. 256 columns a block.
struct GradeBias {
  static constexpr int kThreads = 256;
  using Shared = Nothing;

  const double* direct;
  const double* through;  // or nullptr
  std::int64_t columns;
  float* out;

  template <class Block>
  SAE_DEVICE void run(Block& block, Shared&) const {
    block.each([&](int thread) {
      const std::int64_t j = block.index * kThreads + thread;
      if (j >= columns) return;
      out[j] = static_cast<float>(direct[j] - (through == nullptr ? 0 : through[j]));
    });
  }
};

// A latent's gradients: takes what would only lengthen its decoder row away, if that is to keep its
// length; then the sum of squares. A block a latent.
struct GradeLatent {
  static constexpr int kThreads = 128;
  struct Shared {
    double norm[kThreads], along[kThreads], square[kThreads];
  };

  const float* w_dec;
  float *g_dec, *g_enc, *g_bias;
  std::int64_t d_in, d_out;
  bool projects;
  double epsilon;
  double* square;  // [latents]

  template <class Block>
  SAE_DEVICE void run(Block& block, Shared& shared) const {
    const std::int64_t latent = block.index;
    const float* w = w_dec + latent * d_out;
    float* g = g_dec + latent * d_out;
    if (projects) {
      block.each([&](int thread) {
        double norm = 0, along = 0;
        for (std::int64_t j = thread; j < d_out; j += kThreads) {
          norm += static_cast<double>(w[j]) * w[j];
          along += static_cast<double>(g[j]) * w[j];
        }
        shared.norm[thread] = norm;
        shared.along[thread] = along;
      });
      sum_shared<kThreads>(block, shared.norm);
      sum_shared<kThreads>(block, shared.along);
      block.each([&](int thread) {
        const double length = sqrt(shared.norm[0]) + epsilon;
        const auto parallel = static_cast<float>(-shared.along[0] / (length * length));
        for (std::int64_t j = thread; j < d_out; j += kThreads) g[j] += parallel * w[j];
      });
    }
    block.each([&](int thread) {
      double sum = 0;
      for (std::int64_t j = thread; j < d_out; j += kThreads)
        sum += static_cast<double>(g[j]) * g[j];
      for (std::int64_t j = thread; j < d_in; j += kThreads) {
        const double value = g_enc[latent * d_in + j];
        sum += value * value;
      }
      if (thread == 0) sum += static_cast<double>(g_bias[latent]) * g_bias[latent];
      shared.square[thread] = sum;
    });
    sum_shared<kThreads>(block, shared.square);
    block.each([&](int thread) {
      if (thread == 0) square[latent] = shared.square[0];
    });
  }
};

// Whether the step counts, and what its gradient is clipped to; one block.
struct JudgeStep {
  static constexpr int kThreads = 256;
  struct Shared {
    double sums[kThreads];
  };

  const double* squares;  // parts of the squared norm of the gradient
  std::int64_t count;
  double rows;
  double clip;  // 0: not at all
  StepSums* sums;

  template <class Block>
  SAE_DEVICE void run(Block& block, Shared& shared) const {
    sum_over<kThreads>(block, shared.sums, count, [&](std::int64_t i) { return squares[i]; });
    block.each([&](int thread) {
      if (thread != 0) return;
      const double norm = sqrt(shared.sums[0]);
      const double loss = sums->optimised_error / rows + sums->penalty + sums->auxiliary;
      // Neither infinite nor not a number.
      const bool finite = loss - loss == 0 && norm - norm == 0 && sums->not_finite == 0;
      sums->norm = norm;
      sums->applied = finite ? 1 : 0;
      const double ratio = clip > 0 ? clip / (norm + 1e-6) : 1;
      sums->clip = static_cast<float>(ratio < 1 ? ratio : 1.0);
    });
  }
};

// A parameter, its gradient and moments.
struct Moved {
  float *weight, *gradient, *first, *second;

  SAE_DEVICE void move(const AdamRates& rates, float clip, std::int64_t i) const {
    rates.move(gradient[i] * clip, weight[i], first[i], second[i]);
  }
};

// A latent's parameters, and its decoder row to unit norm; a block a latent.
struct MoveLatent {
  static constexpr int kThreads = 128;
  struct Shared {
    double norm[kThreads];
  };

  Moved w_enc, b_enc, w_dec;
  std::int64_t d_in, d_out;
  const StepTerms* terms;
  bool normalises;
  double epsilon;
  const StepSums* sums;

  template <class Block>
  SAE_DEVICE void run(Block& block, Shared& shared) const {
    if (sums->applied == 0) return;
    const std::int64_t latent = block.index;
    const float clip = sums->clip;
    const AdamRates rates = terms->rates;
    block.each([&](int thread) {
      for (std::int64_t j = thread; j < d_in; j += kThreads)
        w_enc.move(rates, clip, latent * d_in + j);
      if (thread == 0) b_enc.move(rates, clip, latent);
      double norm = 0;
      for (std::int64_t j = thread; j < d_out; j += kThreads) {
        w_dec.move(rates, clip, latent * d_out + j);
        const double value = w_dec.weight[latent * d_out + j];
        norm += value * value;
      }
      shared.norm[thread] = norm;
    });
    if (!normalises) return;
    sum_shared<kThreads>(block, shared.norm);
    block.each([&](int thread) {
      const auto norm = static_cast<float>(sqrt(shared.norm[0]) + epsilon);
      for (std::int64_t j = thread; j < d_out; j += kThreads)
        w_dec.weight[latent * d_out + j] /= norm;
    });
  }
};

// 256 values a block.
struct MoveVector {
  static constexpr int kThreads = 256;
  using Shared = Nothing;

  Moved moved;
  std::int64_t count;
  const StepTerms* terms;
  const StepSums* sums;

  template <class Block>
  SAE_DEVICE void run(Block& block, Shared&) const {
    if (sums->applied == 0) return;
    block.each([&](int thread) {
      const std::int64_t i = block.index * kThreads + thread;
      if (i < count) moved.move(terms->rates, sums->clip, i);
    });
  }
};

// Silence becomes that of after the step, if it counts; 256 latents a block.
struct KeepSilence {
  static constexpr int kThreads = 256;
  using Shared = Counter;

  std::int64_t* silence;
  const std::int64_t* next;
  std::int64_t latents, dead_after;
  StepSums* sums;

  template <class Block>
  SAE_DEVICE void run(Block& block, Shared& shared) const {
    const std::int64_t first = block.index * kThreads;
    count_in<kThreads>(
        block, shared, first, first + kThreads < latents ? first + kThreads : latents,
        [&](std::int64_t latent) {
          if (sums->applied != 0) silence[latent] = next[latent];
          return silence[latent] >= dead_after;
        },
        [&](std::uint32_t found) { block.add(&sums->dead, found); });
  }
};

}  // namespace saesweep::worker::device
