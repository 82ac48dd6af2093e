#include "worker/training/dense_trainer.h"

#include <ATen/ATen.h>

#include "core/check.h"

namespace saesweep::worker {

DenseTrainer::Kept::Kept(std::int64_t rows, std::int64_t d_sae, std::int64_t d_in)
    : f(at::empty({rows, d_sae}, at::kFloat)),
      d_z(at::empty({rows, d_sae}, at::kFloat)),
      x(at::empty({rows, d_in}, at::kFloat)),
      g(at::empty({rows, d_in}, at::kFloat)) {}

void DenseTrainer::weight_gradients(const Kept& kept) {
  const at::Tensor g = operand(kept.g), x = operand(kept.x);
  for_product_blocks([&](std::int64_t first, std::int64_t count, std::int64_t) {
    multiply(gradients_.w_dec.narrow(0, first, count), kept.f.narrow(1, first, count).t(), g);
    multiply(gradients_.w_enc.narrow(0, first, count), kept.d_z.narrow(1, first, count).t(), x);
  });
}

std::vector<double> DenseTrainer::through_encoder(const std::vector<double>& d_z) const {
  const auto d = static_cast<std::size_t>(d_in());
  std::vector<std::vector<double>> parts(static_cast<std::size_t>(product_blocks()));
  const float* encoder = parameters_.w_enc.const_data_ptr<float>();
  for_product_blocks([&](std::int64_t first, std::int64_t count, std::int64_t index) {
    auto& part = parts[static_cast<std::size_t>(index)];
    part.assign(d, 0);
    for (std::int64_t latent = first; latent < first + count; ++latent) {
      const double pull = d_z[static_cast<std::size_t>(latent)];
      const float* row = encoder + latent * d_in();
      for (std::size_t j = 0; j < d; ++j) part[j] += pull * row[j];
    }
  });
  std::vector<double> sum(d, 0);
  for (const auto& part : parts)
    for (std::size_t j = 0; j < d; ++j) sum[j] += part[j];
  return sum;
}

void add_rows(const at::Tensor& rows, std::vector<double>& sums) {
  SAE_CHECK(rows.is_contiguous() && rows.size(1) == static_cast<std::int64_t>(sums.size()),
            "rows of {} for {} sums", rows.size(1), sums.size());
  const float* values = rows.const_data_ptr<float>();
  for (std::int64_t row = 0; row < rows.size(0); ++row)
    for (double& sum : sums) sum += *values++;
}

void add_to(std::vector<double>& sums, const std::vector<float>& of_tile) {
  for (std::size_t i = 0; i < sums.size(); ++i) sums[i] += of_tile[i];
}

void store(const std::vector<double>& values, at::Tensor& out) {
  SAE_CHECK(out.numel() == static_cast<std::int64_t>(values.size()), "{} values for {}",
            values.size(), out.numel());
  float* to = out.mutable_data_ptr<float>();
  for (std::size_t i = 0; i < values.size(); ++i) to[i] = static_cast<float>(values[i]);
}

}  // namespace saesweep::worker
