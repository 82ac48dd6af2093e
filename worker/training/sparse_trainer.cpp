#include "worker/training/sparse_trainer.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <vector>

#include "worker/training/kernels.h"
#include "worker/training/packing.h"

namespace saesweep::worker {

using kernels::Code;

PackedEncoder SparseTrainer::packed_for(const float* w_enc, const float* bias, std::int64_t latents,
                                        std::int64_t k) const {
  if (is_filtered(spec_, k, latents))
    return pack_filter(*pool_, w_enc, bias, latents, d_in(), filter_numbers());
  return pack_encoder(*pool_, w_enc, bias, nullptr, latents, d_in(), numbers_of(spec_));
}

double SparseTrainer::auxiliary(const float* read, const float* error) {
  const std::int64_t d = d_out(), rows = batch();
  std::vector<std::int64_t> dead;
  for (std::size_t i = 0; i < next_silence_.size(); ++i)
    if (next_silence_[i] >= static_cast<std::int64_t>(spec_.dead_after_tokens))
      dead.push_back(static_cast<std::int64_t>(i));
  if (dead.empty()) return 0;
  const auto dead_count = static_cast<std::int64_t>(dead.size());
  const auto recipe_k = spec_.aux_k > 0 ? static_cast<std::int64_t>(spec_.aux_k) : d / 2;
  const std::int64_t aux_k = std::max<std::int64_t>(1, std::min(recipe_k, dead_count));

  // The dead latents' rows, and their pre-activations again.
  const std::int64_t width = d_in();
  std::vector<float> encoder(static_cast<std::size_t>(dead_count * width)), bias(dead.size());
  for (std::size_t i = 0; i < dead.size(); ++i) {
    std::copy_n(parameters_.w_enc.const_data_ptr<float>() + dead[i] * width, width,
                encoder.begin() + static_cast<std::ptrdiff_t>(i) * width);
    bias[i] = parameters_.b_enc.const_data_ptr<float>()[dead[i]];
  }
  const PackedEncoder packed = packed_for(encoder.data(), bias.data(), dead_count, aux_k);
  SparseCodes codes;
  select_per_row(*pool_, rows_of_batch(read), packed, aux_k, aux_hints_, codes);
  for (Code& code : codes.entries)
    code.latent = static_cast<std::int32_t>(dead[static_cast<std::size_t>(code.latent)]);

  std::vector<std::vector<double>> error_columns(static_cast<std::size_t>(tiles()));
  std::vector<double> error_squares(static_cast<std::size_t>(tiles()), 0);
  const products::Scratch target(rows * d);  // the residual
  for_tiles([&](std::int64_t first, std::int64_t count, std::int64_t index) {
    const auto at = static_cast<std::size_t>(index);
    error_columns[at].assign(static_cast<std::size_t>(d), 0);
    for (std::int64_t row = first; row < first + count; ++row) {
      const float* e_row = error + row * d;
      error_squares[at] += kernels::sum_of_squares(e_row, d);
      kernels::add_scaled(1, e_row, error_columns[at].data(), d);
      for (std::int64_t j = 0; j < d; ++j) target.data()[row * d + j] = -e_row[j];
    }
  });
  // |residual - its mean over the batch|^2, summed over d_out, mean over rows.
  double variance = 0;
  for (const double square : error_squares) variance += square;
  variance /= static_cast<double>(rows);
  for (std::int64_t j = 0; j < d; ++j) {
    double mean = 0;
    for (const auto& columns : error_columns) mean += columns[static_cast<std::size_t>(j)];
    mean /= static_cast<double>(rows);
    variance -= mean * mean;
  }
  if (!(variance > 0)) return 0;  // 0/0 counts as 0

  std::vector<float> d_codes(codes.entries.size());
  const double weight = spec_.aux_k_weight;
  const auto factor = static_cast<float>(2 * weight / (static_cast<double>(rows) * variance));
  const products::Scratch missed(rows * d);  // of the residual, by the dead
  std::vector<double> squares(static_cast<std::size_t>(tiles()), 0);
  const Decoder decoder{parameters_.w_dec.const_data_ptr<float>(), nullptr, d};
  SlicedRows g_and_x(rows, d, width);
  for_tiles([&](std::int64_t first, std::int64_t count, std::int64_t index) {
    squares[static_cast<std::size_t>(index)] =
        decode_rows(codes, decoder, target.data(), read, factor, first, count, missed.data(),
                    d_codes, &g_and_x)
            .squared_error;
  });
  sparse_weight_gradients(codes, d_codes, g_and_x, /*add=*/true);
  double square = 0;
  for (const double tile : squares) square += tile;
  return weight * square / static_cast<double>(rows) / variance;
}

}  // namespace saesweep::worker
