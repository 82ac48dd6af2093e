// What stands between the matrix products of families whose activations are stored in full.
#pragma once

#include "worker/device/kernels/step.h"
#include "worker/device/kernels/sums.h"

namespace saesweep::worker::device {

// A matrix of activations or gradients, and the same as bf16 where products want that.
struct DenseRows {
  float* values;           // [rows, width]
  std::uint16_t* rounded;  // or nullptr
  std::int64_t width;

  SAE_DEVICE void put(std::int64_t at, float value) const {
    values[at] = value;
    if (rounded != nullptr) rounded[at] = bfloat16_bits(value);
  }
};

// counts[block.index] becomes how many latents of a row `look` says yes to.
template <int kThreads, class Block, class Look>
SAE_DEVICE void count_row(Block& block, Counter& counter, std::int64_t width, std::int32_t* counts,
                          const Look& look) {
  count_in<kThreads>(block, counter, 0, width, look, [&](std::uint32_t found) {
    counts[block.index] = static_cast<std::int32_t>(found);
  });
}

// z becomes f = max(z + bias, 0); a block a row.
struct ReluRow {
  static constexpr int kThreads = 256;
  using Shared = Counter;

  DenseRows z;
  const float* bias;
  std::int32_t* active;  // [rows]: f > 0
  std::uint8_t* fired;   // [width]
  std::uint32_t* not_finite;

  template <class Block>
  SAE_DEVICE void run(Block& block, Shared& shared) const {
    count_row<kThreads>(block, shared, z.width, active, [&](std::int64_t i) {
      const std::int64_t at = block.index * z.width + i;
      const float value = z.values[at] + bias[i];
      if (!is_finite(value)) block.mark(not_finite);
      if (value > 0) block.mark(&fired[i]);
      z.put(at, value > 0 ? value : 0.0F);
      return value > 0;
    });
  }
};

// x_hat without b_dec becomes the gradient of the reconstruction; a block a row.
struct ErrorRow {
  static constexpr int kThreads = 256;
  struct Shared {
    double squares[kThreads];
  };

  DenseRows x_hat;
  const float *b_dec, *x;  // x: [rows, stride]
  std::int64_t stride;
  float factor;
  double* square;  // [rows], of the error

  template <class Block>
  SAE_DEVICE void run(Block& block, Shared& shared) const {
    sum_over<kThreads>(block, shared.squares, x_hat.width, [&](std::int64_t j) {
      const std::int64_t at = block.index * x_hat.width + j;
      const float error = x_hat.values[at] + b_dec[j] - x[block.index * stride + j];
      x_hat.put(at, error * factor);
      return static_cast<double>(error) * error;
    });
    block.each([&](int thread) {
      if (thread == 0) square[block.index] = shared.squares[0];
    });
  }
};

// The gradient of f becomes that of the pre-activations, the penalty's pull added; a block a row.
struct PullRow {
  static constexpr int kThreads = 256;
  using Shared = Nothing;

  DenseRows gradient;
  const float *f, *pull;  // [rows, width], [width]

  template <class Block>
  SAE_DEVICE void run(Block& block, Shared&) const {
    block.each([&](int thread) {
      for (std::int64_t i = thread; i < gradient.width; i += kThreads) {
        const std::int64_t at = block.index * gradient.width + i;
        gradient.put(at, f[at] > 0 ? gradient.values[at] + pull[i] : 0.0F);
      }
    });
  }
};

// How long decoder rows are, and how hard the penalty pulls on each latent; a block a latent. Of
// several hooks, which each have `width` / `parts` values of a row, norms are added.
struct WeighLatent {
  static constexpr int kThreads = 128;
  struct Shared {
    double squares[kThreads];
  };

  const float* w_dec;  // [latents, width]
  std::int64_t width;
  std::int64_t parts;  // 0: the penalty weighs all latents as 1
  const StepTerms* terms;
  double share;                    // of a row in a mean over rows
  float *norm, *part_norm, *pull;  // [latents], [latents, parts], [latents]

  template <class Block>
  SAE_DEVICE void run(Block& block, Shared& shared) const {
    const std::int64_t latent = block.index;
    for (std::int64_t part = 0; part < parts; ++part) {
      const std::int64_t count = width / parts;
      sum_over<kThreads>(block, shared.squares, count, [&](std::int64_t j) {
        const double value = w_dec[latent * width + part * count + j];
        return value * value;
      });
      block.each([&](int thread) {
        if (thread == 0)
          part_norm[latent * parts + part] = static_cast<float>(sqrt(shared.squares[0]));
      });
    }
    block.each([&](int thread) {
      if (thread != 0) return;
      float sum = parts == 0 ? 1.0F : 0.0F;
      for (std::int64_t part = 0; part < parts; ++part) sum += part_norm[latent * parts + part];
      norm[latent] = sum;
      pull[latent] = static_cast<float>(terms->penalty * share) * sum;
    });
  }
};

// A penalty that weighs norms pulls on the decoder, too; a block a latent.
struct PullNorm {
  static constexpr int kThreads = 128;
  using Shared = Nothing;

