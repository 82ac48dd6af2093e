// Transcoders: read the activations x of one hook and predict those y of another, through the k
// largest latents of each row.
//   transcoder        y_hat = f W_dec + b_dec                    (Dunefsky et al. 2024)
//   skip_transcoder   y_hat = f W_dec + x W_skip^T + b_dec       (Paulo et al. 2025)
// Encoder, start and loss as EleutherAI/sparsify trains them: b_dec is not subtracted from x, W_dec
// and W_skip begin at 0, and the loss is the share of y's variance that is not explained. The
// recipe states every reduction.
//
// A row of the batch holds x, then y. They are scaled each by its own factor.
#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "worker/training/packing.h"
#include "worker/training/sparse_trainer.h"

namespace saesweep::worker {
namespace {

constexpr std::int64_t kSkipRows = 16;  // rows of W_skip's gradient that one thread computes

class TranscoderTrainer final : public SparseTrainer {
 public:
  TranscoderTrainer(const sweeps::TrainingSpec& spec, const std::vector<RowPart>& parts,
                    ThreadPool& pool)
      : SparseTrainer(spec, parts, pool, DecoderNorm::kFree, 0),
        skips_(spec.architecture == sweeps::Architecture::kSkipTranscoder),
        k_(static_cast<std::int64_t>(spec.k.value_or(1))) {
    if (skips_) add_parameter("W_skip", {d_out(), d_in()});
  }

  Json config() const override;

 private:
  struct Rows {
    at::Tensor x;  // [batch, d_in]
    at::Tensor y;  // [batch, d_out]
  };
  Rows split(const at::Tensor& rows) const;

  PassSums pass(const at::Tensor& rows) override;
  // x W_skip^T, [batch, d_out], and the gradient of W_skip from that of the prediction.
  at::Tensor skipped(const at::Tensor& x) const;
  void skip_gradient(const at::Tensor& g, const at::Tensor& x);

  void draw() override {
    // As long as the rows of a linear layer's default are on average.
    draw_directions(parameters_.w_enc, "init.w_enc", d_in(), 1 / std::sqrt(3.0));
  }
  void before_first_step(const at::Tensor& rows) override;
  void finish_sae(Sae& sae) const override;
  // Ranking changes with the norms.
  bool folds_decoder_norms() const override { return false; }

