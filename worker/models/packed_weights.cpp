#include "worker/models/packed_weights.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "core/check.h"
#include "worker/products/product.h"

namespace saesweep::worker {
namespace {

constexpr std::int64_t kRowsAtATime = 128;  // their panels stay in a core's cache

}  // namespace

void PackedWeights::add(const std::string& name, const at::Tensor& weight) {
  SAE_CHECK(weight.dim() == 2 && weight.is_contiguous() && weight.scalar_type() == at::kFloat,
            "{} is no matrix in fp32", name);
  const std::int64_t in = weight.size(0), out = weight.size(1);
  products::Panels panels(out, in, products::kBlockColumns, numbers_);
  panels.pack_all({weight.const_data_ptr<float>(), 1, out});
  SAE_CHECK(weights_.emplace(name, std::move(panels)).second, "{} twice", name);
}

at::Tensor PackedWeights::affine(const at::Tensor& x, const std::string& name,
                                 const at::Tensor& bias) const {
  const products::Panels& weight = weights_.at(name);
  const std::int64_t in = weight.depth(), out = weight.lanes();
  const at::Tensor rows = x.reshape({-1, in}).contiguous();
  at::Tensor result = at::empty({rows.size(0), out}, at::kFloat);
  for (std::int64_t first = 0; first < rows.size(0); first += kRowsAtATime) {
    products::Panels left(std::min(kRowsAtATime, rows.size(0) - first), in,
                          products::left_width(numbers_), numbers_);
    left.pack_all({rows.const_data_ptr<float>() + first * in, in, 1});
    products::multiply(left, weight, result.mutable_data_ptr<float>() + first * out, out);
  }
  result.add_(bias);
  auto shape = x.sizes().vec();
  shape.back() = out;
  return result.view(shape);
}

std::uint64_t PackedWeights::bytes() const {
  std::uint64_t sum = 0;
  for (const auto& [name, panels] : weights_)
    sum += static_cast<std::uint64_t>(panels.count() * products::kBlockColumns * panels.steps()) *
           sizeof(float);
  return sum;
}

}  // namespace saesweep::worker
