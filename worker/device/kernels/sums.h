// Sums over rows and columns, in double and in a fixed order; what they say of a batch.
#pragma once

#include "worker/device/kernels/block.h"

namespace saesweep::worker::device {

// A block's share where columns are summed over rows: kThreads columns of kRows rows. Calls
// take(column, chunk, first row, end) for each column.
template <int kThreads, std::int64_t kRows, class Block, class Take>
SAE_DEVICE void each_column(Block& block, std::int64_t rows, std::int64_t columns,
                            const Take& take) {
  const std::int64_t tiles = (columns + kThreads - 1) / kThreads;
  const std::int64_t chunk = block.index / tiles, tile = block.index % tiles;
  const std::int64_t first = chunk * kRows;
  const std::int64_t end = first + kRows < rows ? first + kRows : rows;
  block.each([&](int thread) {
    const std::int64_t column = tile * kThreads + thread;
    if (column < columns) take(column, chunk, first, end);
  });
}

// Sums over rows of each column: partial sums [chunks of kRows, columns].
struct SumColumns {
  static constexpr int kThreads = 256;
  static constexpr std::int64_t kRows = 256;
  using Shared = Nothing;

  const float* matrix;   // [rows, stride]
  const float* weights;  // of the rows, or nullptr
  std::int64_t rows, columns, stride;
  double* partial;

  template <class Block>
  SAE_DEVICE void run(Block& block, Shared&) const {
    each_column<kThreads, kRows>(
        block, rows, columns,
        [&](std::int64_t column, std::int64_t chunk, std::int64_t first, std::int64_t end) {
          double sum = 0;
          for (std::int64_t row = first; row < end; ++row) {
            const double value = matrix[row * stride + column];
            sum += weights == nullptr ? value : value * weights[row];
          }
          partial[chunk * columns + column] = sum;
        });
  }
};

// The sums of partial sums; 256 columns a block.
struct FoldColumns {
  static constexpr int kThreads = 256;
  using Shared = Nothing;

  const double* partial;
  std::int64_t chunks, columns;
  double* out;

  template <class Block>
  SAE_DEVICE void run(Block& block, Shared&) const {
    block.each([&](int thread) {
      const std::int64_t column = block.index * kThreads + thread;
      if (column >= columns) return;
      double sum = 0;
      for (std::int64_t chunk = 0; chunk < chunks; ++chunk)
        sum += partial[chunk * columns + column];
      out[column] = sum;
    });
  }
};

// Sum of squares of each row; a block a row.
struct SquareRow {
  static constexpr int kThreads = 128;
  struct Shared {
    double sums[kThreads];
  };

  const float* matrix;
  std::int64_t columns, stride;
  double* square;

  template <class Block>
  SAE_DEVICE void run(Block& block, Shared& shared) const {
    sum_over<kThreads>(block, shared.sums, columns, [&](std::int64_t j) {
      const double value = matrix[block.index * stride + j];
      return value * value;
    });
    block.each([&](int thread) {
      if (thread == 0) square[block.index] = shared.sums[0];
    });
  }
};

// Squared distance of rows from their mean, in all; one block.
struct Variance {
  static constexpr int kThreads = 256;
  struct Shared {
    double squares[kThreads], means[kThreads];
  };

  const double* column_sums;
  const double* row_squares;
  std::int64_t rows, columns;
  double* out;

  template <class Block>
  SAE_DEVICE void run(Block& block, Shared& shared) const {
    sum_over<kThreads>(block, shared.squares, rows,
                       [&](std::int64_t row) { return row_squares[row]; });
    sum_over<kThreads>(block, shared.means, columns, [&](std::int64_t j) {
      const double mean = column_sums[j] / static_cast<double>(rows);
      return mean * mean;
    });
    block.each([&](int thread) {
      if (thread == 0) *out = shared.squares[0] - static_cast<double>(rows) * shared.means[0];
    });
  }
};

}  // namespace saesweep::worker::device
