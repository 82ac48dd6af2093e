// The gated family between its products: a gate says which latents speak, a magnitude how loud
// (Rajamanoharan et al. 2024).
#pragma once

#include "worker/device/kernels/dense.h"

namespace saesweep::worker::device {

// z becomes max(z + b_gate, 0), the gates; f = ratio z + b_mag where both that and the gate are
// above 0, ratio = exp(r_mag); a block a row.
struct GatedRow {
  static constexpr int kThreads = 256;
  using Shared = Counter;

  DenseRows z, f;
  const float *b_gate, *b_mag, *r_mag;
  std::int32_t* active;  // [rows]: f > 0
  std::uint8_t* fired;   // [width]
  std::uint32_t* not_finite;

  template <class Block>
  SAE_DEVICE void run(Block& block, Shared& shared) const {
    count_row<kThreads>(block, shared, f.width, active, [&](std::int64_t i) {
      const std::int64_t at = block.index * f.width + i;
      const float opening = z.values[at] + b_gate[i], ratio = expf(r_mag[i]);
      const float magnitude = ratio * opening + (b_mag[i] - ratio * b_gate[i]);
      if (!is_finite(opening)) block.mark(not_finite);
      const bool speaks = opening > 0 && magnitude > 0;
      if (speaks) block.mark(&fired[i]);
      z.put(at, opening > 0 ? opening : 0.0F);
      f.put(at, speaks ? magnitude : 0.0F);
      return speaks;
    });
  }
};

// The gradients of f and of the gates become that of z; and sums over some rows, by latent. A block
// 256 latents of kRows rows: partial [chunks, kSums, width].
struct GatedColumns {
  static constexpr int kThreads = 256;
  static constexpr std::int64_t kRows = 256;
  using Shared = Nothing;
  // Gradients of b_gate, b_mag, r_mag and z; and the gates.
  enum Sum { kGate, kMagnitude, kRatio, kBack, kOpen, kSums };

  const float *f, *gates, *of_gates;  // [rows, width]
  DenseRows back;                     // gradient of f, then of z
  const float *b_mag, *r_mag;
  std::int64_t rows;
  const StepTerms* terms;
  double share;  // of a row in a mean over rows
  bool bends;    // the penalty is in of_gates already
  double* partial;

  template <class Block>
  SAE_DEVICE void run(Block& block, Shared&) const {
    each_column<kThreads, kRows>(
        block, rows, back.width,
        [&](std::int64_t i, std::int64_t chunk, std::int64_t first, std::int64_t end) {
          double sums[kSums] = {};
          const float ratio = expf(r_mag[i]);
          const float pull = bends ? 0.0F : static_cast<float>(terms->penalty * share);
          for (std::int64_t row = first; row < end; ++row) {
            const std::int64_t at = row * back.width + i;
            const float of_magnitude = f[at] > 0 ? back.values[at] : 0.0F;
            const float of_gate = gates[at] > 0 ? of_gates[at] + pull : 0.0F;
            const float both = of_magnitude * ratio + of_gate;
            sums[kGate] += of_gate;
            sums[kMagnitude] += of_magnitude;
            sums[kRatio] += of_magnitude * (f[at] - b_mag[i]);
            sums[kBack] += both;
            sums[kOpen] += gates[at];
            back.put(at, both);
          }
          for (int which = 0; which < kSums; ++which)
            partial[(chunk * kSums + which) * back.width + i] = sums[which];
        });
  }
};

}  // namespace saesweep::worker::device
