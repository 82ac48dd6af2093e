#include "sweeps/recipes.h"

#include <array>
#include <vector>

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

// The same column for the architectures with gates, thresholds and nested dictionaries. Penalties
// of jumprelu other than l0_target: Rajamanoharan et al. 2024 (l0), Anthropic's update of January
// 2025 (tanh), with the rest as JumpReluTrainer has it.
constexpr std::string_view kSaebenchV1Gates = R"json({
 "name": "saebench-v1",
 "batch": 2048,
 "optimizer": {"name": "adam", "lr": 0.0003, "epsilon": 1e-8,
  "lr_schedule": "step/warmup_steps while step < warmup_steps; 1; (steps - step)/(steps - decay_start) from decay_start",
  "warmup_steps": "1000", "decay_start": "80%"},
 "reconstruction_loss": "mse_sum: squared error summed over d_in, mean over the rows of the batch",
 "l0": "count of f != 0 per row, mean over rows",
 "architectures": {
  "gated": {
   "source": "GatedSAETrainer",
   "encoder": "u = (x - b_dec) W_enc^T; gate = u + b_gate; f = relu(exp(r_mag) u + b_mag) where gate > 0, else 0",
   "penalty": "l1 * s(step) * sum_i relu(gate_i), mean over rows; s = min(step/sparsity_warmup_steps, 1)",
   "aux_loss": "x reconstructed from relu(gate) with W_dec and b_dec detached: squared error summed over d_in, mean over rows, weight 1; b_dec before the encoder is not detached",
   "sparsity_warmup_steps": "5000",
   "betas": [0.0, 0.999],
   "decoder": "unit norm: gradient projected, rows renormalised after the step",
   "init": "W_dec rows random directions of norm 1, W_enc = W_dec, b_gate, b_mag, r_mag, b_dec 0",
   "grad_clip": null},
  "gated_p_anneal": {
   "source": "GatedAnnealTrainer, settings of the board-game dictionaries",
   "encoder": "u = (x - b_dec) W_enc^T; gate = u + b_gate; f = relu(exp(r_mag) u + b_mag) where gate > 0, else 0",
   "penalty": "l1 * s(step) * sum_i relu(gate_i)^p (lp_p) or its 1/p-th power (lp), mean over rows; s = min(step/sparsity_warmup_steps, 1)",
   "aux_loss": "x reconstructed from relu(gate) with W_dec and b_dec detached: squared error summed over d_in, mean over rows, weight 1; b_dec before the encoder is not detached",
   "sparsity_warmup_steps": "5000",
   "sparsity_function": "lp_p", "p_start": 1.0, "p_end": 0.2,
   "anneal_start": "10000", "anneal_end": "100%", "n_sparsity_updates": 10,
   "anneal": "p steps along linspace(p_start, p_end, n) at linspace(anneal_start, anneal_end, n) truncated; l1 is rescaled by the ratio of the mean penalties over the last 10 steps",
   "betas": [0.0, 0.999],
   "decoder": "unit norm: gradient projected, rows renormalised after the step",
   "init": "W_dec rows random directions of norm 1, W_enc = W_dec, b_gate, b_mag, r_mag, b_dec 0",
   "grad_clip": null},
  "jumprelu": {
   "source": "JumpReluTrainer",
   "encoder": "z = x W_enc^T + b_enc; f = z where z > threshold, else 0; no relu while training",
   "threshold_gradient": "-(threshold/bandwidth) * [|z - threshold| < bandwidth/2] times the gradient of f, summed over rows; the threshold itself is learned, not its logarithm",
   "sparsity_losses": {
    "l0_target": {
     "penalty": "l0_coefficient * s(step) * (L0/l0_target - 1)^2 with L0 = sum_i [f_i > threshold_i], mean over rows; its gradient to a threshold is -(1/bandwidth) * [|f - threshold| < bandwidth/2], taken at f and not at z",
     "l0_coefficient": 1.0, "bandwidth": 0.001, "init_threshold": 0.001,
     "decoder": "unit norm: gradient projected, clipped, rows renormalised after the step"},
    "l0": {
     "penalty": "l0_coefficient * s(step) * sum_i [z_i > threshold_i], mean over rows; its gradient to a threshold is -(1/bandwidth) * [|z - threshold| < bandwidth/2]",
     "bandwidth": 0.001, "init_threshold": 0.001,
     "decoder": "unit norm: gradient projected, clipped, rows renormalised after the step"},
    "tanh": {
     "penalty": "l0_coefficient * s(step) * sum_i tanh(tanh_scale f_i |W_dec_i|_2) + pre_act_weight * sum_i relu(threshold_i - z_i) |W_dec_i|_2, mean over rows; all its gradients reach thresholds through f",
     "bandwidth": 2.0, "init_threshold": 0.1, "tanh_scale": 4.0, "pre_act_weight": 3e-6,
     "scale": "for activations of mean norm sqrt(d_in): normalize sqrt_d",
     "decoder": "free"}},
   "sparsity_warmup": "s = min(step/sparsity_warmup_steps, 1)",
   "sparsity_warmup_steps": "5000",
   "betas": [0.0, 0.999],
   "init": "W_dec rows random directions of norm 1, W_enc = W_dec, b_enc, b_dec 0, every threshold init_threshold",
   "grad_clip": 1.0},
  "matryoshka": {
   "source": "MatryoshkaBatchTopKTrainer",
   "encoder": "relu((x - b_dec) W_enc^T + b_enc), then the k * rows largest of the whole batch",
   "penalty": "none",
   "group_fractions": [0.03125, 0.0625, 0.125, 0.25, 0.53125],
   "groups": "floor(fraction * d_sae) latents each, the last takes the rest",
   "prefixes": "group g adds its latents to the reconstruction of the groups before it; each prefix's squared error, summed over d_in, mean over rows, weighs 1/G, and the loss is the mean over the G prefixes: 1/G^2 each",
   "aux_k": "d_in/2", "aux_k_weight": 0.03125,
   "aux_loss": "residual e = x - x_hat (detached) of all groups reconstructed without bias from the min(aux_k, dead) largest relu activations of dead latents: squared error summed over d_in, mean over rows, divided by the squared distance of e from its batch mean, summed over d_in, mean over rows; not a number counts as 0",
   "dead_after_tokens": 10000000, "dead": "tokens since fired >= dead_after_tokens, counted before the auxiliary loss of the same step",
   "threshold_beta": 0.999, "threshold_start_step": "1000",
   "threshold": "from step > threshold_start_step: the smallest positive selected activation of the batch; the first value is taken as it is, then the moving average with threshold_beta; at inference activations above it are kept",
   "betas": [0.9, 0.999],
   "decoder": "unit norm: gradient projected, clipped, rows renormalised after the step",
   "init": "W_dec rows of unit norm, W_enc = W_dec, b_enc 0, b_dec the geometric median of the first batch",
   "grad_clip": 1.0}
 }
})json";

