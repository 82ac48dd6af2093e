// The weights of a model's blocks as operands of products of our own (worker/products), for passes
// without gradients: in fp32, or with both operands rounded to bf16 and sums in fp32. A row's
// values depend on that row alone.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>

#include "worker/products/panels.h"

namespace saesweep::worker {

class PackedWeights {
 public:
  explicit PackedWeights(products::Numbers numbers) : numbers_(numbers) {}

  // weight: fp32 [in, out], contiguous
  void add(const std::string& name, const at::Tensor& weight);
  // x [..., in] -> [..., out]: x weight + bias. On the calling thread.
  at::Tensor affine(const at::Tensor& x, const std::string& name, const at::Tensor& bias) const;
  std::uint64_t bytes() const;

 private:
  products::Numbers numbers_;
  std::map<std::string, products::Panels> weights_;
};

}  // namespace saesweep::worker
