#include "sweeps/training_rules.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "sweeps/recipes.h"

namespace saesweep::sweeps {
namespace {

class Resolver {
 public:
  Resolver(const Family& family, const Assignment& assignment, const TrainSettings& settings,
           const InitFiles& inits, Problems& problems)
      : family_(family),
        assignment_(assignment),
        settings_(settings),
        inits_(inits),
        problems_(problems) {}

  std::optional<TrainingSpec> resolve() {
    std::uint64_t tokens = 0, batch = recipe_batch(settings_.recipe);
    set(ParameterId::kBatch, batch);
    if (!assignment_[ParameterId::kTokens]) {
      const YamlNode& at = settings_.node != nullptr ? *settings_.node : *family_.node;
      problems_.add(at, "train.tokens",
                    "is missing; a budget of tokens per trial, like 4M, would be "
                    "right");
      return std::nullopt;
    }
    set(ParameterId::kTokens, tokens);
    const std::uint64_t steps = tokens / batch;
    if (steps == 0) {
      refuse(ParameterId::kTokens,
             fmt::format("{} tokens are less than one batch of {}; at least {} "
                         "would be right",
                         tokens, batch, batch));
      return std::nullopt;
    }
    spec_ = recipe_training(settings_.recipe, family_.architecture, steps, sparsity_loss());
    spec_.tokens = tokens;
    spec_.batch = batch;
    spec_.seed = assignment_.seed;
    spec_.precision = settings_.precision;
    spec_.deterministic = settings_.deterministic;
    spec_.device = settings_.device;
    spec_.eval_every = eval_every(tokens);
    override_recipe();
    check_width();
    check_schedule();
    if (spec_.l1 && spec_.l0_target && *spec_.l1 == 0)
      refuse(ParameterId::kL1, fmt::format("0 stays 0 however it is steered to l0_target {}; a "
                                           "start like 0.1 would be right",
                                           *spec_.l0_target));
    if (applies(ParameterId::kPEnd)) check_annealing();
    if (applies(ParameterId::kSparsityLoss)) check_sparsity_loss();
    if (applies(ParameterId::kGroupFractions)) check_groups();
    if (!ok_) return std::nullopt;
    return spec_;
  }

 private:
  bool applies(ParameterId id) const { return parameter(id).applies(family_.architecture); }

  std::uint64_t eval_every(std::uint64_t tokens) const {
    if (!settings_.holds_out) return 0;
    if (!settings_.eval_every) return std::max(tokens / kUsualEvaluations, kLeastEvalEvery);
    const StepCount& written = *settings_.eval_every;
    if (written == StepCount{.is_share = written.is_share}) return 0;
    return std::max<std::uint64_t>(written.of(tokens), 1);  // a small share of few tokens
  }

  // What is not written follows from the target, or its absence.
  SparsityLoss sparsity_loss() const {
    if (const auto& word = assignment_[ParameterId::kSparsityLoss])
      return *parse_sparsity_loss(std::get<std::string>(*word));
    return assignment_[ParameterId::kL0Target] ? SparsityLoss::kL0Target : SparsityLoss::kL0;
  }

  void set(ParameterId id, std::uint64_t& out) const {
    if (const auto& value = assignment_[id]) out = std::get<std::uint64_t>(*value);
  }
  void set(ParameterId id, double& out) const {
    if (const auto& value = assignment_[id]) out = std::get<double>(*value);
  }
  void set_steps(ParameterId id, std::uint64_t& out) const {
    if (const auto& value = assignment_[id]) out = std::get<StepCount>(*value).of(spec_.steps());
  }

