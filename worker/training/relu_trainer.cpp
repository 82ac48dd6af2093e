// The ReLU family: an encoder with ReLU and a penalty on its activations.
//   standard          penalty l1 * f_i |W_dec_i|, decoder free      (Anthropic, April 2024)
//   standard_bricken  penalty l1 * f_i, decoder rows of unit norm   (Bricken et al. 2023)
//   p_anneal          penalty l1 * f_i^p while p falls, unit norm   (Karvonen et al. 2024)
// As dictionary_learning trains them; the recipe states every reduction.
#include <ATen/ATen.h>

#include <cmath>
#include <deque>

#include "worker/training/kernels.h"
#include "worker/training/trainer_base.h"

namespace saesweep::worker {
namespace {

constexpr std::size_t kQueue = 10;  // steps whose penalties rescale the coefficient

class ReluTrainer final : public TrainerBase {
 public:
  ReluTrainer(const sweeps::TrainingSpec& spec, std::int64_t d_in, double norm_factor,
              ThreadPool& pool)
      : TrainerBase(spec, d_in, norm_factor, pool,
                    spec.architecture == sweeps::Architecture::kStandard ? DecoderNorm::kFree
                                                                         : DecoderNorm::kUnit,
                    0.1F),
        anneals_(spec.architecture == sweeps::Architecture::kPAnneal),
        l1_(spec.l1.value_or(0)),
        p_(spec.p_start) {
    if (!anneals_) return;
    // torch.linspace, with its roundings.
    const auto n = static_cast<std::int64_t>(spec.n_sparsity_updates);
    const at::Tensor steps = at::linspace(static_cast<std::int64_t>(spec.anneal_start),
                                          static_cast<std::int64_t>(spec.anneal_end), n, at::kLong);
    const at::Tensor values = at::linspace(spec.p_start, spec.p_end, n, at::kFloat);
    for (std::int64_t i = 0; i < n; ++i) {
      update_steps_.push_back(static_cast<std::uint64_t>(steps.const_data_ptr<std::int64_t>()[i]));
      p_values_.push_back(values.const_data_ptr<float>()[i]);
    }
  }

 private:
  bool weighs_norms() const { return spec_.architecture == sweeps::Architecture::kStandard; }
  PassSums pass(const at::Tensor& x) override;
  void keep_bookkeeping() override;
  Json state() const override;
  Result<void> set_state(const Json& json) override;
  void finish_sae(Sae& sae) const override { sae.selection = Sae::Selection::kRelu; }

  // Sums of f^p over a row and what they become: as they are (lp_p) or their 1/p-th power (lp).
  double penalty_of_row(double sum, double p) const {
    return spec_.sparsity_function == sweeps::SparsityFunction::kLp ? std::pow(sum, 1 / p) : sum;
  }