  const float *w_dec, *part_norm;
  const double* f_sums;  // over rows
  std::int64_t width, parts;
  const StepTerms* terms;
  double share;
  float* gradient;

  template <class Block>
  SAE_DEVICE void run(Block& block, Shared&) const {
    const std::int64_t latent = block.index, count = width / parts;
    const double mean = f_sums[latent] * (terms->penalty * share);
    block.each([&](int thread) {
      for (std::int64_t j = thread; j < width; j += kThreads) {
        const float own = part_norm[latent * parts + j / count];
        if (own > 0)
          gradient[latent * width + j] +=
              static_cast<float>(mean / own) * w_dec[latent * width + j];
      }
    });
  }
};

// A penalty on sums of f^p over a row, which bends as p falls from 1 (Karvonen et al. 2024): its
// pull is added to the gradient of f, which becomes that of the pre-activations; a block a row.
struct BendRow {
  static constexpr int kThreads = 256;
  struct Shared {
    double now[kThreads], next[kThreads];
  };

  DenseRows gradient;
  const float* f;  // [rows, width]
  const StepTerms* terms;
  double share;
  bool takes_root;         // the penalty is the 1/p-th power of the sum
  double *penalty, *next;  // [rows]: at p and at the next p

  static SAE_DEVICE double power(double value, double p) { return p == 1 ? value : pow(value, p); }
  SAE_DEVICE double of_row(double sum, double p) const {
    return takes_root ? pow(sum, 1 / p) : sum;
  }

  template <class Block>
  SAE_DEVICE void run(Block& block, Shared& shared) const {
    const double p = terms->p, next_p = terms->next_p;
    const std::int64_t row = block.index, width = gradient.width;
    sum_over<kThreads>(block, shared.now, width, [&](std::int64_t i) {
      const float value = f[row * width + i];
      return value > 0 ? power(value, p) : 0.0;
    });
    sum_over<kThreads>(block, shared.next, next_p < 0 ? 0 : width, [&](std::int64_t i) {
      const float value = f[row * width + i];
      return value > 0 ? pow(static_cast<double>(value), next_p) : 0.0;
    });
    block.each([&](int thread) {
      const double sum = shared.now[0];
      // d penalty / d f = outer * f^(p - 1), which is infinite at 0, where nothing pulls.
      const double outer = !takes_root ? p : sum > 0 ? pow(sum, 1 / p - 1) : 0.0;
      const double scale = terms->penalty * share * outer;
      for (std::int64_t i = thread; i < width; i += kThreads) {
        const std::int64_t at = row * width + i;
        const float value = f[at];
        const float pull = value > 0 ? static_cast<float>(scale * power(value, p) / value) : 0.0F;
        gradient.put(at, value > 0 ? gradient.values[at] + pull : 0.0F);
      }
      if (thread != 0) return;
      penalty[row] = of_row(sum, p);
      next[row] = next_p < 0 ? 0 : of_row(shared.next[0], next_p);
    });
  }
};

// What a pass over all activations found; one block.
struct SumDense {
  static constexpr int kThreads = 256;
  struct Shared {
    double error[kThreads], active[kThreads], penalty[kThreads], next[kThreads];
    double auxiliary[kThreads];
  };

  std::int64_t rows, latents;
  const double* row_squares;
  const std::int32_t* active;
  const double* f_sums;               // of what the penalty weighs, over rows
  const float* norm;                  // by which it does; nullptr: by 1
  const double *row_bent, *row_next;  // in place of that: of BendRow; or nullptr
  const double* row_auxiliary;        // squares that are added to the loss; or nullptr
  const StepTerms* terms;
  double share;
  const double* variance;
  StepSums* sums;

  template <class Block>
  SAE_DEVICE void run(Block& block, Shared& shared) const {
    const bool bends = row_bent != nullptr;
    sum_over<kThreads>(block, shared.error, rows,
                       [&](std::int64_t row) { return row_squares[row]; });
    sum_over<kThreads>(block, shared.active, rows, [&](std::int64_t row) { return active[row]; });
    sum_over<kThreads>(block, shared.penalty, bends ? rows : latents, [&](std::int64_t i) {
      return bends ? row_bent[i] : norm == nullptr ? f_sums[i] : f_sums[i] * norm[i];
    });
    sum_over<kThreads>(block, shared.next, bends ? rows : 0,
                       [&](std::int64_t row) { return row_next[row]; });
    sum_over<kThreads>(block, shared.auxiliary, row_auxiliary == nullptr ? 0 : rows,
                       [&](std::int64_t row) { return row_auxiliary[row]; });
    block.each([&](int thread) {
      if (thread != 0) return;
      sums->squared_error = sums->optimised_error = shared.error[0];
      sums->active = shared.active[0];
      sums->penalty = shared.penalty[0] * share * terms->penalty;
      sums->bent = bends ? shared.penalty[0] : 0;
      sums->next_bent = shared.next[0];
      sums->auxiliary = shared.auxiliary[0] * share;
      sums->variance = *variance;
    });
  }
};

}  // namespace saesweep::worker::device
