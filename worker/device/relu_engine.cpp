// standard, standard_bricken, p_anneal and crosscoder (worker/training/relu_trainer.cpp is the same
// on the CPU): five matrix products a pass, and what stands between them.
#include <ATen/core/Tensor.h>

#include <utility>

#include "worker/device/engine_base.h"

namespace saesweep::worker::device {
namespace {

bool crosses(const sweeps::TrainingSpec& spec) {
  return spec.architecture == sweeps::Architecture::kCrosscoder;
}
bool weighs_norms(const sweeps::TrainingSpec& spec) {
  return spec.architecture == sweeps::Architecture::kStandard || crosses(spec);
}

class ReluEngine final : public EngineBase {
 public:
  ReluEngine(Session& session, const sweeps::TrainingSpec& spec, std::int64_t hooks,
             std::unique_ptr<Parameters> parameters)
      : EngineBase(session, spec, weighs_norms(spec) ? DecoderNorm::kFree : DecoderNorm::kUnit,
                   std::move(parameters)),
        norms_(weighs_norms(spec) ? hooks : 0) {}

 private:
  Result<void> pass(const Rows& x, const Form& form, std::uint8_t* fired) override;

  std::int64_t norms_;  // of a latent, which its penalty weighs by
};

Result<void> ReluEngine::pass(const Rows& x, const Form& form, std::uint8_t* fired) {
  const std::int64_t count = x.count;
  const auto share = 1.0 / static_cast<double>(count);
  SAE_TRY(auto* const w_dec, operand(own_->w_dec(), latents_ * d_out_, "W_dec"));
  SAE_TRY(const DenseRows read, read_rows(x, crosses(spec_) ? nullptr : own_->b_dec()));
  SAE_TRY(const DenseRows f, rows("activations", count, latents_));
  SAE_TRY_VOID(encode(read, count, f.values));
  SAE_TRY(auto* const active, session_.scratch<std::int32_t>("active", count));
  SAE_TRY_VOID(
      device_.launch(ReluRow{f, own_->b_enc(), active, fired, &own_->sums()->not_finite}, count));

  SAE_TRY(const Target wanted, target(x));
  SAE_TRY(const Decoded decoded, reconstruct(f, wanted, w_dec, ""));
  const auto& [g, back, squares] = decoded;
  SumDense sum = sum_dense(wanted, decoded, active);
  SAE_TRY(auto* const norm, session_.scratch<float>("norms", latents_));
  SAE_TRY(auto* const part_norm, session_.scratch<float>("norms of parts", latents_ * norms_));
  if (form.bends) {
    SAE_TRY(const Bent bent, bend(back, f.values, count));
    sum.row_bent = bent.now;
    sum.row_next = bent.next;
  } else {
    SAE_TRY(auto* const pull, session_.scratch<float>("pulls", latents_));
    SAE_TRY_VOID(device_.launch(
        WeighLatent{own_->w_dec(), d_out_, norms_, own_->terms(), share, norm, part_norm, pull},
        latents_));
    SAE_TRY_VOID(device_.launch(PullRow{back, f.values, pull}, count));
    sum.norm = norm;
  }

  SAE_TRY_VOID(weight_gradients(f, g, back, read, count));
  SAE_TRY(auto* const f_sums, session_.scratch<double>("columns of the activations", latents_));
  SAE_TRY_VOID(session_.sum_columns(f.values, nullptr, count, latents_, latents_, f_sums));
  sum.f_sums = f_sums;
  if (norms_ > 0)
    SAE_TRY_VOID(device_.launch(PullNorm{own_->w_dec(), part_norm, f_sums, d_out_, norms_,
                                         own_->terms(), share, own_->w_dec_gradient()},
                                latents_));
  SAE_TRY(auto* const pulls, session_.scratch<double>("columns of their gradient", latents_));
  SAE_TRY_VOID(session_.sum_columns(back.values, nullptr, count, latents_, latents_, pulls));
  SAE_TRY_VOID(store(pulls, latents_, own_->b_enc_gradient()));
  SAE_TRY_VOID(
      grade_b_dec(g.values, count, d_out_, crosses(spec_) ? nullptr : own_->b_enc_gradient()));
  SAE_TRY_VOID(advance_silence(fired, count, 0, nullptr));
  return device_.launch(sum, 1);
}

}  // namespace

Result<std::unique_ptr<StepEngine>> make_relu_engine(Session& session,
                                                     const sweeps::TrainingSpec& spec,
                                                     const std::vector<RowPart>& parts) {
  SAE_TRY(auto parameters, Parameters::allocate(session, shape_of(spec, parts)));
  return std::make_unique<ReluEngine>(session, spec, static_cast<std::int64_t>(parts.size()),
                                      std::move(parameters));
}

}  // namespace saesweep::worker::device
