// JumpReLU: a latent speaks where its pre-activation z exceeds a threshold it learns, and then says
// z itself (Rajamanoharan et al. 2024, arXiv 2407.14435).
//   l0_target  penalty c * (L0 / target - 1)^2   as dictionary_learning's JumpReluTrainer
//   l0         penalty c * L0                    as that paper
//   tanh       penalty c * sum tanh(4 f |W_dec|), and a weak pull on what stays below its threshold
//              (Anthropic, January 2025)
// The recipe states every reduction. A jumprelu_transcoder reads x and predicts y, which follows it
// in a row, in place of x.
//
// A step has no slope: thresholds get their gradient from the pre-activations in a window of width
// `bandwidth` around them. The window is compared in fp32, since bf16 near 1 is coarser than it.
#include <ATen/ATen.h>

#include <cmath>
#include <limits>

#include "worker/training/dense_trainer.h"
#include "worker/training/kernels.h"

namespace saesweep::worker {
namespace {

using sweeps::SparsityLoss;

class JumpReluTrainer final : public DenseTrainer {
 public:
  JumpReluTrainer(const sweeps::TrainingSpec& spec, const std::vector<RowPart>& parts,
                  ThreadPool& pool)
      : DenseTrainer(spec, parts, pool,
                     spec.sparsity_loss == SparsityLoss::kTanh ? DecoderNorm::kFree
                                                               : DecoderNorm::kUnitEpsilon,
                     1.0F) {
    add_parameter("threshold", {d_sae()});
    threshold().fill_(spec.init_threshold);
  }

  Json config() const override {
    Json json = TrainerBase::config();
    json["apply_b_dec_to_input"] = false;
    if (!predicts()) return json;
    json["d_out"] = d_out();
    json["normalization_factor_out"] = parts_.back().norm_factor;
    return json;
  }

 private:
  // Of a tile or of the batch, a value a latent.
  template <class Number>
  struct Latents {
    explicit Latents(std::size_t n)
        : active(n, 0),
          positive(n, 0),
          near(n, 0),
          near_jump(n, 0),
          window(n, 0),
          d_z(n, 0),
          slopes(n, 0),
          pulls(n, 0),
          excesses(n, 0) {}
    std::vector<Number> active, positive, near, near_jump, window, d_z;  // as JumpSums
    std::vector<Number> slopes, pulls, excesses;                         // of tanh alone
  };
  struct TileSums {
    DecodeSums decoded;
    double penalty = 0, below = 0;  // of tanh
    Latents<float> latents{0};
  };
  // A batch on its way through a pass. What belongs to latents is padded.
  struct Batch {
    CentredRows read;     // x
    const float* target;  // what is predicted, or x
    float pull;           // of tanh
    std::vector<float> thresholds, norm_scale, below_weight;
  };

  at::Tensor& threshold() { return parameters_.more.at("threshold"); }
  bool predicts() const { return sweeps::is_transcoder(spec_.architecture); }
  bool is_tanh() const { return spec_.sparsity_loss == SparsityLoss::kTanh; }
  float bandwidth() const { return static_cast<float>(spec_.bandwidth); }
  PassSums pass(const at::Tensor& x) override;
  // Below its floor nothing is said and no window reaches: the passes need not look.
  std::vector<float> floors() const;
  // Both fill the gradients of W_dec (of the reconstruction) and W_enc. z, which is given up, and
  // f: of all latents. codes: of those above the floors, with their z.
  std::vector<TileSums> dense(const Batch& batch_in, const Slabs& z, const Slabs& f);
  std::vector<TileSums> sparse(const Batch& batch_in, SparseCodes& codes);
  // The penalty of the batch; writes the gradient of the thresholds.
  double penalise(const Latents<double>& of);
  void pull_norms(const Latents<double>& of, const at::Tensor& norms);

