#include "sweeps/estimates.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <map>
#include <set>

namespace saesweep::sweeps {
namespace {

// Two cores with AMX reach 235 GFLOP/s in fp32 products and 670 in bf16 (LibTorch 2.11); what is
// left after everything that is no product is taken to be 60 % of that.
constexpr double kFlopsFloat32 = 0.6 * 235e9;
constexpr double kFlopsBFloat16 = 0.6 * 670e9;
// Small transformers: products too narrow for the peak.
constexpr double kModelFlops = 80e9;
// Adam touches parameter, gradient and two moments, reading and writing: 28 bytes a parameter.
constexpr double kAdamBytes = 28, kMemoryBandwidth = 20e9;
constexpr double kStartSeconds = 3;

// Threads of a slot, on the machine that the times are of.
constexpr unsigned kThreads = 2;

// As the activation streams cut it: rows permuted together.
std::uint64_t group_bytes(const PlannedStream& stream) {
  constexpr std::uint64_t kMaxRows = std::uint64_t{1} << 20, kMaxBytes = std::uint64_t{1} << 30;
  const std::uint64_t row = std::max<std::uint64_t>(1, stream.d_in * size_of(stream.spec.dtype));
  const std::uint64_t usual =
      std::min(kMaxRows, std::bit_floor(std::max<std::uint64_t>(1, kMaxBytes / row)));
  const std::uint64_t rows = stream.spec.shuffle_rows != 0 ? stream.spec.shuffle_rows : usual;
  return std::min(rows, stream.spec.tokens) * row;
}

std::uint64_t stream_bytes(const PlannedStream& stream) {
  return stream.spec.tokens * stream.d_in * size_of(stream.spec.dtype);
}

bool is_gated(const TrainingSpec& spec) {
  return spec.architecture == Architecture::kGated ||
         spec.architecture == Architecture::kGatedPAnneal;
}

// d_in: of a joint stream the values of all its hooks.
std::uint64_t parameters(const TrainingSpec& spec, std::uint64_t d_in) {
  if (is_transcoder(spec.architecture)) {
    // Of a row about one half is read and one half predicted.
    const bool skips = spec.architecture == Architecture::kSkipTranscoder;
    return spec.d_sae * (d_in + 1) + d_in + (skips ? d_in / 2 * ((d_in + 1) / 2) : 0);
  }
  std::uint64_t biases = 1;  // and what else there is one of a latent
  if (is_gated(spec)) biases = 3;
  if (is_jumprelu(spec.architecture)) biases = 2;
  return 2 * spec.d_sae * d_in + biases * spec.d_sae + d_in;
}

double training_seconds(const TrainingSpec& spec, std::uint64_t d_in) {
  const double width = static_cast<double>(spec.d_sae);
  const double d = static_cast<double>(d_in) / (is_transcoder(spec.architecture) ? 2 : 1);
  // Products per token. Dense: two forward, three backward; gated: the gate's reconstruction and
  // its way back as well. TopK: a dense encoder, the rest for k of the features, and selecting
  // them, which costs about another product of the encoder's size.
  double flops = (is_gated(spec) ? 14 : 10) * d * width;
  if (spec.k) flops = 4 * d * width + 8 * d * static_cast<double>(*spec.k);
  const double rate = spec.precision == Precision::kBFloat16 ? kFlopsBFloat16 : kFlopsFloat32;
  const double adam = kAdamBytes * static_cast<double>(parameters(spec, d_in)) / kMemoryBandwidth;
  return static_cast<double>(spec.steps()) *
         (static_cast<double>(spec.batch) * flops / rate + adam);
}

double model_seconds(std::uint64_t parameters, double tokens) {
  return 2 * static_cast<double>(parameters) * tokens / kModelFlops;
}

std::uint64_t weights_of(const TrainLmSpec& lm) {
  const auto d = static_cast<std::uint64_t>(lm.d_model);
  return static_cast<std::uint64_t>(lm.layers) *
         (4 * d * d + 2 * d * static_cast<std::uint64_t>(lm.d_mlp));
}

std::uint64_t tokens_a_game(const TrainLmSpec& lm) {
  return static_cast<std::uint64_t>(std::min(lm.context, lm.data.board * lm.data.board - 5));
}

SweepEstimate estimate_train_lm(const TrainLmSpec& lm) {
  SweepEstimate result;
  result.tokens = lm.steps() * lm.batch * tokens_a_game(lm);
  result.memory_bytes = kExecutorBytes + estimated_lm_memory(lm);
  result.disk_bytes = weights_of(lm) * 4 * 4;
  result.seconds =
      kStartSeconds + 3 * model_seconds(weights_of(lm), static_cast<double>(result.tokens));
  return result;
}

// Blocks that a pass from a hook on goes through, that of the hook included where it is not its
// end.
std::uint64_t blocks_from(const ModelShape& model, std::string_view hook) {
  if (hook == "ln_final.hook_normalized") return 0;
  const std::uint64_t block = hook_block(model, hook).value_or(0);
  return model.layers - block - (hook.ends_with("hook_resid_post") ? 1 : 0);
}

// What a run holds of its stream: a shuffle group, or what the model says.
std::uint64_t held_beside(const TrainingSpec& spec, const PlannedStream& stream) {
  return is_end_to_end(spec.architecture) ? estimated_splice_memory(spec, stream)
                                          : group_bytes(stream);
}

// Its model as it is, with the reconstruction in place, and the way back.
double splice_seconds(const TrainingSpec& spec, const PlannedStream& stream) {
  if (!is_end_to_end(spec.architecture) || !stream.shape) return 0;
  const ModelShape& model = *stream.shape;
  const std::uint64_t head = model.d_model * model.vocabulary;
  const std::uint64_t whole = parameters_up_to(model, "ln_final.hook_normalized") + head;
  const std::uint64_t behind = whole - stream.model_parameters;
  return model_seconds(whole + 2 * behind, static_cast<double>(spec.steps() * spec.batch));
}

std::string gibibytes(std::uint64_t bytes) {
  return fmt::format("{:.2f} GiB", static_cast<double>(bytes) / (1 << 30));
}

}  // namespace

std::uint64_t estimated_training_memory(const TrainingSpec& spec, std::uint64_t d_in) {
  // Parameters, gradients, two moments; rows, reconstruction and residual, of nested groups a
  // gradient each; pre-activations, features and their gradient.
  const std::uint64_t of_rows = (3 + spec.group_fractions.size()) * d_in + 3 * spec.d_sae;
  return 4 * (4 * parameters(spec, d_in) + spec.batch * of_rows);
}

std::uint64_t estimated_splice_memory(const ModelShape& model, const SpliceShape& splice,
                                      unsigned threads) {
  const double documents =
      std::ceil(static_cast<double>(splice.batch) / std::max(1.0, splice.rows_per_document)) + 1;
  const auto pieces =
      static_cast<std::uint64_t>(std::ceil(documents / static_cast<double>(kDocumentsPerForward)));
  const std::uint64_t positions =
      static_cast<std::uint64_t>(kDocumentsPerForward) * model.context;  // of a piece
  const std::uint64_t blocks = blocks_from(model, splice.hook);
  // Kept of every piece: logits, where the spliced pass begins, what is compared.
  const std::uint64_t kept =
      model.vocabulary + (1 + (splice.downstream ? blocks : 0)) * model.d_model;
  // Of a piece that is spliced: logits, their logarithms and differences; of a block what its
  // products and norms keep for the way back, about.
  const std::uint64_t on_the_way =
      6 * model.vocabulary + blocks * (14 * model.d_model + 3 * model.d_mlp);
  return 4 * positions * (pieces * kept + std::min<std::uint64_t>(threads, pieces) * on_the_way);
}

std::uint64_t estimated_gpu_memory(const TrainingSpec& spec, std::uint64_t d_in) {
  return 4 * 4 * parameters(spec, d_in) + shared_gpu_memory(spec, d_in);
}

std::uint64_t shared_gpu_memory(const TrainingSpec& spec, std::uint64_t d_in) {
  constexpr std::uint64_t kFloat = 4, kCode = 12, kTouch = 12, kLeast = std::uint64_t{64} << 20;
  const bool rounds = spec.precision == Precision::kBFloat16;
  const std::uint64_t value = rounds ? kFloat + 2 : kFloat;  // with its copy for products
  // Rows, what is read of them, error and gradient, of nested groups one each.
  const std::uint64_t of_rows = spec.batch * (4 + spec.group_fractions.size()) * d_in * value;
  std::uint64_t of_latents = 0;
  if (spec.k) {
    // Pre-activations of all; a bit for each latent and row; what is kept, and by whom.
    const std::uint64_t kept = *spec.k + (spec.aux_k_weight > 0 ? d_in / 2 : 0);
    of_latents = spec.batch * (spec.d_sae * kFloat + spec.d_sae / 8 + kept * (kCode + kTouch));
  } else {
    // Activations and their gradient; of gates the same; pre-activations.
    const bool jumps = is_jumprelu(spec.architecture);
    of_latents = spec.batch * spec.d_sae *
                 (2 * value + (is_gated(spec) ? value + kFloat : 0) + (jumps ? kFloat : 0));
  }
  return kLeast + (rounds ? 2 * parameters(spec, d_in) : 0) + of_rows + of_latents;
}

std::uint64_t estimated_splice_memory(const TrainingSpec& spec, const PlannedStream& stream) {
  if (!is_end_to_end(spec.architecture) || !stream.shape) return 0;
  return estimated_splice_memory(
      *stream.shape,
      {stream.spec.hook, spec.batch, static_cast<double>(stream.rows_per_document),
       spec.in_to_orig > 0},
      kThreads);
}

std::uint64_t estimated_lm_memory(const TrainLmSpec& spec) {
  const std::uint64_t row = tokens_a_game(spec);
  // A game as generated: a byte a move and where it ends. Weights, gradients and two moments;
  // activations of a batch: about 20 widths a layer and token.
  return spec.data.games * (row + 2) + weights_of(spec) * 16 +
         spec.batch * row * static_cast<std::uint64_t>(spec.layers) * 20 *
             static_cast<std::uint64_t>(spec.d_model) * 4;
}

SweepEstimate estimate(const SweepPlan& plan) {
  if (plan.train_lm) return estimate_train_lm(*plan.train_lm);
  SweepEstimate result;
  result.trials = plan.trials.size();
  result.baselines = plan.baselines.size();
  result.seconds = kStartSeconds;

  struct PerStream {
    std::uint64_t training_bytes = 0, largest = 0, spliced_bytes = 0;
    double passes = 0;
  };
  std::map<std::string, PerStream> streams;
  const auto train = [&](const TrainingSpec& spec, const PlannedStream& stream) {
    const std::uint64_t bytes = estimated_training_memory(spec, stream.d_in);
    PerStream& per = streams[stream.spec.label()];
    per.training_bytes += bytes;
    per.largest = std::max(per.largest, bytes);
    per.spliced_bytes = std::max(per.spliced_bytes, estimated_splice_memory(spec, stream));
    if (spec.device == "cuda")
      result.gpu_memory_bytes =
          std::max(result.gpu_memory_bytes, estimated_gpu_memory(spec, stream.d_in));
    per.passes = std::max(
        per.passes, static_cast<double>(spec.tokens) / static_cast<double>(stream.spec.tokens));
    result.tokens += spec.steps() * spec.batch;
    result.seconds += training_seconds(spec, stream.d_in);
    result.seconds += splice_seconds(spec, stream);
    // A checkpoint holds weights and moments; the dictionary and its curve and scores are kept.
    result.disk_bytes += parameters(spec, stream.d_in) * 4 * (3 + 1) + 200 * spec.d_sae;
  };
  const auto stream_named = [&plan](const std::string& label) {
    return std::find_if(plan.streams.begin(), plan.streams.end(),
                        [&](const PlannedStream& each) { return each.spec.label() == label; });
  };
  for (const PlannedTrial& trial : plan.trials)
    train(trial.spec.training, *stream_named(trial.spec.stream.label()));
  for (const PlannedBaseline& baseline : plan.baselines)
    if (baseline.spec.name == "random_model")
      train(*baseline.spec.training, *stream_named(baseline.spec.hook));

  // Streams of a family whose chunks are all kept cost the deepest forward pass of them.
  struct Family {
    std::uint64_t bytes = 0;
    double together = 0, apart = 0;  // seconds
  };
  std::map<std::string, Family> families;
  std::uint64_t cached = 0;
  const std::uint64_t slots = plan.resources.slots;
  for (const PlannedStream& stream : plan.streams) {
    const PerStream& per = streams[stream.spec.label()];
    const std::uint64_t bytes = stream_bytes(stream);
    cached += bytes;
    const double harvested = bytes <= plan.cache_bytes ? std::min(1.0, per.passes) : per.passes;
    const double seconds =
        model_seconds(stream.model_parameters, harvested * static_cast<double>(stream.spec.tokens));
    Family& family = families[stream.spec.family()];
    family.bytes += bytes;
    family.together = std::max(family.together, seconds);
    family.apart += seconds;
    // All trials of a stream train together if memory allows, else in turns.
    const std::uint64_t idle =
        slots * (kExecutorBytes + 2 * 4 * stream.model_parameters +  // as loaded and as packed
                 std::max(group_bytes(stream), per.spliced_bytes));
    const std::uint64_t together = idle + per.training_bytes;
    const std::uint64_t least = idle + slots * per.largest;
    result.memory_bytes = std::max(
        result.memory_bytes, std::min(together, std::max(least, plan.resources.memory_bytes)));
  }
  for (const auto& [name, family] : families)
    result.seconds += family.bytes <= plan.cache_bytes ? family.together : family.apart;
  result.disk_bytes += std::min(cached, plan.cache_bytes);

  // Scores: clean, replaced and ablated passes of the model and one of the dictionary.
  for (const EvaluationSpec& evaluation : plan.evaluations)
    for (const PlannedTrial& trial : plan.trials) {
      const PlannedStream& stream = *stream_named(trial.spec.stream.label());
      const double tokens = evaluation.kind == "core"
                                ? 2 * static_cast<double>(evaluation.tokens)
                                : static_cast<double>(evaluation.games * stream.rows_per_document);
      const double dictionary =
          4 * static_cast<double>(stream.d_in) * static_cast<double>(trial.spec.training.d_sae);
      result.seconds +=
          4 * model_seconds(stream.model_parameters, tokens) + tokens * dictionary / kFlopsFloat32;
    }
  return result;
}

std::vector<std::string> warnings_of(const SweepPlan& plan) {
  constexpr double kManyPasses = 50;
  constexpr std::uint64_t kFewGames = 200;
  std::vector<std::string> warnings;
  if (plan.train_lm) return warnings;
  double passes = 0;
  std::uint64_t largest = 0;
  for (const PlannedTrial& trial : plan.trials) {
    passes = std::max(passes, static_cast<double>(trial.spec.training.tokens) /
                                  static_cast<double>(trial.spec.stream.tokens));
    for (const PlannedStream& stream : plan.streams)
      if (stream.spec == trial.spec.stream)
        largest =
            std::max(largest, kExecutorBytes + held_beside(trial.spec.training, stream) +
                                  estimated_training_memory(trial.spec.training, stream.d_in));
  }
  if (passes > kManyPasses)
    warnings.push_back(
        fmt::format("train.tokens: a trial passes {:.0f} times over the same "
                    "activations; more activations.tokens would teach it more",
                    passes));
  std::uint64_t cached = 0;
  for (const PlannedStream& stream : plan.streams) cached += stream_bytes(stream);
  if (cached > plan.cache_bytes && plan.cache_bytes > 0)
    warnings.push_back(
        fmt::format("activations.cache: {} hold less than the {} of activations; what "
                    "does not fit is computed anew each pass",
                    gibibytes(plan.cache_bytes), gibibytes(cached)));
  std::map<std::string, std::set<std::string>> families;  // hooks
  for (const PlannedStream& stream : plan.streams)
    families[stream.spec.family()].insert(stream.spec.label());
  for (const auto& [family, hooks] : families)
    if (!family.empty() && hooks.size() > 1 && plan.cache_bytes == 0)
      warnings.push_back(
          fmt::format("activations.cache: without one each of the {} hooks is harvested in forward "
                      "passes of its own; one of {} or more would hold what one pass yields of all",
                      hooks.size(), gibibytes(cached)));
  if (largest > plan.resources.memory_bytes)
    warnings.push_back(
        fmt::format("resources.memory: {} are less than the {} or so that the largest "
                    "trial needs alone",
                    gibibytes(plan.resources.memory_bytes), gibibytes(largest)));
  bool has_board = false;
  for (const EvaluationSpec& evaluation : plan.evaluations) {
    if (evaluation.kind != "board") continue;
    has_board = true;
    if (evaluation.games < kFewGames)
      warnings.push_back(
          fmt::format("evaluate.board: {} games are few; board states that occur in "
                      "none of them have no score, 2000 would be usual",
                      evaluation.games));
  }
  if (!has_board)
    for (const PlannedBaseline& baseline : plan.baselines)
      if (const std::string& name = baseline.spec.name;
          name == "neurons" || name == "linear_probe" || name == "always_on" ||
          name == "placement") {
        warnings.push_back(
            fmt::format("baselines: {} has board scores only, and evaluate has no "
                        "board: its row will be empty",
                        name));
        break;
      }
  for (const PlannedStream& stream : plan.streams)
    if (stream.spec.holdout == 0) {
      warnings.push_back("activations.holdout: 0 scores dictionaries on what they trained on");
      break;
    }
  return warnings;
}

}  // namespace saesweep::sweeps
