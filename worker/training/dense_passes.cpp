#include "worker/training/dense_passes.h"

#include "worker/training/kernels.h"

namespace saesweep::worker {

PackedDecoder pack_decoder(ThreadPool& pool, const float* w_dec, std::int64_t latents,
                           std::int64_t d, products::Numbers numbers) {
  return {right_operand(pool, columns_of(w_dec, d), d, latents, numbers),
          right_operand(pool, rows_of(w_dec, d), latents, d, numbers)};
}

void decode_tile(const products::Panels& forth, const Slabs& codes, std::int64_t first,
                 std::int64_t count, float* out) {
  // A chunk is packed just before it is multiplied, and then in cache.
  for (std::int64_t chunk = 0; chunk < forth.chunks(); ++chunk)
    products::multiply_chunk(left_operand(codes.of_rows(first, chunk * products::kDepthChunk),
                                          count, forth.depth_of_chunk(chunk), forth.numbers()),
                             0, forth, chunk, /*add=*/chunk > 0, out, forth.lanes());
}

DecodeSums finish_tile(const float* b_dec, const float* x, float factor, std::int64_t count,
                       std::int64_t d, float* error, float* g) {
  DecodeSums sums;
  sums.g_columns.assign(static_cast<std::size_t>(d), 0);
  for (std::int64_t row = 0; row < count; ++row) {
    float* e = error + row * d;
    kernels::axpy(1, b_dec, e, d);
    sums.squared_error +=
        kernels::finish_error(x + row * d, factor, e, g + row * d, sums.g_columns.data(), d);
  }
  return sums;
}

void gradient_of_latents(const Slabs& codes, const products::Panels& right, std::int64_t first,
                         std::int64_t count, float* out) {
  for (std::int64_t chunk = 0; chunk < right.chunks(); ++chunk)
    products::multiply_chunk(left_operand(codes.of_latents(first, chunk * products::kDepthChunk),
                                          count, right.depth_of_chunk(chunk), right.numbers()),
                             0, right, chunk, /*add=*/chunk > 0, out, right.lanes());
}

}  // namespace saesweep::worker
