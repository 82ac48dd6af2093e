// The TopK family: only the largest activations are kept, of each row (topk) or of the whole batch
// (batchtopk), and latents that have long been silent learn to explain what is left (AuxK).
// As dictionary_learning trains them (Gao et al. 2024; Bussmann et al. 2024).
//
// Only kept activations are stored, decoded and differentiated: nothing of size [batch, d_sae] is
// ever in memory.
#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "worker/training/kernels.h"
#include "worker/training/packing.h"
#include "worker/training/selection.h"
#include "worker/training/sparse_trainer.h"

namespace saesweep::worker {
namespace {

using kernels::Code;

class TopKTrainer final : public SparseTrainer {
 public:
  TopKTrainer(const sweeps::TrainingSpec& spec, std::int64_t d_in, double norm_factor,
              ThreadPool& pool)
      : SparseTrainer(spec, {{d_in, norm_factor}}, pool, DecoderNorm::kUnitEpsilon, 1.0F),
        over_batch_(spec.architecture == sweeps::Architecture::kBatchTopK),
        k_(static_cast<std::int64_t>(spec.k.value_or(1))) {}

  bool calibrate_threshold(const at::Tensor& held_out) override;
  bool needs_threshold() const override { return over_batch_ && threshold_ < 0; }
  Json config() const override;

 private:
  PassSums pass(const at::Tensor& x) override;
  void keep_bookkeeping() override { threshold_ = next_threshold_; }
  void note(const StepFindings& found) override { move_threshold(found.smallest_kept); }
  // The moving average of the smallest activation that is kept.
  void move_threshold(double smallest);
  void before_first_step(const at::Tensor& x) override {
    parameters_.b_dec.copy_(geometric_median(x));
  }
  Json state() const override { return {{"threshold", threshold_}, {"calibrated", calibrated_}}; }
  Result<void> set_state(const Json& json) override;
  void finish_sae(Sae& sae) const override;
  // Ranking changes with the norms, so they are not folded; they are 1.
  bool folds_decoder_norms() const override { return false; }

  // x - b_dec, [rows, d_in].
  void centre(const at::Tensor& x, at::Tensor& x_centred) const;
  // Selected codes of the batch; false: a pre-activation was not finite.
  bool encode(const at::Tensor& x_centred, SparseCodes& codes);
  double smallest_selected(const SparseCodes& codes) const;