  void draw() override {
    if (!predicts()) return TrainerBase::draw();
    draw_directions(parameters_.w_dec, "init.w_dec", d_out(), 1);
    draw_directions(parameters_.w_enc, "init.w_enc", d_in(), 1);
  }
  void start_from(const Sae& sae) override { threshold().copy_(sae.threshold * norm_factor_); }
  void finish_sae(Sae& sae) const override;
};

std::vector<float> JumpReluTrainer::floors() const {
  // A penalty on what stays below its threshold looks at everything.
  const bool everything = is_tanh() && spec_.pre_act_weight > 0;
  const float* thresholds = parameters_.more.at("threshold").const_data_ptr<float>();
  std::vector<float> floors(static_cast<std::size_t>(d_sae()));
  constexpr float kLowest = std::numeric_limits<float>::lowest();
  for (std::size_t i = 0; i < floors.size(); ++i) {
    // A little lower than half a window: the window is compared in fp32.
    const double edge = thresholds[i] - 0.500001 * spec_.bandwidth;
    floors[i] = everything ? kLowest : std::nextafter(static_cast<float>(edge), kLowest);
  }
  return floors;
}

std::vector<JumpReluTrainer::TileSums> JumpReluTrainer::dense(const Batch& batch_in, const Slabs& z,
                                                              const Slabs& f) {
  const std::int64_t d = d_out(), width = d_sae(), rows = batch();
  const products::Scratch g(rows * d);  // gradient of the reconstruction
  const PackedDecoder decoder =
      pack_decoder(*pool_, parameters_.w_dec.const_data_ptr<float>(), width, d, numbers_of(spec_));
  std::vector<TileSums> sums(static_cast<std::size_t>(tiles()));
  for_tiles([&](std::int64_t first, std::int64_t count, std::int64_t index) {
    TileSums& sum = sums[static_cast<std::size_t>(index)];
    float* gradient = g.data() + first * d;
    {
      const products::Scratch error(count * d);
      decode_tile(decoder.forth, f, first, count, error.data());
      sum.decoded = finish_tile(
          parameters_.b_dec.const_data_ptr<float>(), batch_in.target + first * d,
          static_cast<float>(2.0 / static_cast<double>(rows)), count, d, error.data(), gradient);
    }
    sum.latents = Latents<float>(batch_in.thresholds.size());
    Latents<float>& of = sum.latents;
    decode_back_tile(
        decoder.back, gradient, count,
        [&](std::int64_t row, std::int64_t latent, float* d_f, std::int64_t height) {
          const auto at = static_cast<std::size_t>(latent);
          float* d_z = z.block(first + row, latent);
          const float* thresholds = &batch_in.thresholds[at];
          float below[products::kBlockRows * products::kBlockColumns];
          if (is_tanh()) {
            sum.penalty +=
                dense_blocks::tanh_pull(f.block(first + row, latent), &batch_in.norm_scale[at],
                                        batch_in.pull, d_f, &of.slopes[at], height);
            sum.below += dense_blocks::pull_below(d_z, thresholds, &batch_in.below_weight[at],
                                                  below, &of.pulls[at], &of.excesses[at], height);
          }
          dense_blocks::jump_backward(d_z, thresholds, bandwidth(), d_f,
                                      {&of.active[at], &of.positive[at], &of.near[at],
                                       &of.near_jump[at], &of.window[at], &of.d_z[at]},
                                      height);
          if (is_tanh()) kernels::axpy(-1, below, d_z, height * products::kBlockColumns);
        });
  });
  dense_weight_gradients(f, z, g.data(), batch_in.read);
  return sums;
}

std::vector<JumpReluTrainer::TileSums> JumpReluTrainer::sparse(const Batch& batch_in,
                                                               SparseCodes& codes) {
  const std::int64_t d = d_out(), rows = batch();
  std::vector<float> z(codes.entries.size());
  for (std::size_t i = 0; i < z.size(); ++i) {
    kernels::Code& code = codes.entries[i];
    z[i] = code.value;
    if (!(z[i] > batch_in.thresholds[static_cast<std::size_t>(code.latent)])) code.value = 0;
  }
  const Decoder decoder{parameters_.w_dec.const_data_ptr<float>(),
                        parameters_.b_dec.const_data_ptr<float>(), d};
  const products::Scratch error(rows * d);
  std::vector<float> d_codes(codes.entries.size());
  SlicedRows g_and_x(rows, d, d_in());
  std::vector<TileSums> sums(static_cast<std::size_t>(tiles()));
  for_tiles([&](std::int64_t first, std::int64_t count, std::int64_t index) {
    TileSums& sum = sums[static_cast<std::size_t>(index)];
    sum.decoded = decode_rows(codes, decoder, batch_in.target, batch_in.read.data,
                              static_cast<float>(2.0 / static_cast<double>(rows)), first, count,
                              error.data(), d_codes, &g_and_x);
    sum.latents = Latents<float>(batch_in.thresholds.size());
    Latents<float>& of = sum.latents;
    for (std::int64_t at = codes.begin(first); at < codes.begin(first + count); ++at) {
      const auto i = static_cast<std::size_t>(at);
      const kernels::Code& code = codes.entries[i];
      const auto latent = static_cast<std::size_t>(code.latent);
      float& d_f = d_codes[i];
      if (is_tanh() && code.value != 0) {
        const float value = std::tanh(batch_in.norm_scale[latent] * code.value);
        const float slope = 1 - value * value;
        sum.penalty += value;
        of.slopes[latent] += code.value * slope;
        d_f += batch_in.pull * batch_in.norm_scale[latent] * slope;
      } else if (is_tanh()) {
        d_f += batch_in.pull * batch_in.norm_scale[latent];
      }
      const bool on = z[i] > batch_in.thresholds[latent];
      const float away = (z[i] - batch_in.thresholds[latent]) / bandwidth();
      const bool is_near = away > -0.5F && away < 0.5F;
      of.near[latent] += is_near ? 1.0F : 0.0F;
      of.near_jump[latent] += is_near && on ? 1.0F : 0.0F;
      of.window[latent] += is_near ? d_f : 0.0F;
      if (!on) d_f = 0;
      of.active[latent] += on ? 1.0F : 0.0F;
      of.positive[latent] += on && z[i] > 0 ? 1.0F : 0.0F;
      of.d_z[latent] += d_f;
    }
  });
  sparse_weight_gradients(codes, d_codes, g_and_x, /*add=*/false);
  return sums;
}

PassSums JumpReluTrainer::pass(const at::Tensor& row_values) {
  const at::Tensor x = predicts() ? row_values.narrow(1, 0, d_in()).contiguous() : row_values;
  const at::Tensor y = predicts() ? row_values.narrow(1, d_in(), d_out()).contiguous() : row_values;
  const auto latents = static_cast<std::size_t>(d_sae());
  const double inverse_rows = 1.0 / static_cast<double>(batch());
  constexpr float kSilent = -std::numeric_limits<float>::infinity();
  const auto padded = [&](const at::Tensor& values, float beyond) {
    return products::padded(values.const_data_ptr<float>(), d_sae(), beyond);
  };
  Batch batch_in{
      .read = rows_of_batch(x.const_data_ptr<float>()),
      .target = y.const_data_ptr<float>(),
      .pull = static_cast<float>(*spec_.l0_coefficient * sparsity_scale() * inverse_rows),
      .thresholds = padded(threshold(), kSilent),
      .norm_scale = {},
      .below_weight = {}};
  at::Tensor norms;
  if (is_tanh()) {
    norms = parameters_.w_dec.square().sum(1).sqrt();
    batch_in.norm_scale = padded(norms * spec_.tanh_scale, 0);
    batch_in.below_weight = padded(norms * (spec_.pre_act_weight * inverse_rows), 0);
  }
  const PackedEncoder encoder = packed_encoder(floors().data());

  std::optional<Slabs> z, f;
  const auto encode_everything = [&] {
    z.emplace(batch(), d_sae());
    f.emplace(batch(), d_sae());
    return encode_all(batch_in.read, encoder,
                      [&](std::int64_t row, std::int64_t latent, const float* product,
                          std::int64_t height, dense_blocks::Seen& seen) {
                        const auto at = static_cast<std::size_t>(latent);
                        dense_blocks::jump_forward(product, &encoder.bias[at],
                                                   &batch_in.thresholds[at], &encoder.floors[at],
                                                   z->block(row, latent), f->block(row, latent),
                                                   height, seen);
                      });
  };
  Found found = find(batch_in.read, encoder, encode_everything);
  const std::vector<TileSums> sums =
      found.few ? sparse(batch_in, *found.few) : dense(batch_in, *z, *f);

  PassSums result;
  result.finite = found.finite;
  DecodeSums decoded;
  Latents<double> of(latents);
  for (const TileSums& sum : sums) {
    decoded.add(sum.decoded);
    result.sparsity += sum.penalty * batch_in.pull + sum.below;
    add_to(of.active, sum.latents.active);
    add_to(of.positive, sum.latents.positive);
    add_to(of.near, sum.latents.near);
    add_to(of.near_jump, sum.latents.near_jump);
    add_to(of.window, sum.latents.window);
    add_to(of.d_z, sum.latents.d_z);
    add_to(of.slopes, sum.latents.slopes);
    add_to(of.pulls, sum.latents.pulls);
    add_to(of.excesses, sum.latents.excesses);
  }
  result.sparsity += penalise(of);
  if (is_tanh()) pull_norms(of, norms);
  double active = 0;
  std::vector<char> fired(latents, 0);
  for (std::size_t i = 0; i < latents; ++i) {
    active += of.active[i];
    fired[i] = of.positive[i] > 0 ? 1 : 0;
    of.d_z[i] -= of.pulls[i];
  }
  store(of.d_z, gradients_.b_enc);
  // Nothing comes through the encoder, which reads x itself.
  store(decoded.g_columns, gradients_.b_dec);
  result.reconstruction = decoded.squared_error * inverse_rows;
  result.l0 = active * inverse_rows;
  result.fve = variance_explained(y, decoded.squared_error);
  next_silence_ = advance_silence(fired);
  return result;
}

double JumpReluTrainer::penalise(const Latents<double>& of) {
  const auto rows = static_cast<double>(batch());
  const double weight = *spec_.l0_coefficient * sparsity_scale(), bandwidth = spec_.bandwidth;
  const float* thresholds = threshold().const_data_ptr<float>();
  const std::size_t latents = of.active.size();
  // L0 and, of each latent, how many rows are within the window of its step.
  double l0 = 0;
  std::vector<double> near = of.near;
  for (std::size_t i = 0; i < latents; ++i) {
    double on = of.active[i];
    if (spec_.sparsity_loss == SparsityLoss::kL0Target) {
      // The library compares f with the threshold where others compare z: of silent rows the window
      // is around 0, and a threshold below 0 counts them.
      const float away = -thresholds[i] / static_cast<float>(bandwidth);
      const double silent = rows - of.active[i];
      near[i] = of.near_jump[i] + (away > -0.5F && away < 0.5F ? silent : 0);
      if (thresholds[i] < 0) on = rows;
    }
    l0 += on / rows;
  }
  double penalty = 0, slope = 0;  // of L0
  if (spec_.sparsity_loss == SparsityLoss::kL0) {
    penalty = weight * l0;
    slope = weight;
  } else if (spec_.sparsity_loss == SparsityLoss::kL0Target) {
    const double excess = l0 / *spec_.l0_target - 1;
    penalty = weight * excess * excess;
    slope = weight * 2 * excess / *spec_.l0_target;
  }
  std::vector<double> gradient(latents);
  for (std::size_t i = 0; i < latents; ++i)
    gradient[i] = -(thresholds[i] / bandwidth) * of.window[i] -
                  slope / (rows * bandwidth) * near[i] + of.pulls[i];
  store(gradient, gradients_.more.at("threshold"));
  return penalty;
}

// Both parts of the tanh penalty weigh by the decoder's norms, and so pull on them.
void JumpReluTrainer::pull_norms(const Latents<double>& of, const at::Tensor& norms) {
  const double inverse_rows = 1.0 / static_cast<double>(batch());
  const double of_slope =
      *spec_.l0_coefficient * sparsity_scale() * spec_.tanh_scale * inverse_rows;
  const double of_excess = spec_.pre_act_weight * inverse_rows;
  const float* norm = norms.const_data_ptr<float>();
  for_blocks([&](std::int64_t first, std::int64_t count, std::int64_t) {
    for (std::int64_t latent = first; latent < first + count; ++latent) {
      const auto i = static_cast<std::size_t>(latent);
      if (!(norm[latent] > 0)) continue;
      const double pull = of_slope * of.slopes[i] + of_excess * of.excesses[i];
      kernels::axpy(static_cast<float>(pull / norm[latent]),
                    parameters_.w_dec.const_data_ptr<float>() + latent * d_out(),
                    gradients_.w_dec.mutable_data_ptr<float>() + latent * d_out(), d_out());
    }
  });
}

void JumpReluTrainer::finish_sae(Sae& sae) const {
  sae.selection = Sae::Selection::kThreshold;
  sae.apply_b_dec_to_input = false;
  sae.threshold = folded(parameters_.more.at("threshold"));
  if (!predicts()) return;
  // Activations are in units of what is read, and become those of what is predicted.
  sae.predicts = true;
  const double predicted = parts_.back().norm_factor, ratio = norm_factor_ / predicted;
  for (at::Tensor* each : {&sae.w_enc, &sae.b_enc, &sae.threshold})
    *each = (each->to(at::kDouble) * ratio).to(at::kFloat);
  sae.b_dec = (parameters_.b_dec.to(at::kDouble) / predicted).to(at::kFloat);
}

}  // namespace

Result<std::unique_ptr<SaeTrainer>> make_jumprelu_trainer(const sweeps::TrainingSpec& spec,
                                                          const std::vector<RowPart>& parts,
                                                          ThreadPool& pool) {
  if (sweeps::is_transcoder(spec.architecture) && !spec.init_path.empty())
    return fail(ErrorCode::kInvalidArgument, "init does not apply to {}",
                to_string(spec.architecture));
  if (!spec.l0_coefficient || !(spec.bandwidth > 0) ||
      (spec.sparsity_loss == SparsityLoss::kL0Target && !spec.l0_target))
    return fail(
        ErrorCode::kInvalidArgument,
        "jumprelu with sparsity_loss {}: l0_coefficient{} and a bandwidth above 0 are needed",
        sweeps::to_string(spec.sparsity_loss),
        spec.sparsity_loss == SparsityLoss::kL0Target ? ", l0_target" : "");
  auto trainer = std::make_unique<JumpReluTrainer>(spec, parts, pool);
  SAE_TRY_VOID(trainer->initialise());
  return trainer;
}

}  // namespace saesweep::worker
