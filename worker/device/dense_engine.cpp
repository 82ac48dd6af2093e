#include "worker/device/dense_engine.h"

#include <ATen/core/Tensor.h>

#include <utility>

#include "worker/device/parameters.h"

namespace saesweep::worker::device {
namespace {

class DenseEngine final : public StepEngine {
 public:
  DenseEngine(Session& session, const sweeps::TrainingSpec& spec, std::int64_t d_in,
              Parameters parameters)
      : session_(session),
        device_(session.device()),
        spec_(spec),
        d_(d_in),
        latents_(static_cast<std::int64_t>(spec.d_sae)),
        own_(std::move(parameters)) {}

  Result<void> write(const TrainerState& state) override { return own_.write(state); }
  Result<void> read(const TrainerState& state) const override { return own_.read(state); }
  Result<void> read_gradients(const SaeTensors& gradients) const override {
    return own_.read_gradients(gradients);
  }
  Result<StepFindings> step(const at::Tensor& x, const StepOrder& order) override;
  Result<StepFindings> look(const at::Tensor& rows, const StepOrder& order,
                            std::vector<char>& fired) override;

 private:
  bool weighs_norms() const { return spec_.architecture == sweeps::Architecture::kStandard; }
  bool rounds() const { return spec_.precision == sweeps::Precision::kBFloat16; }

  Result<void> pass(const Rows& x, double sparsity_scale);
  Result<DenseRows> rows(const std::string& purpose, std::int64_t count, std::int64_t width);
  // A weight [latents, d] as products take it.
  Result<const void*> operand(const float* weight, const std::string& purpose);
  const void* operand(const DenseRows& rows) const {
    return rounds() ? static_cast<const void*>(rows.rounded) : rows.values;
  }
  Result<void> multiply(const void* left, const void* right, float* out, std::int64_t count,
                        std::int64_t columns, std::int64_t depth, bool left_transposed,
                        bool right_transposed);