// SAEBench has no dictionaries of several hooks. Transcoders: encoder, start and loss as sparsify
// (EleutherAI/sparsify, its SparseCoder with transcode) has them, optimiser and schedule as the
// others.
constexpr std::string_view kSaebenchV1Transcoders = R"json({
 "name": "saebench-v1",
 "batch": 2048,
 "optimizer": {"name": "adam", "lr": 0.0003, "betas": [0.9, 0.999], "epsilon": 1e-8,
  "lr_schedule": "step/warmup_steps while step < warmup_steps; 1; (steps - step)/(steps - decay_start) from decay_start",
  "warmup_steps": "1000", "decay_start": "80%"},
 "scale": "what is read and what is predicted are normalised each by its own factor",
 "reconstruction_loss": "fvu: squared error of y summed over d_out and the rows of the batch, divided by the squared distance of y from its batch mean, summed likewise",
 "l0": "count of f != 0 per row, mean over rows",
 "architectures": {
  "transcoder": {
   "source": "sparsify",
   "encoder": "relu(x W_enc^T + b_enc), then the k largest of each row; b_dec is not subtracted from x",
   "prediction": "y = f W_dec + b_dec",
   "penalty": "none",
   "aux_k": "d_out/2", "aux_k_weight": 0.0,
   "aux_loss": "residual e = y - y_hat (detached) reconstructed without bias from the min(aux_k, dead) largest relu activations of dead latents: squared error summed over d_out, mean over rows, divided by the squared distance of e from its batch mean, summed over d_out, mean over rows; not a number counts as 0",
   "dead_after_tokens": 10000000, "dead": "tokens since fired >= dead_after_tokens, counted before the auxiliary loss of the same step",
   "decoder": "free",
   "init": "W_enc rows random directions of norm 1/sqrt(3), W_dec 0; of the first batch: b_enc = -W_enc mean(x), b_dec = mean(y)",
   "grad_clip": null},
  "skip_transcoder": {
   "source": "sparsify",
   "encoder": "relu(x W_enc^T + b_enc), then the k largest of each row; b_dec is not subtracted from x",
   "prediction": "y = f W_dec + x W_skip^T + b_dec",
   "penalty": "none",
   "aux_k": "d_out/2", "aux_k_weight": 0.0,
   "aux_loss": "residual e = y - y_hat (detached) reconstructed without bias from the min(aux_k, dead) largest relu activations of dead latents: squared error summed over d_out, mean over rows, divided by the squared distance of e from its batch mean, summed over d_out, mean over rows; not a number counts as 0",
   "dead_after_tokens": 10000000, "dead": "tokens since fired >= dead_after_tokens, counted before the auxiliary loss of the same step",
   "decoder": "free",
   "init": "W_enc rows random directions of norm 1/sqrt(3), W_dec 0, W_skip 0; of the first batch: b_enc = -W_enc mean(x), b_dec = mean(y)",
   "grad_clip": null}
 }
})json";

