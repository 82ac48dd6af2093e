// The inner loop of all products: one block of kBlockRows x kBlockColumns sums over one chunk of
// depth. Every element is a sum in fp32 of one term after another, whatever computes it: with FMA,
// AVX2 and AVX-512 give the same bytes. The rounding of each term differs on the plain path; bf16
// pairs are added two by two.
#pragma once

#include <cstdint>

#include "worker/training/products/panels.h"

namespace saesweep::worker::products {

// out[8][32], rows `stride` apart, becomes (or, with add, grows by) the sum over `steps` of
// left[step][8] x right[step][32].
using BlockKernel = void (*)(const float* left, const float* right, std::int64_t steps, float* out,
                             std::int64_t stride, bool add);

// For the current instruction set. kPairs only where bf16_numbers() says so.
BlockKernel block_kernel(Numbers numbers);

void block_plain(const float* left, const float* right, std::int64_t steps, float* out,
                 std::int64_t stride, bool add);
#if defined(__x86_64__)
void block_avx2(const float* left, const float* right, std::int64_t steps, float* out,
                std::int64_t stride, bool add);
void block_avx512(const float* left, const float* right, std::int64_t steps, float* out,
                  std::int64_t stride, bool add);
void block_avx512_bf16(const float* left, const float* right, std::int64_t steps, float* out,
                       std::int64_t stride, bool add);

// z += bias over the 32 columns of a block's row; bit i of the result: z[i] is above the threshold
// plus floors[i], or NaN.
std::uint32_t row_hits_avx2(float* z, const float* bias, const float* floors, float threshold);
std::uint32_t row_hits_avx512(float* z, const float* bias, const float* floors, float threshold);
#endif

}  // namespace saesweep::worker::products