  bool over_batch_;
  std::int64_t k_;
  double threshold_ = -1, next_threshold_ = -1;  // moving average; -1: not yet
  bool calibrated_ = false;
  SelectionHints hints_;  // speed only
};

void TopKTrainer::centre(const at::Tensor& x, at::Tensor& x_centred) const {
  const std::int64_t d = d_in();
  const float* values = x.const_data_ptr<float>();
  const float* bias = parameters_.b_dec.const_data_ptr<float>();
  float* out = x_centred.mutable_data_ptr<float>();
  for_tiles([&](std::int64_t first, std::int64_t count, std::int64_t) {
    for (std::int64_t row = first; row < first + count; ++row)
      for (std::int64_t j = 0; j < d; ++j) out[row * d + j] = values[row * d + j] - bias[j];
  });
}

bool TopKTrainer::encode(const at::Tensor& x_centred, SparseCodes& codes) {
  const PackedEncoder encoder =
      pack_encoder(*pool_, parameters_.w_enc.const_data_ptr<float>(),
                   parameters_.b_enc.const_data_ptr<float>(), d_sae(), d_in(), numbers_of(spec_));
  const CentredRows rows{x_centred.const_data_ptr<float>(), batch(), d_in(), kRowsPerTile};
  if (!over_batch_) return select_per_row(*pool_, rows, encoder, k_, hints_, codes);
  return select_per_batch(*pool_, rows, encoder, static_cast<std::size_t>(k_ * batch()), hints_,
                          codes);
}

double TopKTrainer::smallest_selected(const SparseCodes& codes) const {
  constexpr float kNone = std::numeric_limits<float>::infinity();
  double sum = 0;
  std::int64_t rows = 0;
  float smallest = kNone;
  for (std::int64_t row = 0; row < batch(); ++row) {
    float of_row = kNone;
    for (std::int64_t e = codes.begin(row); e < codes.end(row); ++e)
      of_row = std::min(of_row, codes.entries[static_cast<std::size_t>(e)].value);
    smallest = std::min(smallest, of_row);
    if (of_row == kNone) continue;
    sum += of_row;
    ++rows;
  }
  if (over_batch_) return smallest == kNone ? 0 : smallest;
  return rows == 0 ? 0 : sum / static_cast<double>(rows);
}

void TopKTrainer::move_threshold(double smallest) {
  next_threshold_ = threshold_;
  if (step_ <= spec_.threshold_start_step) return;
  next_threshold_ = threshold_ < 0
                        ? smallest
                        : spec_.threshold_beta * threshold_ + (1 - spec_.threshold_beta) * smallest;
}

PassSums TopKTrainer::pass(const at::Tensor& x) {
  const std::int64_t d = d_in(), rows = batch();
  const double inverse_rows = 1.0 / static_cast<double>(rows);
  at::Tensor x_centred = at::empty({rows, d}, at::kFloat);
  SparseCodes codes;
  PassSums result;
  centre(x, x_centred);
  result.finite = encode(x_centred, codes);

  at::Tensor error = at::empty({rows, d}, at::kFloat);  // x_hat - x
  std::vector<float> d_codes(codes.entries.size());
  std::vector<DecodeSums> sums(static_cast<std::size_t>(tiles()));
  {
    const Decoder decoder{parameters_.w_dec.const_data_ptr<float>(),
                          parameters_.b_dec.const_data_ptr<float>(), d};
    SlicedRows g_and_x(rows, d);
    for_tiles([&](std::int64_t first, std::int64_t count, std::int64_t index) {
      sums[static_cast<std::size_t>(index)] =
          decode_rows(codes, decoder, x.const_data_ptr<float>(), x_centred.const_data_ptr<float>(),
                      static_cast<float>(2 * inverse_rows), first, count,
                      error.mutable_data_ptr<float>(), d_codes, g_and_x);
    });
    weight_gradients(*pool_, codes, d_codes, g_and_x, /*add=*/false, gradients_of_latents());
  }

  std::vector<char> fired(static_cast<std::size_t>(d_sae()), 0);
  for (const Code& code : codes.entries) fired[static_cast<std::size_t>(code.latent)] = 1;
  next_silence_ = advance_silence(fired);
  move_threshold(smallest_selected(codes));
  result.l0 = static_cast<double>(codes.entries.size()) * inverse_rows;
  double squared_error = 0;
  std::vector<double> b_dec(static_cast<std::size_t>(d), 0);
  for (const DecodeSums& sum : sums) {
    squared_error += sum.squared_error;
    for (std::size_t j = 0; j < b_dec.size(); ++j) b_dec[j] += sum.g_columns[j];
  }
  result.reconstruction = squared_error * inverse_rows;
  result.fve = variance_explained(x, squared_error);
  if (spec_.aux_k_weight > 0) result.auxiliary = auxiliary(x_centred, error);

  // b_dec is subtracted before the encoder as well.
  std::vector<std::vector<double>> through_encoder(static_cast<std::size_t>(blocks()));
  for_blocks([&](std::int64_t first, std::int64_t count, std::int64_t index) {
    auto& through = through_encoder[static_cast<std::size_t>(index)];
    through.assign(static_cast<std::size_t>(d), 0);
    const float* encoder = parameters_.w_enc.const_data_ptr<float>();
    for (std::int64_t latent = first; latent < first + count; ++latent) {
      const double pull = gradients_.b_enc.const_data_ptr<float>()[latent];
      if (pull == 0) continue;
      for (std::int64_t j = 0; j < d; ++j)
        through[static_cast<std::size_t>(j)] += pull * encoder[latent * d + j];
    }
  });
  for (const auto& through : through_encoder)
    for (std::size_t j = 0; j < b_dec.size(); ++j) b_dec[j] -= through[j];
  for (std::int64_t j = 0; j < d; ++j)
    gradients_.b_dec.mutable_data_ptr<float>()[j] =
        static_cast<float>(b_dec[static_cast<std::size_t>(j)]);
  return result;
}

bool TopKTrainer::calibrate_threshold(const at::Tensor& held_out) {
  if (!needs_threshold() || held_out.size(0) == 0) return false;
  // The next after the k * rows largest activations of all held-out rows.
  const std::int64_t rows = held_out.size(0), d = d_in();
  const at::Tensor x_centred = held_out.contiguous() - parameters_.b_dec;
  const PackedEncoder encoder =
      pack_encoder(*pool_, parameters_.w_enc.const_data_ptr<float>(),
                   parameters_.b_enc.const_data_ptr<float>(), d_sae(), d, numbers_of(spec_));
  // Strictly above the threshold are then k * rows values (fewer where values repeat).
  const auto wanted = static_cast<std::size_t>(k_ * rows);
  SelectionHints hints;
  SparseCodes codes;
  select_per_batch(*pool_, {x_centred.const_data_ptr<float>(), rows, d, kRowsPerTile}, encoder,
                   wanted + 1, hints, codes);
  threshold_ = 0;
  if (codes.entries.size() > wanted)
    threshold_ = std::ranges::min_element(codes.entries, {}, &Code::value)->value;
  calibrated_ = true;
  return true;
}

Json TopKTrainer::config() const {
  Json json = TrainerBase::config();
  json["threshold_calibrated"] = calibrated_;
  if (!over_batch_ && threshold_ >= 0) json["threshold"] = threshold_ / norm_factor_;
  return json;
}

Result<void> TopKTrainer::set_state(const Json& json) {
  if (!json.contains("threshold") || !json["threshold"].is_number())
    return fail(ErrorCode::kCorrupted, "a checkpoint without state.threshold");
  threshold_ = json["threshold"].get<double>();
  calibrated_ = json.value("calibrated", false);
  return {};
}

void TopKTrainer::finish_sae(Sae& sae) const {
  if (!over_batch_) {
    sae.selection = Sae::Selection::kTopK;
    sae.k = k_;
    return;
  }
  sae.selection = Sae::Selection::kThreshold;
  sae.threshold = at::full({d_sae()}, std::max(threshold_, 0.0) / norm_factor_, at::kFloat);
}

}  // namespace

Result<std::unique_ptr<SaeTrainer>> make_topk_trainer(const sweeps::TrainingSpec& spec,
                                                      std::int64_t d_in, double norm_factor,
                                                      ThreadPool& pool) {
  if (!spec.k || *spec.k < 1 || *spec.k > spec.d_sae)
    return fail(ErrorCode::kInvalidArgument, "k is {}; 1 to d_sae = {} would be right",
                spec.k.value_or(0), spec.d_sae);
  auto trainer = std::make_unique<TopKTrainer>(spec, d_in, norm_factor, pool);
  SAE_TRY_VOID(trainer->initialise());
  return trainer;
}

}  // namespace saesweep::worker
