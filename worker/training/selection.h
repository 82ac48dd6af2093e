// Which activations of a batch the TopK family keeps: the k largest of each row, or the k x rows
// largest of all. Exact, with ties to the first row and the lowest latent. The encoder's product is
// compared with a guessed threshold while it is in cache and only survivors are stored; where the
// guess was too high the product is done again, and gives the same bytes.
#pragma once

#include <cstdint>
#include <vector>

#include "worker/parallel/thread_pool.h"
#include "worker/training/encoder.h"
#include "worker/training/sparse_codes.h"

namespace saesweep::worker {

// Rows x - b_dec of a batch, cut into tiles of which each runs on one thread.
struct CentredRows {
  const float* data;  // [rows, d]
  std::int64_t rows, d, rows_per_tile;
  std::int64_t tiles() const { return (rows + rows_per_tile - 1) / rows_per_tile; }
};

// What the last batch says of the next one's thresholds: speed only, never the result.
struct SelectionHints {
  float of_norm = 0;   // topk: k-th value over the row's norm, lower than most; 0: unknown
  float of_batch = 0;  // batchtopk: the k x rows-th value
};

// The k largest positive activations of each row, fewer where fewer are positive. Returns false if
// an activation among them is not finite.
bool select_per_row(ThreadPool& pool, const CentredRows& rows, const PackedEncoder& encoder,
                    std::int64_t k, SelectionHints& hints, SparseCodes& codes);

// The `wanted` largest positive activations of the batch.
bool select_per_batch(ThreadPool& pool, const CentredRows& rows, const PackedEncoder& encoder,
                      std::size_t wanted, SelectionHints& hints, SparseCodes& codes);

// All pre-activations above `threshold` plus their latent's floor. Returns false if one of them is
// not finite.
bool select_above(ThreadPool& pool, const CentredRows& rows, const PackedEncoder& encoder,
                  float threshold, SparseCodes& codes);

}  // namespace saesweep::worker
