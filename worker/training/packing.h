// Tensors as operands of products (worker/products), packed on all threads.
#pragma once

#include <ATen/core/Tensor.h>

#include "sweeps/spec.h"
#include "worker/parallel/thread_pool.h"
#include "worker/products/product.h"

namespace saesweep::worker {

inline products::Numbers numbers_of(const sweeps::TrainingSpec& spec) {
  return spec.precision == sweeps::Precision::kFloat32 ? products::Numbers::kFloat
                                                       : products::bf16_numbers();
}

// Lanes are the rows of a matrix [lanes, depth], or the columns of one [depth, lanes].
inline products::Source rows_of(const float* matrix, std::int64_t width) {
  return {matrix, width, 1};
}
inline products::Source columns_of(const float* matrix, std::int64_t width) {
  return {matrix, 1, width};
}

// The right operand with these lanes.
inline products::Panels right_operand(ThreadPool& pool, const products::Source& source,
                                      std::int64_t lanes, std::int64_t depth,
                                      products::Numbers numbers) {
  products::Panels panels(lanes, depth, products::kBlockColumns, numbers);
  pool.run(panels.count(), [&](std::int64_t index) { panels.pack(source, index); });
  return panels;
}

// The left operand with these lanes, on the calling thread.
inline products::Panels left_operand(const products::Source& source, std::int64_t lanes,
                                     std::int64_t depth, products::Numbers numbers) {
  products::Panels panels(lanes, depth, products::left_width(numbers), numbers);
  panels.pack_all(source);
  return panels;
}

}  // namespace saesweep::worker