// As ckkissane/crosscoder-model-diff-replication trains them (after Lindsey et al. 2024).
constexpr std::string_view kSaebenchV1Crosscoders = R"json({
 "name": "saebench-v1",
 "batch": 2048,
 "optimizer": {"name": "adam", "lr": 0.00005, "betas": [0.9, 0.999], "epsilon": 1e-8,
  "lr_schedule": "step/warmup_steps while step < warmup_steps; 1; (steps - step)/(steps - decay_start) from decay_start",
  "warmup_steps": "0", "decay_start": "80%"},
 "scale": "every hook is normalised by its own factor",
 "reconstruction_loss": "mse_sum: squared error summed over the hooks and their d_in, mean over the rows of the batch",
 "l0": "count of f != 0 per row, mean over rows",
 "architectures": {
  "crosscoder": {
   "source": "crosscoder-model-diff-replication",
   "encoder": "relu(sum_m x_m W_enc_m^T + b_enc); b_dec is not subtracted from x",
   "reconstruction": "x_m = f W_dec_m + b_dec_m",
   "penalty": "l1 * s(step) * sum_i f_i sum_m |W_dec_m_i|_2, mean over rows; s = min(step/sparsity_warmup_steps, 1)",
   "sparsity_warmup_steps": "5%",
   "decoder": "free",
   "init": "W_dec_m rows random directions of norm 0.08, W_enc = W_dec, b_enc, b_dec 0",
   "grad_clip": 1.0}
 }
})json";

