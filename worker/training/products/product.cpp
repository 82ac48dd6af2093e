#include "worker/training/products/product.h"

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
  const BlockKernel kernel = block_kernel(left.numbers());
  alignas(64) float block[kBlockRows * kBlockColumns];
  const std::int64_t steps = left.steps_of_chunk(left_chunk);
  for (std::int64_t column = 0; column < right.count(); ++column)
    for (std::int64_t row = 0; row < left.count(); ++row) {
      float* to = out + row * kBlockRows * stride + column * kBlockColumns;
      const float* of_left = left.panel(row, left_chunk);
      const float* of_right = right.panel(column, right_chunk);
      const std::int64_t height = std::min(kBlockRows, left.lanes() - row * kBlockRows);
      const std::int64_t width = std::min(kBlockColumns, right.lanes() - column * kBlockColumns);
      if (height == kBlockRows && width == kBlockColumns) {
        kernel(of_left, of_right, steps, to, stride, add);
        continue;
      }
      kernel(of_left, of_right, steps, block, kBlockColumns, false);
      for (std::int64_t i = 0; i < height; ++i)
        for (std::int64_t j = 0; j < width; ++j) {
          const float sum = block[i * kBlockColumns + j];
          to[i * stride + j] = add ? to[i * stride + j] + sum : sum;
        }
    }
}

void multiply(const Panels& left, const Panels& right, float* out, std::int64_t stride) {
  SAE_CHECK(left.depth() == right.depth(), "depths {} and {}", left.depth(), right.depth());
  for (std::int64_t chunk = 0; chunk < left.chunks(); ++chunk)
    multiply_chunk(left, chunk, right, chunk, /*add=*/chunk > 0, out, stride);
}

double flops_per_second(Numbers numbers) {
  constexpr std::int64_t kDepth = 128, kRounds = 2000;
  const std::vector<float> zeros(static_cast<std::size_t>(kBlockColumns * kDepth), 0.0F);
  Panels left(kBlockRows, kDepth, kBlockRows, numbers);
  Panels right(kBlockColumns, kDepth, kBlockColumns, numbers);
  left.pack_all({zeros.data(), kDepth, 1});
  right.pack_all({zeros.data(), kDepth, 1});
  const BlockKernel kernel = block_kernel(numbers);
  alignas(64) float block[kBlockRows * kBlockColumns];
  double best = 0;
  for (int attempt = 0; attempt < 5; ++attempt) {
    const std::clock_t before = std::clock();
    for (std::int64_t round = 0; round < kRounds; ++round)
      kernel(left.panel(0), right.panel(0), left.steps(), block, kBlockColumns, round > 0);
    const double seconds = static_cast<double>(std::clock() - before) / CLOCKS_PER_SEC;
    best = std::max(best, 2.0 * kBlockRows * kBlockColumns * kDepth * kRounds / seconds);
  }
  return best;
}

}  // namespace saesweep::worker::products
