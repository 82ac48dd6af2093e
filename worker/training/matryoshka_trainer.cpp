// Matryoshka BatchTopK: latents in nested groups, of which each prefix reconstructs by itself, so
// that the inner ones learn what is general (Bussmann et al. 2025, arXiv 2503.17547). Selection,
// threshold and the revival of dead latents are those of batchtopk; as dictionary_learning's
// MatryoshkaBatchTopKTrainer trains it, prefix errors weigh 1/G^2 each.
//
// Prefixes are not decoded one by one: codes of a row are in order of latents, so one pass over
// them meets every prefix. Backwards, a latent of group j sees the sum of the gradients of the
// prefixes from j on, which costs G additions a row and no product more than one dictionary.
#include <ATen/ATen.h>

#include <algorithm>

#include "worker/training/kernels.h"
#include "worker/training/topk_trainer.h"

namespace saesweep::worker {
namespace {

using kernels::Code;

class MatryoshkaTrainer final : public TopKTrainer {
 public:
  MatryoshkaTrainer(const sweeps::TrainingSpec& spec, std::int64_t d_in, double norm_factor,
                    ThreadPool& pool)
      : TopKTrainer(spec, {{d_in, norm_factor}}, pool) {
    std::int64_t end = 0;
    for (const std::uint64_t size : spec.group_sizes())
      group_end_.push_back(end += static_cast<std::int64_t>(size));
  }

  Json config() const override {
    Json json = TopKTrainer::config();
    json["group_sizes"] = spec_.group_sizes();
    return json;
  }

 private:
  Decoded decode(const SparseCodes& codes, const float* x, const float* read,
                 float* error) override;
  std::int64_t group_of(std::int64_t latent) const {
    return std::upper_bound(group_end_.begin(), group_end_.end(), latent) - group_end_.begin();
  }
  // One row: x_hat - x of all groups; into g [groups, d_in] the sums, over the prefixes from each
  // group on, of `factor` times their errors. Adds the prefixes' squared errors. x_hat: room.
  void reconstruct(const SparseCodes& codes, std::int64_t row, const float* x, float factor,
                   std::vector<float>& x_hat, float* error, float* g,
                   std::vector<double>& squared_errors) const;

  // Gradients of the weights of the group's latents. g: [batch, groups, d_in]
  void group_gradients(std::size_t group, const SparseCodes& codes,
                       const std::vector<float>& d_codes, const float* g, const float* read);

