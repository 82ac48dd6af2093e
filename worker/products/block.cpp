#include "worker/products/block.h"

#include <cstring>
#include <utility>

#include "core/check.h"
#include "core/dtype.h"
#include "worker/products/isa.h"

namespace saesweep::worker::products {

void block_plain(const float* __restrict left, const float* __restrict right, std::int64_t steps,
                 float* __restrict out, std::int64_t stride, bool add) {
  float sums[kBlockRows][kBlockColumns] = {};
  for (std::int64_t step = 0; step < steps; ++step)
    for (std::int64_t row = 0; row < kBlockRows; ++row)
      for (std::int64_t column = 0; column < kBlockColumns; ++column)
        sums[row][column] += left[step * kBlockRows + row] * right[step * kBlockColumns + column];
  for (std::int64_t row = 0; row < kBlockRows; ++row)
    for (std::int64_t column = 0; column < kBlockColumns; ++column) {
      float& to = out[row * stride + column];
      to = add ? to + sums[row][column] : sums[row][column];
    }
}

void tiles_plain(const float* left, const float* below, const float* right, std::int64_t steps,
                 float* out, std::int64_t stride, bool add) {
  const auto at = [](const float* pairs, std::int64_t index) {
    std::uint32_t both = 0;
    std::memcpy(&both, pairs + index, sizeof(both));
    return std::pair{from_bf16(static_cast<std::uint16_t>(both)),
                     from_bf16(static_cast<std::uint16_t>(both >> 16))};
  };
  for (std::int64_t row = 0; row < (below == nullptr ? 1 : 2) * kTileLanes; ++row)
    for (std::int64_t column = 0; column < kBlockColumns; ++column) {
      const float* of_row = (row < kTileLanes ? left : below) + row % kTileLanes * kTilePairs;
      const float* of_column = right + column / kTileLanes * kTileFloats + column % kTileLanes;
      float& to = out[row * stride + column];
      float sum = add ? to : 0;
      for (std::int64_t step = 0; step < steps; ++step) {
        const std::int64_t tile = step / kTilePairs, pair = step % kTilePairs;
        const auto [low, high] = at(of_row, tile * kTileFloats + pair);
        const auto [other_low, other_high] =
            at(of_column, 2 * tile * kTileFloats + pair * kTileLanes);
        sum += low * other_low + high * other_high;
      }
      to = sum;
    }
}

TileProducts::TileProducts() : kernel_(tiles_plain) {
#if defined(__x86_64__)
  if (current_isa() == Isa::kAmx) {
    configure_amx();
    kernel_ = tiles_amx;
  }
#endif
}

TileProducts::~TileProducts() {
#if defined(__x86_64__)
  if (kernel_ == tiles_amx) release_amx();
#endif
}

BlockKernel block_kernel(Numbers numbers) {
  const Isa isa = current_isa();
  SAE_CHECK(numbers != Numbers::kTiles, "tiles have kernels of their own");
  SAE_CHECK(numbers != Numbers::kPairs || isa >= Isa::kAvx512Bf16, "bf16 pairs with {}",
            to_string(isa));
#if defined(__x86_64__)
  if (numbers == Numbers::kPairs) return block_avx512_bf16;
  if (isa >= Isa::kAvx512) return block_avx512;
  if (isa == Isa::kAvx2) return block_avx2;
#endif
  return block_plain;
}

}  // namespace saesweep::worker::products