  bool anneals_;
  double l1_;  // rescaled as p falls
  double p_;
  std::optional<double> next_p_;
  std::vector<std::uint64_t> update_steps_;      // at which p moves on
  std::vector<double> p_values_;                 // and to what
  std::uint64_t updates_ = 0;                    // of p so far
  std::deque<std::pair<double, double>> queue_;  // mean penalty at p and at next_p
  std::pair<double, double> last_penalties_{};   // of the last pass
};

PassSums ReluTrainer::pass(const at::Tensor& x) {
  const std::int64_t d = d_in(), width = d_sae(), rows = batch();
  const double scale = sparsity_scale() * l1_;
  const auto inverse_rows = 1.0 / static_cast<double>(rows);
  // Kept for the gradients of the weights, which sum over all rows.
  at::Tensor f = at::empty({rows, width}, at::kFloat);      // [batch, d_sae]
  at::Tensor d_pre = at::empty({rows, width}, at::kFloat);  // gradient of the pre-activations
  at::Tensor x_centred = at::empty({rows, d}, at::kFloat);
  at::Tensor g = at::empty({rows, d}, at::kFloat);  // gradient of the reconstruction
  const at::Tensor norms = weighs_norms() ? parameters_.w_dec.square().sum(1).sqrt() : at::Tensor();
  const at::Tensor encoder_t = operand(parameters_.w_enc).t();  // [d, d_sae]
  const at::Tensor decoder = operand(parameters_.w_dec);
  const float* norm = norms.defined() ? norms.const_data_ptr<float>() : nullptr;

  struct Sums {
    double squared_error = 0, penalty = 0, next_penalty = 0, active = 0;
    bool finite = true;
    std::vector<double> g_columns;
  };
  std::vector<Sums> sums(static_cast<std::size_t>(tiles()));
  const double p = p_;
  const double next_p = next_p_.value_or(p_);
  for_tiles([&](std::int64_t first, std::int64_t count, std::int64_t index) {
    Sums& sum = sums[static_cast<std::size_t>(index)];
    at::Tensor rows_in = x_centred.narrow(0, first, count);
    rows_in.copy_(centred(x, first, count));
    at::Tensor codes = f.narrow(0, first, count);
    multiply(codes, rows_in, encoder_t);
    codes.add_(parameters_.b_enc);
    sum.finite = kernels::all_finite(codes.const_data_ptr<float>(), count * width);
    codes.clamp_min_(0);
    at::Tensor error = at::empty({count, d}, at::kFloat);
    multiply(error, codes, decoder);
    error.add_(parameters_.b_dec).sub_(x.narrow(0, first, count));
    sum.squared_error = kernels::sum_of_squares(error.const_data_ptr<float>(), count * d);
    at::Tensor gradient = g.narrow(0, first, count);
    gradient.copy_(error);
    gradient.mul_(2 * inverse_rows);
    at::Tensor d_codes = d_pre.narrow(0, first, count);
    multiply(d_codes, gradient, decoder.t());

    float* values = codes.mutable_data_ptr<float>();
    float* d_values = d_codes.mutable_data_ptr<float>();
    for (std::int64_t row = 0; row < count; ++row) {
      const float* f_row = values + row * width;
      float* d_row = d_values + row * width;
      std::int64_t active = 0;
      double row_sum = 0, next_sum = 0;
      if (!anneals_) {
        const auto plain = static_cast<float>(scale * inverse_rows);
        for (std::int64_t i = 0; i < width; ++i) {
          const bool on = f_row[i] > 0;
          const float weight = norm != nullptr ? norm[i] : 1.0F;
          active += on ? 1 : 0;
          row_sum += static_cast<double>(f_row[i]) * weight;
          d_row[i] = on ? d_row[i] + plain * weight : 0.0F;
        }
        sum.penalty += row_sum;
      } else {
        for (std::int64_t i = 0; i < width; ++i) {
          if (!(f_row[i] > 0)) continue;
          row_sum += std::pow(static_cast<double>(f_row[i]), p);
          if (next_p_) next_sum += std::pow(static_cast<double>(f_row[i]), next_p);
        }
        double outer = p;  // d penalty / d f = outer * f^(p - 1)
        if (spec_.sparsity_function == sweeps::SparsityFunction::kLp)
          outer = row_sum > 0 ? std::pow(row_sum, 1 / p - 1) : 0;
        for (std::int64_t i = 0; i < width; ++i) {
          const double value = f_row[i];
          // f^(p - 1) is infinite at 0, where the gradient is 0.
          if (value > 0) {
            ++active;
            d_row[i] += static_cast<float>(scale * inverse_rows * outer * std::pow(value, p - 1));
          } else {
            d_row[i] = 0;
          }
        }
        sum.penalty += penalty_of_row(row_sum, p);
        sum.next_penalty += penalty_of_row(next_sum, next_p);
      }
      sum.active += static_cast<double>(active);
    }
    sum.g_columns.assign(static_cast<std::size_t>(d), 0);
    const float* g_values = gradient.const_data_ptr<float>();
    for (std::int64_t row = 0; row < count; ++row)
      for (std::int64_t j = 0; j < d; ++j)
        sum.g_columns[static_cast<std::size_t>(j)] += g_values[row * d + j];
  });

  std::vector<char> fired(static_cast<std::size_t>(width), 0);
  std::vector<std::vector<double>> through_encoder(static_cast<std::size_t>(product_blocks()));
  const at::Tensor g_operand = operand(g), x_operand = operand(x_centred);
  for_product_blocks([&](std::int64_t first, std::int64_t count, std::int64_t index) {
    const at::Tensor codes = f.narrow(1, first, count);
    const at::Tensor d_codes = d_pre.narrow(1, first, count);
    multiply(gradients_.w_dec.narrow(0, first, count), codes.t(), g_operand);
    multiply(gradients_.w_enc.narrow(0, first, count), d_codes.t(), x_operand);
    const at::Tensor total = d_codes.sum(0, false, at::kDouble);  // [count]
    gradients_.b_enc.narrow(0, first, count).copy_(total);
    const at::Tensor largest = codes.amax(0);
    if (norm != nullptr) {
      // The penalty pulls on the decoder's norms too.
      const at::Tensor mean = codes.sum(0, false, at::kDouble) * (scale * inverse_rows);
      float* rows_out = gradients_.w_dec.mutable_data_ptr<float>();
      const float* weights = parameters_.w_dec.const_data_ptr<float>();
      for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t latent = first + i;
        if (norm[latent] > 0)
          kernels::axpy(static_cast<float>(mean.const_data_ptr<double>()[i] / norm[latent]),
                        weights + latent * d, rows_out + latent * d, d);
      }
    }
    auto& through = through_encoder[static_cast<std::size_t>(index)];
    through.assign(static_cast<std::size_t>(d), 0);
    const float* encoder = parameters_.w_enc.const_data_ptr<float>();
    for (std::int64_t i = 0; i < count; ++i) {
      const double pull = total.const_data_ptr<double>()[i];
      fired[static_cast<std::size_t>(first + i)] = largest.const_data_ptr<float>()[i] > 0 ? 1 : 0;
      for (std::int64_t j = 0; j < d; ++j)
        through[static_cast<std::size_t>(j)] += pull * encoder[(first + i) * d + j];
    }
  });

