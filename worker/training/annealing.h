// p-annealing: a penalty on the p-th powers of activations while p falls from 1 towards 0, which
// weighs large activations less and less (Karvonen et al. 2024). Whenever p steps on, the
// coefficient is rescaled so that the penalty stays what it was.
//
// As dictionary_learning runs it: p takes the values of linspace(p_start, p_end, n) at the steps
// linspace(anneal_start, anneal_end, n); the scale is the ratio of the mean penalties of the last
// 10 steps.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "core/json.h"
#include "core/result.h"
#include "sweeps/spec.h"
#include "worker/training/slabs.h"
#include "worker/training/step_engine.h"

namespace saesweep::worker {

class Annealing {
 public:
  // Sums over rows of the penalty at p and at the next p.
  struct Penalty {
    double now = 0, next = 0;
  };

  explicit Annealing(const sweeps::TrainingSpec& spec);

  double coefficient() const { return coefficient_; }
  // While p is 1 and stays it, the penalty is that of L1.
  bool is_curved() const { return p_ != 1 || next_p_.has_value(); }
  void complete(StepOrder& order) const {
    order.coefficient = coefficient_;
    if (is_curved()) order.bend = Bend{p_, next_p_};
  }

  // Writes to pull[i] the gradient of scale * penalty to each f[i] > 0 of a row and adds the row's
  // penalty. Other pulls are left as they are.
  void bend(std::span<const float> f, double scale, std::span<float> pull, Penalty& sum) const;
  // The same for `count` rows of activations from `first` on, into pulls [count, latents].
  void bend_tile(const Slabs& f, std::int64_t first, std::int64_t count, std::int64_t latents,
                 double scale, const Slabs& pulls, Penalty& sum) const;
  // After a step that counts; its penalty as means over rows.
  void advance(std::uint64_t step, const Penalty& mean);

  Json state() const;
  Result<void> set_state(const Json& json);

 private:
  // Sums of f^p over a row and what they become: as they are (lp_p) or their 1/p-th power (lp).
  double of_row(double sum, double p) const;

  sweeps::SparsityFunction function_;
  double last_p_;
  std::vector<std::uint64_t> steps_;  // at which p moves on
  std::vector<double> values_;        // and to what

  double coefficient_;  // rescaled as p falls
  double p_;
  std::optional<double> next_p_;
  std::uint64_t updates_ = 0;                    // of p so far
  std::deque<std::pair<double, double>> queue_;  // mean penalty at p and at the next p
};

}  // namespace saesweep::worker
