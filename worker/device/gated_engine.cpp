// The gated family (worker/training/gated_trainer.cpp is the same on the CPU): the reconstruction
// from activations, and that from the gates, out of which these learn through a decoder that is
// held still.
#include <ATen/core/Tensor.h>

#include <utility>

#include "worker/device/engine_base.h"

namespace saesweep::worker::device {
namespace {

class GatedEngine final : public EngineBase {
 public:
  GatedEngine(Session& session, const sweeps::TrainingSpec& spec,
              std::unique_ptr<Parameters> parameters)
      : EngineBase(session, spec, DecoderNorm::kUnit, std::move(parameters)) {}

 private:
  Result<void> pass(const Rows& x, const Form& form, std::uint8_t* fired) override;
  const float* b_mag() const { return own_->more(0); }
  const float* r_mag() const { return own_->more(1); }
};

Result<void> GatedEngine::pass(const Rows& x, const Form& form, std::uint8_t* fired) {
  const std::int64_t count = x.count;
  const auto share = 1.0 / static_cast<double>(count);
  SAE_TRY(auto* const w_dec, operand(own_->w_dec(), latents_ * d_out_, "W_dec"));
  SAE_TRY(const DenseRows read, read_rows(x, own_->b_dec()));
  SAE_TRY(const DenseRows gates, rows("gates", count, latents_));
  SAE_TRY(const DenseRows f, rows("activations", count, latents_));
  SAE_TRY_VOID(encode(read, count, gates.values));
  SAE_TRY(auto* const active, session_.scratch<std::int32_t>("active", count));
  SAE_TRY_VOID(device_.launch(
      GatedRow{gates, f, own_->b_enc(), b_mag(), r_mag(), active, fired, &own_->sums()->not_finite},
      count));

  SAE_TRY(const Target wanted, target(x));
  SAE_TRY(const Decoded gated, reconstruct(gates, wanted, w_dec, ", of gates"));
  SAE_TRY(const Decoded decoded, reconstruct(f, wanted, w_dec, ""));
  const auto& [g, back, squares] = decoded;
  SumDense sum = sum_dense(wanted, decoded, active);
  sum.row_auxiliary = gated.squares;
  if (form.bends) {
    SAE_TRY(const Bent bent, bend(gated.back, gates.values, count));
    sum.row_bent = bent.now;
    sum.row_next = bent.next;
  }

  const std::int64_t chunks = blocks_of(count, GatedColumns::kRows);
  const std::int64_t columns = GatedColumns::kSums * latents_;
  SAE_TRY(auto* const partial, session_.scratch<double>("partial sums", chunks * columns));
  SAE_TRY(auto* const sums, session_.scratch<double>("sums of gates", columns));
  SAE_TRY_VOID(
      device_.launch(GatedColumns{f.values, gates.values, gated.back.values, back, b_mag(), r_mag(),
                                  count, own_->terms(), share, form.bends, partial},
                     chunks * blocks_of(latents_, GatedColumns::kThreads)));
  SAE_TRY_VOID(device_.launch(FoldColumns{partial, chunks, columns, sums},
                              blocks_of(columns, FoldColumns::kThreads)));
  const auto of = [&](GatedColumns::Sum which) { return sums + which * latents_; };
  sum.f_sums = of(GatedColumns::kOpen);
  SAE_TRY(auto* const pulls, session_.scratch<float>("pulls of the pre-activations", latents_));
  SAE_TRY_VOID(store(of(GatedColumns::kBack), latents_, pulls));
  SAE_TRY_VOID(store(of(GatedColumns::kGate), latents_, own_->b_enc_gradient()));
  SAE_TRY_VOID(store(of(GatedColumns::kMagnitude), latents_, own_->more_gradient(0)));
  SAE_TRY_VOID(store(of(GatedColumns::kRatio), latents_, own_->more_gradient(1)));
  SAE_TRY_VOID(weight_gradients(f, g, back, read, count));
  SAE_TRY_VOID(grade_b_dec(g.values, count, d_out_, pulls));
  SAE_TRY_VOID(advance_silence(fired, count, 0, nullptr));
  return device_.launch(sum, 1);
}

}  // namespace

Result<std::unique_ptr<StepEngine>> make_gated_engine(Session& session,
                                                      const sweeps::TrainingSpec& spec,
                                                      const std::vector<RowPart>& parts) {
  const Parameters::Shape shape = shape_of(spec, parts);
  SAE_TRY(auto parameters,
          Parameters::allocate(session, shape,
                               {{"b_mag", 1, shape.latents}, {"r_mag", 1, shape.latents}}));
  return std::make_unique<GatedEngine>(session, spec, std::move(parameters));
}

}  // namespace saesweep::worker::device
