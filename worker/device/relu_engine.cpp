// standard and standard_bricken (worker/training/relu_trainer.cpp is the same on the CPU): five
// matrix products a pass, and what stands between them.
#include <ATen/core/Tensor.h>

#include <utility>

#include "worker/device/engine_base.h"

namespace saesweep::worker::device {
namespace {

bool weighs_norms(const sweeps::TrainingSpec& spec) {
  return spec.architecture == sweeps::Architecture::kStandard;
}

class ReluEngine final : public EngineBase {
 public:
  ReluEngine(Session& session, const sweeps::TrainingSpec& spec, std::int64_t d_in,
             Parameters parameters)
      : EngineBase(session, spec, d_in,
                   weighs_norms(spec) ? DecoderNorm::kFree : DecoderNorm::kUnit,
                   std::move(parameters)) {}

 private:
  Result<void> pass(const Rows& x, const StepOrder& order, std::uint8_t* fired) override;
};

Result<void> ReluEngine::pass(const Rows& x, const StepOrder& order, std::uint8_t* fired) {
  const std::int64_t count = x.count;
  const auto inverse_rows = 1.0 / static_cast<double>(count);
  const double scale = order.sparsity_scale * spec_.l1.value_or(0) * inverse_rows;
  const Shape over_latents{count, latents_, d_};
  SAE_TRY(auto* const w_enc, operand(own_.w_enc(), "rounded W_enc"));
  SAE_TRY(auto* const w_dec, operand(own_.w_dec(), "rounded W_dec"));
  SAE_TRY(const DenseRows read, rows("what the encoder reads", count, d_));
  SAE_TRY_VOID(
      device_.launch(CentreRow{x.values, own_.b_dec(), d_, d_, read.values, read.rounded}, count));
  SAE_TRY(const DenseRows f, rows("activations", count, latents_));
  SAE_TRY_VOID(multiply(operand(read), w_enc, f.values, over_latents, Lies::kRightTransposed));
  SAE_TRY(auto* const active, session_.scratch<std::int32_t>("active", count));
  SAE_TRY_VOID(
      device_.launch(ReluRow{f, own_.b_enc(), active, fired, &own_.sums()->not_finite}, count));

  SAE_TRY(const DenseRows g, rows("gradient of the reconstruction", count, d_));
  SAE_TRY(auto* const squares, session_.scratch<double>("squared errors", count));
  SAE_TRY_VOID(multiply(operand(f), w_dec, g.values, {count, d_, latents_}, Lies::kNotTransposed));
  SAE_TRY_VOID(device_.launch(
      ErrorRow{g, own_.b_dec(), x.values, static_cast<float>(2 * inverse_rows), squares}, count));
  SAE_TRY(auto* const norm, session_.scratch<float>("norms", latents_));
  SAE_TRY(auto* const pull, session_.scratch<float>("pulls", latents_));
  SAE_TRY_VOID(device_.launch(WeighLatent{own_.w_dec(), d_, weighs_norms(spec_), scale, norm, pull},
                              latents_));
  SAE_TRY(const DenseRows back, rows("gradient of the activations", count, latents_));
  SAE_TRY_VOID(multiply(operand(g), w_dec, back.values, over_latents, Lies::kRightTransposed));
  SAE_TRY_VOID(device_.launch(PullRow{back, f.values, pull}, count));

  SAE_TRY_VOID(weight_gradients(f, g, back, read, count));
  SAE_TRY(auto* const f_sums, session_.scratch<double>("columns of the activations", latents_));
  SAE_TRY_VOID(session_.sum_columns(f.values, nullptr, count, latents_, latents_, f_sums));
  if (weighs_norms(spec_))
    SAE_TRY_VOID(device_.launch(
        PullNorm{own_.w_dec(), norm, f_sums, d_, scale, own_.w_dec_gradient()}, latents_));
  SAE_TRY(auto* const pulls, session_.scratch<double>("columns of their gradient", latents_));
  SAE_TRY_VOID(session_.sum_columns(back.values, nullptr, count, latents_, latents_, pulls));
  SAE_TRY_VOID(device_.launch(GradeBias{pulls, nullptr, latents_, own_.b_enc_gradient()},
                              blocks_of(latents_, GradeBias::kThreads)));
  SAE_TRY_VOID(grade_b_dec(g.values, count, d_, /*through_encoder=*/true));
  SAE_TRY_VOID(advance_silence(fired, count, 0, nullptr));
  return device_.launch(
      SumDense{count, latents_, squares, active, f_sums, norm, scale, x.variance, own_.sums()}, 1);
}

}  // namespace

Result<std::unique_ptr<StepEngine>> make_relu_engine(Session& session,
                                                     const sweeps::TrainingSpec& spec,
                                                     std::int64_t d_in) {
  SAE_TRY(auto parameters,
          Parameters::allocate(session.device(), static_cast<std::int64_t>(spec.d_sae), d_in));
  return std::make_unique<ReluEngine>(session, spec, d_in, std::move(parameters));
}

}  // namespace saesweep::worker::device
