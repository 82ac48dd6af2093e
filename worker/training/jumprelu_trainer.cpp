// JumpReLU: a latent speaks where its pre-activation z exceeds a threshold it learns, and then says
// z itself (Rajamanoharan et al. 2024, arXiv 2407.14435).
//   l0_target  penalty c * (L0 / target - 1)^2   as dictionary_learning's JumpReluTrainer
//   l0         penalty c * L0                    as that paper
//   tanh       penalty c * sum tanh(4 f |W_dec|), and a weak pull on what stays below its threshold
//              (Anthropic, January 2025)
// The recipe states every reduction.
//
// A step has no slope: thresholds get their gradient from the pre-activations in a window of width
// `bandwidth` around them. The window is compared in fp32, since bf16 near 1 is coarser than it.
#include <ATen/ATen.h>

#include <cmath>

#include "worker/training/dense_rows.h"
#include "worker/training/dense_trainer.h"
#include "worker/training/kernels.h"

namespace saesweep::worker {
namespace {

using sweeps::SparsityLoss;

class JumpReluTrainer final : public DenseTrainer {
 public:
  JumpReluTrainer(const sweeps::TrainingSpec& spec, std::int64_t d_in, double norm_factor,
                  ThreadPool& pool)
      : DenseTrainer(spec, d_in, norm_factor, pool,
                     spec.sparsity_loss == SparsityLoss::kTanh ? DecoderNorm::kFree
                                                               : DecoderNorm::kUnitEpsilon,
                     1.0F) {
    add_parameter("threshold", {d_sae()});
    threshold().fill_(spec.init_threshold);
  }

  Json config() const override {
    Json json = TrainerBase::config();
    json["apply_b_dec_to_input"] = false;
    return json;
  }

 private:
  // Of a tile or of the batch, a value a latent.
  template <class Number>
  struct Latents {
    explicit Latents(std::size_t n)
        : active(n, 0),
          near(n, 0),
          near_jump(n, 0),
          window(n, 0),
          d_z(n, 0),
          slopes(n, 0),
          pulls(n, 0),
          excesses(n, 0) {}
    std::vector<Number> active, near, near_jump, window, d_z;  // as dense_rows::JumpSums
    std::vector<Number> slopes, pulls, excesses;               // of tanh alone
  };

  at::Tensor& threshold() { return parameters_.more.at("threshold"); }
  PassSums pass(const at::Tensor& x) override;
  // z = x W_enc^T + b_enc in fp32, of operands that are rounded if the precision says so.
  void encode(const at::Tensor& x, const at::Tensor& encoder_t, at::Tensor& z) const;
  // The penalty of the batch; writes the gradient of the thresholds.
  double penalise(const Latents<double>& of);
  void pull_norms(const Latents<double>& of, const at::Tensor& norms);

