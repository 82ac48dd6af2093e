// JumpReLU between its products: a step whose place is learned. Its slope is that of a window of
// width `bandwidth` around it (Rajamanoharan et al. 2024).
#pragma once

#include "worker/device/kernels/dense.h"

namespace saesweep::worker::device {

// z gets its bias; f = z where z > threshold, else 0; a block a row.
struct JumpRow {
  static constexpr int kThreads = 256;
  using Shared = Counter;

  float* z;
  DenseRows f;
  const float *bias, *threshold;
  std::int32_t* active;  // [rows]: f other than 0
  std::uint8_t* fired;   // [width]: f > 0
  std::uint32_t* not_finite;

  template <class Block>
  SAE_DEVICE void run(Block& block, Shared& shared) const {
    count_row<kThreads>(block, shared, f.width, active, [&](std::int64_t i) {
      const std::int64_t at = block.index * f.width + i;
      const float value = z[at] + bias[i];
      if (!is_finite(value)) block.mark(not_finite);
      z[at] = value;
      const float kept = value > threshold[i] ? value : 0.0F;
      if (kept > 0) block.mark(&fired[i]);
      f.put(at, kept);
      return kept != 0;
    });
  }
};

// The gradient of f becomes that of z; and sums over some rows, by latent. A block 256 latents of
// kRows rows: partial [chunks, kSums, width].
struct JumpColumns {
  static constexpr int kThreads = 256;
  static constexpr std::int64_t kRows = 256;
  using Shared = Nothing;
  enum Sum {
    kActive,    // rows with z > threshold
    kNear,      // rows with |z - threshold| < bandwidth / 2
    kNearJump,  // of these, with z > threshold
    kWindow,    // gradient of f where it is near
    kBack,      // gradient of z
    // Of tanh alone: of f (1 - tanh^2), of the pull on what is below its threshold, of how far that
    // is below, of tanh itself and of the penalty for being below.
    kSlopes,
    kPulls,
    kExcesses,
    kTanh,
    kBelow,
    kSums
  };

  const float *z, *f;
  DenseRows back;
  const float *threshold, *norm;
  std::int64_t rows;
  float bandwidth;
  bool has_tanh;
  float tanh_scale;
  const StepTerms* terms;
  double share;  // of a row in a mean over rows
  double below;  // weight of the pull on what is below, of a mean over rows
  double* partial;

  template <class Block>
  SAE_DEVICE void run(Block& block, Shared&) const {
    each_column<kThreads, kRows>(
        block, rows, back.width,
        [&](std::int64_t i, std::int64_t chunk, std::int64_t first, std::int64_t end) {
          double sums[kSums] = {};
          const float norm_scale = norm[i] * tanh_scale;
          const auto pull = static_cast<float>(terms->penalty * share);
          const auto weight = static_cast<float>(norm[i] * below);
          for (std::int64_t row = first; row < end; ++row) {
            const std::int64_t at = row * back.width + i;
            float gradient = back.values[at];
            if (has_tanh) {
              const float value = f[at] == 0 ? 0.0F : tanhf(norm_scale * f[at]);
              const float slope = 1 - value * value;
              gradient += pull * norm_scale * slope;
              sums[kTanh] += value;
              sums[kSlopes] += f[at] * slope;
            }
            const bool on = z[at] > threshold[i];
            const float away = (z[at] - threshold[i]) / bandwidth;
            const bool is_near = away > -0.5F && away < 0.5F;
            float of_z = on ? gradient : 0.0F;
            sums[kActive] += on ? 1 : 0;
            sums[kNear] += is_near ? 1 : 0;
            sums[kNearJump] += is_near && on ? 1 : 0;
            sums[kWindow] += is_near ? gradient : 0.0F;
            const float excess = threshold[i] - z[at];
            if (has_tanh && excess > 0) {
              sums[kBelow] += static_cast<double>(weight) * excess;
              sums[kPulls] += weight;
              sums[kExcesses] += excess;
              of_z -= weight;
            }
            sums[kBack] += of_z;
            back.put(at, of_z);
          }
          for (int which = 0; which < kSums; ++which)
            partial[(chunk * kSums + which) * back.width + i] = sums[which];
        });
  }
};

// The penalty of a batch, and what it makes of the thresholds; one block.
struct PenaliseJumps {
  static constexpr int kThreads = 256;
  struct Shared {
    double l0[kThreads], error[kThreads], active[kThreads], tanh[kThreads], below[kThreads];
    double slope;
  };

