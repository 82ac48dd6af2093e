// The ReLU family: an encoder with ReLU and a penalty on its activations.
//   standard          penalty l1 * f_i |W_dec_i|, decoder free      (Anthropic, April 2024)
//   standard_bricken  penalty l1 * f_i, decoder rows of unit norm   (Bricken et al. 2023)
//   p_anneal          penalty l1 * f_i^p while p falls, unit norm   (Karvonen et al. 2024)
// As dictionary_learning trains them; the recipe states every reduction.
#include <ATen/ATen.h>

#include <cmath>
#include <deque>

#include "worker/training/kernels.h"
#include "worker/training/packing.h"
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
  // The pull on each latent of a row under a penalty of powers, scaled; adds up the row's penalty
  // at p and at the next p.
  void bend(const float* f, double scale, std::vector<double>& powers, std::vector<float>& pull,
            double& penalty, double& next_penalty) const;
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

void ReluTrainer::bend(const float* f, double scale, std::vector<double>& powers,
                       std::vector<float>& pull, double& penalty, double& next_penalty) const {
  double sum = 0, next = 0;
  for (std::size_t i = 0; i < powers.size(); ++i) {
    if (!(f[i] > 0)) continue;
    const double value = f[i];
    powers[i] = p_ == 1 ? value : std::pow(value, p_);
    sum += powers[i];
    if (next_p_) next += std::pow(value, *next_p_);
  }
  double outer = p_;  // d penalty / d f = outer * f^(p - 1)
  if (spec_.sparsity_function == sweeps::SparsityFunction::kLp)
    outer = sum > 0 ? std::pow(sum, 1 / p_ - 1) : 0;
  // f^(p - 1) is infinite at 0, where nothing pulls.
  for (std::size_t i = 0; i < powers.size(); ++i)
    if (f[i] > 0) pull[i] = static_cast<float>(scale * outer * powers[i] / f[i]);
  penalty += penalty_of_row(sum, p_);
  if (next_p_) next_penalty += penalty_of_row(next, *next_p_);
}

// Codes of a batch in slabs of kDepthChunk latents, [slab][row][kDepthChunk]: what a product over
// latents reads and what one over rows reads both lie together.
class Slabs {
 public:
  Slabs(std::int64_t rows, std::int64_t width)
      : rows_(rows), memory_((width + kSlab - 1) / kSlab * kSlab * rows) {}
  float* at(std::int64_t row, std::int64_t latent) const {
    return memory_.data() + (latent / kSlab * rows_ + row) * kSlab + latent % kSlab;
  }
  // Lanes are rows, depth is a slab of latents.
  products::Source of_rows(std::int64_t row, std::int64_t slab) const {
    return {at(row, slab * kSlab), kSlab, 1};
  }
  // Lanes are latents from `latent` on, within a slab; depth is rows.
  products::Source of_latents(std::int64_t latent, std::int64_t row) const {
    return {at(row, latent), 1, kSlab};
  }

  static constexpr std::int64_t kSlab = products::kDepthChunk;

 private:
  std::int64_t rows_;
  products::Scratch memory_;
};

