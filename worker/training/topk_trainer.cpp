#include "worker/training/topk_trainer.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "worker/training/kernels.h"

namespace saesweep::worker {

using kernels::Code;

TopKTrainer::TopKTrainer(const sweeps::TrainingSpec& spec, const std::vector<RowPart>& parts,
                         ThreadPool& pool)
    : SparseTrainer(spec, parts, pool, DecoderNorm::kUnitEpsilon, 1.0F),
      over_batch_(spec.architecture != sweeps::Architecture::kTopK),
      k_(static_cast<std::int64_t>(spec.k.value_or(1))) {}

products::Scratch TopKTrainer::read_of(const at::Tensor& x) const {
  if (!crosses()) return centred(x);
  products::Scratch rows(x.numel());
  std::copy_n(x.const_data_ptr<float>(), x.numel(), rows.data());
  return rows;
}

void TopKTrainer::draw() {
  if (!crosses()) return TrainerBase::draw();
  draw_directions(parameters_.w_dec, "init.w_dec", parts_.front().width,
                  1 / std::sqrt(static_cast<double>(parts_.size())));
  parameters_.w_enc.copy_(parameters_.w_dec);
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

TopKTrainer::Decoded TopKTrainer::decode(const SparseCodes& codes, const float* x,
                                         const float* read, float* error) {
  const std::int64_t d = d_in(), rows = batch();
  const Decoder decoder{parameters_.w_dec.const_data_ptr<float>(),
                        parameters_.b_dec.const_data_ptr<float>(), d};
  std::vector<float> d_codes(codes.entries.size());
  std::vector<DecodeSums> sums(static_cast<std::size_t>(tiles()));
  SlicedRows g_and_x(rows, d);
  for_tiles([&](std::int64_t first, std::int64_t count, std::int64_t index) {
    sums[static_cast<std::size_t>(index)] =
        decode_rows(codes, decoder, x, read, static_cast<float>(2.0 / static_cast<double>(rows)),
                    first, count, error, d_codes, &g_and_x);
  });
  sparse_weight_gradients(codes, d_codes, g_and_x, /*add=*/false);
  Decoded decoded;
  for (const DecodeSums& sum : sums) decoded.sums.add(sum);
  return decoded;
}

PassSums TopKTrainer::pass(const at::Tensor& x) {
  const std::int64_t rows = batch();
  const double inverse_rows = 1.0 / static_cast<double>(rows);
  const products::Scratch read = read_of(x);
  SparseCodes codes;
  PassSums result;
  {
    const PackedEncoder encoder = selecting_encoder(k_);
    const CentredRows of_batch = rows_of_batch(read.data());
    result.finite = over_batch_
                        ? select_per_batch(*pool_, of_batch, encoder,
                                           static_cast<std::size_t>(k_ * rows), hints_, codes)
                        : select_per_row(*pool_, of_batch, encoder, k_, hints_, codes);
  }
  const products::Scratch error(rows * d_in());  // x_hat - x
  Decoded decoded = decode(codes, x.const_data_ptr<float>(), read.data(), error.data());

  std::vector<char> fired(static_cast<std::size_t>(d_sae()), 0);
  for (const Code& code : codes.entries) fired[static_cast<std::size_t>(code.latent)] = 1;
  next_silence_ = advance_silence(fired);
  move_threshold(smallest_selected(codes));
  result.l0 = static_cast<double>(codes.entries.size()) * inverse_rows;
  result.reconstruction = decoded.sums.squared_error * inverse_rows;
  result.in_place = decoded.in_place;
  result.fve = variance_explained(x, decoded.sums.squared_error);
  if (spec_.aux_k_weight > 0) result.auxiliary = auxiliary(read.data(), error.data());
  if (!crosses())  // the encoder subtracts b_dec
    subtract_through_encoder(gradients_.b_enc.const_data_ptr<float>(), decoded.sums.g_columns);
  store(decoded.sums.g_columns, gradients_.b_dec);
  return result;
}

bool TopKTrainer::calibrate_threshold(const at::Tensor& held_out) {
  if (!needs_threshold() || held_out.size(0) == 0) return false;
  // The next after the k * rows largest activations of all held-out rows.
  const std::int64_t rows = held_out.size(0);
  const products::Scratch read = read_of(held_out.contiguous());
  // Strictly above the threshold are then k * rows values (fewer where values repeat).
  const auto wanted = static_cast<std::size_t>(k_ * rows);
  SelectionHints hints;
  SparseCodes codes;
  select_per_batch(*pool_, {read.data(), rows, d_in(), kRowsPerTile}, selecting_encoder(k_),
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
  if (crosses()) describe_parts(json);
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
  if (crosses()) {
    sae.threshold = (fold_parts(sae) * std::max(threshold_, 0.0)).to(at::kFloat);
    return;
  }
  sae.threshold = at::full({d_sae()}, std::max(threshold_, 0.0) / norm_factor_, at::kFloat);
}

Result<std::unique_ptr<SaeTrainer>> make_topk_trainer(const sweeps::TrainingSpec& spec,
                                                      const std::vector<RowPart>& parts,
                                                      ThreadPool& pool) {
  if (!spec.k || *spec.k < 1 || *spec.k > spec.d_sae)
    return fail(ErrorCode::kInvalidArgument, "k is {}; 1 to d_sae = {} would be right",
                spec.k.value_or(0), spec.d_sae);
  if (sweeps::is_crosscoder(spec.architecture) && !spec.init_path.empty())
    return fail(ErrorCode::kInvalidArgument, "init does not apply to {}",
                to_string(spec.architecture));
  auto trainer = std::make_unique<TopKTrainer>(spec, parts, pool);
  SAE_TRY_VOID(trainer->initialise());
  return trainer;
}

}  // namespace saesweep::worker