// A crosscoder is a dictionary of the rows of its hooks laid side by side: with decoders whose rows
// have unit norm over all hooks together, BatchTopK ranks its activations as they are.
constexpr std::string_view kSaebenchV1BatchTopKCrosscoders = R"json({
 "name": "saebench-v1",
 "batch": 2048,
 "optimizer": {"name": "adam", "lr": 0.0003, "betas": [0.9, 0.999], "epsilon": 1e-8,
  "lr_schedule": "step/warmup_steps while step < warmup_steps; 1; (steps - step)/(steps - decay_start) from decay_start",
  "warmup_steps": "1000", "decay_start": "80%"},
 "scale": "every hook is normalised by its own factor",
 "reconstruction_loss": "mse_sum: squared error summed over the hooks and their d_in, mean over the rows of the batch",
 "l0": "count of f != 0 per row, mean over rows",
 "architectures": {
  "batchtopk_crosscoder": {
   "source": "BatchTopKTrainer on the hooks side by side",
   "encoder": "relu(sum_m x_m W_enc_m^T + b_enc), then the k * rows largest of the whole batch; b_dec is not subtracted from x",
   "reconstruction": "x_m = f W_dec_m + b_dec_m",
   "penalty": "none",
   "aux_k": "half the values of a row", "aux_k_weight": 0.03125,
   "aux_loss": "residual e = x - x_hat (detached) of all hooks reconstructed without bias from the min(aux_k, dead) largest relu activations of dead latents: squared error summed over the hooks and their d_in, mean over rows, divided by the squared distance of e from its batch mean, summed likewise, mean over rows; not a number counts as 0",
   "dead_after_tokens": 10000000, "dead": "tokens since fired >= dead_after_tokens, counted before the auxiliary loss of the same step",
   "threshold_beta": 0.999, "threshold_start_step": "1000",
   "threshold": "from step > threshold_start_step: the smallest positive selected activation of the batch; the first value is taken as it is, then the moving average with threshold_beta; at inference activations above it are kept",
   "decoder": "unit norm over all hooks together: gradient projected, clipped, rows renormalised after the step",
   "init": "W_dec_m rows random directions of norm 1/sqrt(hooks), W_enc = W_dec, b_enc 0, b_dec the geometric median of the first batch",
   "grad_clip": 1.0}
 }
})json";

// A transcoder with the thresholds of JumpReLU, as Gemma Scope's are (Lieberum et al. 2024); steps,
// penalties and thresholds as dictionary_learning's JumpReluTrainer has them.
constexpr std::string_view kSaebenchV1JumpReluTranscoders = R"json({
 "name": "saebench-v1",
 "batch": 2048,
 "optimizer": {"name": "adam", "lr": 0.0003, "epsilon": 1e-8,
  "lr_schedule": "step/warmup_steps while step < warmup_steps; 1; (steps - step)/(steps - decay_start) from decay_start",
  "warmup_steps": "1000", "decay_start": "80%"},
 "scale": "what is read and what is predicted are normalised each by its own factor",
 "reconstruction_loss": "mse_sum: squared error of y summed over d_out, mean over the rows of the batch",
 "l0": "count of f != 0 per row, mean over rows",
 "architectures": {
  "jumprelu_transcoder": {
   "source": "JumpReluTrainer that predicts y",
   "encoder": "z = x W_enc^T + b_enc; f = z where z > threshold, else 0; no relu while training",
   "prediction": "y = f W_dec + b_dec",
   "threshold_gradient": "-(threshold/bandwidth) * [|z - threshold| < bandwidth/2] times the gradient of f, summed over rows; the threshold itself is learned, not its logarithm",
   "sparsity_losses": {
    "l0_target": {
     "penalty": "l0_coefficient * s(step) * (L0/l0_target - 1)^2 with L0 = sum_i [f_i > threshold_i], mean over rows; its gradient to a threshold is -(1/bandwidth) * [|f - threshold| < bandwidth/2], taken at f and not at z",
     "l0_coefficient": 1.0, "bandwidth": 0.001, "init_threshold": 0.001,
     "decoder": "unit norm: gradient projected, clipped, rows renormalised after the step"},
    "l0": {
     "penalty": "l0_coefficient * s(step) * sum_i [z_i > threshold_i], mean over rows; its gradient to a threshold is -(1/bandwidth) * [|z - threshold| < bandwidth/2]",
     "bandwidth": 0.001, "init_threshold": 0.001,
     "decoder": "unit norm: gradient projected, clipped, rows renormalised after the step"},
    "tanh": {
     "penalty": "l0_coefficient * s(step) * sum_i tanh(tanh_scale f_i |W_dec_i|_2) + pre_act_weight * sum_i relu(threshold_i - z_i) |W_dec_i|_2, mean over rows; all its gradients reach thresholds through f",
     "bandwidth": 2.0, "init_threshold": 0.1, "tanh_scale": 4.0, "pre_act_weight": 3e-6,
     "scale": "for activations of mean norm sqrt(d_in): normalize sqrt_d",
     "decoder": "free"}},
   "sparsity_warmup": "s = min(step/sparsity_warmup_steps, 1)",
   "sparsity_warmup_steps": "5000",
   "betas": [0.0, 0.999],
   "init": "W_enc and W_dec rows random directions of norm 1, drawn apart, b_enc, b_dec 0, every threshold init_threshold",
   "grad_clip": 1.0}
 }
})json";

