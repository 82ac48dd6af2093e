#include "worker/products/hits.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "core/check.h"
#include "worker/products/block.h"
#include "worker/products/isa.h"
#include "worker/products/product.h"

namespace saesweep::worker::products {
namespace {

// As row_hits_avx2.
using RowHits = std::uint32_t (*)(float* z, const Encoder& encoder, std::int64_t latent,
                                  const RowLimit& limit);

std::uint32_t row_hits_plain(float* z, const Encoder& encoder, std::int64_t latent,
                             const RowLimit& limit) {
  const float* bias = encoder.bias.data() + latent;
  const float* floors = encoder.floors.data() + latent;
  const float* norms = encoder.norms.data() + latent;
  const float* roundings = encoder.roundings.data() + latent;
  std::uint32_t mask = 0;
  for (std::int64_t i = 0; i < kBlockColumns; ++i) {
    z[i] += bias[i];
    const float at =
        limit.threshold + floors[i] - limit.of_norm * norms[i] - limit.of_rounding * roundings[i];
    mask |= static_cast<std::uint32_t>(!(z[i] <= at)) << i;
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

void collect_hits(const Panels& rows, const Encoder& encoder, const std::vector<RowLimit>& limits,
                  std::vector<Hit>& hits) {
  const auto lanes = static_cast<std::size_t>(encoder.panels.count() * kBlockColumns);
  SAE_CHECK(encoder.bias.size() == lanes && encoder.floors.size() == lanes &&
                encoder.norms.size() == lanes && encoder.roundings.size() == lanes &&
                limits.size() == static_cast<std::size_t>(rows.lanes()),
            "{} biases, {} floors, {} limits", encoder.bias.size(), encoder.floors.size(),
            limits.size());
  const RowHits of_row = row_hits();
  for_each_block(rows, encoder.panels, [&](std::int64_t row, std::int64_t latent, float* block) {
    const std::int64_t height = std::min(kBlockRows, rows.lanes() - row);
    const std::int64_t width = std::min(kBlockColumns, encoder.panels.lanes() - latent);
    for (std::int64_t i = 0; i < height; ++i) {
      float* z = block + i * kBlockColumns;
      std::uint32_t mask = of_row(z, encoder, latent, limits[static_cast<std::size_t>(row + i)]);
      // NaN reaches the lanes past the edge too.
      if (width < kBlockColumns) mask &= (std::uint32_t{1} << width) - 1;
      for (; mask != 0; mask &= mask - 1) {
        const int bit = std::countr_zero(mask);
        hits.push_back(
            {static_cast<std::int32_t>(row + i), static_cast<std::int32_t>(latent) + bit, z[bit]});
      }
    }
  });
}

}  // namespace saesweep::worker::products
