#include "sweeps/recipes.h"

#include <array>

#include "core/check.h"
#include "sweeps/known_keys.h"
#include "sweeps/values.h"

namespace saesweep::sweeps {
namespace {

// The column "demo" of dictionary_learning (adamkarvonen/dictionary_learning_demo), with which the
// published SAEBench dictionaries were trained; p-annealing as in the board-game paper (Karvonen et
// al. 2024). Never edit: a correction is a new name.
constexpr std::string_view kSaebenchV1 = R"json({
 "name": "saebench-v1",
 "batch": 2048,
 "optimizer": {"name": "adam", "lr": 0.0003, "betas": [0.9, 0.999], "epsilon": 1e-8,
  "lr_schedule": "step/warmup_steps while step < warmup_steps; 1; (steps - step)/(steps - decay_start) from decay_start",
  "warmup_steps": "1000", "decay_start": "80%"},
 "reconstruction_loss": "mse_sum: squared error summed over d_in, mean over the rows of the batch",
 "l0": "count of f != 0 per row, mean over rows",
 "architectures": {
  "standard": {
   "source": "StandardTrainerAprilUpdate",
   "encoder": "relu((x - b_dec) W_enc^T + b_enc)",
   "penalty": "l1 * s(step) * sum_i f_i |W_dec_i|_2, mean over rows; s = min(step/sparsity_warmup_steps, 1)",
   "sparsity_warmup_steps": "5000",
   "decoder": "free", "init": "W_dec rows random directions of norm 0.1, W_enc = W_dec, b_enc uniform(-1/sqrt(d_in), 1/sqrt(d_in)), b_dec 0",
   "grad_clip": 1.0},
  "standard_bricken": {
   "source": "StandardTrainer",
   "encoder": "relu((x - b_dec) W_enc^T + b_enc)",
   "penalty": "l1 * s(step) * sum_i f_i, mean over rows; s = min(step/sparsity_warmup_steps, 1)",
   "sparsity_warmup_steps": "5000",
   "decoder": "unit norm: gradient projected, rows renormalised after the step",
   "init": "W_dec rows random directions of norm 0.1, W_enc = W_dec, b_enc uniform(-1/sqrt(d_in), 1/sqrt(d_in)), b_dec 0",
   "grad_clip": null},
  "topk": {
   "source": "TopKTrainer",
   "encoder": "relu((x - b_dec) W_enc^T + b_enc), then the k largest of each row",
   "penalty": "none",
   "aux_k": "d_in/2", "aux_k_weight": 0.03125,
   "aux_loss": "residual e = x - x_hat (detached) reconstructed without bias from the min(aux_k, dead) largest relu activations of dead latents: squared error summed over d_in, mean over rows, divided by the squared distance of e from its batch mean, summed over d_in, mean over rows; not a number counts as 0",
   "dead_after_tokens": 10000000, "dead": "tokens since fired >= dead_after_tokens, counted before the auxiliary loss of the same step",
   "threshold_beta": 0.999, "threshold_start_step": "1000",
   "threshold": "from step > threshold_start_step: mean over rows of the smallest positive selected activation; the first value is taken as it is, then the moving average with threshold_beta",
   "decoder": "unit norm: gradient projected, clipped, rows renormalised after the step",
   "init": "W_dec rows of unit norm, W_enc = W_dec, b_enc 0, b_dec the geometric median of the first batch",
   "grad_clip": 1.0},
  "batchtopk": {
   "source": "BatchTopKTrainer",
   "encoder": "relu((x - b_dec) W_enc^T + b_enc), then the k * rows largest of the whole batch",
   "penalty": "none",
   "aux_k": "d_in/2", "aux_k_weight": 0.03125,
   "aux_loss": "residual e = x - x_hat (detached) reconstructed without bias from the min(aux_k, dead) largest relu activations of dead latents: squared error summed over d_in, mean over rows, divided by the squared distance of e from its batch mean, summed over d_in, mean over rows; not a number counts as 0",
   "dead_after_tokens": 10000000, "dead": "tokens since fired >= dead_after_tokens, counted before the auxiliary loss of the same step",
   "threshold_beta": 0.999, "threshold_start_step": "1000",
   "threshold": "from step > threshold_start_step: the smallest positive selected activation of the batch; the first value is taken as it is, then the moving average with threshold_beta; at inference activations above it are kept",
   "decoder": "unit norm: gradient projected, clipped, rows renormalised after the step",
   "init": "W_dec rows of unit norm, W_enc = W_dec, b_enc 0, b_dec the geometric median of the first batch",
   "grad_clip": 1.0},
  "p_anneal": {
   "source": "PAnnealTrainer, settings of the board-game dictionaries",
   "encoder": "relu((x - b_dec) W_enc^T + b_enc)",
   "penalty": "l1 * s(step) * sum_i f_i^p (lp_p) or its 1/p-th power (lp), mean over rows; s = min(step/sparsity_warmup_steps, 1)",
   "sparsity_warmup_steps": "5000",
   "sparsity_function": "lp_p", "p_start": 1.0, "p_end": 0.2,
   "anneal_start": "10000", "anneal_end": "100%", "n_sparsity_updates": 10,
   "anneal": "p steps along linspace(p_start, p_end, n) at linspace(anneal_start, anneal_end, n) truncated; l1 is rescaled by the ratio of the mean penalties over the last 10 steps",
   "decoder": "unit norm: gradient projected, rows renormalised after the step",
   "init": "W_dec rows random directions of norm 0.1, W_enc = W_dec, b_enc uniform(-1/sqrt(d_in), 1/sqrt(d_in)), b_dec 0",
   "grad_clip": null}
 }
})json";

