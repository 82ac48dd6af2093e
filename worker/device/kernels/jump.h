// JumpReLU between its products: a step whose place is learned. Its slope is that of a window of
// width `bandwidth` around it (Rajamanoharan et al. 2024).
#pragma once

#include "worker/device/kernels/dense.h"

namespace saesweep::worker::device {

// z gets its bias; f = z where z > threshold, else 0; a block a row.
struct JumpRow {
  static constexpr int kThreads = 256;
  struct Shared {
    std::uint32_t active;
  };

  float* z;
  DenseRows f;
  const float *bias, *threshold;
  std::int32_t* active;  // [rows]: f other than 0
  std::uint8_t* fired;   // [width]: f > 0
  std::uint32_t* not_finite;

  template <class Block>
  SAE_DEVICE void run(Block& block, Shared& shared) const {
    block.each([&](int thread) {
      if (thread == 0) shared.active = 0;
    });
    block.each([&](int thread) {
      std::uint32_t found = 0;
      for (std::int64_t i = thread; i < f.width; i += kThreads) {
        const std::int64_t at = block.index * f.width + i;
        const float value = z[at] + bias[i];
        if (!is_finite(value)) *not_finite = 1;
        z[at] = value;
        const float kept = value > threshold[i] ? value : 0.0F;
        found += kept != 0 ? 1 : 0;
        if (kept > 0) fired[i] = 1;
        f.put(at, kept);
      }
      block.add(&shared.active, found);
    });
    block.each([&](int thread) {
      if (thread == 0) active[block.index] = static_cast<std::int32_t>(shared.active);
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
  float tanh_scale, pull;  // of the penalty, of a mean over rows
  double below;            // weight of the pull on what is below, the same
  double* partial;

  template <class Block>
  SAE_DEVICE void run(Block& block, Shared&) const {
    const std::int64_t width = back.width;
    const std::int64_t tiles = (width + kThreads - 1) / kThreads;
    const std::int64_t chunk = block.index / tiles, tile = block.index % tiles;
    const std::int64_t first = chunk * kRows;
    const std::int64_t end = first + kRows < rows ? first + kRows : rows;
    block.each([&](int thread) {
      const std::int64_t i = tile * kThreads + thread;
      if (i >= width) return;
      double sums[kSums] = {};
      const float norm_scale = norm[i] * tanh_scale;
      const auto weight = static_cast<float>(norm[i] * below);
      for (std::int64_t row = first; row < end; ++row) {
        const std::int64_t at = row * width + i;
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
        partial[(chunk * kSums + which) * width + i] = sums[which];
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
  double rows, weight;
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
    block.each([&](int thread) {
      double l0 = 0, error = 0, found = 0, tanh = 0, below = 0;
      for (std::int64_t i = thread; i < latents; i += kThreads) {
        l0 += on(i) / rows;
        tanh += of(JumpColumns::kTanh, i);
        below += of(JumpColumns::kBelow, i);
      }
      for (std::int64_t row = thread; row < rows; row += kThreads) {
        error += row_squares[row];
        found += active[row];
      }
      shared.l0[thread] = l0;
      shared.error[thread] = error;
      shared.active[thread] = found;
      shared.tanh[thread] = tanh;
      shared.below[thread] = below;
    });
    sum_shared<kThreads>(block, shared.l0);
    sum_shared<kThreads>(block, shared.error);
    sum_shared<kThreads>(block, shared.active);
    sum_shared<kThreads>(block, shared.tanh);
    sum_shared<kThreads>(block, shared.below);
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
  double of_slope, of_excess;
  float* gradient;

  template <class Block>
  SAE_DEVICE void run(Block& block, Shared&) const {
    const std::int64_t latent = block.index;
    if (!(norm[latent] > 0)) return;
    const double pull = of_slope * sums_of_latents[JumpColumns::kSlopes * latents + latent] +
                        of_excess * sums_of_latents[JumpColumns::kExcesses * latents + latent];
    const auto along = static_cast<float>(pull / norm[latent]);
    block.each([&](int thread) {
      for (std::int64_t j = thread; j < width; j += kThreads)
        gradient[latent * width + j] += along * w_dec[latent * width + j];
    });
  }
};

}  // namespace saesweep::worker::device
