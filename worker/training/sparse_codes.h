// Activations that were kept, by rows; and the same by latents, for gradients of the weights.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "worker/training/kernels.h"

namespace saesweep::worker {

struct SparseCodes {
  std::vector<kernels::Code> entries;   // row by row, each row in order of latents
  std::vector<std::int64_t> row_begin;  // one more than rows

  std::int64_t rows() const { return static_cast<std::int64_t>(row_begin.size()) - 1; }
  std::int64_t begin(std::int64_t row) const { return row_begin[static_cast<std::size_t>(row)]; }
  std::int64_t end(std::int64_t row) const { return row_begin[static_cast<std::size_t>(row) + 1]; }

  // Joins the lists of consecutive tiles; counts are entries of each row.
  void assign(const std::vector<std::int64_t>& counts,
              const std::vector<std::vector<kernels::Code>>& tiles);
  // Keeps the `wanted` largest of all rows together; ties go to the first row, then the lowest
  // latent. Returns the smallest value kept. wanted >= 1, fewer than there are.
  float keep_largest(std::size_t wanted);
};

// entries of SparseCodes by latent, each in order of rows (a counting sort).
class LatentIndex {
 public:
  LatentIndex(const SparseCodes& codes, std::int64_t latents);
  std::int64_t begin(std::int64_t latent) const { return begin_[static_cast<std::size_t>(latent)]; }
  std::int64_t end(std::int64_t latent) const {
    return begin_[static_cast<std::size_t>(latent) + 1];
  }
  // {row, position in codes.entries}
  std::pair<std::int64_t, std::int64_t> entry(std::int64_t at) const {
    return items_[static_cast<std::size_t>(at)];
  }

 private:
  std::vector<std::int64_t> begin_;
  std::vector<std::pair<std::int64_t, std::int64_t>> items_;
};

}  // namespace saesweep::worker
