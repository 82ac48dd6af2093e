// jumprelu and jumprelu_transcoder (worker/training/jumprelu_trainer.cpp is the same on the CPU).
#include <ATen/core/Tensor.h>

#include <utility>

#include "worker/device/engine_base.h"

namespace saesweep::worker::device {
namespace {

class JumpReluEngine final : public EngineBase {
 public:
  JumpReluEngine(Session& session, const sweeps::TrainingSpec& spec,
                 std::unique_ptr<Parameters> parameters)
      : EngineBase(session, spec,
                   spec.sparsity_loss == sweeps::SparsityLoss::kTanh ? DecoderNorm::kFree
                                                                     : DecoderNorm::kUnitEpsilon,
                   std::move(parameters)) {}

 private:
  Result<void> pass(const Rows& x, const Form& form, std::uint8_t* fired) override;
  double coefficient() const override { return spec_.l0_coefficient.value_or(0); }
};

Result<void> JumpReluEngine::pass(const Rows& x, const Form&, std::uint8_t* fired) {
  const std::int64_t count = x.count;
  const auto inverse_rows = 1.0 / static_cast<double>(count);
  const bool tanh = spec_.sparsity_loss == sweeps::SparsityLoss::kTanh;
  SAE_TRY(auto* const w_dec, operand(own_->w_dec(), latents_ * d_out_, "W_dec"));
  // The encoder reads x itself.
  SAE_TRY(const DenseRows read, read_rows(x, nullptr));
  SAE_TRY(auto* const z, session_.scratch<float>("pre-activations", count * latents_));
  SAE_TRY(const DenseRows f, rows("activations", count, latents_));
  SAE_TRY_VOID(encode(read, count, z));
  SAE_TRY(auto* const active, session_.scratch<std::int32_t>("active", count));
  SAE_TRY_VOID(device_.launch(
      JumpRow{z, f, own_->b_enc(), own_->more(0), active, fired, &own_->sums()->not_finite},
      count));

  SAE_TRY(const Target wanted, target(x));
  SAE_TRY(const Decoded decoded, reconstruct(f, wanted, w_dec, ""));
  const auto& [g, back, squares] = decoded;
  SAE_TRY(auto* const norm, session_.scratch<float>("norms", latents_));
  SAE_TRY(auto* const part_norm, session_.scratch<float>("norms of parts", latents_));
  SAE_TRY(auto* const unused, session_.scratch<float>("pulls", latents_));
  SAE_TRY_VOID(device_.launch(
      WeighLatent{own_->w_dec(), d_out_, tanh ? 1 : 0, own_->terms(), 0, norm, part_norm, unused},
      latents_));
  const std::int64_t chunks = blocks_of(count, JumpColumns::kRows);
  SAE_TRY(auto* const partial,
          session_.scratch<double>("partial sums", chunks * JumpColumns::kSums * latents_));
  SAE_TRY(auto* const sums,
          session_.scratch<double>("sums of jumps", JumpColumns::kSums * latents_));
  JumpColumns columns{};
  columns.z = z;
  columns.f = f.values;
  columns.back = back;
  columns.threshold = own_->more(0);
  columns.norm = norm;
  columns.rows = count;
  columns.bandwidth = static_cast<float>(spec_.bandwidth);
  columns.has_tanh = tanh;
  columns.tanh_scale = static_cast<float>(spec_.tanh_scale);
  columns.terms = own_->terms();
  columns.share = inverse_rows;
  columns.below = spec_.pre_act_weight * inverse_rows;
  columns.partial = partial;
  SAE_TRY_VOID(device_.launch(columns, chunks * blocks_of(latents_, JumpColumns::kThreads)));
  SAE_TRY_VOID(device_.launch(FoldColumns{partial, chunks, JumpColumns::kSums * latents_, sums},
                              blocks_of(JumpColumns::kSums * latents_, FoldColumns::kThreads)));

  SAE_TRY_VOID(weight_gradients(f, g, back, read, count));
  PenaliseJumps penalise{};
  penalise.sums_of_latents = sums;
  penalise.threshold = own_->more(0);
  penalise.latents = latents_;
  penalise.rows = static_cast<double>(count);
  penalise.terms = own_->terms();
  penalise.target = spec_.sparsity_loss == sweeps::SparsityLoss::kL0Target ? *spec_.l0_target : 0;
  penalise.has_tanh = tanh;
  penalise.bandwidth = spec_.bandwidth;
  penalise.row_squares = squares;
  penalise.active = active;
  penalise.variance = wanted.variance;
  penalise.threshold_gradient = own_->more_gradient(0);
  penalise.b_enc_gradient = own_->b_enc_gradient();
  penalise.sums = own_->sums();
  SAE_TRY_VOID(device_.launch(penalise, 1));
  if (tanh)
    SAE_TRY_VOID(
        device_.launch(PullJumpNorm{own_->w_dec(), norm, sums, latents_, d_out_, own_->terms(),
                                    spec_.tanh_scale * inverse_rows,
                                    spec_.pre_act_weight * inverse_rows, own_->w_dec_gradient()},
                       latents_));
  SAE_TRY_VOID(grade_b_dec(g.values, count, d_out_, nullptr));
  return advance_silence(fired, count, 0, nullptr);
}

}  // namespace

Result<std::unique_ptr<StepEngine>> make_jumprelu_engine(Session& session,
                                                         const sweeps::TrainingSpec& spec,
                                                         const std::vector<RowPart>& parts) {
  const Parameters::Shape shape = shape_of(spec, parts);
  SAE_TRY(auto parameters, Parameters::allocate(session, shape, {{"threshold", 1, shape.latents}}));
  return std::make_unique<JumpReluEngine>(session, spec, std::move(parameters));
}

}  // namespace saesweep::worker::device
