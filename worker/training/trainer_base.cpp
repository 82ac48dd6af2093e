#include "worker/training/trainer_base.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <utility>

#include "core/check.h"
#include "core/philox.h"
#include "sweeps/recipes.h"
#include "worker/training/kernels.h"
#include "worker/training/learning_rate.h"
#include "worker/training/packing.h"

namespace saesweep::worker {
namespace {

constexpr std::uint64_t kCurvePoints = 200;
constexpr std::uint64_t kSkipsInARow = 10;
constexpr std::uint64_t kDefaultDeadAfter = 10'000'000;

SaeTensors zeros(std::int64_t d_sae, std::int64_t d_in, std::int64_t d_out) {
  return {at::zeros({d_sae, d_in}, at::kFloat),
          at::zeros({d_sae}, at::kFloat),
          at::zeros({d_sae, d_out}, at::kFloat),
          at::zeros({d_out}, at::kFloat),
          {}};
}

std::int64_t width_of(const std::vector<RowPart>& parts) {
  std::int64_t width = 0;
  for (const RowPart& part : parts) width += part.width;
  return width;
}

// How load_sae reads the tensors of an architecture that is to start from them: a threshold that
// training would set anew may be absent.
std::string_view read_as(sweeps::Architecture architecture) {
  using enum sweeps::Architecture;
  return sweeps::to_string(
      architecture == kBatchTopK || architecture == kMatryoshka ? kStandard : architecture);
}

// The framework's default for a linear layer, which dictionary_learning leaves in place.
bool draws_encoder_bias(sweeps::Architecture architecture) {
  using enum sweeps::Architecture;
  return architecture == kStandard || architecture == kStandardBricken || architecture == kPAnneal;
}

}  // namespace

TrainerBase::TrainerBase(const sweeps::TrainingSpec& spec, std::vector<RowPart> parts,
                         ThreadPool& pool, DecoderNorm decoder_norm, float initial_norm)
    : spec_(spec),
      parts_(std::move(parts)),
      d_in_(sweeps::is_transcoder(spec.architecture) ? parts_.front().width : width_of(parts_)),
      d_out_(sweeps::is_transcoder(spec.architecture) ? parts_.back().width : d_in_),
      norm_factor_(parts_.front().norm_factor),
      pool_(&pool),
      parameters_(zeros(d_sae(), d_in_, d_out_)),
      gradients_(zeros(d_sae(), d_in_, d_out_)),
      silence_(spec.d_sae, 0),
      rows_in_pass_(static_cast<std::int64_t>(spec.batch)),
      decoder_norm_(decoder_norm),
      initial_norm_(initial_norm),
      first_(zeros(d_sae(), d_in_, d_out_)),
      second_(zeros(d_sae(), d_in_, d_out_)) {
  if (spec.l1 && spec.l0_target) controller_.emplace(spec);
}

void TrainerBase::for_tiles(const Piece& piece) const {
  pool_->run(tiles(), [&](std::int64_t index) {
    const std::int64_t first = index * kRowsPerTile;
    piece(first, std::min(kRowsPerTile, batch() - first), index);
  });
}

void TrainerBase::for_blocks(const Piece& piece) const {
  pool_->run(blocks(), [&](std::int64_t index) {
    const std::int64_t first = index * kLatentsPerBlock;
    piece(first, std::min(kLatentsPerBlock, d_sae() - first), index);
  });
}

std::int64_t TrainerBase::latents_per_product() const {
  const std::int64_t sixteenth = (d_sae() / 16 + kLatentsPerBlock - 1) / kLatentsPerBlock;
  // A power of two of blocks: pieces then divide the slabs in which codes are kept.
  const auto pieces = static_cast<std::uint64_t>(std::clamp<std::int64_t>(sixteenth, 1, 8));
  return kLatentsPerBlock * static_cast<std::int64_t>(std::bit_floor(pieces));
}

void TrainerBase::for_product_blocks(const Piece& piece) const {
  pool_->run(product_blocks(), [&](std::int64_t index) {
    const std::int64_t first = index * latents_per_product();
    piece(first, std::min(latents_per_product(), d_sae() - first), index);
  });
}

Result<void> TrainerBase::initialise() {
  const std::int64_t d = d_in_;
  if (!spec_.init_path.empty()) {
    // The bytes of an SAE file stand for the whole initialisation.
    const Json config{{"architecture", read_as(spec_.architecture)},
                      {"parameters", {{"k", spec_.k.value_or(1)}}}};
    SAE_TRY(const Sae sae, load_sae(spec_.init_path, config));
    if (sae.d_sae() != d_sae() || sae.d_in() != d)
      return fail(ErrorCode::kInvalidArgument,
                  "init {}: W_enc is [{}, {}]; [{}, {}] would be right", spec_.init_path,
                  sae.d_sae(), sae.d_in(), d_sae(), d);
    parameters_.w_enc.copy_(sae.w_enc);
    parameters_.w_dec.copy_(sae.w_dec);
    // Files apply to raw activations; rows are trained on times the norm factor.
    if (sae.b_enc.defined()) parameters_.b_enc.copy_(sae.b_enc * norm_factor_);
    parameters_.b_dec.copy_(sae.b_dec * norm_factor_);
    start_from(sae);
    return {};
  }
  draw();
  return {};
}

void TrainerBase::draw() {
  draw_directions(parameters_.w_dec, "init.w_dec", d_in_, initial_norm_);
  parameters_.w_enc.copy_(parameters_.w_dec);
  if (!draws_encoder_bias(spec_.architecture)) return;
  Rng rng(spec_.seed, "init.b_enc");
  const double bound = 1 / std::sqrt(static_cast<double>(d_in_));
  float* bias = parameters_.b_enc.mutable_data_ptr<float>();
  for (std::int64_t i = 0; i < d_sae(); ++i)
    bias[i] = static_cast<float>((2 * rng.uniform() - 1) * bound);
}

void TrainerBase::draw_directions(at::Tensor& rows, std::string_view purpose, std::int64_t block,
                                  double norm) const {
  float* out = rows.mutable_data_ptr<float>();
  std::vector<double> direction(static_cast<std::size_t>(block));
  for (std::int64_t latent = 0; latent < rows.size(0); ++latent) {
    Rng rng(spec_.seed, purpose, static_cast<std::uint64_t>(latent));
    for (std::int64_t column = 0; column < rows.size(1); column += block) {
      double square = 0;
      for (double& value : direction) {
        value = rng.normal();
        square += value * value;
      }
      const double scale = norm / std::sqrt(square);
      for (const double value : direction) *out++ = static_cast<float>(value * scale);
    }
  }
}

void TrainerBase::add_parameter(const std::string& name, at::IntArrayRef shape) {
  for (SaeTensors* tensors : {&parameters_, &gradients_, &first_, &second_})
    tensors->more.emplace(name, at::zeros(shape, at::kFloat));
}

double TrainerBase::sparsity_scale() const {
  const double steered = controller_ ? controller_->factor() : 1;
  if (spec_.sparsity_warmup_steps == 0) return steered;
  return steered *
         std::min(static_cast<double>(step_) / static_cast<double>(spec_.sparsity_warmup_steps),
                  1.0);
}

products::Scratch TrainerBase::centred(const at::Tensor& x) const {
  const std::int64_t d = d_in_, rows = x.size(0);
  products::Scratch out(rows * d);
  const float* from = x.const_data_ptr<float>();
  const float* b_dec = parameters_.b_dec.const_data_ptr<float>();
  pool_->run((rows + kRowsPerTile - 1) / kRowsPerTile, [&](std::int64_t tile) {
    const std::int64_t end = std::min(rows, (tile + 1) * kRowsPerTile);
    for (std::int64_t row = tile * kRowsPerTile; row < end; ++row)
      for (std::int64_t j = 0; j < d; ++j) out.data()[row * d + j] = from[row * d + j] - b_dec[j];
  });
  return out;
}

PackedEncoder TrainerBase::packed_encoder(const float* floors) const {
  return pack_encoder(*pool_, parameters_.w_enc.const_data_ptr<float>(),
                      parameters_.b_enc.const_data_ptr<float>(), floors, d_sae(), d_in_,
                      numbers_of(spec_));
}

void TrainerBase::sparse_weight_gradients(const SparseCodes& codes, std::span<const float> d_codes,
                                          const SlicedRows& g_and_x, bool add) {
  weight_gradients(
      *pool_, codes, d_codes, g_and_x, add,
      {gradients_.w_dec.mutable_data_ptr<float>(), gradients_.w_enc.mutable_data_ptr<float>(),
       gradients_.b_enc.mutable_data_ptr<float>(), d_sae()});
}

void TrainerBase::subtract_through_encoder(const float* pulls, std::vector<double>& b_dec) const {
  std::vector<std::vector<double>> parts(static_cast<std::size_t>(blocks()));
  const float* encoder = parameters_.w_enc.const_data_ptr<float>();
  for_blocks([&](std::int64_t first, std::int64_t count, std::int64_t index) {
    auto& part = parts[static_cast<std::size_t>(index)];
    part.assign(b_dec.size(), 0);
    for (std::int64_t latent = first; latent < first + count; ++latent)
      if (pulls[latent] != 0)
        kernels::add_scaled(pulls[latent], encoder + latent * d_in_, part.data(), d_in_);
  });
  for (const auto& part : parts)
    for (std::size_t j = 0; j < b_dec.size(); ++j) b_dec[j] -= part[j];
}

double TrainerBase::variance_of(const at::Tensor& x) const {
  const std::int64_t d = x.size(1);
  std::vector<std::vector<double>> sums(static_cast<std::size_t>(tiles()));
  std::vector<double> squares(static_cast<std::size_t>(tiles()), 0);
  const float* values = x.const_data_ptr<float>();
  for_tiles([&](std::int64_t first, std::int64_t count, std::int64_t index) {
    std::vector<double>& sum = sums[static_cast<std::size_t>(index)];
    sum.assign(static_cast<std::size_t>(d), 0);
    for (std::int64_t row = first; row < first + count; ++row) {
      const float* x_row = values + row * d;
      kernels::add_scaled(1, x_row, sum.data(), d);
      squares[static_cast<std::size_t>(index)] += kernels::sum_of_squares(x_row, d);
    }
  });
  double total = 0, mean_square = 0;
  for (const double square : squares) total += square;
  const auto rows = static_cast<double>(batch());
  for (std::int64_t j = 0; j < d; ++j) {
    double column = 0;
    for (const auto& sum : sums) column += sum[static_cast<std::size_t>(j)];
    mean_square += column / rows * (column / rows);
  }
  return total - rows * mean_square;
}

double TrainerBase::variance_explained(const at::Tensor& x, double squared_error) const {
  const double variance = variance_of(x);
  return variance > 0 ? 1 - squared_error / variance : std::numeric_limits<double>::quiet_NaN();
}

std::uint64_t TrainerBase::dead_after() const {
  return spec_.dead_after_tokens > 0 ? spec_.dead_after_tokens : kDefaultDeadAfter;
}

std::vector<std::int64_t> TrainerBase::advance_silence(const std::vector<char>& fired) const {
  std::vector<std::int64_t> next(silence_.size());
  for (std::size_t i = 0; i < next.size(); ++i) next[i] = fired[i] != 0 ? 0 : silence_[i] + batch();
  return next;
}

double TrainerBase::gradient_norm(std::vector<float>& along) const {
  const std::int64_t d = d_in_, d_out = d_out_;
  const double epsilon = decoder_norm_ == DecoderNorm::kUnitEpsilon ? 1e-6 : 0;
  along.assign(static_cast<std::size_t>(d_sae()), 0);
  std::vector<double> squares(static_cast<std::size_t>(blocks()), 0);
  for_blocks([&](std::int64_t first, std::int64_t count, std::int64_t index) {
    double& sum = squares[static_cast<std::size_t>(index)];
    sum += kernels::sum_of_squares(gradients_.w_enc.const_data_ptr<float>() + first * d, count * d);
    sum += kernels::sum_of_squares(gradients_.b_enc.const_data_ptr<float>() + first, count);
    for (std::int64_t latent = first; latent < first + count; ++latent) {
      const float* g = gradients_.w_dec.const_data_ptr<float>() + latent * d_out;
      const double square = kernels::sum_of_squares(g, d_out);
      sum += square;
      if (decoder_norm_ == DecoderNorm::kFree) continue;
      const float* w = parameters_.w_dec.const_data_ptr<float>() + latent * d_out;
      const double of_w = kernels::sum_of_squares(w, d_out), norm = std::sqrt(of_w) + epsilon;
      const double product = kernels::dot(g, w, d_out), part = product / (norm * norm);
      along[static_cast<std::size_t>(latent)] = static_cast<float>(part);
      sum -= std::min(square, part * (2 * product - part * of_w));
    }
  });
  double total = kernels::sum_of_squares(gradients_.b_dec.const_data_ptr<float>(), d_out);
  for (const double square : squares) total += square;
  for (const auto& [name, gradient] : gradients_.more)
    total += kernels::sum_of_squares(gradient.const_data_ptr<float>(), gradient.numel());
  return std::sqrt(total);
}

void TrainerBase::update(double rate, double clip, const std::vector<float>& along) {
  const std::int64_t d = d_in_, d_out = d_out_;
  const auto t = static_cast<double>(++adam_steps_);
  kernels::AdamStep adam{};
  adam.rate = static_cast<float>(rate);
  adam.beta1 = static_cast<float>(spec_.adam_beta1);
  adam.beta2 = static_cast<float>(spec_.adam_beta2);
  adam.epsilon = static_cast<float>(spec_.adam_epsilon);
  adam.rest1 = static_cast<float>(1 - spec_.adam_beta1);
  adam.rest2 = static_cast<float>(1 - spec_.adam_beta2);
  adam.correction1 = static_cast<float>(1 / (1 - std::pow(spec_.adam_beta1, t)));
  adam.correction2 = static_cast<float>(1 / (1 - std::pow(spec_.adam_beta2, t)));
  adam.scale = static_cast<float>(clip);
  const auto apply = [&](const at::Tensor& gradient, at::Tensor& weight, at::Tensor& first,
                         at::Tensor& second, std::int64_t from, std::int64_t count,
                         float of_weight = 0) {
    kernels::adam(adam, gradient.const_data_ptr<float>() + from, of_weight,
                  weight.mutable_data_ptr<float>() + from, first.mutable_data_ptr<float>() + from,
                  second.mutable_data_ptr<float>() + from, count);
  };
  const double epsilon = decoder_norm_ == DecoderNorm::kUnitEpsilon
                             ? static_cast<double>(std::numeric_limits<float>::epsilon())
                             : 0;
  for_blocks([&](std::int64_t first, std::int64_t count, std::int64_t) {
    apply(gradients_.w_enc, parameters_.w_enc, first_.w_enc, second_.w_enc, first * d, count * d);
    apply(gradients_.b_enc, parameters_.b_enc, first_.b_enc, second_.b_enc, first, count);
    // A row is projected, moved and made one long while it is in cache.
    for (std::int64_t latent = first; latent < first + count; ++latent) {
      apply(gradients_.w_dec, parameters_.w_dec, first_.w_dec, second_.w_dec, latent * d_out, d_out,
            along[static_cast<std::size_t>(latent)]);
      if (decoder_norm_ == DecoderNorm::kFree) continue;
      float* w = parameters_.w_dec.mutable_data_ptr<float>() + latent * d_out;
      kernels::divide(static_cast<float>(std::sqrt(kernels::sum_of_squares(w, d_out)) + epsilon), w,
                      d_out);
    }
  });
  apply(gradients_.b_dec, parameters_.b_dec, first_.b_dec, second_.b_dec, 0, d_out);
  for (const auto& [name, gradient] : gradients_.more)
    apply(gradient, parameters_.more.at(name), first_.more.at(name), second_.more.at(name), 0,
          gradient.numel());
}

Result<void> TrainerBase::begin_step(const at::Tensor& x) {
  SAE_CHECK(
      x.dim() == 2 && x.size(0) == batch() && x.size(1) == width_of(parts_) && x.is_contiguous(),
      "a batch of the wrong shape: {} rows for {}", x.size(0), batch());
  SAE_CHECK(!finished(), "step {} of {}", step_, spec_.steps());
  if (has_begun_) return {};
  // The calling thread takes pieces too: LibTorch's own threading is a setting of each thread.
  if (at::get_num_threads() != 1) at::set_num_threads(1);
  if (step_ == 0 && spec_.init_path.empty()) {
    before_first_step(x);
    engine_is_behind_ = true;
  }
  if (engine_ != nullptr) {
    SAE_TRY_VOID(hand_over());
    engine_is_ahead_ = true;
    SAE_TRY_VOID(engine_->begin_step(x, order()));
  }
  has_begun_ = true;
  return {};
}

Result<StepReport> TrainerBase::train_step(const at::Tensor& x) {
  SAE_TRY_VOID(begin_step(x));
  has_begun_ = false;
  Stepped stepped;
  if (engine_ == nullptr) {
    stepped = step_here(x);
  } else {
    SAE_TRY(stepped, step_elsewhere());
  }
  const auto& [sums, norm, applied] = stepped;
  if (applied) {
    keep_bookkeeping();
    skipped_in_row_ = 0;
  } else {
    ++skipped_;
    ++skipped_in_row_;
  }
  ++step_;
  if (applied && controller_) controller_->note(step_, sums.l0);
  record(sums, norm, applied);
  if (skipped_in_row_ >= kSkipsInARow)
    return fail(ErrorCode::kDiverged, "step {}: loss or gradient was not finite {} steps in a row",
                step_, skipped_in_row_);

  StepReport report;
  report.step = step_;
  report.tokens = position();
  report.loss = sums.loss();
  report.mse = sums.reconstruction;
  report.fve = sums.fve;
  report.l0 = sums.l0;
  report.grad_norm = norm;
  report.applied = applied;
  report.dead_fraction = dead_fraction();
  return report;
}

TrainerBase::Stepped TrainerBase::step_here(const at::Tensor& x) {
  Stepped stepped;
  stepped.sums = pass(x);
  std::vector<float> along;
  stepped.norm = gradient_norm(along);
  stepped.applied =
      stepped.sums.finite && std::isfinite(stepped.sums.loss()) && std::isfinite(stepped.norm);
  if (!stepped.applied) return stepped;
  double clip = 1;
  if (spec_.grad_clip) clip = std::min(1.0, *spec_.grad_clip / (stepped.norm + 1e-6));
  update(learning_rate(spec_, step_), clip, along);
  if (!next_silence_.empty()) silence_.swap(next_silence_);
  return stepped;
}

StepOrder TrainerBase::order() const {
  StepOrder order{.step = step_,
                  .rate = learning_rate(spec_, step_),
                  .adam_step = adam_steps_ + 1,
                  .sparsity_scale = sparsity_scale(),
                  .dead_after = static_cast<std::int64_t>(dead_after())};
  complete(order);
  return order;
}

Result<void> TrainerBase::hand_over() {
  if (!engine_is_behind_) return {};
  SAE_TRY_VOID(engine_->write(state_here()));
  engine_is_behind_ = false;
  engine_is_ahead_ = false;
  return {};
}

Result<void> TrainerBase::fetch() const {
  if (!engine_is_ahead_) return {};
  SAE_TRY_VOID(engine_->read(state_here()));
  engine_is_ahead_ = false;
  return {};
}

namespace {

PassSums sums_of(const StepFindings& found) {
  PassSums sums;
  sums.reconstruction = found.reconstruction;
  sums.in_place = found.optimised;
  sums.sparsity = found.sparsity;
  sums.auxiliary = found.auxiliary;
  sums.fve = found.fve;
  sums.l0 = found.l0;
  sums.finite = found.finite;
  return sums;
}

}  // namespace

Result<TrainerBase::Stepped> TrainerBase::step_elsewhere() {
  SAE_TRY(const StepFindings found, engine_->end_step());
  dead_fraction_there_ = found.dead_fraction;
  if (found.applied) {
    ++adam_steps_;
    note(found);
  }
  return Stepped{sums_of(found), found.norm, found.applied};
}

Result<PassSums> TrainerBase::look(const at::Tensor& rows, std::vector<char>& fired) {
  if (engine_ != nullptr) {
    SAE_TRY_VOID(hand_over());
    SAE_TRY(const StepFindings found, engine_->look(rows, order(), fired));
    return sums_of(found);
  }
  PassSums sums = pass(rows);
  fired.resize(next_silence_.size());
  for (std::size_t i = 0; i < fired.size(); ++i) fired[i] = next_silence_[i] == 0 ? 1 : 0;
  return sums;
}

double TrainerBase::dead_fraction() const {
  if (engine_ != nullptr) return dead_fraction_there_;
  const auto limit = static_cast<std::int64_t>(dead_after());
  const auto dead = std::count_if(silence_.begin(), silence_.end(),
                                  [limit](std::int64_t tokens) { return tokens >= limit; });
  return static_cast<double>(dead) / static_cast<double>(d_sae());
}

std::uint64_t TrainerBase::steps_per_point() const {
  return std::max<std::uint64_t>(1, spec_.steps() / kCurvePoints);
}

bool TrainerBase::held_out_is_due() const {
  if (spec_.eval_every == 0 || step_ == 0) return false;
  if (!held_out_.empty() && held_out_.back()[0] == static_cast<double>(step_)) return false;
  if (step_ == spec_.steps()) return true;
  const std::uint64_t every = steps_per_point();
  if (step_ % every != 0) return false;
  return step_ * spec_.batch / spec_.eval_every > (step_ - every) * spec_.batch / spec_.eval_every;
}

std::vector<std::int64_t> TrainerBase::held_out_ends(std::int64_t rows) const {
  const auto most = static_cast<std::int64_t>(spec_.batch);
  const std::int64_t pieces = (rows + most - 1) / most;
  std::vector<std::int64_t> ends;
  // About equally many in each: a piece of a few rows says little of a loss over a batch.
  for (std::int64_t piece = 1; piece <= pieces; ++piece) ends.push_back(piece * rows / pieces);
  return ends;
}

Result<HeldOutReport> TrainerBase::score_held_out(const at::Tensor& rows) {
  SAE_CHECK(rows.dim() == 2 && rows.size(0) > 0 && rows.size(1) == width_of(parts_) &&
                rows.is_contiguous(),
            "held-out rows of the wrong shape: {} values for {}", rows.size(1), width_of(parts_));
  if (at::get_num_threads() != 1) at::set_num_threads(1);
  // Also after an allocation that failed.
  struct BackToTraining {
    explicit BackToTraining(TrainerBase& trainer) : of(trainer) {}
    BackToTraining(const BackToTraining&) = delete;
    BackToTraining& operator=(const BackToTraining&) = delete;
    ~BackToTraining() {
      of.rows_in_pass_ = static_cast<std::int64_t>(of.spec_.batch);
      of.held_out_first_.reset();
    }
    TrainerBase& of;
  } back_to_training(*this);

  const std::int64_t count = rows.size(0);
  const std::vector<std::int64_t> ends = held_out_ends(count);
  std::vector<char> fired(spec_.d_sae, 0), fired_here;
  double loss = 0, squared_error = 0, active = 0;
  std::int64_t first = 0;
  for (const std::int64_t end : ends) {
    held_out_first_ = first;
    rows_in_pass_ = end - first;
    const auto weight = static_cast<double>(rows_in_pass_);
    SAE_TRY(const PassSums sums, look(rows.narrow(0, first, rows_in_pass_), fired_here));
    const double whole = sums.finite ? 1 : std::numeric_limits<double>::quiet_NaN();
    loss += whole * weight * sums.loss();
    squared_error += whole * weight * sums.reconstruction;
    active += whole * weight * sums.l0;
    for (std::size_t i = 0; i < fired.size(); ++i) fired[i] |= fired_here[i];
    first = end;
  }
  rows_in_pass_ = count;
  // What is predicted lies at the end of a row, and is all of it but for transcoders.
  const at::Tensor targets = rows.narrow(1, rows.size(1) - d_out_, d_out_).contiguous();
  HeldOutReport report;
  report.step = step_;
  report.tokens = position();
  report.loss = loss / static_cast<double>(count);
  report.mse = squared_error / static_cast<double>(count);
  report.fve = variance_explained(targets, squared_error);
  report.l0 = active / static_cast<double>(count);
  report.dead_fraction = static_cast<double>(std::count(fired.begin(), fired.end(), 0)) /
                         static_cast<double>(fired.size());
  held_out_.push_back({static_cast<double>(step_), report.loss, report.mse, report.fve, report.l0,
                       report.dead_fraction});
  return report;
}

void TrainerBase::record(const PassSums& sums, double norm, bool applied) {
  if (applied) {
    const std::array<double, 5> now = {sums.loss(), sums.reconstruction, sums.fve, sums.l0, norm};
    for (std::size_t i = 0; i < now.size(); ++i) sums_[i] += now[i];
    ++summed_;
  }
  if (step_ % steps_per_point() != 0 && step_ != spec_.steps()) return;
  std::array<double, 8> point{};
  point[0] = static_cast<double>(step_);
  point[1] = static_cast<double>(position());
  const double count = static_cast<double>(summed_);  // 0: not a number, an empty cell
  for (std::size_t i = 0; i < 4; ++i) point[2 + i] = sums_[i] / count;
  point[6] = dead_fraction();
  point[7] = sums_[4] / count;
  curve_.push_back(point);
  sums_ = {};
  summed_ = 0;
}

void add_to(std::vector<double>& sums, const std::vector<float>& of_tile) {
  for (std::size_t i = 0; i < sums.size(); ++i) sums[i] += of_tile[i];
}

void store(const std::vector<double>& values, at::Tensor& out) {
  SAE_CHECK(out.numel() == static_cast<std::int64_t>(values.size()), "{} values for {}",
            values.size(), out.numel());
  float* to = out.mutable_data_ptr<float>();
  for (std::size_t i = 0; i < values.size(); ++i) to[i] = static_cast<float>(values[i]);
}

}  // namespace saesweep::worker
