#include "sweeps/known_keys.h"

#include <algorithm>
#include <vector>

#include "core/check.h"

namespace saesweep::sweeps {
namespace {

using namespace std::string_view_literals;
using enum Architecture;

constexpr std::array kTopKeys{"name"sv,      "model"sv,     "data"sv,     "activations"sv,
                              "train"sv,     "trials"sv,    "search"sv,   "evaluate"sv,
                              "baselines"sv, "resources"sv, "train_lm"sv, "early_stopping"sv};
constexpr std::array kModelKeys{"path"sv, "random_weights"sv, "seed"sv, "precision"sv};
constexpr std::array kOthelloKeys{"source"sv, "board"sv, "play"sv, "games"sv, "seed"sv};
constexpr std::array kActivationDataKeys{"source"sv, "path"sv, "tensor"sv};
constexpr std::array kActivationsKeys{"hooks"sv,   "tokens"sv,       "dtype"sv,   "normalize"sv,
                                      "shuffle"sv, "shuffle_rows"sv, "holdout"sv, "cache"sv,
                                      "seed"sv,    "filters"sv};
constexpr std::array kFiltersKeys{"remove_bos"sv, "exclude_special_tokens"sv,
                                  "max_activation_norm_multiple"sv};
constexpr std::array kSearchKeys{"strategy"sv, "seed"sv};
constexpr std::array kCoreKeys{"tokens"sv};
constexpr std::array kBoardKeys{"games"sv};
constexpr std::array kResourcesKeys{"memory"sv, "slots"sv};
constexpr std::array kTrainLmKeys{
    "layers"sv,       "d_model"sv,      "heads"sv,     "d_mlp"sv,
    "context"sv,      "activation"sv,   "tied"sv,      "bias"sv,
    "games"sv,        "batch"sv,        "lr"sv,        "final_lr_fraction"sv,
    "warmup_steps"sv, "weight_decay"sv, "grad_clip"sv, "optimizer"sv,
    "targets"sv,      "init_scale"sv,   "seed"sv,      "precision"sv};

constexpr std::array kEarlyStoppingKeys{
    "rule"sv,        "metric"sv,   "direction"sv, "mode"sv,       "min_tokens"sv,
    "eta"sv,         "interval"sv, "warmup"sv,    "min_trials"sv, "percentile"sv,
    "min_reports"sv, "reports"sv,  "min_delta"sv, "low"sv,        "high"sv};

constexpr std::array kLaterSources{"chess"sv, "maze"sv, "tokens"sv, "text"sv};
constexpr std::array kArchitectures{"standard"sv,
                                    "standard_bricken"sv,
                                    "gated"sv,
                                    "jumprelu"sv,
                                    "topk"sv,
                                    "batchtopk"sv,
                                    "matryoshka"sv,
                                    "p_anneal"sv,
                                    "gated_p_anneal"sv,
                                    "transcoder"sv,
                                    "skip_transcoder"sv,
                                    "crosscoder"sv,
                                    "end_to_end"sv,
                                    "batchtopk_crosscoder"sv,
                                    "jumprelu_transcoder"sv};
constexpr std::array kBaselines{"identity"sv,     "pca"sv,       "random_sae"sv, "neurons"sv,
                                "linear_probe"sv, "always_on"sv, "placement"sv,  "random_model"sv};

bool all(Architecture) { return true; }
bool over_batch(Architecture a) {
  return a == kBatchTopK || a == kMatryoshka || a == kBatchTopKCrosscoder;
}
bool with_threshold(Architecture a) { return a == kTopK || over_batch(a); }
bool with_k(Architecture a) { return with_threshold(a) || (is_transcoder(a) && !is_jumprelu(a)); }
bool penalised(Architecture a) { return !with_k(a); }
bool jumps(Architecture a) { return is_jumprelu(a); }
bool with_l1(Architecture a) { return penalised(a) && !jumps(a); }
bool with_l0_target(Architecture a) { return penalised(a); }
bool annealed(Architecture a) { return a == kPAnneal || a == kGatedPAnneal; }
bool end_to_end(Architecture a) { return is_end_to_end(a); }
bool nested(Architecture a) { return a == kMatryoshka; }
bool single(Architecture a) { return !is_joint(a); }

constexpr std::array kLrSchedules{"linear"sv, "cosine"sv};
constexpr std::array kSparsityFunctions{"lp"sv, "lp_p"sv};
constexpr std::array kSparsityLosses{"l0"sv, "l0_target"sv, "tanh"sv};
// One worker computes the whole batch of a step, so both say the same: its k * batch largest.
constexpr std::array kSelectScopes{"step"sv, "global"sv};

constexpr double kManyTokens = 9e15;  // 2^53 and a little less: exact as a double
constexpr double kMaxWidth = 1 << 30;
constexpr double kAnyReal = 1e30;

constexpr std::array<Parameter, kParameterCount> kParameters{{
    {ParameterId::kTokens, "tokens", ParameterKind::kCount, all, 1, kManyTokens},
    {ParameterId::kBatch, "batch", ParameterKind::kCount, all, 1, 1 << 24},
    {ParameterId::kDSae, "d_sae", ParameterKind::kCount, all, 1, kMaxWidth},
    {ParameterId::kK, "k", ParameterKind::kCount, with_k, 1, kMaxWidth},
    {ParameterId::kL1, "l1", ParameterKind::kReal, with_l1, 0, kAnyReal},
    {ParameterId::kL0Target, "l0_target", ParameterKind::kReal, with_l0_target, 0, kMaxWidth, true},
    {ParameterId::kL0Coefficient, "l0_coefficient", ParameterKind::kReal, jumps, 0, kAnyReal},
    {ParameterId::kLr, "lr", ParameterKind::kReal, all, 0, kAnyReal, true},
    {ParameterId::kAdamBetas, "adam_betas", ParameterKind::kBetas, all},
    {ParameterId::kGradClip, "grad_clip", ParameterKind::kClip, all, 0, kAnyReal, true},
    {ParameterId::kWarmupSteps, "warmup_steps", ParameterKind::kSteps, all},
    {ParameterId::kDecayStart, "decay_start", ParameterKind::kSteps, all},
    {ParameterId::kLrSchedule, "lr_schedule", ParameterKind::kWord, all, 0, 0, false, kLrSchedules},
    {ParameterId::kSparsityWarmupSteps, "sparsity_warmup_steps", ParameterKind::kSteps, penalised},
    {ParameterId::kAuxK, "aux_k", ParameterKind::kCount, with_k, 1, kMaxWidth},
    {ParameterId::kAuxKWeight, "aux_k_weight", ParameterKind::kReal, with_k, 0, kAnyReal},
    {ParameterId::kDeadAfterTokens, "dead_after_tokens", ParameterKind::kCount, with_k, 1,
     kManyTokens},
    {ParameterId::kThresholdBeta, "threshold_beta", ParameterKind::kReal, with_threshold, 0, 1},
    {ParameterId::kThresholdStartStep, "threshold_start_step", ParameterKind::kSteps,
     with_threshold},
    {ParameterId::kSelectScope, "select_scope", ParameterKind::kWord, over_batch, 0, 0, false,
     kSelectScopes},
    {ParameterId::kGroupFractions, "group_fractions", ParameterKind::kFractions, nested},
    {ParameterId::kPStart, "p_start", ParameterKind::kReal, annealed, 0, 16, true},
    {ParameterId::kPEnd, "p_end", ParameterKind::kReal, annealed, 0, 16},
    {ParameterId::kAnnealStart, "anneal_start", ParameterKind::kSteps, annealed},
    {ParameterId::kAnnealEnd, "anneal_end", ParameterKind::kSteps, annealed},
    {ParameterId::kNSparsityUpdates, "n_sparsity_updates", ParameterKind::kCount, annealed, 1,
     kManyTokens},
    {ParameterId::kSparsityFunction, "sparsity_function", ParameterKind::kWord, annealed, 0, 0,
     false, kSparsityFunctions},
    {ParameterId::kSparsityLoss, "sparsity_loss", ParameterKind::kWord, jumps, 0, 0, false,
     kSparsityLosses},
    {ParameterId::kBandwidth, "bandwidth", ParameterKind::kReal, jumps, 0, kAnyReal, true},
    {ParameterId::kInitThreshold, "init_threshold", ParameterKind::kReal, jumps, 0, kAnyReal},
    {ParameterId::kInToOrig, "in_to_orig", ParameterKind::kReal, end_to_end, 0, kAnyReal},
    {ParameterId::kOutToIn, "out_to_in", ParameterKind::kReal, end_to_end, 0, kAnyReal},
    {ParameterId::kInit, "init", ParameterKind::kPath, single},
}};

std::vector<std::string_view> with_parameters(std::initializer_list<std::string_view> own) {
  std::vector<std::string_view> keys(own);
  for (const Parameter& each : kParameters) keys.push_back(each.name);
  return keys;
}

}  // namespace

std::span<const std::string_view> known_keys(KeySet set) {
  static const std::vector<std::string_view> kTrainKeys =
      with_parameters({"recipe", "device", "precision", "deterministic", "checkpoint_every",
                       "eval_every", "seed", "hook"});
  static const std::vector<std::string_view> kFamilyKeys =
      with_parameters({"arch", "hook", "hook_out", "hooks", "seed"});
  switch (set) {
    case KeySet::kTop:
      return kTopKeys;
    case KeySet::kModel:
      return kModelKeys;
    case KeySet::kOthello:
      return kOthelloKeys;
    case KeySet::kActivationData:
      return kActivationDataKeys;
    case KeySet::kActivations:
      return kActivationsKeys;
    case KeySet::kFilters:
      return kFiltersKeys;
    case KeySet::kTrain:
      return kTrainKeys;
    case KeySet::kFamily:
      return kFamilyKeys;
    case KeySet::kSearch:
      return kSearchKeys;
    case KeySet::kCore:
      return kCoreKeys;
    case KeySet::kBoard:
      return kBoardKeys;
    case KeySet::kResources:
      return kResourcesKeys;
    case KeySet::kTrainLm:
      return kTrainLmKeys;
    case KeySet::kEarlyStopping:
      return kEarlyStoppingKeys;
  }
  return {};
}

std::span<const std::string_view> later_sources() { return kLaterSources; }
std::span<const std::string_view> architecture_names() { return kArchitectures; }
std::span<const std::string_view> baseline_names() { return kBaselines; }

std::span<const Parameter, kParameterCount> parameters() { return kParameters; }

const Parameter& parameter(ParameterId id) {
  const Parameter& found = kParameters[static_cast<std::size_t>(id)];
  SAE_CHECK(found.id == id, "the table of parameters is out of order at {}", found.name);
  return found;
}

const Parameter* find_parameter(std::string_view name) {
  for (const Parameter& each : kParameters)
    if (each.name == name) return &each;
  return nullptr;
}

}  // namespace saesweep::sweeps
