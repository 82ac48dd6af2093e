// The gated family: one encoder decides whether a latent speaks (the gate) and, scaled and shifted,
// how loud (the magnitude), so that the penalty on the gate shrinks no reconstruction.
//   gated           penalty l1 * relu(gate)     (Rajamanoharan et al. 2024, arXiv 2404.16014)
//   gated_p_anneal  penalty l1 * relu(gate)^p while p falls  (Karvonen et al. 2024)
// As dictionary_learning trains them; the recipe states every reduction.
//
// The main reconstruction gives the gate no gradient. It learns from the penalty and from an
// auxiliary reconstruction out of relu(gate), through a decoder that is held still.
#include <ATen/ATen.h>

#include <cmath>
#include <optional>

#include "worker/training/annealing.h"
#include "worker/training/dense_rows.h"
#include "worker/training/dense_trainer.h"
#include "worker/training/kernels.h"

namespace saesweep::worker {
namespace {

class GatedTrainer final : public DenseTrainer {
 public:
  GatedTrainer(const sweeps::TrainingSpec& spec, std::int64_t d_in, double norm_factor,
               ThreadPool& pool)
      : DenseTrainer(spec, d_in, norm_factor, pool, DecoderNorm::kUnit, 1.0F) {
    if (spec.architecture == sweeps::Architecture::kGatedPAnneal) annealing_.emplace(spec);
    add_parameter("b_mag", {d_sae()});
    add_parameter("r_mag", {d_sae()});
  }

 private:
  PassSums pass(const at::Tensor& x) override;
  void keep_bookkeeping() override {
    if (annealing_) annealing_->advance(step_, last_penalty_);
  }
  Json state() const override { return annealing_ ? annealing_->state() : Json::object(); }
  Result<void> set_state(const Json& json) override {
    return annealing_ ? annealing_->set_state(json) : Result<void>();
  }
  void start_from(const Sae& sae) override {
    parameters_.b_enc.copy_(sae.b_gate * norm_factor_);
    parameters_.more.at("b_mag").copy_(sae.b_mag * norm_factor_);
    parameters_.more.at("r_mag").copy_(sae.r_mag);
  }
  void finish_sae(Sae& sae) const override {
    sae.selection = Sae::Selection::kGated;
    sae.b_gate = sae.b_enc;
    sae.b_enc.reset();
    sae.b_mag = folded(parameters_.more.at("b_mag"));
    sae.r_mag = parameters_.more.at("r_mag").clone();  // a ratio: no unit
  }