  void override_recipe() {
    set(ParameterId::kDSae, spec_.d_sae);
    if (const auto& k = assignment_[ParameterId::kK]) spec_.k = std::get<std::uint64_t>(*k);
    if (const auto& l1 = assignment_[ParameterId::kL1]) spec_.l1 = std::get<double>(*l1);
    if (const auto& target = assignment_[ParameterId::kL0Target])
      spec_.l0_target = std::get<double>(*target);
    if (const auto& coefficient = assignment_[ParameterId::kL0Coefficient])
      spec_.l0_coefficient = std::get<double>(*coefficient);
    set(ParameterId::kBandwidth, spec_.bandwidth);
    set(ParameterId::kInitThreshold, spec_.init_threshold);
    if (const auto& fractions = assignment_[ParameterId::kGroupFractions])
      spec_.group_fractions = std::get<std::vector<double>>(*fractions);
    set(ParameterId::kLr, spec_.lr);
    if (const auto& betas = assignment_[ParameterId::kAdamBetas]) {
      spec_.adam_beta1 = std::get<std::array<double, 2>>(*betas)[0];
      spec_.adam_beta2 = std::get<std::array<double, 2>>(*betas)[1];
    }
    if (const auto& clip = assignment_[ParameterId::kGradClip]) {
      spec_.grad_clip.reset();
      if (const double* norm = std::get_if<double>(&*clip)) spec_.grad_clip = *norm;
    }
    set_steps(ParameterId::kWarmupSteps, spec_.warmup_steps);
    set_decay();
    set_steps(ParameterId::kSparsityWarmupSteps, spec_.sparsity_warmup_steps);
    set(ParameterId::kAuxK, spec_.aux_k);
    set(ParameterId::kAuxKWeight, spec_.aux_k_weight);
    set(ParameterId::kDeadAfterTokens, spec_.dead_after_tokens);
    set(ParameterId::kThresholdBeta, spec_.threshold_beta);
    set_steps(ParameterId::kThresholdStartStep, spec_.threshold_start_step);
    set(ParameterId::kPStart, spec_.p_start);
    set(ParameterId::kPEnd, spec_.p_end);
    set_steps(ParameterId::kAnnealStart, spec_.anneal_start);
    set_steps(ParameterId::kAnnealEnd, spec_.anneal_end);
    set(ParameterId::kNSparsityUpdates, spec_.n_sparsity_updates);
    if (const auto& function = assignment_[ParameterId::kSparsityFunction])
      spec_.sparsity_function =
          std::get<std::string>(*function) == "lp" ? SparsityFunction::kLp : SparsityFunction::kLpP;
    set(ParameterId::kInToOrig, spec_.in_to_orig);
    set(ParameterId::kOutToIn, spec_.out_to_in);
    if (const auto& init = assignment_[ParameterId::kInit])
      if (const auto file = inits_.find(std::get<std::string>(*init)); file != inits_.end()) {
        spec_.init_path = file->second.path;
        spec_.init_digest = file->second.digest;
      }
  }

  // A cosine begins where the warm-up ends, a line where the recipe says, unless decay_start is
  // named.
  void set_decay() {
    if (const auto& word = assignment_[ParameterId::kLrSchedule]) {
      const LrSchedule asked = *parse_lr_schedule(std::get<std::string>(*word));
      if (asked == LrSchedule::kLinear && spec_.lr_schedule != asked)
        spec_.decay_start =
            recipe_decay_start(settings_.recipe, family_.architecture, spec_.steps());
      spec_.lr_schedule = asked;
    }
    if (is_cosine()) spec_.decay_start = spec_.warmup_steps;
    set_steps(ParameterId::kDecayStart, spec_.decay_start);
  }

  bool is_cosine() const { return spec_.lr_schedule == LrSchedule::kCosine; }

  void check_width() {
    if (spec_.k && *spec_.k > spec_.d_sae)
      refuse(ParameterId::kK, fmt::format("{} is larger than d_sae {}; at most {} would be right",
                                          *spec_.k, spec_.d_sae, spec_.d_sae));
  }

  // Both warm-ups end before a line begins to fall, as dictionary_learning asserts; a cosine may
  // begin at once, and does not wait for the penalty's.
  void check_schedule() {
    const std::uint64_t steps = spec_.steps();
    if (is_cosine()) {
      if (!lies_in_run(ParameterId::kWarmupSteps, spec_.warmup_steps, "5%") ||
          !lies_in_run(ParameterId::kSparsityWarmupSteps, spec_.sparsity_warmup_steps, "5%") ||
          !lies_in_run(ParameterId::kDecayStart, spec_.decay_start, "5%") ||
          spec_.warmup_steps <= spec_.decay_start)
        return;
      return refuse(ParameterId::kWarmupSteps,
                    fmt::format("{} does not end by decay_start {}; at most that would be right",
                                described(ParameterId::kWarmupSteps, spec_.warmup_steps),
                                described(ParameterId::kDecayStart, spec_.decay_start)));
    }
    if (!lies_in_run(ParameterId::kDecayStart, spec_.decay_start, "80%")) return;
    if (spec_.decay_start == 0) {
      refuse(
          ParameterId::kDecayStart,
          fmt::format("0 of {} steps leaves no room for a warm-up; at least 1, e.g. 80%, would be "
                      "right",
                      steps));
      return;
    }
    check_warmup(ParameterId::kWarmupSteps, spec_.warmup_steps);
    if (applies(ParameterId::kSparsityWarmupSteps))
      check_warmup(ParameterId::kSparsityWarmupSteps, spec_.sparsity_warmup_steps);
  }

  bool lies_in_run(ParameterId id, std::uint64_t value, std::string_view example) {
    const std::uint64_t steps = spec_.steps();
    if (value <= steps) return true;
    refuse(id, fmt::format("{} lies past the end of the run, which has {} steps; at most {}, e.g. "
                           "{}, would be right",
                           described(id, value), steps, steps, example));
    return false;
  }

