#include "worker/training/batch_selection.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <limits>

#include "worker/training/kernels.h"

namespace saesweep::worker {

using kernels::Code;

BatchSelectionTrainer::BatchSelectionTrainer(const sweeps::TrainingSpec& spec, std::int64_t d_in,
                                             double norm_factor, ThreadPool& pool)
    : TrainerBase(spec, d_in, norm_factor, pool, DecoderNorm::kUnitEpsilon, 1.0F),
      k_(static_cast<std::int64_t>(spec.k.value_or(1))) {}

bool BatchSelectionTrainer::candidates(const at::Tensor& x, at::Tensor& x_centred, float threshold,
                                       SparseCodes& codes) {
  const std::int64_t width = d_sae();
  std::vector<std::vector<Code>> found(static_cast<std::size_t>(tiles()));
  std::vector<char> finite(static_cast<std::size_t>(tiles()), 1);
  std::vector<std::int64_t> counts(static_cast<std::size_t>(batch()), 0);
  const at::Tensor encoder_t = operand(parameters_.w_enc).t();  // [d, d_sae]
  for_tiles([&](std::int64_t first, std::int64_t count, std::int64_t index) {
    auto& out = found[static_cast<std::size_t>(index)];
    at::Tensor rows = x_centred.narrow(0, first, count);
    rows.copy_(centred(x, first, count));
    at::Tensor z = at::empty({count, width}, at::kFloat);
    multiply(z, rows, encoder_t);
    z.add_(parameters_.b_enc);
    const float* values = z.const_data_ptr<float>();
    if (!kernels::all_finite(values, count * width)) finite[static_cast<std::size_t>(index)] = 0;
    for (std::int64_t row = 0; row < count; ++row) {
      const std::size_t before = out.size();
      kernels::collect_above(values + row * width, width, threshold, out);
      counts[static_cast<std::size_t>(first + row)] =
          static_cast<std::int64_t>(out.size() - before);
    }
  });
  codes.assign(counts, found);
  return std::all_of(finite.begin(), finite.end(), [](char c) { return c != 0; });
}

bool BatchSelectionTrainer::select(const at::Tensor& x, at::Tensor& x_centred, SparseCodes& codes) {
  bool finite = candidates(x, x_centred, hint_, codes);
  const auto wanted = static_cast<std::size_t>(k_ * batch());
  if (codes.entries.size() < wanted && hint_ > 0) finite = candidates(x, x_centred, 0, codes);
  if (codes.entries.size() > wanted) hint_ = 0.8F * codes.keep_largest(wanted);
  return finite;
}

void BatchSelectionTrainer::note(const SparseCodes& codes) {
  std::vector<char> fired(static_cast<std::size_t>(d_sae()), 0);
  float smallest = std::numeric_limits<float>::infinity();
  for (const Code& code : codes.entries) {
    fired[static_cast<std::size_t>(code.latent)] = 1;
    smallest = std::min(smallest, code.value);
  }
  next_silence_ = advance_silence(fired);
  move_threshold(codes.entries.empty() ? 0 : smallest);
}

void BatchSelectionTrainer::move_threshold(double smallest) {
  next_threshold_ = threshold_;
  if (step_ <= spec_.threshold_start_step) return;
  next_threshold_ = threshold_ < 0
                        ? smallest
                        : spec_.threshold_beta * threshold_ + (1 - spec_.threshold_beta) * smallest;
}

void BatchSelectionTrainer::weight_gradients(const SparseCodes& codes,
                                             const std::vector<float>& d_codes,
                                             const Upstream& upstream, const at::Tensor& x_centred,
                                             bool add) {
  const std::int64_t d = d_in();
  const LatentIndex index(codes, d_sae());
  const float* x = x_centred.const_data_ptr<float>();
  for_blocks([&](std::int64_t first, std::int64_t count, std::int64_t) {
    for (std::int64_t latent = first; latent < first + count; ++latent) {
      const float* g = upstream.g + upstream.offset(latent);
      float* d_dec = gradients_.w_dec.mutable_data_ptr<float>() + latent * d;
      float* d_enc = gradients_.w_enc.mutable_data_ptr<float>() + latent * d;
      float& d_bias = gradients_.b_enc.mutable_data_ptr<float>()[latent];
      if (!add) {
        std::fill(d_dec, d_dec + d, 0.0F);
        std::fill(d_enc, d_enc + d, 0.0F);
        d_bias = 0;
      }
      double bias = 0;
      for (std::int64_t at = index.begin(latent); at < index.end(latent); ++at) {
        const auto [row, entry] = index.entry(at);
        const auto e = static_cast<std::size_t>(entry);
        if (at + 1 < index.end(latent)) {
          const std::int64_t next = index.entry(at + 1).first;
          kernels::prefetch(g + next * upstream.stride, d);
          kernels::prefetch(x + next * d, d);
        }
        kernels::axpy(codes.entries[e].value, g + row * upstream.stride, d_dec, d);
        if (d_codes[e] != 0) kernels::axpy(d_codes[e], x + row * d, d_enc, d);
        bias += d_codes[e];
      }
      d_bias += static_cast<float>(bias);
    }
  });
}

SparseCodes BatchSelectionTrainer::codes_of(const std::vector<std::int64_t>& dead,
                                            const at::Tensor& x_centred) const {
  const std::int64_t d = d_in();
  const auto dead_count = static_cast<std::int64_t>(dead.size());
  const auto recipe_k = spec_.aux_k > 0 ? static_cast<std::int64_t>(spec_.aux_k) : d / 2;
  const std::int64_t aux_k = std::max<std::int64_t>(1, std::min(recipe_k, dead_count));
  const at::Tensor which = at::tensor(dead, at::kLong);
  const at::Tensor encoder_t = operand(parameters_.w_enc.index_select(0, which)).t();
  const at::Tensor bias = parameters_.b_enc.index_select(0, which);
  std::vector<std::vector<Code>> found(static_cast<std::size_t>(tiles()));
  std::vector<std::int64_t> counts(static_cast<std::size_t>(batch()), 0);
  for_tiles([&](std::int64_t first, std::int64_t count, std::int64_t index) {
    auto& out = found[static_cast<std::size_t>(index)];
    at::Tensor z = at::empty({count, dead_count}, at::kFloat);
    multiply(z, x_centred.narrow(0, first, count), encoder_t);
    z.add_(bias);
    std::vector<Code> scratch;
    float hint = 0;
    for (std::int64_t row = 0; row < count; ++row) {
      const std::size_t before = out.size();
      kernels::select_top_k(z.const_data_ptr<float>() + row * dead_count, dead_count, aux_k, hint,
                            scratch, out);
      for (std::size_t i = before; i < out.size(); ++i)
        out[i].latent = static_cast<std::int32_t>(dead[static_cast<std::size_t>(out[i].latent)]);
      counts[static_cast<std::size_t>(first + row)] =
          static_cast<std::int64_t>(out.size() - before);
    }
  });
  SparseCodes codes;
  codes.assign(counts, found);
  return codes;
}

double BatchSelectionTrainer::revive(const at::Tensor& x_centred, const at::Tensor& error) {
  const std::int64_t d = d_in(), rows = batch();
  std::vector<std::int64_t> dead;
  for (std::size_t i = 0; i < next_silence_.size(); ++i)
    if (next_silence_[i] >= static_cast<std::int64_t>(spec_.dead_after_tokens))
      dead.push_back(static_cast<std::int64_t>(i));
  if (dead.empty() || !(spec_.aux_k_weight > 0)) return 0;

  // |residual - its mean over the batch|^2, summed over d_in, mean over rows.
  struct Sums {
    std::vector<double> columns;
    double squares = 0;
  };
  std::vector<Sums> sums(static_cast<std::size_t>(tiles()));
  const float* e = error.const_data_ptr<float>();
  for_tiles([&](std::int64_t first, std::int64_t count, std::int64_t index) {
    Sums& sum = sums[static_cast<std::size_t>(index)];
    sum.columns.assign(static_cast<std::size_t>(d), 0);
    for (std::int64_t row = first; row < first + count; ++row) {
      sum.squares += kernels::sum_of_squares(e + row * d, d);
      for (std::int64_t j = 0; j < d; ++j)
        sum.columns[static_cast<std::size_t>(j)] += e[row * d + j];
    }
  });
  double variance = 0;
  for (const Sums& sum : sums) variance += sum.squares;
  variance /= static_cast<double>(rows);
  for (std::size_t j = 0; j < static_cast<std::size_t>(d); ++j) {
    double mean = 0;
    for (const Sums& sum : sums) mean += sum.columns[j];
    mean /= static_cast<double>(rows);
    variance -= mean * mean;
  }
  if (!(variance > 0)) return 0;  // 0/0 counts as 0

  const SparseCodes codes = codes_of(dead, x_centred);
  std::vector<float> d_codes(codes.entries.size());
  std::vector<double> squares(static_cast<std::size_t>(tiles()), 0);
  const double weight = spec_.aux_k_weight;
  const auto factor = static_cast<float>(2 * weight / (static_cast<double>(rows) * variance));
  const float* decoder = parameters_.w_dec.const_data_ptr<float>();
  at::Tensor gradient = at::empty({rows, d}, at::kFloat);
  for_tiles([&](std::int64_t first, std::int64_t count, std::int64_t index) {
    for (std::int64_t row = first; row < first + count; ++row) {
      // What the dead latents miss of the residual x - x_hat.
      float* g = gradient.mutable_data_ptr<float>() + row * d;
      std::copy(e + row * d, e + (row + 1) * d, g);
      for (std::int64_t at = codes.begin(row); at < codes.end(row); ++at) {
        const Code& code = codes.entries[static_cast<std::size_t>(at)];
        kernels::axpy(code.value, decoder + code.latent * d, g, d);
      }
      squares[static_cast<std::size_t>(index)] += kernels::sum_of_squares(g, d);
      for (std::int64_t j = 0; j < d; ++j) g[j] *= factor;
      for (std::int64_t at = codes.begin(row); at < codes.end(row); ++at)
        d_codes[static_cast<std::size_t>(at)] =
            kernels::dot(g, decoder + codes.entries[static_cast<std::size_t>(at)].latent * d, d);
    }
  });
  weight_gradients(codes, d_codes,
                   {.g = gradient.const_data_ptr<float>(),
                    .stride = d,
                    .offset = [](std::int64_t) { return std::int64_t{0}; }},
                   x_centred, /*add=*/true);
  double square = 0;
  for (const double tile : squares) square += tile;
  return weight * square / static_cast<double>(rows) / variance;
}

void BatchSelectionTrainer::finish_b_dec(std::vector<double> sums) {
  const std::int64_t d = d_in();
  std::vector<std::vector<double>> through_encoder(static_cast<std::size_t>(blocks()));
  const float* encoder = parameters_.w_enc.const_data_ptr<float>();
  const float* pulls = gradients_.b_enc.const_data_ptr<float>();
  for_blocks([&](std::int64_t first, std::int64_t count, std::int64_t index) {
    auto& through = through_encoder[static_cast<std::size_t>(index)];
    through.assign(static_cast<std::size_t>(d), 0);
    for (std::int64_t latent = first; latent < first + count; ++latent) {
      const double pull = pulls[latent];
      if (pull == 0) continue;
      for (std::int64_t j = 0; j < d; ++j)
        through[static_cast<std::size_t>(j)] += pull * encoder[latent * d + j];
    }
  });
  for (const auto& through : through_encoder)
    for (std::size_t j = 0; j < sums.size(); ++j) sums[j] -= through[j];
  for (std::size_t j = 0; j < sums.size(); ++j)
    gradients_.b_dec.mutable_data_ptr<float>()[j] = static_cast<float>(sums[j]);
}

bool BatchSelectionTrainer::calibrate_threshold(const at::Tensor& held_out) {
  if (!needs_threshold() || held_out.size(0) == 0) return false;
  // The k * rows-th largest activation of all held-out rows.
  std::vector<float> positive;
  const std::int64_t rows = held_out.size(0);
  const at::Tensor encoder_t = operand(parameters_.w_enc).t();
  for (std::int64_t first = 0; first < rows; first += kRowsPerTile) {
    const std::int64_t count = std::min(kRowsPerTile, rows - first);
    at::Tensor z = at::empty({count, d_sae()}, at::kFloat);
    multiply(z, centred(held_out, first, count), encoder_t);
    z.add_(parameters_.b_enc);
    const float* values = z.const_data_ptr<float>();
    for (std::int64_t i = 0; i < z.numel(); ++i)
      if (values[i] > 0) positive.push_back(values[i]);
  }
  const auto wanted = static_cast<std::size_t>(k_ * rows);
  threshold_ = 0;
  if (positive.size() > wanted) {
    // Strictly above the threshold are then `wanted` values (fewer where values repeat).
    std::nth_element(positive.begin(), positive.begin() + static_cast<std::ptrdiff_t>(wanted),
                     positive.end(), std::greater<>());
    threshold_ = positive[wanted];
  }
  calibrated_ = true;
  return true;
}

Json BatchSelectionTrainer::config() const {
  Json json = TrainerBase::config();
  json["threshold_calibrated"] = calibrated_;
  return json;
}

Result<void> BatchSelectionTrainer::set_state(const Json& json) {
  if (!json.contains("threshold") || !json["threshold"].is_number())
    return fail(ErrorCode::kCorrupted, "a checkpoint without state.threshold");
  threshold_ = json["threshold"].get<double>();
  calibrated_ = json.value("calibrated", false);
  return {};
}

void BatchSelectionTrainer::finish_sae(Sae& sae) const {
  sae.selection = Sae::Selection::kThreshold;
  sae.threshold = at::full({d_sae()}, std::max(threshold_, 0.0) / norm_factor_, at::kFloat);
}

}  // namespace saesweep::worker
