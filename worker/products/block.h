// The inner loop of all products: one block of kBlockRows x kBlockColumns sums over one chunk of
// depth. Every element is a sum in fp32 of one term after another, whatever computes it: with FMA,
// AVX2 and AVX-512 give the same bytes. The rounding of each term differs on the plain path; bf16
// pairs are added two by two, and tiles in the order of the processor.
#pragma once

#include <cstdint>

#include "worker/products/panels.h"

namespace saesweep::worker::products {

struct Encoder;
struct RowLimit;

// out[8][32], rows `stride` apart, becomes (or, with add, grows by) the sum over `steps` of
// left[step][8] x right[step][32].
using BlockKernel = void (*)(const float* left, const float* right, std::int64_t steps, float* out,
                             std::int64_t stride, bool add);

// For the current instruction set, of all but tiles. kPairs from kAvx512Bf16 on.
BlockKernel block_kernel(Numbers numbers);

// out[32][32], or [16][32] without `below`, as above, of tiles: panels of 16 rows that follow each
// other. An element is a sum over one tile of depth after another.
using TileKernel = void (*)(const float* left, const float* below, const float* right,
                            std::int64_t steps, float* out, std::int64_t stride, bool add);

// Tiles on the calling thread while it lives: configured, if the current instruction set has them.
class TileProducts {
 public:
  TileProducts();
  ~TileProducts();
  TileProducts(const TileProducts&) = delete;
  TileProducts& operator=(const TileProducts&) = delete;

  void operator()(const float* left, const float* below, const float* right, std::int64_t steps,
                  float* out, std::int64_t stride, bool add) const {
    kernel_(left, below, right, steps, out, stride, add);
  }

 private:
  TileKernel kernel_;
};

void block_plain(const float* left, const float* right, std::int64_t steps, float* out,
                 std::int64_t stride, bool add);
void tiles_plain(const float* left, const float* below, const float* right, std::int64_t steps,
                 float* out, std::int64_t stride, bool add);
#if defined(__x86_64__)
void configure_amx();
void release_amx();
void tiles_amx(const float* left, const float* below, const float* right, std::int64_t steps,
               float* out, std::int64_t stride, bool add);
void block_avx2(const float* left, const float* right, std::int64_t steps, float* out,
                std::int64_t stride, bool add);
void block_avx512(const float* left, const float* right, std::int64_t steps, float* out,
                  std::int64_t stride, bool add);
void block_avx512_bf16(const float* left, const float* right, std::int64_t steps, float* out,
                       std::int64_t stride, bool add);

// z += bias over the 32 latents of a block's row, from `latent` on; bit i of the result: z[i] is
// above the row's limit, or NaN.
std::uint32_t row_hits_avx2(float* z, const Encoder& encoder, std::int64_t latent,
                            const RowLimit& limit);
std::uint32_t row_hits_avx512(float* z, const Encoder& encoder, std::int64_t latent,
                              const RowLimit& limit);
#endif

}  // namespace saesweep::worker::products