  void start_from(const Sae& sae) override { threshold().copy_(sae.threshold * norm_factor_); }
  void finish_sae(Sae& sae) const override {
    sae.selection = Sae::Selection::kThreshold;
    sae.apply_b_dec_to_input = false;
    sae.threshold = folded(parameters_.more.at("threshold"));
  }
};

void JumpReluTrainer::encode(const at::Tensor& x, const at::Tensor& encoder_t,
                             at::Tensor& z) const {
  if (spec_.precision == sweeps::Precision::kFloat32)
    at::mm_out(z, x, encoder_t);
  else
    at::mm_out(z, x.to(at::kBFloat16).to(at::kFloat), encoder_t);
  z.add_(parameters_.b_enc);
}

PassSums JumpReluTrainer::pass(const at::Tensor& x) {
  const std::int64_t d = d_in(), width = d_sae(), rows = batch();
  const auto latents = static_cast<std::size_t>(width);
  const double inverse_rows = 1.0 / static_cast<double>(rows);
  const bool tanh = spec_.sparsity_loss == SparsityLoss::kTanh;
  const auto pull = static_cast<float>(*spec_.l0_coefficient * sparsity_scale() * inverse_rows);
  Kept kept(rows, width, d);
  kept.x.copy_(x);
  at::Tensor encoder_t = parameters_.w_enc.t();  // [d, d_sae]
  if (spec_.precision == sweeps::Precision::kBFloat16)
    encoder_t = encoder_t.to(at::kBFloat16).to(at::kFloat);
  const at::Tensor decoder = operand(parameters_.w_dec);
  const float* thresholds = threshold().const_data_ptr<float>();
  const auto bandwidth = static_cast<float>(spec_.bandwidth);
  at::Tensor norms, norm_scale, below_weight;  // of tanh
  if (tanh) {
    norms = parameters_.w_dec.square().sum(1).sqrt();
    norm_scale = norms * spec_.tanh_scale;
    below_weight = norms * (spec_.pre_act_weight * inverse_rows);
  }

  struct Sums {
    explicit Sums(std::size_t n) : latents(n) {}
    double squared_error = 0, penalty = 0, below = 0, active = 0;
    bool finite = true;
    std::vector<double> g_columns;
    Latents<float> latents;
    std::vector<char> fired;
  };
  std::vector<Sums> sums(static_cast<std::size_t>(tiles()), Sums(0));
  for_tiles([&](std::int64_t first, std::int64_t count, std::int64_t index) {
    Sums& sum = sums[static_cast<std::size_t>(index)];
    sum.latents = Latents<float>(latents);
    sum.fired.assign(latents, 0);
    at::Tensor z = at::empty({count, width}, at::kFloat);
    encode(kept.x.narrow(0, first, count), encoder_t, z);
    const float* z_values = z.const_data_ptr<float>();
    sum.finite = kernels::all_finite(z_values, count * width);
    at::Tensor f = kept.f.narrow(0, first, count);
    float* f_values = f.mutable_data_ptr<float>();
    for (std::int64_t row = 0; row < count; ++row)
      dense_rows::jump_forward(z_values + row * width, thresholds, f_values + row * width, width);
    at::Tensor error = at::empty({count, d}, at::kFloat);
    multiply(error, f, decoder);
    error.add_(parameters_.b_dec).sub_(x.narrow(0, first, count));
    sum.squared_error = kernels::sum_of_squares(error.const_data_ptr<float>(), count * d);
    at::Tensor g = kept.g.narrow(0, first, count);
    g.copy_(error.mul_(2 * inverse_rows));
    sum.g_columns.assign(static_cast<std::size_t>(d), 0);
    add_rows(g, sum.g_columns);
    at::Tensor d_f = kept.d_z.narrow(0, first, count);
    multiply(d_f, g, decoder.t());

    Latents<float>& of = sum.latents;
    const dense_rows::JumpSums of_rows{of.active.data(), of.near.data(), of.near_jump.data(),
                                       of.window.data(), of.d_z.data()};
    for (std::int64_t row = 0; row < count; ++row) {
      const float* z_row = z_values + row * width;
      const float* f_row = f_values + row * width;
      float* d_row = d_f.mutable_data_ptr<float>() + row * width;
      if (tanh)
        sum.penalty += dense_rows::tanh_pull(f_row, norm_scale.const_data_ptr<float>(), pull, d_row,
                                             of.slopes.data(), width);
      dense_rows::jump_backward(z_row, thresholds, bandwidth, d_row, of_rows, width);
      if (tanh)
        sum.below += dense_rows::pull_below(z_row, thresholds, below_weight.const_data_ptr<float>(),
                                            d_row, of.pulls.data(), of.excesses.data(), width);
      for (std::size_t i = 0; i < latents; ++i) {
        sum.fired[i] |= f_row[i] > 0 ? 1 : 0;
        sum.active += f_row[i] != 0 ? 1 : 0;
      }
    }
  });
  weight_gradients(kept);

  PassSums result;
  double squared_error = 0, active = 0;
  Latents<double> of(latents);
  std::vector<double> b_dec(static_cast<std::size_t>(d), 0);
  std::vector<char> fired(latents, 0);
  for (const Sums& sum : sums) {
    squared_error += sum.squared_error;
    active += sum.active;
    result.sparsity += sum.penalty * pull + sum.below;
    result.finite = result.finite && sum.finite;
    add_to(of.active, sum.latents.active);
    add_to(of.near, sum.latents.near);
    add_to(of.near_jump, sum.latents.near_jump);
    add_to(of.window, sum.latents.window);
    add_to(of.d_z, sum.latents.d_z);
    add_to(of.slopes, sum.latents.slopes);
    add_to(of.pulls, sum.latents.pulls);
    add_to(of.excesses, sum.latents.excesses);
    for (std::size_t j = 0; j < b_dec.size(); ++j) b_dec[j] += sum.g_columns[j];
    for (std::size_t i = 0; i < latents; ++i) fired[i] |= sum.fired[i];
  }
  result.sparsity += penalise(of);
  if (tanh) pull_norms(of, norms);
  for (std::size_t i = 0; i < latents; ++i) of.d_z[i] -= of.pulls[i];
  store(of.d_z, gradients_.b_enc);
  store(b_dec, gradients_.b_dec);  // nothing comes through the encoder, which reads x itself
  result.reconstruction = squared_error * inverse_rows;
  result.l0 = active * inverse_rows;
  result.fve = variance_explained(x, squared_error);
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
                    parameters_.w_dec.const_data_ptr<float>() + latent * d_in(),
                    gradients_.w_dec.mutable_data_ptr<float>() + latent * d_in(), d_in());
    }
  });
}

}  // namespace

Result<std::unique_ptr<SaeTrainer>> make_jumprelu_trainer(const sweeps::TrainingSpec& spec,
                                                          std::int64_t d_in, double norm_factor,
                                                          ThreadPool& pool) {
  if (!spec.l0_coefficient || !(spec.bandwidth > 0) ||
      (spec.sparsity_loss == SparsityLoss::kL0Target && !spec.l0_target))
    return fail(
        ErrorCode::kInvalidArgument,
        "jumprelu with sparsity_loss {}: l0_coefficient{} and a bandwidth above 0 are needed",
        sweeps::to_string(spec.sparsity_loss),
        spec.sparsity_loss == SparsityLoss::kL0Target ? ", l0_target" : "");
  auto trainer = std::make_unique<JumpReluTrainer>(spec, d_in, norm_factor, pool);
  SAE_TRY_VOID(trainer->initialise());
  return trainer;
}

}  // namespace saesweep::worker