  bool skips_;
  std::int64_t k_;
  SelectionHints hints_;  // speed only
};

TranscoderTrainer::Rows TranscoderTrainer::split(const at::Tensor& rows) const {
  return {rows.narrow(1, 0, d_in()).contiguous(), rows.narrow(1, d_in(), d_out()).contiguous()};
}

at::Tensor TranscoderTrainer::skipped(const at::Tensor& x) const {
  at::Tensor out = at::empty({batch(), d_out()}, at::kFloat);
  const products::Panels skip =
      right_operand(*pool_, rows_of(parameters_.more.at("W_skip").const_data_ptr<float>(), d_in()),
                    d_out(), d_in(), numbers_of(spec_));
  for_tiles([&](std::int64_t first, std::int64_t count, std::int64_t) {
    products::multiply(left_operand(rows_of(x.const_data_ptr<float>() + first * d_in(), d_in()),
                                    count, d_in(), skip.numbers()),
                       skip, out.mutable_data_ptr<float>() + first * d_out(), d_out());
  });
  return out;
}

void TranscoderTrainer::skip_gradient(const at::Tensor& g, const at::Tensor& x) {
  const products::Panels read = right_operand(*pool_, columns_of(x.const_data_ptr<float>(), d_in()),
                                              d_in(), batch(), numbers_of(spec_));
  float* gradient = gradients_.more.at("W_skip").mutable_data_ptr<float>();
  pool_->run((d_out() + kSkipRows - 1) / kSkipRows, [&](std::int64_t index) {
    const std::int64_t first = index * kSkipRows, count = std::min(kSkipRows, d_out() - first);
    products::multiply(left_operand(columns_of(g.const_data_ptr<float>() + first, d_out()), count,
                                    batch(), read.numbers()),
                       read, gradient + first * d_in(), d_in());
  });
}

PassSums TranscoderTrainer::pass(const at::Tensor& rows) {
  const std::int64_t count_rows = batch();
  const double inverse_rows = 1.0 / static_cast<double>(count_rows);
  const auto [x, y] = split(rows);
  PassSums result;
  SparseCodes codes;
  result.finite = select_per_row(*pool_, rows_of_batch(x.const_data_ptr<float>()),
                                 selecting_encoder(k_), k_, hints_, codes);

  // What the latents are to predict.
  const at::Tensor target = skips_ ? y - skipped(x) : y;
  // A batch without variance has no share of it: the step is skipped.
  const double variance = variance_of(y);
  const auto factor = static_cast<float>(2 / variance);
  at::Tensor error = at::empty({count_rows, d_out()}, at::kFloat);  // y_hat - y
  std::vector<float> d_codes(codes.entries.size());
  std::vector<DecodeSums> sums(static_cast<std::size_t>(tiles()));
  const Decoder decoder{parameters_.w_dec.const_data_ptr<float>(),
                        parameters_.b_dec.const_data_ptr<float>(), d_out()};
  {
    SlicedRows g_and_x(count_rows, d_out(), d_in());
    for_tiles([&](std::int64_t first, std::int64_t count, std::int64_t index) {
      sums[static_cast<std::size_t>(index)] =
          decode_rows(codes, decoder, target.const_data_ptr<float>(), x.const_data_ptr<float>(),
                      factor, first, count, error.mutable_data_ptr<float>(), d_codes, &g_and_x);
    });
    sparse_weight_gradients(codes, d_codes, g_and_x, /*add=*/false);
  }
  if (skips_) skip_gradient(error * factor, x);

  std::vector<char> fired(static_cast<std::size_t>(d_sae()), 0);
  for (const kernels::Code& code : codes.entries) fired[static_cast<std::size_t>(code.latent)] = 1;
  next_silence_ = advance_silence(fired);
  DecodeSums decoded;
  for (const DecodeSums& sum : sums) decoded.add(sum);
  store(decoded.g_columns, gradients_.b_dec);
  result.l0 = static_cast<double>(codes.entries.size()) * inverse_rows;
  result.reconstruction = decoded.squared_error * inverse_rows;
  result.in_place = decoded.squared_error / variance;
  result.fve = 1 - *result.in_place;
  if (spec_.aux_k_weight > 0)
    result.auxiliary = auxiliary(x.const_data_ptr<float>(), error.const_data_ptr<float>());
  return result;
}

void TranscoderTrainer::before_first_step(const at::Tensor& rows) {
  const at::Tensor means = rows.to(at::kDouble).mean(0);  // [d_in + d_out]
  const at::Tensor mean_x = means.narrow(0, 0, d_in());
  parameters_.b_enc.copy_(-at::mv(parameters_.w_enc.to(at::kDouble), mean_x));
  parameters_.b_dec.copy_(means.narrow(0, d_in(), d_out()));
}

// Activations are in units of what is read; what they write becomes units of what is predicted.
void TranscoderTrainer::finish_sae(Sae& sae) const {
  const double read = parts_.front().norm_factor, predicted = parts_.back().norm_factor;
  const auto scaled = [&](const at::Tensor& weights) {
    return (weights.to(at::kDouble) * (read / predicted)).to(at::kFloat);
  };
  sae.selection = Sae::Selection::kTopK;
  sae.k = k_;
  sae.apply_b_dec_to_input = false;
  sae.predicts = true;
  sae.w_dec = scaled(parameters_.w_dec);
  sae.b_dec = (parameters_.b_dec.to(at::kDouble) / predicted).to(at::kFloat);
  if (skips_) sae.w_skip = scaled(parameters_.more.at("W_skip"));
}

Json TranscoderTrainer::config() const {
  Json json = TrainerBase::config();
  json["apply_b_dec_to_input"] = false;
  json["d_out"] = d_out();
  json["normalization_factor_out"] = parts_.back().norm_factor;
  return json;
}

}  // namespace

Result<std::unique_ptr<SaeTrainer>> make_transcoder_trainer(const sweeps::TrainingSpec& spec,
                                                            const std::vector<RowPart>& parts,
                                                            ThreadPool& pool) {
  if (!spec.k || *spec.k < 1 || *spec.k > spec.d_sae)
    return fail(ErrorCode::kInvalidArgument, "k is {}; 1 to d_sae = {} would be right",
                spec.k.value_or(0), spec.d_sae);
  if (!spec.init_path.empty())
    return fail(ErrorCode::kInvalidArgument, "init does not apply to {}",
                to_string(spec.architecture));
  auto trainer = std::make_unique<TranscoderTrainer>(spec, parts, pool);
  SAE_TRY_VOID(trainer->initialise());
  return trainer;
}

}  // namespace saesweep::worker