// As ApolloResearch/e2e_sae trains its "e2e" dictionaries (Braun et al. 2024); with in_to_orig
// those that it calls "e2e+ds".
constexpr std::string_view kSaebenchV1EndToEnd = R"json({
 "name": "saebench-v1",
 "batch": 2048,
 "optimizer": {"name": "adam", "lr": 0.0005, "betas": [0.9, 0.999], "epsilon": 1e-8,
  "schedule": "cosine",
  "lr_schedule": "step/warmup_steps while step < warmup_steps; 1; 0.1 + 0.45 (1 + cos(pi (step - decay_start)/(steps - decay_start))) from decay_start, which is warmup_steps unless it is named; lr_schedule linear: (steps - step)/(steps - decay_start) from decay_start, 80% unless it is named",
  "warmup_steps": "5%", "decay_start": "80%"},
 "reconstruction_loss": "KL(P || Q) of next-token distributions, P of the model, Q with x_hat in place of x: summed over the vocabulary, mean over the rows of the batch",
 "l0": "count of f != 0 per row, mean over rows",
 "rows": "whole training documents in the order of a permutation of each pass, the last of a batch cut; not normalised",
 "architectures": {
  "end_to_end": {
   "source": "e2e_sae",
   "encoder": "relu(x W_enc^T + b_enc); b_dec is not subtracted from x",
   "reconstruction": "x_hat = f W + b_dec with W_i = V_i / |V_i|_2; V is what is optimised",
   "penalty": "l1 * s(step) * sum_i f_i / d_in, mean over rows; s = min(step/sparsity_warmup_steps, 1)",
   "sparsity_warmup_steps": "0",
   "downstream_loss": "in_to_orig / n times the sum over the n blocks after the hook of the squared difference of their hook_resid_post with x_hat in place of x from that without, mean over its values and the rows",
   "local_loss": "out_to_in times the squared difference of x_hat and x, mean over its values and the rows",
   "in_to_orig": 0.0, "out_to_in": 0.0,
   "decoder": "normalised in the forward pass",
   "init": "V^T of orthonormal rows (d_sae < d_in: columns), uniform among such; W_enc, b_enc uniform(-1/sqrt(d_in), 1/sqrt(d_in)), b_dec uniform(-1/sqrt(d_sae), 1/sqrt(d_sae))",
   "grad_clip": 10.0}
 }
})json";

constexpr std::array<std::string_view, 1> kNames{"saebench-v1"};

Json parsed(std::string_view text) {
  auto blob = parse_json(text);
  SAE_CHECK(blob.has_value(), "{}", blob.error().message);
  return std::move(*blob);
}

const std::vector<Json>& saebench_v1() {
  static const std::vector<Json> kBlobs{parsed(kSaebenchV1),
                                        parsed(kSaebenchV1Gates),
                                        parsed(kSaebenchV1Transcoders),
                                        parsed(kSaebenchV1Crosscoders),
                                        parsed(kSaebenchV1EndToEnd),
                                        parsed(kSaebenchV1BatchTopKCrosscoders),
                                        parsed(kSaebenchV1JumpReluTranscoders)};
  return kBlobs;
}

// A recipe writes step counts as a sweep file does.
std::uint64_t steps_of(const Json& text, std::uint64_t run_steps) {
  const auto steps = parse_steps(text.get_ref<const std::string&>());
  SAE_CHECK(steps.has_value(), "{}", steps.error().message);
  return steps->of(run_steps);
}

}  // namespace

std::span<const std::string_view> recipe_names() { return kNames; }