  void check_warmup(ParameterId id, std::uint64_t value) {
    if (value < spec_.decay_start) return;
    // 5% fits unless the decay starts earlier still.
    const StepCount usual{.is_share = true, .percent = 5};
    const std::string example = usual.of(spec_.steps()) < spec_.decay_start
                                    ? fmt::format(", e.g. 5% ({} steps),", usual.of(spec_.steps()))
                                    : std::string(",");
    refuse(id,
           fmt::format("{} does not end before decay_start {}, the run has {} steps; at most {}{} "
                       "would be right",
                       described(id, value), spec_.decay_start, spec_.steps(),
                       spec_.decay_start - 1, example));
  }

  void check_annealing() {
    const std::uint64_t steps = spec_.steps();
    if (spec_.anneal_end > steps)
      refuse(
          ParameterId::kAnnealEnd,
          fmt::format("{} lies past the end of the run, which has {} steps; at most {}, e.g. 100%, "
                      "would be right",
                      described(ParameterId::kAnnealEnd, spec_.anneal_end), steps, steps));
    else if (spec_.anneal_start >= spec_.anneal_end)
      refuse(
          ParameterId::kAnnealStart,
          fmt::format("{} is not before anneal_end {}, the run has {} steps; a smaller one, e.g. "
                      "25%, would be right",
                      described(ParameterId::kAnnealStart, spec_.anneal_start), spec_.anneal_end,
                      steps));
    else if (spec_.n_sparsity_updates > spec_.anneal_end - spec_.anneal_start + 1)
      refuse(ParameterId::kNSparsityUpdates,
             fmt::format(
                 "{} updates do not fit the {} steps from anneal_start {} to anneal_end {}; "
                 "at most {} would be right",
                 spec_.n_sparsity_updates, spec_.anneal_end - spec_.anneal_start + 1,
                 spec_.anneal_start, spec_.anneal_end, spec_.anneal_end - spec_.anneal_start + 1));
    if (spec_.p_end > spec_.p_start)
      refuse(ParameterId::kPEnd, fmt::format("{} is above p_start {}; p falls, at most {} would be "
                                             "right",
                                             spec_.p_end, spec_.p_start, spec_.p_start));
    else if (spec_.p_end == 0 && spec_.sparsity_function == SparsityFunction::kLp)
      refuse(ParameterId::kPEnd,
             "0 with sparsity_function lp divides by zero; 0.2, or lp_p, would be "
             "right");
  }

  void check_sparsity_loss() {
    const bool to_target = spec_.sparsity_loss == SparsityLoss::kL0Target;
    const std::string_view loss = to_string(spec_.sparsity_loss);
    if (to_target && !spec_.l0_target)
      refuse(ParameterId::kL0Target,
             fmt::format("is missing; sparsity_loss {} needs the L0 it aims at, like 32", loss));
    if (!to_target && spec_.l0_target)
      refuse(ParameterId::kL0Target,
             fmt::format("does not go with sparsity_loss {}; l0_coefficient in its place, or "
                         "sparsity_loss l0_target, would be right",
                         loss));
    else if (!to_target && !spec_.l0_coefficient)
      refuse(ParameterId::kL0Coefficient,
             fmt::format("is missing; sparsity_loss {} needs it, e.g. {} would be right", loss,
                         spec_.sparsity_loss == SparsityLoss::kTanh ? "5" : "0.001"));
  }

  void check_groups() {
    const auto sizes = spec_.group_sizes();
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      if (sizes[i] > 0) continue;
      const double smallest =
          *std::min_element(spec_.group_fractions.begin(), spec_.group_fractions.end());
      refuse(ParameterId::kGroupFractions,
             fmt::format("group {} of {} has no latent of d_sae {}; fewer groups, or d_sae {} and "
                         "more, would be right",
                         i + 1, sizes.size(), spec_.d_sae, std::ceil(1 / smallest)));
      return;
    }
  }

  // "1000 steps (recipe saebench-v1)", "60%, that is 1171 steps,"
  std::string described(ParameterId id, std::uint64_t steps) const {
    const auto& value = assignment_[id];
    if (!value) return fmt::format("{} steps (recipe {})", steps, settings_.recipe);
    const StepCount& written = std::get<StepCount>(*value);
    if (written.is_share) return fmt::format("{} ({} steps)", written.to_string(), steps);
    return fmt::format("{} steps", steps);
  }

  void refuse(ParameterId id, std::string message) {
    ok_ = false;
    if (const ParameterAxis* axis = family_.axis(id))
      problems_.add(*axis->node, axis->path, std::move(message));
    else
      problems_.add(*family_.node, join_path(family_.path, parameter(id).name), std::move(message));
  }

  const Family& family_;
  const Assignment& assignment_;
  const TrainSettings& settings_;
  const InitFiles& inits_;
  Problems& problems_;
  TrainingSpec spec_;
  bool ok_ = true;
};

}  // namespace

std::optional<TrainingSpec> resolve_training(const Family& family, const Assignment& assignment,
                                             const TrainSettings& settings, const InitFiles& inits,
                                             Problems& problems) {
  return Resolver(family, assignment, settings, inits, problems).resolve();
}

}  // namespace saesweep::sweeps
