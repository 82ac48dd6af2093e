#include "worker/products/product.h"

#include <algorithm>
#include <ctime>
#include <vector>

#include "core/check.h"

namespace saesweep::worker::products {

void multiply_chunk(const Panels& left, std::int64_t left_chunk, const Panels& right,
                    std::int64_t right_chunk, bool add, float* out, std::int64_t stride) {
  SAE_CHECK(left.depth_of_chunk(left_chunk) == right.depth_of_chunk(right_chunk) &&
                left.numbers() == right.numbers(),
            "depths {} and {}", left.depth_of_chunk(left_chunk), right.depth_of_chunk(right_chunk));
  const std::int64_t steps = left.steps_of_chunk(left_chunk);
  // kernel(row, column, to, stride, add) makes a block of `rows` x kBlockColumns at a left panel.
  const auto for_blocks = [&](std::int64_t rows, const auto& kernel) {
    const std::int64_t panels = rows / left_width(left.numbers());
    for (std::int64_t column = 0; column < right.count(); ++column)
      for (std::int64_t row = 0; row < left.count(); row += panels) {
        const std::int64_t first = row * left_width(left.numbers());
        float* to = out + first * stride + column * kBlockColumns;
        const std::int64_t height = std::min(rows, left.lanes() - first);
        const std::int64_t width = std::min(kBlockColumns, right.lanes() - column * kBlockColumns);
        if (height == rows && width == kBlockColumns) {
          kernel(row, column, to, stride, add);
          continue;
        }
        alignas(64) float block[2 * kTileLanes * kBlockColumns] = {};
        // A block that sticks out: what is added to is taken along, so that all elements are made
        // in the same way.
        for (std::int64_t i = 0; add && i < height; ++i)
          std::copy_n(to + i * stride, width, block + i * kBlockColumns);
        kernel(row, column, block, kBlockColumns, add);
        for (std::int64_t i = 0; i < height; ++i)
          std::copy_n(block + i * kBlockColumns, width, to + i * stride);
      }
  };
  if (left.numbers() == Numbers::kTiles) {
    const TileProducts multiply;
    for_blocks(2 * kTileLanes, [&](std::int64_t row, std::int64_t column, float* to,
                                   std::int64_t to_stride, bool to_add) {
      multiply(left.panel(row, left_chunk),
               row + 1 < left.count() ? left.panel(row + 1, left_chunk) : nullptr,
               right.panel(column, right_chunk), steps, to, to_stride, to_add);
    });
    return;
  }
  const BlockKernel kernel = block_kernel(left.numbers());
  for_blocks(kBlockRows, [&](std::int64_t row, std::int64_t column, float* to,
                             std::int64_t to_stride, bool to_add) {
    kernel(left.panel(row, left_chunk), right.panel(column, right_chunk), steps, to, to_stride,
           to_add);
  });
}

void multiply(const Panels& left, const Panels& right, float* out, std::int64_t stride) {
  SAE_CHECK(left.depth() == right.depth(), "depths {} and {}", left.depth(), right.depth());
  for (std::int64_t chunk = 0; chunk < left.chunks(); ++chunk)
    multiply_chunk(left, chunk, right, chunk, /*add=*/chunk > 0, out, stride);
}

double flops_per_second(Numbers numbers) {
  constexpr std::int64_t kRounds = 2000;
  const bool tiles = numbers == Numbers::kTiles;
  const std::int64_t rows = tiles ? 2 * kTileLanes : kBlockRows;
  const std::int64_t depth = tiles ? kDepthChunk : 128;
  const std::vector<float> zeros(static_cast<std::size_t>(kBlockColumns * depth), 0.0F);
  Panels left(rows, depth, left_width(numbers), numbers);
  Panels right(kBlockColumns, depth, kBlockColumns, numbers);
  left.pack_all({zeros.data(), depth, 1});
  right.pack_all({zeros.data(), depth, 1});
  std::vector<float> out(static_cast<std::size_t>(rows * kBlockColumns));
  double best = 0;
  for (int attempt = 0; attempt < 5; ++attempt) {
    const std::clock_t before = std::clock();
    for (std::int64_t round = 0; round < kRounds; ++round)
      multiply_chunk(left, 0, right, 0, round > 0, out.data(), kBlockColumns);
    const double seconds = static_cast<double>(std::clock() - before) / CLOCKS_PER_SEC;
    best = std::max(best, 2.0 * static_cast<double>(rows) * kBlockColumns *
                              static_cast<double>(depth) * kRounds / seconds);
  }
  return best;
}

}  // namespace saesweep::worker::products
