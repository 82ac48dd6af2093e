#include "worker/training/annealing.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

namespace saesweep::worker {
namespace {

constexpr std::size_t kQueue = 10;  // steps whose penalties rescale the coefficient

}  // namespace

Annealing::Annealing(const sweeps::TrainingSpec& spec)
    : function_(spec.sparsity_function),
      last_p_(spec.p_end),
      coefficient_(spec.l1.value_or(0)),
      p_(spec.p_start) {
  // torch.linspace, with its roundings.
  const auto n = static_cast<std::int64_t>(spec.n_sparsity_updates);
  const at::Tensor steps = at::linspace(static_cast<std::int64_t>(spec.anneal_start),
                                        static_cast<std::int64_t>(spec.anneal_end), n, at::kLong);
  const at::Tensor values = at::linspace(spec.p_start, spec.p_end, n, at::kFloat);
  for (std::int64_t i = 0; i < n; ++i) {
    steps_.push_back(static_cast<std::uint64_t>(steps.const_data_ptr<std::int64_t>()[i]));
    values_.push_back(values.const_data_ptr<float>()[i]);
  }
}

double Annealing::of_row(double sum, double p) const {
  return function_ == sweeps::SparsityFunction::kLp ? std::pow(sum, 1 / p) : sum;
}

void Annealing::bend(std::span<const float> f, double scale, std::span<float> pull,
                     Penalty& sum) const {
  std::vector<double> powers(f.size());
  double now = 0, next = 0;
  for (std::size_t i = 0; i < f.size(); ++i) {
    if (!(f[i] > 0)) continue;
    const double value = f[i];
    powers[i] = p_ == 1 ? value : std::pow(value, p_);
    now += powers[i];
    if (next_p_) next += std::pow(value, *next_p_);
  }
  double outer = p_;  // d penalty / d f = outer * f^(p - 1)
  if (function_ == sweeps::SparsityFunction::kLp) outer = now > 0 ? std::pow(now, 1 / p_ - 1) : 0;
  // f^(p - 1) is infinite at 0, where nothing pulls.
  for (std::size_t i = 0; i < f.size(); ++i)
    if (f[i] > 0) pull[i] = static_cast<float>(scale * outer * powers[i] / f[i]);
  sum.now += of_row(now, p_);
  if (next_p_) sum.next += of_row(next, *next_p_);
}

void Annealing::bend_tile(const Slabs& f, std::int64_t first, std::int64_t count,
                          std::int64_t latents, double scale, const Slabs& pulls,
                          Penalty& sum) const {
  std::vector<float> f_row(static_cast<std::size_t>(latents)), pull(f_row.size(), 0.0F);
  for (std::int64_t row = 0; row < count; ++row) {
    for (std::int64_t latent = 0; latent < latents; latent += Slabs::kSlab)
      std::copy_n(f.block(first + row, latent), std::min(Slabs::kSlab, latents - latent),
                  f_row.begin() + latent);
    bend(f_row, scale, pull, sum);
    for (std::int64_t latent = 0; latent < latents; latent += Slabs::kSlab)
      std::copy_n(pull.begin() + latent, std::min(Slabs::kSlab, latents - latent),
                  pulls.block(row, latent));
  }
}

void Annealing::advance(std::uint64_t step, const Penalty& mean) {
  if (next_p_) {
    queue_.emplace_back(mean.now, mean.next);
    if (queue_.size() > kQueue) queue_.pop_front();
  }
  if (updates_ >= steps_.size() || step < steps_[updates_]) return;
  if (next_p_) {
    // The penalty stays what it is while p falls.
    double now = 0, next = 0;
    for (const auto& [at_p, at_next] : queue_) {
      now += at_p;
      next += at_next;
    }
    if (next > 0) coefficient_ *= now / next;
  }
  p_ = values_[updates_];
  next_p_ = updates_ + 1 < values_.size() ? values_[updates_ + 1] : last_p_;
  ++updates_;
}

Json Annealing::state() const {
  Json json{{"l1", coefficient_}, {"p", p_}, {"updates", updates_}, {"queue", Json::array()}};
  json["next_p"] = next_p_ ? Json(*next_p_) : Json();
  for (const auto& [at_p, at_next] : queue_) json["queue"].push_back({at_p, at_next});
  return json;
}

Result<void> Annealing::set_state(const Json& json) {
  for (const char* key : {"l1", "p", "updates"})
    if (!json.contains(key) || !json[key].is_number())
      return fail(ErrorCode::kCorrupted, "a checkpoint without state.{}", key);
  std::deque<std::pair<double, double>> queue;
  for (const Json& pair : json.value("queue", Json::array())) {
    if (!pair.is_array() || pair.size() != 2 || !pair[0].is_number() || !pair[1].is_number())
      return fail(ErrorCode::kCorrupted, "a checkpoint with a damaged state.queue");
    queue.emplace_back(pair[0].get<double>(), pair[1].get<double>());
  }
  coefficient_ = json["l1"].get<double>();
  p_ = json["p"].get<double>();
  updates_ = json["updates"].get<std::uint64_t>();
  next_p_.reset();
  if (json.contains("next_p") && json["next_p"].is_number()) next_p_ = json["next_p"].get<double>();
  queue_ = std::move(queue);
  return {};
}

}  // namespace saesweep::worker
