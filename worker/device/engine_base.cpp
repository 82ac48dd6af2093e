#include "worker/device/engine_base.h"

#include <ATen/core/Tensor.h>

#include <cmath>
#include <limits>

#include "core/log.h"

namespace saesweep::worker::device {
namespace {

// As torch.optim.Adam applies them; steps are counted from 1.

AdamRates adam_rates(const sweeps::TrainingSpec& spec, const StepOrder& order) {
  const auto t = static_cast<double>(order.adam_step);
  AdamRates rates{};
  rates.beta1 = static_cast<float>(spec.adam_beta1);
  rates.beta2 = static_cast<float>(spec.adam_beta2);
  rates.epsilon = static_cast<float>(spec.adam_epsilon);
  rates.rest1 = static_cast<float>(1 - spec.adam_beta1);
  rates.rest2 = static_cast<float>(1 - spec.adam_beta2);
  rates.rate =
      static_cast<float>(order.rate) * static_cast<float>(1 / (1 - std::pow(spec.adam_beta1, t)));
  rates.root = std::sqrt(static_cast<float>(1 / (1 - std::pow(spec.adam_beta2, t))));
  return rates;
}

}  // namespace

StepTerms EngineBase::terms(const StepOrder& order) const {
  StepTerms terms{adam_rates(spec_, order),
                  order.sparsity_scale * order.coefficient.value_or(coefficient()), 1, -1};
  if (order.bend) {
    terms.p = order.bend->p;
    terms.next_p = order.bend->next_p.value_or(-1);
  }
  return terms;
}

Result<void> EngineBase::run(const Rows& x, const Form& form) {
  session_.findings().expect();
  SAE_TRY_VOID(device_.clear(own_->sums(), sizeof(StepSums)));
  SAE_TRY(auto* const fired, session_.scratch<std::uint8_t>("fired", latents_));
  SAE_TRY_VOID(device_.clear(fired, static_cast<std::size_t>(latents_)));
  return pass(x, form, fired);
}

Result<void> EngineBase::whole_step(const Rows& x, const Form& form) {
  SAE_TRY_VOID(run(x, form));
  Parameters::Update update{};
  update.clip = spec_.grad_clip.value_or(0);
  update.unit_norm = decoder_norm_ != DecoderNorm::kFree;
  if (decoder_norm_ == DecoderNorm::kUnitEpsilon) {
    update.projection_epsilon = 1e-6;
    update.norm_epsilon = static_cast<double>(std::numeric_limits<float>::epsilon());
  }
  update.rows = form.rows;
  update.dead_after = form.dead_after;
  return own_->update(update);
}

Result<void> EngineBase::begin_step(const at::Tensor& x, const StepOrder& order) {
  SAE_TRY(const Rows batch, session_.stream_rows(x, order.step * spec_.batch));
  SAE_TRY_VOID(device_.launch(SetTerms{terms(order), own_->terms()}, 1));
  begun_rows_ = batch.count;
  const Form now = form(batch, order);
  // A step that was done once has all its memory, and the device has all its kernels.
  if (takes_notes_ && graph_form_ != now && last_form_ == now) {
    graph_form_.reset();
    auto graph = device_.note([&] { return whole_step(batch, now); });
    if (graph) {
      graph_ = std::move(*graph);
      graph_form_ = now;
    } else {
      takes_notes_ = false;
      log::warn("device.no_graph architecture={} problem={}", to_string(spec_.architecture),
                graph.error().message);
    }
  }
  if (graph_form_ == now) {
    session_.findings().expect();
    return device_.replay(graph_);
  }
  SAE_TRY_VOID(whole_step(batch, now));
  last_form_ = form(batch, order);
  return {};
}

Result<StepFindings> EngineBase::look(const at::Tensor& x, const StepOrder& order,
                                      std::vector<char>& fired) {
  SAE_TRY(const Rows some, session_.other_rows(x));
  SAE_TRY_VOID(device_.launch(SetTerms{terms(order), own_->terms()}, 1));
  SAE_TRY_VOID(run(some, form(some, order)));
  SAE_TRY_VOID(session_.read_fired(latents_, fired));
  return own_->findings(some.count);
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

Result<const void*> EngineBase::operand(const float* values, std::int64_t count,
                                        const std::string& purpose) {
  if (!rounds()) return values;
  SAE_TRY(auto* const rounded, session_.scratch<std::uint16_t>(purpose + ", rounded", count));
  SAE_TRY_VOID(
      device_.launch(RoundValues{values, rounded, count}, blocks_of(count, RoundValues::kValues)));
  return rounded;
}

Result<DenseRows> EngineBase::read_rows(const Rows& x, const float* bias) {
  SAE_TRY(const DenseRows read, rows("what the encoder reads", x.count, d_in_));
  SAE_TRY_VOID(device_.launch(CentreRow{x.values, bias, d_in_, x.width, read.values, read.rounded},
                              x.count));
  return read;
}

Result<EngineBase::Target> EngineBase::target(const Rows& x) {
  if (!predicts()) return Target{x.values, x.width, x.count, x.variance};
  SAE_TRY(auto* const variance, session_.scratch<double>("variance of what is predicted", 1));
  const float* const values = x.values + d_in_;
  SAE_TRY_VOID(session_.variance(values, x.count, d_out_, x.width, variance));
  return Target{values, x.width, x.count, variance};
}

Result<void> EngineBase::encode(const DenseRows& read, std::int64_t count, float* z) {
  SAE_TRY(auto* const w_enc, operand(own_->w_enc(), latents_ * d_in_, "W_enc"));
  return multiply(operand(read), w_enc, z, {count, latents_, d_in_}, Lies::kRightTransposed);
}

Result<void> EngineBase::multiply(const void* left, const void* right, float* out,
                                  const Shape& shape, Lies lies) {
  return device_.multiply({left, right, out, shape.rows, shape.columns, shape.depth,
                           lies == Lies::kLeftTransposed, lies == Lies::kRightTransposed,
                           rounds()});
}

Result<EngineBase::Decoded> EngineBase::reconstruct(const DenseRows& f, const Target& x,
                                                    const void* w_dec, const std::string& of) {
  SAE_TRY(const DenseRows g, rows("gradient of the reconstruction" + of, x.count, d_out_));
  SAE_TRY(auto* const squares, session_.scratch<double>("squared errors" + of, x.count));
  SAE_TRY_VOID(
      multiply(operand(f), w_dec, g.values, {x.count, d_out_, latents_}, Lies::kNotTransposed));
  const auto factor = static_cast<float>(2.0 / static_cast<double>(x.count));
  SAE_TRY_VOID(
      device_.launch(ErrorRow{g, own_->b_dec(), x.values, x.stride, factor, squares}, x.count));
  SAE_TRY(const DenseRows back, rows("gradient of the activations" + of, x.count, latents_));
  SAE_TRY_VOID(multiply(operand(g), w_dec, back.values, {x.count, latents_, d_out_},
                        Lies::kRightTransposed));
  return Decoded{g, back, squares};
}

SumDense EngineBase::sum_dense(const Target& x, const Decoded& decoded,
                               const std::int32_t* active) const {
  SumDense sum{};
  sum.rows = x.count;
  sum.latents = latents_;
  sum.row_squares = decoded.squares;
  sum.active = active;
  sum.terms = own_->terms();
  sum.share = 1.0 / static_cast<double>(x.count);
  sum.variance = x.variance;
  sum.sums = own_->sums();
  return sum;
}

Result<void> EngineBase::weight_gradients(const DenseRows& f, const DenseRows& g,
                                          const DenseRows& back, const DenseRows& read,
                                          std::int64_t count) {
  SAE_TRY_VOID(multiply(operand(f), operand(g), own_->w_dec_gradient(), {latents_, d_out_, count},
                        Lies::kLeftTransposed));
  return multiply(operand(back), operand(read), own_->w_enc_gradient(), {latents_, d_in_, count},
                  Lies::kLeftTransposed);
}

Result<EngineBase::Bent> EngineBase::bend(const DenseRows& gradient, const float* f,
                                          std::int64_t count) {
  SAE_TRY(auto* const now, session_.scratch<double>("penalties of rows", count));
  SAE_TRY(auto* const next, session_.scratch<double>("next penalties of rows", count));
  SAE_TRY_VOID(
      device_.launch(BendRow{gradient, f, own_->terms(), 1.0 / static_cast<double>(count),
                             spec_.sparsity_function == sweeps::SparsityFunction::kLp, now, next},
                     count));
  return Bent{now, next};
}

Result<void> EngineBase::grade_b_dec(const float* g, std::int64_t count, std::int64_t stride,
                                     const float* pulls) {
  SAE_TRY(auto* const direct, session_.scratch<double>("columns of the gradient", d_out_));
  SAE_TRY_VOID(session_.sum_columns(g, nullptr, count, d_out_, stride, direct));
  double* through = nullptr;
  if (pulls != nullptr) {
    SAE_TRY(through, session_.scratch<double>("columns through the encoder", d_in_));
    SAE_TRY_VOID(session_.sum_columns(own_->w_enc(), pulls, latents_, d_in_, d_in_, through));
  }
  return device_.launch(GradeBias{direct, through, d_out_, own_->b_dec_gradient()},
                        blocks_of(d_out_, GradeBias::kThreads));
}

Result<void> EngineBase::store(const double* sums, std::int64_t count, float* to) {
  return device_.launch(GradeBias{sums, nullptr, count, to}, blocks_of(count, GradeBias::kThreads));
}

Result<void> EngineBase::advance_silence(const std::uint8_t* fired, std::int64_t count,
                                         std::int64_t dead_after, std::uint32_t* dead) {
  return device_.launch(AdvanceSilence{fired, own_->silence(), own_->next_silence(), latents_,
                                       count, dead_after, dead},
                        blocks_of(latents_, AdvanceSilence::kThreads));
}

Parameters::Shape shape_of(const sweeps::TrainingSpec& spec, const std::vector<RowPart>& parts) {
  const auto latents = static_cast<std::int64_t>(spec.d_sae);
  if (sweeps::is_transcoder(spec.architecture))
    return {latents, parts.front().width, parts.back().width};
  std::int64_t d = 0;
  for (const RowPart& part : parts) d += part.width;
  return {latents, d, d};
}

}  // namespace saesweep::worker::device
