#include "worker/training/products/block.h"

#include "core/check.h"
#include "worker/training/products/isa.h"

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

BlockKernel block_kernel(Numbers numbers) {
  const Isa isa = current_isa();
  SAE_CHECK(numbers != Numbers::kPairs || isa == Isa::kAvx512Bf16, "bf16 pairs with {}",
            to_string(isa));
#if defined(__x86_64__)
  if (numbers == Numbers::kPairs) return block_avx512_bf16;
  if (isa >= Isa::kAvx512) return block_avx512;
  if (isa == Isa::kAvx2) return block_avx2;
#endif
  return block_plain;
}

}  // namespace saesweep::worker::products
