// Activations that were kept, by rows.
#pragma once

#include <cstdint>
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

}  // namespace saesweep::worker
