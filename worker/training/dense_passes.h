// Forward and backward passes over all activations of a batch: five products in blocks, of which
// the families do what stands between them while a block is in cache.
#pragma once

#include <algorithm>
#include <cstdint>

#include "worker/training/packing.h"
#include "worker/training/selection.h"
#include "worker/training/slabs.h"
#include "worker/training/sparse_passes.h"

namespace saesweep::worker {

// W_dec as operand of the reconstruction and of the way back.
struct PackedDecoder {
  products::Panels forth;  // lanes are columns, depth is latents
  products::Panels back;   // lanes are latents, depth is columns
};
PackedDecoder pack_decoder(ThreadPool& pool, const float* w_dec, std::int64_t latents,
                           std::int64_t d, products::Numbers numbers);

// Rows [first, first + count) through the encoder: take(row, latent, z, height) gets each block
// z[height][32] of the products, without the bias.
template <class Take>
void encode_tile(const CentredRows& rows, const PackedEncoder& encoder, std::int64_t first,
                 std::int64_t count, const Take& take) {
  products::for_each_block(left_operand(rows_of(rows.data + first * rows.d, rows.d), count, rows.d,
                                        encoder.panels.numbers()),
                           encoder.panels, [&](std::int64_t row, std::int64_t latent, float* z) {
                             take(first + row, latent, z,
                                  std::min(products::kBlockRows, count - row));
                           });
}

// out[count][d] = codes W_dec for `count` rows of the codes from `first` on.
void decode_tile(const products::Panels& forth, const Slabs& codes, std::int64_t first,
                 std::int64_t count, float* out);

// error, codes W_dec of `count` rows, becomes what is missing: + b_dec - x. Its gradient
// factor * error goes to g.
DecodeSums finish_tile(const float* b_dec, const float* x, float factor, std::int64_t count,
                       std::int64_t d, float* error, float* g);

// The way back: take(row, latent, h, height) gets each block h[height][32] of g W_dec^T for rows
// [count][d] of gradients.
template <class Take>
void decode_back_tile(const products::Panels& back, const float* g, std::int64_t count,
                      const Take& take) {
  products::for_each_block(
      left_operand(rows_of(g, back.depth()), count, back.depth(), back.numbers()), back,
      [&](std::int64_t row, std::int64_t latent, float* h) {
        take(row, latent, h, std::min(products::kBlockRows, count - row));
      });
}

// out[count][columns] = codes^T right for latents from `first` on, a multiple of 32.
//   right: lanes are the columns of a matrix [batch, columns]
void gradient_of_latents(const Slabs& codes, const products::Panels& right, std::int64_t first,
                         std::int64_t count, float* out);

}  // namespace saesweep::worker