  std::optional<Annealing> annealing_;
  Annealing::Penalty last_penalty_;  // of the last pass, means over rows
};

PassSums GatedTrainer::pass(const at::Tensor& x) {
  const std::int64_t d = d_in(), width = d_sae(), rows = batch();
  const auto latents = static_cast<std::size_t>(width);
  const double inverse_rows = 1.0 / static_cast<double>(rows);
  const double scale =
      sparsity_scale() * (annealing_ ? annealing_->coefficient() : spec_.l1.value_or(0));
  const bool curved = annealing_ && annealing_->is_curved();
  Kept kept(rows, width, d);
  const at::Tensor encoder_t = operand(parameters_.w_enc).t();  // [d, d_sae]
  const at::Tensor decoder = operand(parameters_.w_dec);
  const at::Tensor magnitude = parameters_.more.at("r_mag").exp();
  const float* b_gate = parameters_.b_enc.const_data_ptr<float>();
  const float* b_mag = parameters_.more.at("b_mag").const_data_ptr<float>();
  const float* exp_r = magnitude.const_data_ptr<float>();

  struct Sums {
    double squared_error = 0, auxiliary = 0, active = 0, penalty = 0;
    Annealing::Penalty curved;
    bool finite = true;
    std::vector<double> g_columns;
    std::vector<float> b_gate, b_mag, r_mag, d_z;
    std::vector<char> fired;
  };
  std::vector<Sums> sums(static_cast<std::size_t>(tiles()));
  for_tiles([&](std::int64_t first, std::int64_t count, std::int64_t index) {
    Sums& sum = sums[static_cast<std::size_t>(index)];
    at::Tensor rows_in = kept.x.narrow(0, first, count);
    rows_in.copy_(centred(x, first, count));
    at::Tensor z = at::empty({count, width}, at::kFloat), gate = at::empty_like(z);
    multiply(z, rows_in, encoder_t);
    sum.finite = kernels::all_finite(z.const_data_ptr<float>(), count * width);
    at::Tensor f = kept.f.narrow(0, first, count);
    for (std::int64_t row = 0; row < count; ++row)
      dense_rows::gated_forward(z.const_data_ptr<float>() + row * width, b_gate, exp_r, b_mag,
                                gate.mutable_data_ptr<float>() + row * width,
                                f.mutable_data_ptr<float>() + row * width, width);
    at::Tensor error = at::empty({count, d}, at::kFloat), aux_error = at::empty_like(error);
    for (auto [codes, out] : {std::pair{&f, &error}, {&gate, &aux_error}}) {
      multiply(*out, *codes, decoder);
      out->add_(parameters_.b_dec).sub_(x.narrow(0, first, count));
    }
    sum.squared_error = kernels::sum_of_squares(error.const_data_ptr<float>(), count * d);
    sum.auxiliary = kernels::sum_of_squares(aux_error.const_data_ptr<float>(), count * d);
    at::Tensor g = kept.g.narrow(0, first, count);
    g.copy_(error.mul_(2 * inverse_rows));
    sum.g_columns.assign(static_cast<std::size_t>(d), 0);
    add_rows(g, sum.g_columns);
    at::Tensor d_f = kept.d_z.narrow(0, first, count),
               d_gate = at::empty({count, width}, at::kFloat);
    multiply(d_f, g, decoder.t());
    multiply(d_gate, aux_error.mul_(2 * inverse_rows), decoder.t());

    for (auto* each : {&sum.b_gate, &sum.b_mag, &sum.r_mag, &sum.d_z}) each->assign(latents, 0);
    sum.fired.assign(latents, 0);
    std::vector<float> pull(latents, static_cast<float>(scale * inverse_rows));
    std::vector<double> powers(curved ? latents : 0);
    const dense_rows::GatedSums of_rows{sum.b_gate.data(), sum.b_mag.data(), sum.r_mag.data(),
                                        sum.d_z.data()};
    for (std::int64_t row = 0; row < count; ++row) {
      const float* gate_row = gate.const_data_ptr<float>() + row * width;
      const float* f_row = f.const_data_ptr<float>() + row * width;
      if (curved)
        annealing_->bend(gate_row, latents, scale * inverse_rows, powers, pull.data(), sum.curved);
      else
        for (std::size_t i = 0; i < latents; ++i) sum.penalty += gate_row[i];
      sum.active += static_cast<double>(dense_rows::gated_backward(
          z.const_data_ptr<float>() + row * width, gate_row, f_row, exp_r, pull.data(),
          d_gate.const_data_ptr<float>() + row * width, d_f.mutable_data_ptr<float>() + row * width,
          of_rows, width));
      for (std::size_t i = 0; i < latents; ++i) sum.fired[i] |= f_row[i] > 0 ? 1 : 0;
    }
  });
  weight_gradients(kept);

  PassSums result;
  double squared_error = 0, auxiliary = 0, active = 0;
  Annealing::Penalty penalty;
  std::vector<double> of_gate(latents, 0), of_magnitude(latents, 0), of_ratio(latents, 0);
  std::vector<double> d_z(latents, 0), b_dec(static_cast<std::size_t>(d), 0);
  std::vector<char> fired(latents, 0);
  for (const Sums& sum : sums) {
    squared_error += sum.squared_error;
    auxiliary += sum.auxiliary;
    active += sum.active;
    penalty.now += curved ? sum.curved.now : sum.penalty;
    penalty.next += sum.curved.next;
    result.finite = result.finite && sum.finite;
    add_to(of_gate, sum.b_gate);
    add_to(of_magnitude, sum.b_mag);
    add_to(of_ratio, sum.r_mag);
    add_to(d_z, sum.d_z);
    for (std::size_t j = 0; j < b_dec.size(); ++j) b_dec[j] += sum.g_columns[j];
    for (std::size_t i = 0; i < latents; ++i) fired[i] |= sum.fired[i];
  }
  // b_dec is subtracted before the encoder as well, for both reconstructions.
  const std::vector<double> through = through_encoder(d_z);
  for (std::size_t j = 0; j < b_dec.size(); ++j) b_dec[j] -= through[j];
  store(of_gate, gradients_.b_enc);
  store(of_magnitude, gradients_.more.at("b_mag"));
  store(of_ratio, gradients_.more.at("r_mag"));
  store(b_dec, gradients_.b_dec);
  last_penalty_ = {penalty.now * inverse_rows, penalty.next * inverse_rows};
  result.reconstruction = squared_error * inverse_rows;
  result.auxiliary = auxiliary * inverse_rows;
  result.sparsity = last_penalty_.now * scale;
  result.l0 = active * inverse_rows;
  result.fve = variance_explained(x, squared_error);
  next_silence_ = advance_silence(fired);
  return result;
}

}  // namespace

Result<std::unique_ptr<SaeTrainer>> make_gated_trainer(const sweeps::TrainingSpec& spec,
                                                       std::int64_t d_in, double norm_factor,
                                                       ThreadPool& pool) {
  auto trainer = std::make_unique<GatedTrainer>(spec, d_in, norm_factor, pool);
  SAE_TRY_VOID(trainer->initialise());
  return trainer;
}

}  // namespace saesweep::worker
