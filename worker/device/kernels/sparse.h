// Forward and backward passes over activations that are mostly zero: only what is kept is decoded
// and differentiated. Sums are in the order of latents, or of rows; none depends on which thread
// comes first.
#pragma once

#include "worker/device/kernels/selection.h"

namespace saesweep::worker::device {

SAE_DEVICE std::int64_t group_of(const std::int64_t* group_end, std::int64_t groups,
                                 std::int64_t latent) {
  std::int64_t group = 0;
  while (group + 1 < groups && latent >= group_end[group]) ++group;
  return group;
}

// Rows less a bias, as the encoder reads them; a block a row. Of `width` values from `stride` ones.
struct CentreRow {
  static constexpr int kThreads = 256;
  using Shared = Nothing;

  const float *x, *bias;  // bias: [width], or nullptr
  std::int64_t width, stride;
  float* out;              // [rows, width]
  std::uint16_t* rounded;  // the same as bf16, or nullptr

  template <class Block>
  SAE_DEVICE void run(Block& block, Shared&) const {
    block.each([&](int thread) {
      for (std::int64_t j = thread; j < width; j += kThreads) {
        const float value = x[block.index * stride + j] - (bias == nullptr ? 0.0F : bias[j]);
        out[block.index * width + j] = value;
        if (rounded != nullptr) rounded[block.index * width + j] = bfloat16_bits(value);
      }
    });
  }
};

struct RoundValues {
  static constexpr int kThreads = 256;
  static constexpr std::int64_t kValues = 4096;  // of a block
  using Shared = Nothing;

  const float* from;
  std::uint16_t* to;
  std::int64_t count;

  template <class Block>
  SAE_DEVICE void run(Block& block, Shared&) const {
    block.each([&](int thread) {
      const std::int64_t first = block.index * kValues;
      for (std::int64_t i = first + thread; i < first + kValues && i < count; i += kThreads)
        to[i] = bfloat16_bits(from[i]);
    });
  }
};

// codes.pull of a row: the dot product of each code's decoder row with gradient_of(latent), some
// threads for each; `parts` is shared.
inline constexpr int kPullThreads = 256, kPullLanes = 32;
template <class Block, class GradientOf>
SAE_DEVICE void pull_codes(Block& block, float* parts, const CodeLists& codes, std::int64_t row,
                           const float* w_dec, std::int64_t width, const GradientOf& gradient_of) {
  constexpr int kAtOnce = kPullThreads / kPullLanes;
  const std::int64_t begin = codes.begin[row];
  const std::int32_t count = codes.count[row];
  for (std::int32_t first = 0; first < count; first += kAtOnce) {
    block.each([&](int thread) {
      const std::int32_t code = first + thread / kPullLanes;
      if (code >= count) return;
      const std::int32_t latent = codes.latent[begin + code];
      const float *decoder = w_dec + latent * width, *gradient = gradient_of(latent);
      float sum = 0;
      for (std::int64_t j = thread % kPullLanes; j < width; j += kPullLanes)
        sum += gradient[j] * decoder[j];
      parts[thread] = sum;
    });
    block.each([&](int thread) {
      if (thread >= kAtOnce || first + thread >= count) return;
      float sum = 0;
      for (int lane = 0; lane < kPullLanes; ++lane) sum += parts[thread * kPullLanes + lane];
      codes.pull[begin + first + thread] = sum;
    });
  }
}

// error = codes W_dec + b_dec - x + residual, its gradient g = factor * error, and for every code
// the dot product of g with its decoder row; a block a row.
struct DecodeRow {
  static constexpr int kThreads = kPullThreads;
  struct Shared {
    float parts[kThreads];
    double squares[kThreads];
  };

  CodeLists codes;
  const float* w_dec;     // [latents, width]
  const float* b_dec;     // or nullptr
  const float* x;         // [rows, stride], or nullptr
  const float* residual;  // [rows, width], or nullptr
  std::int64_t width, stride;
  float factor;
  const float* factor_there;         // in place of `factor`, or nullptr
  const std::uint32_t* unless_none;  // nothing is done where it is 0; or nullptr
  float* error;                      // [rows, width]; nullptr: not wanted
  float* g;                          // [rows, width]
  double* square;                    // [rows], of the error

