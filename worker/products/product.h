// Matrix products on one thread. Whoever cuts the work into pieces decides what runs where; an
// element's bytes depend on its row, its column and the instruction set alone.
#pragma once

#include <algorithm>
#include <cstdint>

#include "worker/products/block.h"
#include "worker/products/panels.h"

namespace saesweep::worker::products {

// Calls take(row, column, block) with every block of left x right in turn, while it is in cache:
// block[8][32] begins at that row and column; lanes past the edges hold zeros. Goes down the rows
// of the left operand for each panel of the right one.
template <class Take>
void for_each_block(const Panels& left, const Panels& right, const Take& take) {
  alignas(64) float block[2 * kTileLanes * kBlockColumns];
  if (left.numbers() == Numbers::kTiles) {
    const TileProducts multiply;
    for (std::int64_t column = 0; column < right.count(); ++column)
      for (std::int64_t row = 0; row < left.count(); row += 2) {
        const bool both = row + 1 < left.count();
        for (std::int64_t chunk = 0; chunk < left.chunks(); ++chunk)
          multiply(left.panel(row, chunk), both ? left.panel(row + 1, chunk) : nullptr,
                   right.panel(column, chunk), left.steps_of_chunk(chunk), block, kBlockColumns,
                   chunk > 0);
        const std::int64_t first = row * kTileLanes;
        const std::int64_t end = std::min(left.lanes(), first + (both ? 2 : 1) * kTileLanes);
        for (std::int64_t at = first; at < end; at += kBlockRows)
          take(at, column * kBlockColumns, block + (at - first) * kBlockColumns);
      }
    return;
  }
  const BlockKernel kernel = block_kernel(left.numbers());
  for (std::int64_t column = 0; column < right.count(); ++column)
    for (std::int64_t row = 0; row < left.count(); ++row) {
      for (std::int64_t chunk = 0; chunk < left.chunks(); ++chunk)
        kernel(left.panel(row, chunk), right.panel(column, chunk), left.steps_of_chunk(chunk),
               block, kBlockColumns, chunk > 0);
      take(row * kBlockRows, column * kBlockColumns, static_cast<float*>(block));
    }
}

// out[left.lanes()][right.lanes()], rows `stride` apart, = left x right. For deep products: goes
// through the depth chunk by chunk, so that both operands' chunks stay in cache.
void multiply(const Panels& left, const Panels& right, float* out, std::int64_t stride);
// One chunk of a deep product, for operands that are packed a chunk at a time; `add`: to what the
// chunks before it left. All chunks in order make the bytes of multiply().
void multiply_chunk(const Panels& left, std::int64_t left_chunk, const Panels& right,
                    std::int64_t right_chunk, bool add, float* out, std::int64_t stride);

// What one core does with operands in cache: the ceiling of every product. Measured now, in a tenth
// of a second of processor time.
double flops_per_second(Numbers numbers);

}  // namespace saesweep::worker::products
