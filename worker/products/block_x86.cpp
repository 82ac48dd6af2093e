// The block kernels with the vector instructions of x86. Each function is compiled for its own
// instruction set and called only where the machine has it.
#if defined(__x86_64__)
#include <immintrin.h>

#include "worker/products/block.h"
#include "worker/products/hits.h"

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

// Eight tiles of 16 rows of 64 bytes (Intel 64 and IA-32 Architectures Software Developer's Manual,
// volume 2, LDTILECFG). A constant in memory: to g++ 12 the instruction reads its first bytes only.
struct alignas(64) TileConfig {
  std::uint8_t palette, start_row, reserved[14];
  std::uint16_t bytes[16];
  std::uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64);
extern const TileConfig kTileConfig;
const TileConfig kTileConfig{
    1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

// To g++ 12 loads of tiles read nothing either: what was written before is in memory by then.
inline void everything_is_in_memory() { __asm__ volatile("" ::: "memory"); }

__attribute__((target("amx-tile"))) void configure_amx() {
  everything_is_in_memory();
  _tile_loadconfig(&kTileConfig);
}
__attribute__((target("amx-tile"))) void release_amx() { _tile_release(); }

// Tiles 0 to 3 are sums, 4 and 5 rows, 6 and 7 columns.
__attribute__((target("amx-tile,amx-bf16"))) void tiles_amx(const float* left, const float* below,
                                                            const float* right, std::int64_t steps,
                                                            float* out, std::int64_t stride,
                                                            bool add) {
  constexpr std::int64_t kLine = 64;
  const auto line = static_cast<std::size_t>(stride) * sizeof(float);
  float* under = out + kTileLanes * stride;
  everything_is_in_memory();
  if (add) {
    _tile_loadd(0, out, line);
    _tile_loadd(1, out + kTileLanes, line);
  } else {
    _tile_zero(0);
    _tile_zero(1);
  }
  if (below == nullptr) {
    for (std::int64_t step = 0; step < steps; step += kTilePairs) {
      _tile_loadd(4, left + step * kTileLanes, kLine);
      _tile_loadd(6, right + step * kBlockColumns, kLine);
      _tile_loadd(7, right + step * kBlockColumns + kTileFloats, kLine);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
    }
  } else {
    if (add) {
      _tile_loadd(2, under, line);
      _tile_loadd(3, under + kTileLanes, line);
    } else {
      _tile_zero(2);
      _tile_zero(3);
    }
    for (std::int64_t step = 0; step < steps; step += kTilePairs) {
      _tile_loadd(4, left + step * kTileLanes, kLine);
      _tile_loadd(6, right + step * kBlockColumns, kLine);
      _tile_loadd(7, right + step * kBlockColumns + kTileFloats, kLine);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(5, below + step * kTileLanes, kLine);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(2, under, line);
    _tile_stored(3, under + kTileLanes, line);
  }
  _tile_stored(0, out, line);
  _tile_stored(1, out + kTileLanes, line);
  everything_is_in_memory();
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

__attribute__((target("avx512f"))) std::uint32_t row_hits_avx512(float* z, const Encoder& encoder,
                                                                 std::int64_t latent,
                                                                 const RowLimit& limit) {
  const __m512 threshold = _mm512_set1_ps(limit.threshold);
  const __m512 of_norm = _mm512_set1_ps(limit.of_norm);
  const __m512 of_rounding = _mm512_set1_ps(limit.of_rounding);
  std::uint32_t mask = 0;
#pragma GCC unroll 2
  for (int part = 0; part < 2; ++part) {
    const std::int64_t at = latent + part * 16;
    const __m512 sum =
        _mm512_add_ps(_mm512_loadu_ps(z + part * 16), _mm512_loadu_ps(encoder.bias.data() + at));
    _mm512_storeu_ps(z + part * 16, sum);
    __m512 bound = _mm512_add_ps(threshold, _mm512_loadu_ps(encoder.floors.data() + at));
    bound = _mm512_fnmadd_ps(of_norm, _mm512_loadu_ps(encoder.norms.data() + at), bound);
    bound = _mm512_fnmadd_ps(of_rounding, _mm512_loadu_ps(encoder.roundings.data() + at), bound);
    const std::uint32_t above = _mm512_cmp_ps_mask(sum, bound, _CMP_NLE_UQ);
    mask |= above << (part * 16);
  }
  return mask;
}

__attribute__((target("avx2,fma"))) std::uint32_t row_hits_avx2(float* z, const Encoder& encoder,
                                                                std::int64_t latent,
                                                                const RowLimit& limit) {
  const __m256 threshold = _mm256_set1_ps(limit.threshold);
  const __m256 of_norm = _mm256_set1_ps(limit.of_norm);
  const __m256 of_rounding = _mm256_set1_ps(limit.of_rounding);
  std::uint32_t mask = 0;
#pragma GCC unroll 4
  for (int part = 0; part < 4; ++part) {
    const std::int64_t at = latent + part * 8;
    const __m256 sum =
        _mm256_add_ps(_mm256_loadu_ps(z + part * 8), _mm256_loadu_ps(encoder.bias.data() + at));
    _mm256_storeu_ps(z + part * 8, sum);
    __m256 bound = _mm256_add_ps(threshold, _mm256_loadu_ps(encoder.floors.data() + at));
    bound = _mm256_fnmadd_ps(of_norm, _mm256_loadu_ps(encoder.norms.data() + at), bound);
    bound = _mm256_fnmadd_ps(of_rounding, _mm256_loadu_ps(encoder.roundings.data() + at), bound);
    const int above = _mm256_movemask_ps(_mm256_cmp_ps(sum, bound, _CMP_NLE_UQ));
    mask |= static_cast<std::uint32_t>(above) << (part * 8);
  }
  return mask;
}

}  // namespace saesweep::worker::products
#endif