  template <class Block>
  SAE_DEVICE void run(Block& block, Shared& shared) const {
    const std::int64_t row = block.index;
    if (unless_none != nullptr && *unless_none == 0) {
      block.each([&](int thread) {
        if (thread == 0) square[row] = 0;
      });
      return;
    }
    const float scale = factor_there == nullptr ? factor : *factor_there;
    const std::int64_t begin = codes.begin[row];
    const std::int32_t count = codes.count[row];
    float* gradient = g + row * width;
    block.each([&](int thread) {
      double sum = 0;
      for (std::int64_t j = thread; j < width; j += kThreads) {
        float e = b_dec == nullptr ? 0.0F : b_dec[j];
        if (residual != nullptr) e += residual[row * width + j];
        for (std::int64_t at = begin; at < begin + count; ++at)
          e += codes.value[at] * w_dec[codes.latent[at] * width + j];
        if (x != nullptr) e -= x[row * stride + j];
        sum += static_cast<double>(e) * e;
        if (error != nullptr) error[row * width + j] = e;
        gradient[j] = e * scale;
      }
      shared.squares[thread] = sum;
    });
    sum_shared<kThreads>(block, shared.squares);
    block.each([&](int thread) {
      if (thread == 0) square[row] = shared.squares[0];
    });
    pull_codes(block, shared.parts, codes, row, w_dec, width,
               [&](std::int32_t) { return gradient; });
  }
};

// The same for prefixes of latents that each reconstruct x, as far as they go (Bussmann et al.
// 2025): g [rows, groups, width] gets the sums, over the prefixes from each group on, of factor
// times their errors.
struct DecodePrefixes {
  static constexpr int kThreads = kPullThreads;
  struct Shared {
    float parts[kThreads];
    double squares[kThreads], prefixes[kThreads];
  };

  CodeLists codes;
  const float *w_dec, *b_dec, *x;
  std::int64_t width, groups;
  const std::int64_t* group_end;  // past the last latent of each
  float factor;
  double weight;  // of a prefix's error
  float *error, *g;
  double *square, *prefixes;  // [rows]: of the error of all latents; of all prefixes, weighted

  template <class Block>
  SAE_DEVICE void run(Block& block, Shared& shared) const {
    const std::int64_t row = block.index;
    const std::int64_t begin = codes.begin[row];
    const std::int32_t count = codes.count[row];
    float* gradient = g + row * groups * width;
    block.each([&](int thread) {
      double last = 0, all = 0;
      for (std::int64_t j = thread; j < width; j += kThreads) {
        float x_hat = b_dec[j], e = 0;
        std::int64_t at = begin;
        for (std::int64_t group = 0; group < groups; ++group) {
          for (; at < begin + count && codes.latent[at] < group_end[group]; ++at)
            x_hat += codes.value[at] * w_dec[codes.latent[at] * width + j];
          e = x_hat - x[row * width + j];
          all += static_cast<double>(e) * e;
          gradient[group * width + j] = e * factor;
        }
        last += static_cast<double>(e) * e;
        error[row * width + j] = e;
        for (std::int64_t group = groups - 1; group > 0; --group)
          gradient[(group - 1) * width + j] += gradient[group * width + j];
      }
      shared.squares[thread] = last;
      shared.prefixes[thread] = all;
    });
    sum_shared<kThreads>(block, shared.squares);
    sum_shared<kThreads>(block, shared.prefixes);
    block.each([&](int thread) {
      if (thread != 0) return;
      square[row] = shared.squares[0];
      prefixes[row] = weight * shared.prefixes[0];
    });
    pull_codes(block, shared.parts, codes, row, w_dec, width, [&](std::int32_t latent) {
      return gradient + group_of(group_end, groups, latent) * width;
    });
  }
};

// ---- codes by latent ----------------------------------------------------------------------------
// A bit for each row that a latent touches says where among the latent's touches that row stands:
// a sort by latent and row without an order of threads.

// A row of the batch that a latent touches: with an activation, and the gradient of its
// pre-activation.
struct Touch {
  std::int32_t row;
  float value, pull;
};

struct TouchLists {
  std::uint32_t* bits;  // [words of rows, latents]
  std::int64_t* begin;  // [latents + 1]
  Touch* touches;
  std::int64_t latents;
};

SAE_DEVICE std::int64_t words_of(std::int64_t rows) { return (rows + 31) / 32; }

// A block a word of rows.
struct ClearBits {
  static constexpr int kThreads = 256;
  using Shared = Nothing;

  TouchLists lists;
  const std::uint32_t* unless_none;

  template <class Block>
  SAE_DEVICE void run(Block& block, Shared&) const {
    if (unless_none != nullptr && *unless_none == 0) return;
    block.each([&](int thread) {
      for (std::int64_t i = thread; i < lists.latents; i += kThreads)
        lists.bits[block.index * lists.latents + i] = 0;
    });
  }
};

// Calls take(latent, entry) for each code of the block's row.
template <int kThreads, class Block, class Take>
SAE_DEVICE void each_code(Block& block, const CodeLists& codes, const Take& take) {
  const std::int64_t begin = codes.begin[block.index];
  block.each([&](int thread) {
    for (std::int64_t i = thread; i < codes.count[block.index]; i += kThreads)
      take(codes.latent[begin + i], begin + i);
  });
}

// A block a row.
struct SetBits {
  static constexpr int kThreads = 128;
  using Shared = Nothing;

  CodeLists codes;
  TouchLists lists;

