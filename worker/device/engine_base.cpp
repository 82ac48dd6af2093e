#include "worker/device/engine_base.h"

#include <ATen/core/Tensor.h>

#include <limits>

namespace saesweep::worker::device {

Result<void> EngineBase::run(const Rows& x, const StepOrder& order) {
  SAE_TRY_VOID(device_.clear(own_.sums(), sizeof(StepSums)));
  SAE_TRY(auto* const fired, session_.scratch<std::uint8_t>("fired", latents_));
  SAE_TRY_VOID(device_.clear(fired, static_cast<std::size_t>(latents_)));
  return pass(x, order, fired);
}

Result<StepFindings> EngineBase::step(const at::Tensor& x, const StepOrder& order) {
  SAE_TRY(const Rows batch, session_.stream_rows(x, order.step * spec_.batch));
  SAE_TRY_VOID(run(batch, order));
  Parameters::Update update{};
  update.rates = adam_rates(spec_, order);
  update.clip = spec_.grad_clip.value_or(0);
  update.unit_norm = decoder_norm_ != DecoderNorm::kFree;
  if (decoder_norm_ == DecoderNorm::kUnitEpsilon) {
    update.projection_epsilon = 1e-6;
    update.norm_epsilon = static_cast<double>(std::numeric_limits<float>::epsilon());
  }
  update.rows = batch.count;
  update.dead_after = order.dead_after;
  SAE_TRY_VOID(own_.update(session_, update));
  return own_.findings(batch.count);
}

Result<StepFindings> EngineBase::look(const at::Tensor& x, const StepOrder& order,
                                      std::vector<char>& fired) {
  SAE_TRY(const Rows some, session_.other_rows(x));
  SAE_TRY_VOID(run(some, order));
  SAE_TRY_VOID(session_.read_fired(latents_, fired));
  return own_.findings(some.count);
}

Result<DenseRows> EngineBase::rows(const std::string& purpose, std::int64_t count,
                                   std::int64_t width) {
  DenseRows made{};
  made.width = width;
  SAE_TRY(made.values, session_.scratch<float>(purpose, count * width));
  if (rounds()) {
    SAE_TRY(made.rounded, session_.scratch<std::uint16_t>(purpose + ", rounded", count * width));
  }
  return made;
}

Result<const void*> EngineBase::operand(const float* weight, const std::string& purpose) {
  if (!rounds()) return weight;
  const std::int64_t count = latents_ * d_;
  SAE_TRY(auto* const rounded, session_.scratch<std::uint16_t>(purpose, count));
  SAE_TRY_VOID(
      device_.launch(RoundValues{weight, rounded, count}, blocks_of(count, RoundValues::kValues)));
  return rounded;
}

Result<void> EngineBase::multiply(const void* left, const void* right, float* out,
                                  const Shape& shape, Lies lies) {
  return device_.multiply({left, right, out, shape.rows, shape.columns, shape.depth,
                           lies == Lies::kLeftTransposed, lies == Lies::kRightTransposed,
                           rounds()});
}

Result<void> EngineBase::weight_gradients(const DenseRows& f, const DenseRows& g,
                                          const DenseRows& back, const DenseRows& read,
                                          std::int64_t count) {
  const Shape shape{latents_, d_, count};
  SAE_TRY_VOID(
      multiply(operand(f), operand(g), own_.w_dec_gradient(), shape, Lies::kLeftTransposed));
  return multiply(operand(back), operand(read), own_.w_enc_gradient(), shape,
                  Lies::kLeftTransposed);
}

Result<void> EngineBase::grade_b_dec(const float* g, std::int64_t count, std::int64_t stride,
                                     bool through_encoder) {
  SAE_TRY(auto* const direct, session_.scratch<double>("columns of the gradient", d_));
  SAE_TRY_VOID(session_.sum_columns(g, nullptr, count, d_, stride, direct));
  double* through = nullptr;
  if (through_encoder) {
    SAE_TRY(through, session_.scratch<double>("columns through the encoder", d_));
    SAE_TRY_VOID(
        session_.sum_columns(own_.w_enc(), own_.b_enc_gradient(), latents_, d_, d_, through));
  }
  return device_.launch(GradeBias{direct, through, d_, own_.b_dec_gradient()},
                        blocks_of(d_, GradeBias::kThreads));
}

Result<void> EngineBase::advance_silence(const std::uint8_t* fired, std::int64_t count,
                                         std::int64_t dead_after, std::uint32_t* dead) {
  return device_.launch(
      AdvanceSilence{fired, own_.silence(), own_.next_silence(), latents_, count, dead_after, dead},
      blocks_of(latents_, AdvanceSilence::kThreads));
}

}  // namespace saesweep::worker::device