constexpr std::array<std::string_view, 1> kNames{"saebench-v1"};

const Json& saebench_v1() {
  static const Json blob = [] {
    auto parsed = parse_json(kSaebenchV1);
    SAE_CHECK(parsed.has_value(), "{}", parsed.error().message);
    return std::move(*parsed);
  }();
  return blob;
}

// A recipe writes step counts as a sweep file does.
std::uint64_t steps_of(const Json& text, std::uint64_t run_steps) {
  const auto parsed = parse_steps(text.get_ref<const std::string&>());
  SAE_CHECK(parsed.has_value(), "{}", parsed.error().message);
  return parsed->of(run_steps);
}

}  // namespace

std::span<const std::string_view> recipe_names() { return kNames; }

const Json* find_recipe(std::string_view name) {
  return name == kNames[0] ? &saebench_v1() : nullptr;
}

std::string recipe_hash(std::string_view name) {
  const Json* recipe = find_recipe(name);
  return recipe == nullptr ? "" : sha256(canonical_json(*recipe)).hex();
}

std::uint64_t recipe_batch(std::string_view name) {
  const Json* recipe = find_recipe(name);
  SAE_CHECK(recipe != nullptr, "no recipe {}", name);
  return recipe->at("batch").get<std::uint64_t>();
}

TrainingSpec recipe_training(std::string_view name, Architecture architecture,
                             std::uint64_t steps) {
  const Json* recipe = find_recipe(name);
  SAE_CHECK(recipe != nullptr, "no recipe {}", name);
  const Json& optimizer = recipe->at("optimizer");
  const Json& own = recipe->at("architectures").at(std::string(to_string(architecture)));
  TrainingSpec spec;
  spec.architecture = architecture;
  spec.recipe = name;
  spec.lr = optimizer.at("lr").get<double>();
  spec.adam_beta1 = optimizer.at("betas").at(0).get<double>();
  spec.adam_beta2 = optimizer.at("betas").at(1).get<double>();
  spec.adam_epsilon = optimizer.at("epsilon").get<double>();
  spec.warmup_steps = steps_of(optimizer.at("warmup_steps"), steps);
  spec.decay_start = steps_of(optimizer.at("decay_start"), steps);
  if (!own.at("grad_clip").is_null()) spec.grad_clip = own.at("grad_clip").get<double>();
  const auto has = [architecture](ParameterId id) { return parameter(id).applies(architecture); };
  if (has(ParameterId::kSparsityWarmupSteps))
    spec.sparsity_warmup_steps = steps_of(own.at("sparsity_warmup_steps"), steps);
  if (has(ParameterId::kAuxK)) {
    spec.aux_k_weight = own.at("aux_k_weight").get<double>();
    spec.dead_after_tokens = own.at("dead_after_tokens").get<std::uint64_t>();
    spec.threshold_beta = own.at("threshold_beta").get<double>();
    spec.threshold_start_step = steps_of(own.at("threshold_start_step"), steps);
  }
  if (has(ParameterId::kPEnd)) {
    spec.p_start = own.at("p_start").get<double>();
    spec.p_end = own.at("p_end").get<double>();
    spec.anneal_start = steps_of(own.at("anneal_start"), steps);
    spec.anneal_end = steps_of(own.at("anneal_end"), steps);
    spec.n_sparsity_updates = own.at("n_sparsity_updates").get<std::uint64_t>();
    spec.sparsity_function =
        own.at("sparsity_function") == "lp" ? SparsityFunction::kLp : SparsityFunction::kLpP;
  }
  return spec;
}

}  // namespace saesweep::sweeps