PassSums ReluTrainer::pass(const at::Tensor& x) {
  const std::int64_t d = d_in(), width = d_sae(), rows = batch();
  const double scale = sparsity_scale() * l1_;
  const auto inverse_rows = 1.0 / static_cast<double>(rows);
  const products::Numbers numbers = numbers_of(spec_);
  // Kept for the gradients of the weights, which sum over all rows.
  const Slabs f(rows, width), d_pre(rows, width);  // codes; gradient of the pre-activations
  const products::Scratch x_centred(rows * d), g(rows * d);  // g: gradient of the reconstruction
  const at::Tensor norms = weighs_norms() ? parameters_.w_dec.square().sum(1).sqrt() : at::Tensor();
  const float* norm = norms.defined() ? norms.const_data_ptr<float>() : nullptr;
  const float* w_dec = parameters_.w_dec.const_data_ptr<float>();
  const float* b_enc = parameters_.b_enc.const_data_ptr<float>();
  const float* b_dec_values = parameters_.b_dec.const_data_ptr<float>();
  const float* values = x.const_data_ptr<float>();
  const products::Panels encode = right_operand(
      *pool_, rows_of(parameters_.w_enc.const_data_ptr<float>(), d), width, d, numbers);
  const products::Panels decode = right_operand(*pool_, columns_of(w_dec, d), d, width, numbers);
  const products::Panels decode_back = right_operand(*pool_, rows_of(w_dec, d), width, d, numbers);

  struct Sums {
    double squared_error = 0, penalty = 0, next_penalty = 0, active = 0;
    bool finite = true;
    std::vector<double> g_columns;
    std::vector<float> f_columns, d_columns;
  };
  std::vector<Sums> sums(static_cast<std::size_t>(tiles()));
  // While p is 1 and stays it, p_anneal has the penalty of standard_bricken.
  const bool curved = anneals_ && (p_ != 1 || next_p_);
  std::vector<float> pulls(static_cast<std::size_t>(width));  // of the penalty on each latent
  for (std::int64_t i = 0; i < width; ++i)
    pulls[static_cast<std::size_t>(i)] =
        static_cast<float>(scale * inverse_rows) * (norm != nullptr ? norm[i] : 1.0F);
  for_tiles([&](std::int64_t first, std::int64_t count, std::int64_t index) {
    Sums& sum = sums[static_cast<std::size_t>(index)];
    float* centred_rows = x_centred.data() + first * d;
    for (std::int64_t row = 0; row < count; ++row)
      for (std::int64_t j = 0; j < d; ++j)
        centred_rows[row * d + j] = values[(first + row) * d + j] - b_dec_values[j];
    std::int64_t active = 0;
    float check = 0;
    products::for_each_block(
        left_operand(rows_of(centred_rows, d), count, d, numbers), encode,
        [&](std::int64_t row, std::int64_t latent, const float* block) {
          const std::int64_t height = std::min(products::kBlockRows, count - row);
          const std::int64_t wide = std::min(products::kBlockColumns, width - latent);
          for (std::int64_t i = 0; i < height; ++i)
            active += kernels::relu_of(block + i * products::kBlockColumns, b_enc + latent,
                                       f.at(first + row + i, latent), check, wide);
        });
    sum.finite = check == 0;
    sum.active = static_cast<double>(active);

    const products::Scratch error(count * d);
    {
      products::Panels codes(count, width, products::kBlockRows, numbers);
      for (std::int64_t slab = 0; slab < codes.chunks(); ++slab)
        codes.pack_chunk(f.of_rows(first, slab), slab);
      products::multiply(codes, decode, error.data(), d);
    }
    float* gradient = g.data() + first * d;
    const auto factor = static_cast<float>(2 * inverse_rows);
    sum.g_columns.assign(static_cast<std::size_t>(d), 0);
    for (std::int64_t row = 0; row < count; ++row)
      for (std::int64_t j = 0; j < d; ++j) {
        float& e = error.data()[row * d + j];
        e = e + b_dec_values[j] - values[(first + row) * d + j];
        gradient[row * d + j] = e * factor;
        sum.g_columns[static_cast<std::size_t>(j)] += gradient[row * d + j];
      }
    sum.squared_error = kernels::sum_of_squares(error.data(), count * d);

    if (curved) {
      std::vector<float> f_row(static_cast<std::size_t>(width)), pull(f_row.size(), 0.0F);
      std::vector<double> powers(f_row.size());
      for (std::int64_t row = first; row < first + count; ++row) {
        for (std::int64_t latent = 0; latent < width; latent += Slabs::kSlab)
          std::copy_n(f.at(row, latent), std::min(Slabs::kSlab, width - latent),
                      f_row.begin() + latent);
        bend(f_row.data(), scale * inverse_rows, powers, pull, sum.penalty, sum.next_penalty);
        for (std::int64_t latent = 0; latent < width; latent += Slabs::kSlab)
          std::copy_n(pull.begin() + latent, std::min(Slabs::kSlab, width - latent),
                      d_pre.at(row, latent));
      }
    }
    sum.f_columns.assign(static_cast<std::size_t>(width), 0);
    sum.d_columns.assign(static_cast<std::size_t>(width), 0);
    products::for_each_block(
        left_operand(rows_of(gradient, d), count, d, numbers), decode_back,
        [&](std::int64_t row, std::int64_t latent, float* block) {
          const std::int64_t height = std::min(products::kBlockRows, count - row);
          const std::int64_t wide = std::min(products::kBlockColumns, width - latent);
          for (std::int64_t i = 0; i < height; ++i) {
            float* to = d_pre.at(first + row + i, latent);
            float* of_row = block + i * products::kBlockColumns;
            kernels::relu_row(f.at(first + row + i, latent),
                              curved ? to : &pulls[static_cast<std::size_t>(latent)], of_row,
                              &sum.f_columns[static_cast<std::size_t>(latent)],
                              &sum.d_columns[static_cast<std::size_t>(latent)], wide);
            std::copy_n(of_row, wide, to);
          }
        });
  });

  std::vector<double> f_total(static_cast<std::size_t>(width), 0), d_total = f_total;
  for (const Sums& sum : sums)
    for (std::size_t i = 0; i < f_total.size(); ++i) {
      f_total[i] += sum.f_columns[i];
      d_total[i] += sum.d_columns[i];
    }
  std::vector<char> fired(static_cast<std::size_t>(width), 0);
  for (std::size_t i = 0; i < fired.size(); ++i) {
    fired[i] = f_total[i] > 0 ? 1 : 0;
    gradients_.b_enc.mutable_data_ptr<float>()[i] = static_cast<float>(d_total[i]);
  }
  std::vector<std::vector<double>> through_encoder(static_cast<std::size_t>(product_blocks()));
  const products::Panels g_right = right_operand(*pool_, columns_of(g.data(), d), d, rows, numbers);
  const products::Panels x_right =
      right_operand(*pool_, columns_of(x_centred.data(), d), d, rows, numbers);
  for_product_blocks([&](std::int64_t first, std::int64_t count, std::int64_t index) {
    const auto gradient_of = [&](const Slabs& codes, const products::Panels& right, float* out) {
      products::Panels left(count, rows, products::kBlockRows, numbers);
      for (std::int64_t chunk = 0; chunk < left.chunks(); ++chunk)
        left.pack_chunk(codes.of_latents(first, chunk * products::kDepthChunk), chunk);
      products::multiply(left, right, out + first * d, d);
    };
    float* rows_out = gradients_.w_dec.mutable_data_ptr<float>();
    gradient_of(f, g_right, rows_out);
    gradient_of(d_pre, x_right, gradients_.w_enc.mutable_data_ptr<float>());
    if (norm != nullptr) {
      // The penalty pulls on the decoder's norms too.
      for (std::int64_t latent = first; latent < first + count; ++latent) {
        const double mean = f_total[static_cast<std::size_t>(latent)] * (scale * inverse_rows);
        if (norm[latent] > 0)
          kernels::axpy(static_cast<float>(mean / norm[latent]), w_dec + latent * d,
                        rows_out + latent * d, d);
      }
    }
    auto& through = through_encoder[static_cast<std::size_t>(index)];
    through.assign(static_cast<std::size_t>(d), 0);
    const float* encoder = parameters_.w_enc.const_data_ptr<float>();
    for (std::int64_t latent = first; latent < first + count; ++latent) {
      const double pull = d_total[static_cast<std::size_t>(latent)];
      for (std::int64_t j = 0; j < d; ++j)
        through[static_cast<std::size_t>(j)] += pull * encoder[latent * d + j];
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
  if (!curved)
    for (std::size_t i = 0; i < f_total.size(); ++i)
      penalty += f_total[i] * (norm != nullptr ? norm[i] : 1.0F);
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