const Json* find_recipe(std::string_view name, Architecture architecture) {
  if (name != kNames[0]) return nullptr;
  for (const Json& blob : saebench_v1())
    if (blob.at("architectures").contains(to_string(architecture))) return &blob;
  SAE_CHECK(false, "recipe {} says nothing of {}", name, to_string(architecture));
  return nullptr;
}

std::string recipe_hash(std::string_view name, Architecture architecture) {
  const Json* recipe = find_recipe(name, architecture);
  return recipe == nullptr ? "" : sha256(canonical_json(*recipe)).hex();
}

std::uint64_t recipe_batch(std::string_view name) {
  const Json* recipe = find_recipe(name, Architecture::kTopK);  // one batch for all
  SAE_CHECK(recipe != nullptr, "no recipe {}", name);
  return recipe->at("batch").get<std::uint64_t>();
}

std::uint64_t recipe_decay_start(std::string_view name, Architecture architecture,
                                 std::uint64_t steps) {
  const Json* recipe = find_recipe(name, architecture);
  SAE_CHECK(recipe != nullptr, "no recipe {}", name);
  return steps_of(recipe->at("optimizer").at("decay_start"), steps);
}

TrainingSpec recipe_training(std::string_view name, Architecture architecture, std::uint64_t steps,
                             SparsityLoss loss) {
  const Json* recipe = find_recipe(name, architecture);
  SAE_CHECK(recipe != nullptr, "no recipe {}", name);
  const Json& optimizer = recipe->at("optimizer");
  const Json& own = recipe->at("architectures").at(std::string(to_string(architecture)));
  TrainingSpec spec;
  spec.architecture = architecture;
  spec.recipe = name;
  spec.lr = optimizer.at("lr").get<double>();
  const Json& betas = own.contains("betas") ? own.at("betas") : optimizer.at("betas");
  spec.adam_beta1 = betas.at(0).get<double>();
  spec.adam_beta2 = betas.at(1).get<double>();
  spec.adam_epsilon = optimizer.at("epsilon").get<double>();
  spec.warmup_steps = steps_of(optimizer.at("warmup_steps"), steps);
  spec.decay_start = recipe_decay_start(name, architecture, steps);
  spec.lr_schedule = *parse_lr_schedule(optimizer.value("schedule", "linear"));
  if (spec.lr_schedule == LrSchedule::kCosine) spec.decay_start = spec.warmup_steps;
  if (!own.at("grad_clip").is_null()) spec.grad_clip = own.at("grad_clip").get<double>();
  const auto has = [architecture](ParameterId id) { return parameter(id).applies(architecture); };
  if (has(ParameterId::kSparsityWarmupSteps))
    spec.sparsity_warmup_steps = steps_of(own.at("sparsity_warmup_steps"), steps);
  if (has(ParameterId::kAuxK)) {
    spec.aux_k_weight = own.at("aux_k_weight").get<double>();
    spec.dead_after_tokens = own.at("dead_after_tokens").get<std::uint64_t>();
  }
  if (has(ParameterId::kThresholdBeta)) {
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
  if (has(ParameterId::kSparsityLoss)) {
    const Json& penalty = own.at("sparsity_losses").at(std::string(to_string(loss)));
    spec.sparsity_loss = loss;
    if (penalty.contains("l0_coefficient"))
      spec.l0_coefficient = penalty.at("l0_coefficient").get<double>();
    spec.bandwidth = penalty.at("bandwidth").get<double>();
    spec.init_threshold = penalty.at("init_threshold").get<double>();
    spec.tanh_scale = penalty.value("tanh_scale", 0.0);
    spec.pre_act_weight = penalty.value("pre_act_weight", 0.0);
  }
  if (has(ParameterId::kInToOrig)) {
    spec.in_to_orig = own.at("in_to_orig").get<double>();
    spec.out_to_in = own.at("out_to_in").get<double>();
  }
  if (has(ParameterId::kGroupFractions))
    spec.group_fractions = own.at("group_fractions").get<std::vector<double>>();
  return spec;
}

}  // namespace saesweep::sweeps