  std::vector<std::int64_t> group_end_;  // past the last latent of each group
};

void MatryoshkaTrainer::reconstruct(const SparseCodes& codes, std::int64_t row, const float* x,
                                    float factor, std::vector<float>& x_hat, float* error, float* g,
                                    std::vector<double>& squared_errors) const {
  const std::int64_t d = d_in();
  const float* decoder = parameters_.w_dec.const_data_ptr<float>();
  const float* bias = parameters_.b_dec.const_data_ptr<float>();
  x_hat.assign(bias, bias + d);
  std::int64_t at = codes.begin(row);
  for (std::size_t group = 0; group < group_end_.size(); ++group) {
    for (; at < codes.end(row); ++at) {
      const Code& code = codes.entries[static_cast<std::size_t>(at)];
      if (code.latent >= group_end_[group]) break;
      kernels::axpy(code.value, decoder + code.latent * d, x_hat.data(), d);
    }
    for (std::int64_t j = 0; j < d; ++j) error[j] = x_hat[static_cast<std::size_t>(j)] - x[j];
    squared_errors[group] += kernels::sum_of_squares(error, d);
    float* of_group = g + static_cast<std::int64_t>(group) * d;
    for (std::int64_t j = 0; j < d; ++j) of_group[j] = error[j] * factor;
  }
  for (std::size_t group = group_end_.size() - 1; group > 0; --group) {
    float* of_group = g + static_cast<std::int64_t>(group) * d;
    kernels::axpy(1, of_group, of_group - d, d);
  }
}

void MatryoshkaTrainer::group_gradients(std::size_t group, const SparseCodes& codes,
                                        const std::vector<float>& d_codes, const float* g,
                                        const float* read) {
  const std::int64_t d = d_in(), groups = std::ssize(group_end_);
  const std::int64_t begin = group == 0 ? 0 : group_end_[group - 1], end = group_end_[group];
  SparseCodes of_group;
  std::vector<float> d_of_group;
  of_group.row_begin.push_back(0);
  for (std::int64_t row = 0; row < codes.rows(); ++row) {
    for (std::int64_t at = codes.begin(row); at < codes.end(row); ++at) {
      const Code& code = codes.entries[static_cast<std::size_t>(at)];
      if (code.latent < begin || code.latent >= end) continue;
      of_group.entries.push_back({code.latent - static_cast<std::int32_t>(begin), code.value});
      d_of_group.push_back(d_codes[static_cast<std::size_t>(at)]);
    }
    of_group.row_begin.push_back(std::ssize(of_group.entries));
  }
  SlicedRows g_and_x(batch(), d);
  for_tiles([&](std::int64_t first, std::int64_t count, std::int64_t) {
    for (std::int64_t row = first; row < first + count; ++row)
      g_and_x.put(row, g + (row * groups + static_cast<std::int64_t>(group)) * d, read + row * d);
  });
  weight_gradients(*pool_, of_group, d_of_group, g_and_x, /*add=*/false,
                   {gradients_.w_dec.mutable_data_ptr<float>() + begin * d,
                    gradients_.w_enc.mutable_data_ptr<float>() + begin * d,
                    gradients_.b_enc.mutable_data_ptr<float>() + begin, end - begin});
}

TopKTrainer::Decoded MatryoshkaTrainer::decode(const SparseCodes& codes, const float* x,
                                               const float* read, float* error) {
  const std::int64_t d = d_in(), rows = batch();
  const std::int64_t groups = std::ssize(group_end_);
  const double weight = 1.0 / static_cast<double>(groups * groups);  // of a prefix's error
  const auto factor = static_cast<float>(2 * weight / static_cast<double>(rows));
  const products::Scratch gradient(rows * groups * d);
  std::vector<float> d_codes(codes.entries.size());
  struct Sums {
    DecodeSums decoded;
    std::vector<double> squared_errors;  // of the prefixes
  };
  std::vector<Sums> sums(static_cast<std::size_t>(tiles()));
  for_tiles([&](std::int64_t first, std::int64_t count, std::int64_t index) {
    Sums& sum = sums[static_cast<std::size_t>(index)];
    sum.squared_errors.assign(group_end_.size(), 0);
    sum.decoded.g_columns.assign(static_cast<std::size_t>(d), 0);
    const float* decoder = parameters_.w_dec.const_data_ptr<float>();
    std::vector<float> x_hat;
    for (std::int64_t row = first; row < first + count; ++row) {
      float* g = gradient.data() + row * groups * d;
      reconstruct(codes, row, x + row * d, factor, x_hat, error + row * d, g, sum.squared_errors);
      kernels::add_scaled(1, g, sum.decoded.g_columns.data(), d);  // b_dec is in every prefix
      for (std::int64_t at = codes.begin(row); at < codes.end(row); ++at) {
        const std::int64_t latent = codes.entries[static_cast<std::size_t>(at)].latent;
        d_codes[static_cast<std::size_t>(at)] =
            kernels::dot(g + group_of(latent) * d, decoder + latent * d, d);
      }
    }
  });
  for (std::size_t group = 0; group < group_end_.size(); ++group)
    group_gradients(group, codes, d_codes, gradient.data(), read);

  Decoded decoded;
  double of_prefixes = 0;
  for (Sums& sum : sums) {
    for (const double squared_error : sum.squared_errors) of_prefixes += squared_error;
    sum.decoded.squared_error = sum.squared_errors.back();
    decoded.sums.add(sum.decoded);
  }
  decoded.in_place = weight * of_prefixes / static_cast<double>(rows);
  return decoded;
}

}  // namespace

Result<std::unique_ptr<SaeTrainer>> make_matryoshka_trainer(const sweeps::TrainingSpec& spec,
                                                            std::int64_t d_in, double norm_factor,
                                                            ThreadPool& pool) {
  if (!spec.k || *spec.k < 1 || *spec.k > spec.d_sae)
    return fail(ErrorCode::kInvalidArgument, "k is {}; 1 to d_sae = {} would be right",
                spec.k.value_or(0), spec.d_sae);
  const auto sizes = spec.group_sizes();
  if (sizes.empty() || std::find(sizes.begin(), sizes.end(), 0U) != sizes.end())
    return fail(ErrorCode::kInvalidArgument,
                "group_fractions: {} groups of d_sae {} leave one without a latent", sizes.size(),
                spec.d_sae);
  auto trainer = std::make_unique<MatryoshkaTrainer>(spec, d_in, norm_factor, pool);
  SAE_TRY_VOID(trainer->initialise());
  return trainer;
}

}  // namespace saesweep::worker