  template <class Block>
  SAE_DEVICE void run(Block& block, Shared&) const {
    const std::int64_t row = block.index;
    each_code<kThreads>(block, codes, [&](std::int32_t latent, std::int64_t) {
      block.bit_or(&lists.bits[row / 32 * lists.latents + latent], 1U << (row % 32));
    });
  }
};

// How many rows a latent touches, into begin[latent]; 256 latents a block.
struct CountTouches {
  static constexpr int kThreads = 256;
  using Shared = Nothing;

  TouchLists lists;
  std::int64_t words;
  const std::uint32_t* unless_none;

  template <class Block>
  SAE_DEVICE void run(Block& block, Shared&) const {
    if (unless_none != nullptr && *unless_none == 0) return;
    block.each([&](int thread) {
      const std::int64_t latent = block.index * kThreads + thread;
      if (latent >= lists.latents) return;
      std::int64_t count = 0;
      for (std::int64_t word = 0; word < words; ++word)
        count += bits_set(lists.bits[word * lists.latents + latent]);
      lists.begin[latent] = count;
    });
  }
};

// Counts become places; one block.
struct PlaceLatents {
  static constexpr int kThreads = 256;
  struct Shared {
    std::int64_t before[kThreads], total;
  };

  TouchLists lists;
  const std::uint32_t* unless_none;

  template <class Block>
  SAE_DEVICE void run(Block& block, Shared& shared) const {
    if (unless_none != nullptr && *unless_none == 0) return;
    const std::int64_t each = (lists.latents + kThreads - 1) / kThreads;
    block.each([&](int thread) {
      std::int64_t sum = 0;
      for (std::int64_t i = thread * each; i < lists.latents && i < (thread + 1) * each; ++i)
        sum += lists.begin[i];
      shared.before[thread] = sum;
    });
    scan_shared<kThreads>(block, shared.before, shared.total);
    block.each([&](int thread) {
      std::int64_t sum = shared.before[thread];
      for (std::int64_t i = thread * each; i < lists.latents && i < (thread + 1) * each; ++i) {
        const std::int64_t count = lists.begin[i];
        lists.begin[i] = sum;
        sum += count;
      }
      if (thread == 0) lists.begin[lists.latents] = shared.total;
    });
  }
};

// A block a row.
struct WriteTouches {
  static constexpr int kThreads = 128;
  using Shared = Nothing;

  CodeLists codes;
  TouchLists lists;

  template <class Block>
  SAE_DEVICE void run(Block& block, Shared&) const {
    const std::int64_t row = block.index;
    each_code<kThreads>(block, codes, [&](std::int32_t latent, std::int64_t entry) {
      std::int64_t place = lists.begin[latent];
      for (std::int64_t word = 0; word < row / 32; ++word)
        place += bits_set(lists.bits[word * lists.latents + latent]);
      place += bits_set(lists.bits[row / 32 * lists.latents + latent] & ((1U << (row % 32)) - 1));
      lists.touches[place] = {static_cast<std::int32_t>(row), codes.value[entry],
                              codes.pull[entry]};
    });
  }
};

// dL/dW_dec = codes^T g, dL/dW_enc = pulls^T read, dL/db_enc = sums of pulls; a block a latent.
struct GatherGradients {
  static constexpr int kThreads = 128;
  using Shared = Nothing;

  TouchLists lists;
  const float* g;     // [rows, groups, d_out]
  const float* read;  // [rows, d_in]
  std::int64_t d_in, d_out, groups;
  const std::int64_t* group_end;  // or nullptr: one group
  float *w_enc, *b_enc, *w_dec;
  bool add;  // to what is there
  const std::uint32_t* unless_none;

  template <class Block>
  SAE_DEVICE void run(Block& block, Shared&) const {
    if (unless_none != nullptr && *unless_none == 0) return;
    const std::int64_t latent = block.index;
    const std::int64_t begin = lists.begin[latent], end = lists.begin[latent + 1];
    if (add && begin == end) return;
    const float* of_group =
        group_end == nullptr ? g : g + group_of(group_end, groups, latent) * d_out;
    block.each([&](int thread) {
      float* dec = w_dec + latent * d_out;
      for (std::int64_t j = thread; j < d_out; j += kThreads) {
        float sum = add ? dec[j] : 0.0F;
        for (std::int64_t i = begin; i < end; ++i)
          sum += lists.touches[i].value * of_group[lists.touches[i].row * groups * d_out + j];
        dec[j] = sum;
      }
      float* enc = w_enc + latent * d_in;
      for (std::int64_t j = thread; j < d_in; j += kThreads) {
        float sum = add ? enc[j] : 0.0F;
        for (std::int64_t i = begin; i < end; ++i)
          sum += lists.touches[i].pull * read[lists.touches[i].row * d_in + j];
        enc[j] = sum;
      }
      if (thread != 0) return;
      double sum = 0;
      for (std::int64_t i = begin; i < end; ++i) sum += lists.touches[i].pull;
      b_enc[latent] = (add ? b_enc[latent] : 0.0F) + static_cast<float>(sum);
    });
  }
};

}  // namespace saesweep::worker::device
