// What stands between the matrix products of families whose activations are stored in full.
#pragma once

#include "worker/device/kernels/optimiser.h"

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

// z becomes f = max(z + bias, 0); a block a row.
struct ReluRow {
  static constexpr int kThreads = 256;
  struct Shared {
    std::uint32_t active;
  };

  DenseRows z;
  const float* bias;
  std::int32_t* active;  // [rows]: f > 0
  std::uint8_t* fired;   // [width]
  std::uint32_t* not_finite;

  template <class Block>
  SAE_DEVICE void run(Block& block, Shared& shared) const {
    block.each([&](int thread) {
      if (thread == 0) shared.active = 0;
    });
    block.each([&](int thread) {
      std::uint32_t found = 0;
      for (std::int64_t i = thread; i < z.width; i += kThreads) {
        const std::int64_t at = block.index * z.width + i;
        const float value = z.values[at] + bias[i];
        if (!is_finite(value)) *not_finite = 1;
        if (value > 0) {
          ++found;
          fired[i] = 1;
        }
        z.put(at, value > 0 ? value : 0.0F);
      }
      block.add(&shared.active, found);
    });
    block.each([&](int thread) {
      if (thread == 0) active[block.index] = static_cast<std::int32_t>(shared.active);
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
  const float *b_dec, *x;
  float factor;
  double* square;  // [rows], of the error

  template <class Block>
  SAE_DEVICE void run(Block& block, Shared& shared) const {
    block.each([&](int thread) {
      double sum = 0;
      for (std::int64_t j = thread; j < x_hat.width; j += kThreads) {
        const std::int64_t at = block.index * x_hat.width + j;
        const float error = x_hat.values[at] + b_dec[j] - x[at];
        sum += static_cast<double>(error) * error;
        x_hat.put(at, error * factor);
      }
      shared.squares[thread] = sum;
    });
    sum_shared<kThreads>(block, shared.squares);
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

// How long decoder rows are, and how hard the penalty pulls on each latent; a block a latent.
struct WeighLatent {
  static constexpr int kThreads = 128;
  struct Shared {
    double squares[kThreads];
  };

  const float* w_dec;  // [latents, width]
  std::int64_t width;
  bool by_norm;  // the penalty weighs latents by it; else 1
  double scale;  // of the penalty, of a mean over rows
  float *norm, *pull;

  template <class Block>
  SAE_DEVICE void run(Block& block, Shared& shared) const {
    const std::int64_t latent = block.index;
    block.each([&](int thread) {
      double sum = 0;
      for (std::int64_t j = thread; by_norm && j < width; j += kThreads) {
        const double value = w_dec[latent * width + j];
        sum += value * value;
      }
      shared.squares[thread] = sum;
    });
    sum_shared<kThreads>(block, shared.squares);
    block.each([&](int thread) {
      if (thread != 0) return;
      norm[latent] = by_norm ? static_cast<float>(sqrt(shared.squares[0])) : 1.0F;
      pull[latent] = static_cast<float>(scale) * norm[latent];
    });
  }
};

// A penalty that weighs norms pulls on the decoder, too; a block a latent.
struct PullNorm {
  static constexpr int kThreads = 128;
  using Shared = Nothing;

  const float *w_dec, *norm;
  const double* f_sums;  // over rows
  std::int64_t width;
  double scale;
  float* gradient;

  template <class Block>
  SAE_DEVICE void run(Block& block, Shared&) const {
    const std::int64_t latent = block.index;
    if (!(norm[latent] > 0)) return;
    const auto along = static_cast<float>(f_sums[latent] * scale / norm[latent]);
    block.each([&](int thread) {
      for (std::int64_t j = thread; j < width; j += kThreads)
        gradient[latent * width + j] += along * w_dec[latent * width + j];
    });
  }
};

// What a pass over all activations found; one block.
struct SumDense {
  static constexpr int kThreads = 256;
  struct Shared {
    double error[kThreads], active[kThreads], penalty[kThreads];
  };

  std::int64_t rows, latents;
  const double* row_squares;
  const std::int32_t* active;
  const double* f_sums;
  const float* norm;
  double scale;
  const double* variance;
  StepSums* sums;

  template <class Block>
  SAE_DEVICE void run(Block& block, Shared& shared) const {
    block.each([&](int thread) {
      double error = 0, found = 0, penalty = 0;
      for (std::int64_t row = thread; row < rows; row += kThreads) {
        error += row_squares[row];
        found += active[row];
      }
      for (std::int64_t i = thread; i < latents; i += kThreads) penalty += f_sums[i] * norm[i];
      shared.error[thread] = error;
      shared.active[thread] = found;
      shared.penalty[thread] = penalty;
    });
    sum_shared<kThreads>(block, shared.error);
    sum_shared<kThreads>(block, shared.active);
    sum_shared<kThreads>(block, shared.penalty);
    block.each([&](int thread) {
      if (thread != 0) return;
      sums->squared_error = sums->optimised_error = shared.error[0];
      sums->active = shared.active[0];
      sums->penalty = shared.penalty[0] * scale;
      sums->variance = *variance;
    });
  }
};

}  // namespace saesweep::worker::device
