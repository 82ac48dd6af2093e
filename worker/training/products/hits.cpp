#include "worker/training/products/hits.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "core/check.h"
#include "worker/training/products/block.h"
#include "worker/training/products/isa.h"
#include "worker/training/products/product.h"

namespace saesweep::worker::products {
namespace {

// As row_hits_avx2.
using RowHits = std::uint32_t (*)(float* z, const float* bias, const float* floors,
                                  float threshold);

std::uint32_t row_hits_plain(float* z, const float* bias, const float* floors, float threshold) {
  std::uint32_t mask = 0;
  for (std::int64_t i = 0; i < kBlockColumns; ++i) {
    z[i] += bias[i];
    mask |= static_cast<std::uint32_t>(!(z[i] <= threshold + floors[i])) << i;
  }
  return mask;
}

RowHits row_hits() {
#if defined(__x86_64__)
  if (current_isa() >= Isa::kAvx512) return row_hits_avx512;
  if (current_isa() == Isa::kAvx2) return row_hits_avx2;
#endif
  return row_hits_plain;
}

}  // namespace

std::vector<float> padded(const float* values, std::int64_t latents, float beyond) {
  const std::int64_t whole = (latents + kBlockColumns - 1) / kBlockColumns * kBlockColumns;
  std::vector<float> all(static_cast<std::size_t>(whole), beyond);
  std::copy_n(values, latents, all.begin());
  return all;
}

bool collect_hits(const Panels& rows, const Panels& encoder, const std::vector<float>& bias,
                  const std::vector<float>& floors, const std::vector<float>& thresholds,
                  std::vector<Hit>& hits) {
  SAE_CHECK(bias.size() == static_cast<std::size_t>(encoder.count() * kBlockColumns) &&
                floors.size() == bias.size() &&
                thresholds.size() == static_cast<std::size_t>(rows.lanes()),
            "{} biases, {} floors, {} thresholds", bias.size(), floors.size(), thresholds.size());
  const RowHits of_row = row_hits();
  bool finite = true;
  for_each_block(rows, encoder, [&](std::int64_t row, std::int64_t latent, float* block) {
    const std::int64_t height = std::min(kBlockRows, rows.lanes() - row);
    const std::int64_t width = std::min(kBlockColumns, encoder.lanes() - latent);
    const float* block_bias = &bias[static_cast<std::size_t>(latent)];
    const float* block_floors = &floors[static_cast<std::size_t>(latent)];
    for (std::int64_t i = 0; i < height; ++i) {
      float* z = block + i * kBlockColumns;
      std::uint32_t mask =
          of_row(z, block_bias, block_floors, thresholds[static_cast<std::size_t>(row + i)]);
      // NaN reaches the lanes past the edge too.
      if (width < kBlockColumns) mask &= (std::uint32_t{1} << width) - 1;
      for (; mask != 0; mask &= mask - 1) {
        const int bit = std::countr_zero(mask);
        if (!std::isfinite(z[bit])) {
          finite = false;
          continue;
        }
        hits.push_back(
            {static_cast<std::int32_t>(row + i), static_cast<std::int32_t>(latent) + bit, z[bit]});
      }
    }
  });
  return finite;
}

}  // namespace saesweep::worker::products