  PassSums result;
  double squared_error = 0, penalty = 0, next_penalty = 0, active = 0;
  std::vector<double> b_dec(static_cast<std::size_t>(d), 0);
  for (const Sums& sum : sums) {
    squared_error += sum.squared_error;
    penalty += sum.penalty;
    next_penalty += sum.next_penalty;
    active += sum.active;
    result.finite = result.finite && sum.finite;
    for (std::size_t j = 0; j < b_dec.size(); ++j) b_dec[j] += sum.g_columns[j];
  }
  // b_dec is subtracted before the encoder as well.
  for (const auto& through : through_encoder)
    for (std::size_t j = 0; j < b_dec.size(); ++j) b_dec[j] -= through[j];
  for (std::int64_t j = 0; j < d; ++j)
    gradients_.b_dec.mutable_data_ptr<float>()[j] =
        static_cast<float>(b_dec[static_cast<std::size_t>(j)]);
  result.reconstruction = squared_error * inverse_rows;
  result.sparsity = penalty * inverse_rows * scale;
  result.l0 = active * inverse_rows;
  result.fve = variance_explained(x, squared_error);
  next_silence_ = advance_silence(fired);
  last_penalties_ = {penalty * inverse_rows, next_penalty * inverse_rows};
  return result;
}

void ReluTrainer::keep_bookkeeping() {
  if (!anneals_) return;
  if (next_p_) {
    queue_.push_back(last_penalties_);
    if (queue_.size() > kQueue) queue_.pop_front();
  }
  if (updates_ >= update_steps_.size() || step_ < update_steps_[updates_]) return;
  if (next_p_) {
    // The penalty stays what it is while p falls.
    double now = 0, next = 0;
    for (const auto& [at_p, at_next] : queue_) {
      now += at_p;
      next += at_next;
    }
    if (next > 0) l1_ *= now / next;
  }
  p_ = p_values_[updates_];
  next_p_ = updates_ + 1 < p_values_.size() ? p_values_[updates_ + 1] : spec_.p_end;
  ++updates_;
}

Json ReluTrainer::state() const {
  if (!anneals_) return Json::object();
  Json json{{"l1", l1_}, {"p", p_}, {"updates", updates_}, {"queue", Json::array()}};
  json["next_p"] = next_p_ ? Json(*next_p_) : Json();
  for (const auto& [at_p, at_next] : queue_) json["queue"].push_back({at_p, at_next});
  return json;
}

Result<void> ReluTrainer::set_state(const Json& json) {
  if (!anneals_) return {};
  for (const char* key : {"l1", "p", "updates"})
    if (!json.contains(key) || !json[key].is_number())
      return fail(ErrorCode::kCorrupted, "a checkpoint without state.{}", key);
  l1_ = json["l1"].get<double>();
  p_ = json["p"].get<double>();
  updates_ = json["updates"].get<std::uint64_t>();
  next_p_.reset();
  if (json.contains("next_p") && json["next_p"].is_number()) next_p_ = json["next_p"].get<double>();
  queue_.clear();
  for (const Json& pair : json.value("queue", Json::array())) {
    if (!pair.is_array() || pair.size() != 2 || !pair[0].is_number() || !pair[1].is_number())
      return fail(ErrorCode::kCorrupted, "a checkpoint with a damaged state.queue");
    queue_.emplace_back(pair[0].get<double>(), pair[1].get<double>());
  }
  return {};
}

}  // namespace

Result<std::unique_ptr<SaeTrainer>> make_relu_trainer(const sweeps::TrainingSpec& spec,
                                                      std::int64_t d_in, double norm_factor,
                                                      ThreadPool& pool) {
  auto trainer = std::make_unique<ReluTrainer>(spec, d_in, norm_factor, pool);
  SAE_TRY_VOID(trainer->initialise());
  return trainer;
}

}  // namespace saesweep::worker