  Session& session_;
  Device& device_;
  sweeps::TrainingSpec spec_;
  std::int64_t d_, latents_;
  Parameters own_;
};

Result<DenseRows> DenseEngine::rows(const std::string& purpose, std::int64_t count,
                                    std::int64_t width) {
  DenseRows made{};
  made.width = width;
  SAE_TRY(made.values, session_.scratch<float>(purpose, count * width));
  if (rounds())
    SAE_TRY(made.rounded, session_.scratch<std::uint16_t>(purpose + ", rounded", count * width));
  return made;
}

Result<const void*> DenseEngine::operand(const float* weight, const std::string& purpose) {
  if (!rounds()) return weight;
  const std::int64_t count = latents_ * d_;
  SAE_TRY(auto* const rounded, session_.scratch<std::uint16_t>(purpose, count));
  SAE_TRY_VOID(
      device_.launch(RoundValues{weight, rounded, count}, blocks_of(count, RoundValues::kValues)));
  return rounded;
}

Result<void> DenseEngine::multiply(const void* left, const void* right, float* out,
                                   std::int64_t count, std::int64_t columns, std::int64_t depth,
                                   bool left_transposed, bool right_transposed) {
  return device_.multiply(
      {left, right, out, count, columns, depth, left_transposed, right_transposed, rounds()});
}

Result<void> DenseEngine::pass(const Rows& x, double sparsity_scale) {
  const std::int64_t count = x.count;
  const auto inverse_rows = 1.0 / static_cast<double>(count);
  const double scale = sparsity_scale * spec_.l1.value_or(0) * inverse_rows;
  SAE_TRY_VOID(device_.clear(own_.sums(), sizeof(StepSums)));
  SAE_TRY(auto* const fired, session_.scratch<std::uint8_t>("fired", latents_));
  SAE_TRY_VOID(device_.clear(fired, static_cast<std::size_t>(latents_)));

  SAE_TRY(auto* const w_enc, operand(own_.w_enc(), "rounded W_enc"));
  SAE_TRY(auto* const w_dec, operand(own_.w_dec(), "rounded W_dec"));
  SAE_TRY(const DenseRows read, rows("what the encoder reads", count, d_));
  SAE_TRY_VOID(
      device_.launch(CentreRow{x.values, own_.b_dec(), d_, d_, read.values, read.rounded}, count));
  SAE_TRY(const DenseRows f, rows("activations", count, latents_));
  SAE_TRY_VOID(multiply(operand(read), w_enc, f.values, count, latents_, d_, false, true));
  SAE_TRY(auto* const active, session_.scratch<std::int32_t>("active", count));
  SAE_TRY_VOID(
      device_.launch(ReluRow{f, own_.b_enc(), active, fired, &own_.sums()->not_finite}, count));

  SAE_TRY(const DenseRows g, rows("gradient of the reconstruction", count, d_));
  SAE_TRY(auto* const squares, session_.scratch<double>("squared errors", count));
  SAE_TRY_VOID(multiply(operand(f), w_dec, g.values, count, d_, latents_, false, false));
  SAE_TRY_VOID(device_.launch(
      ErrorRow{g, own_.b_dec(), x.values, static_cast<float>(2 * inverse_rows), squares}, count));
  SAE_TRY(auto* const norm, session_.scratch<float>("norms", latents_));
  SAE_TRY(auto* const pull, session_.scratch<float>("pulls", latents_));
  SAE_TRY_VOID(
      device_.launch(WeighLatent{own_.w_dec(), d_, weighs_norms(), scale, norm, pull}, latents_));
  SAE_TRY(const DenseRows back, rows("gradient of the activations", count, latents_));
  SAE_TRY_VOID(multiply(operand(g), w_dec, back.values, count, latents_, d_, false, true));
  SAE_TRY_VOID(device_.launch(PullRow{back, f.values, pull}, count));

  SAE_TRY_VOID(
      multiply(operand(f), operand(g), own_.w_dec_gradient(), latents_, d_, count, true, false));
  SAE_TRY_VOID(multiply(operand(back), operand(read), own_.w_enc_gradient(), latents_, d_, count,
                        true, false));
  SAE_TRY(auto* const f_sums, session_.scratch<double>("columns of the activations", latents_));
  SAE_TRY_VOID(session_.sum_columns(f.values, nullptr, count, latents_, latents_, f_sums));
  if (weighs_norms())
    SAE_TRY_VOID(device_.launch(
        PullNorm{own_.w_dec(), norm, f_sums, d_, scale, own_.w_dec_gradient()}, latents_));
  SAE_TRY(auto* const pulls, session_.scratch<double>("columns of their gradient", latents_));
  SAE_TRY_VOID(session_.sum_columns(back.values, nullptr, count, latents_, latents_, pulls));
  SAE_TRY_VOID(device_.launch(GradeBias{pulls, nullptr, latents_, own_.b_enc_gradient()},
                              blocks_of(latents_, GradeBias::kThreads)));
  SAE_TRY(auto* const direct, session_.scratch<double>("columns of the gradient", d_));
  SAE_TRY(auto* const through, session_.scratch<double>("columns through the encoder", d_));
  SAE_TRY_VOID(session_.sum_columns(g.values, nullptr, count, d_, d_, direct));
  SAE_TRY_VOID(
      session_.sum_columns(own_.w_enc(), own_.b_enc_gradient(), latents_, d_, d_, through));
  SAE_TRY_VOID(device_.launch(GradeBias{direct, through, d_, own_.b_dec_gradient()},
                              blocks_of(d_, GradeBias::kThreads)));
  SAE_TRY_VOID(device_.launch(
      AdvanceSilence{fired, own_.silence(), own_.next_silence(), latents_, count, 0, nullptr},
      blocks_of(latents_, AdvanceSilence::kThreads)));
  return device_.launch(
      SumDense{count, latents_, squares, active, f_sums, norm, scale, x.variance, own_.sums()}, 1);
}

Result<StepFindings> DenseEngine::step(const at::Tensor& x, const StepOrder& order) {
  SAE_TRY(const Rows batch, session_.stream_rows(x, order.step * spec_.batch));
  SAE_TRY_VOID(pass(batch, order.sparsity_scale));
  Parameters::Update update{};
  update.rates = adam_rates(spec_, order);
  update.clip = spec_.grad_clip.value_or(0);
  update.unit_norm = !weighs_norms();
  update.rows = batch.count;
  update.dead_after = order.dead_after;
  SAE_TRY_VOID(own_.update(session_, update));
  return own_.findings(batch.count);
}

Result<StepFindings> DenseEngine::look(const at::Tensor& x, const StepOrder& order,
                                       std::vector<char>& fired) {
  SAE_TRY(const Rows some, session_.other_rows(x));
  SAE_TRY_VOID(pass(some, order.sparsity_scale));
  SAE_TRY_VOID(session_.read_fired(latents_, fired));
  return own_.findings(some.count);
}

}  // namespace

Result<std::unique_ptr<StepEngine>> make_dense_engine(Session& session,
                                                      const sweeps::TrainingSpec& spec,
                                                      std::int64_t d_in) {
  SAE_TRY(auto parameters, Parameters::allocate(session.device(),
                                                static_cast<std::int64_t>(spec.d_sae), d_in, d_in));
  return std::make_unique<DenseEngine>(session, spec, d_in, std::move(parameters));
}

}  // namespace saesweep::worker::device
