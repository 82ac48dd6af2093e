// The block kernels with the vector instructions of x86. Each function is compiled for its own
// instruction set and called only where the machine has it.
#if defined(__x86_64__)
#include <immintrin.h>

#include "worker/training/products/block.h"

namespace saesweep::worker::products {

// 32 registers: 16 sums (8 rows of 2 x 16 columns), which hides the latency of FMA.
__attribute__((target("avx512f"))) void block_avx512(const float* left, const float* right,
                                                     std::int64_t steps, float* out,
                                                     std::int64_t stride, bool add) {
  __m512 sums[kBlockRows][2];
#pragma GCC unroll 8
  for (int row = 0; row < kBlockRows; ++row) {
    sums[row][0] = _mm512_setzero_ps();
    sums[row][1] = _mm512_setzero_ps();
  }
  for (std::int64_t step = 0; step < steps; ++step) {
    const __m512 first = _mm512_loadu_ps(right + step * kBlockColumns);
    const __m512 second = _mm512_loadu_ps(right + step * kBlockColumns + 16);
#pragma GCC unroll 8
    for (int row = 0; row < kBlockRows; ++row) {
      const __m512 value = _mm512_set1_ps(left[step * kBlockRows + row]);
      sums[row][0] = _mm512_fmadd_ps(value, first, sums[row][0]);
      sums[row][1] = _mm512_fmadd_ps(value, second, sums[row][1]);
    }
  }
#pragma GCC unroll 8
  for (int row = 0; row < kBlockRows; ++row)
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      float* to = out + row * stride + half * 16;
      const __m512 sum = sums[row][half];
      _mm512_storeu_ps(to, add ? _mm512_add_ps(_mm512_loadu_ps(to), sum) : sum);
    }
}

__attribute__((target("avx512f,avx512bf16"))) void block_avx512_bf16(const float* left,
                                                                     const float* right,
                                                                     std::int64_t steps, float* out,
                                                                     std::int64_t stride,
                                                                     bool add) {
  __m512 sums[kBlockRows][2];
#pragma GCC unroll 8
  for (int row = 0; row < kBlockRows; ++row) {
    sums[row][0] = _mm512_setzero_ps();
    sums[row][1] = _mm512_setzero_ps();
  }
  for (std::int64_t step = 0; step < steps; ++step) {
    const auto first = (__m512bh)_mm512_loadu_ps(right + step * kBlockColumns);
    const auto second = (__m512bh)_mm512_loadu_ps(right + step * kBlockColumns + 16);
#pragma GCC unroll 8
    for (int row = 0; row < kBlockRows; ++row) {
      const auto value = (__m512bh)_mm512_set1_ps(left[step * kBlockRows + row]);
      sums[row][0] = _mm512_dpbf16_ps(sums[row][0], value, first);
      sums[row][1] = _mm512_dpbf16_ps(sums[row][1], value, second);
    }
  }
#pragma GCC unroll 8
  for (int row = 0; row < kBlockRows; ++row)
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      float* to = out + row * stride + half * 16;
      const __m512 sum = sums[row][half];
      _mm512_storeu_ps(to, add ? _mm512_add_ps(_mm512_loadu_ps(to), sum) : sum);
    }
}

// 16 registers: a quarter of the block (4 rows of 2 x 8 columns) at a time.
__attribute__((target("avx2,fma"))) void block_avx2(const float* left, const float* right,
                                                    std::int64_t steps, float* out,
                                                    std::int64_t stride, bool add) {
  for (std::int64_t column = 0; column < kBlockColumns; column += 16)
    for (std::int64_t top = 0; top < kBlockRows; top += 4) {
      __m256 sums[4][2];
#pragma GCC unroll 4
      for (int row = 0; row < 4; ++row) {
        sums[row][0] = _mm256_setzero_ps();
        sums[row][1] = _mm256_setzero_ps();
      }
      for (std::int64_t step = 0; step < steps; ++step) {
        const __m256 first = _mm256_loadu_ps(right + step * kBlockColumns + column);
        const __m256 second = _mm256_loadu_ps(right + step * kBlockColumns + column + 8);
#pragma GCC unroll 4
        for (int row = 0; row < 4; ++row) {
          const __m256 value = _mm256_set1_ps(left[step * kBlockRows + top + row]);
          sums[row][0] = _mm256_fmadd_ps(value, first, sums[row][0]);
          sums[row][1] = _mm256_fmadd_ps(value, second, sums[row][1]);
        }
      }
#pragma GCC unroll 4
      for (int row = 0; row < 4; ++row)
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
          float* to = out + (top + row) * stride + column + half * 8;
          const __m256 sum = sums[row][half];
          _mm256_storeu_ps(to, add ? _mm256_add_ps(_mm256_loadu_ps(to), sum) : sum);
        }
    }
}

__attribute__((target("avx512f"))) std::uint32_t row_hits_avx512(float* z, const float* bias,
                                                                 const float* floors,
                                                                 float threshold) {
  const __m512 limit = _mm512_set1_ps(threshold);
  const __m512 low = _mm512_add_ps(_mm512_loadu_ps(z), _mm512_loadu_ps(bias));
  const __m512 high = _mm512_add_ps(_mm512_loadu_ps(z + 16), _mm512_loadu_ps(bias + 16));
  _mm512_storeu_ps(z, low);
  _mm512_storeu_ps(z + 16, high);
  const std::uint32_t low_mask =
      _mm512_cmp_ps_mask(low, _mm512_add_ps(limit, _mm512_loadu_ps(floors)), _CMP_NLE_UQ);
  const std::uint32_t high_mask =
      _mm512_cmp_ps_mask(high, _mm512_add_ps(limit, _mm512_loadu_ps(floors + 16)), _CMP_NLE_UQ);
  return low_mask | high_mask << 16;
}

__attribute__((target("avx2,fma"))) std::uint32_t row_hits_avx2(float* z, const float* bias,
                                                                const float* floors,
                                                                float threshold) {
  const __m256 limit = _mm256_set1_ps(threshold);
  std::uint32_t mask = 0;
#pragma GCC unroll 4
  for (int part = 0; part < 4; ++part) {
    const __m256 sum =
        _mm256_add_ps(_mm256_loadu_ps(z + part * 8), _mm256_loadu_ps(bias + part * 8));
    _mm256_storeu_ps(z + part * 8, sum);
    const __m256 floor = _mm256_add_ps(limit, _mm256_loadu_ps(floors + part * 8));
    const int above = _mm256_movemask_ps(_mm256_cmp_ps(sum, floor, _CMP_NLE_UQ));
    mask |= static_cast<std::uint32_t>(above) << (part * 8);
  }
  return mask;
}

}  // namespace saesweep::worker::products
#endif