  const double* sums_of_latents;  // [JumpColumns::kSums, latents]
  const float* threshold;
  std::int64_t latents;
  double rows;
  const StepTerms* terms;
  double target;  // of L0; 0: none, the penalty is that of L0 itself
  bool has_tanh;  // in place of it
  double bandwidth;
  const double* row_squares;
  const std::int32_t* active;
  const double* variance;
  float *threshold_gradient, *b_enc_gradient;
  StepSums* sums;

  SAE_DEVICE double of(JumpColumns::Sum which, std::int64_t latent) const {
    return sums_of_latents[which * latents + latent];
  }
  // dictionary_learning compares f with the threshold where others compare z: of silent rows the
  // window is around 0, and a threshold below 0 counts them.
  SAE_DEVICE double near(std::int64_t latent) const {
    if (!(target > 0)) return of(JumpColumns::kNear, latent);
    const float away = -threshold[latent] / static_cast<float>(bandwidth);
    const double silent = rows - of(JumpColumns::kActive, latent);
    return of(JumpColumns::kNearJump, latent) + (away > -0.5F && away < 0.5F ? silent : 0);
  }
  SAE_DEVICE double on(std::int64_t latent) const {
    return target > 0 && threshold[latent] < 0 ? rows : of(JumpColumns::kActive, latent);
  }

  template <class Block>
  SAE_DEVICE void run(Block& block, Shared& shared) const {
    const double weight = terms->penalty;
    const auto count = static_cast<std::int64_t>(rows);
    sum_over<kThreads>(block, shared.l0, latents, [&](std::int64_t i) { return on(i) / rows; });
    sum_over<kThreads>(block, shared.tanh, latents,
                       [&](std::int64_t i) { return of(JumpColumns::kTanh, i); });
    sum_over<kThreads>(block, shared.below, latents,
                       [&](std::int64_t i) { return of(JumpColumns::kBelow, i); });
    sum_over<kThreads>(block, shared.error, count,
                       [&](std::int64_t row) { return row_squares[row]; });
    sum_over<kThreads>(block, shared.active, count, [&](std::int64_t row) { return active[row]; });
    block.each([&](int thread) {
      if (thread != 0) return;
      double penalty = 0;
      shared.slope = 0;
      if (has_tanh) {
        penalty = shared.tanh[0] * static_cast<float>(weight / rows) + shared.below[0];
      } else if (target > 0) {
        const double excess = shared.l0[0] / target - 1;
        penalty = weight * excess * excess;
        shared.slope = weight * 2 * excess / target;
      } else {
        penalty = weight * shared.l0[0];
        shared.slope = weight;
      }
      sums->squared_error = sums->optimised_error = shared.error[0];
      sums->active = shared.active[0];
      sums->penalty = penalty;
      sums->variance = *variance;
    });
    block.each([&](int thread) {
      for (std::int64_t i = thread; i < latents; i += kThreads) {
        threshold_gradient[i] = static_cast<float>(
            -(threshold[i] / bandwidth) * of(JumpColumns::kWindow, i) -
            shared.slope / (rows * bandwidth) * near(i) + of(JumpColumns::kPulls, i));
        b_enc_gradient[i] = static_cast<float>(of(JumpColumns::kBack, i));
      }
    });
  }
};

// Both parts of the tanh penalty weigh by the decoder's norms, and so pull on them; a block a
// latent.
struct PullJumpNorm {
  static constexpr int kThreads = 128;
  using Shared = Nothing;

  const float *w_dec, *norm;
  const double* sums_of_latents;
  std::int64_t latents, width;
  const StepTerms* terms;
  double of_slope, of_excess;  // the former of the penalty's coefficient
  float* gradient;

  template <class Block>
  SAE_DEVICE void run(Block& block, Shared&) const {
    const std::int64_t latent = block.index;
    if (!(norm[latent] > 0)) return;
    const double pull =
        terms->penalty * of_slope * sums_of_latents[JumpColumns::kSlopes * latents + latent] +
        of_excess * sums_of_latents[JumpColumns::kExcesses * latents + latent];
    const auto along = static_cast<float>(pull / norm[latent]);
    block.each([&](int thread) {
      for (std::int64_t j = thread; j < width; j += kThreads)
        gradient[latent * width + j] += along * w_dec[latent * width + j];
    });
  }
};

}  // namespace saesweep::worker::device
