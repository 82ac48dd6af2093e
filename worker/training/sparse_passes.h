// Forward and backward passes over activations that are mostly zero: only what is there is decoded
// and differentiated.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "worker/parallel/thread_pool.h"
#include "worker/products/scratch.h"
#include "worker/training/sparse_codes.h"

namespace saesweep::worker {

// Two matrices [rows, d_first] and [rows, d_second] cut into slices of 16 columns, [slice][row][16
// of the first, 16 of the second]: a slice of a batch stays in a core's cache while all latents
// gather from it.
class SlicedRows {
 public:
  static constexpr std::int64_t kColumns = 16;

  SlicedRows(std::int64_t rows, std::int64_t d_first, std::int64_t d_second)
      : rows_(rows),
        d_first_(d_first),
        d_second_(d_second),
        memory_(slices() * rows * 2 * kColumns) {}
  SlicedRows(std::int64_t rows, std::int64_t d) : SlicedRows(rows, d, d) {}
  std::int64_t d_first() const { return d_first_; }
  std::int64_t d_second() const { return d_second_; }
  std::int64_t slices() const { return (std::max(d_first_, d_second_) + kColumns - 1) / kColumns; }
  const float* slice(std::int64_t index) const {
    return memory_.data() + index * rows_ * 2 * kColumns;
  }
  // Rows may be put by different threads.
  void put(std::int64_t row, const float* first, const float* second);

 private:
  std::int64_t rows_, d_first_, d_second_;
  products::Scratch memory_;
};

struct Decoder {
  const float* w_dec;  // [latents, d]
  const float* b_dec;  // [d]; nullptr: none
  std::int64_t d;
};

// Of a tile; added up in order they are those of the batch.
struct DecodeSums {
  double squared_error = 0;
  std::vector<double> g_columns;  // of the gradient of the reconstruction
  void add(const DecodeSums& of_tile);
};

// For rows [first, first + count): error = codes W_dec + b_dec - x, its gradient factor * error,
// and for every code the dot product of that gradient with the code's decoder row.
//   x, error: [rows, d]; d_codes: one a code; g_and_x: gets the gradient and x_centred, what the
//   encoder read; nullptr: nobody asks
DecodeSums decode_rows(const SparseCodes& codes, const Decoder& decoder, const float* x,
                       const float* x_centred, float factor, std::int64_t first, std::int64_t count,
                       float* error, std::vector<float>& d_codes, SlicedRows* g_and_x);

// dL/dW_dec = codesᵀ g, dL/dW_enc = d_codesᵀ x_centred, dL/db_enc = sums of d_codes by latent; each
// sum in order of rows. With `add` they are added to what is there.
//   w_dec: [latents, d of the gradient]; w_enc: [latents, d of x_centred]; b_enc: [latents]
struct WeightGradients {
  float *w_dec, *w_enc, *b_enc;
  std::int64_t latents;
};
void weight_gradients(ThreadPool& pool, const SparseCodes& codes, std::span<const float> d_codes,
                      const SlicedRows& g_and_x, bool add, const WeightGradients& out);

}  // namespace saesweep::worker
