// What one trial, baseline or evaluation is, fully resolved: no default left to fill in, no path
// left relative. These values travel to the workers as JSON, and their digests are identities.
//
// to_json()/from_json() carry everything. identity_json() leaves out what does not change a byte of
// the result (names, paths): files are named there by the SHA-256 of their content.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/digest.h"
#include "core/dtype.h"
#include "core/json.h"
#include "core/result.h"

namespace saesweep::sweeps {

// Rises whenever the bytes of any result change; part of every identity. The constants below belong
// to it.
inline constexpr int kNumericsVersion = 4;
// Upper bound of an activation chunk: documents of a chunk are the largest power of two whose
// longest fit. RocksDB keeps .7 of a raw file's speed at this size and half at 8 MiB.
inline constexpr std::uint64_t kChunkBytes = std::uint64_t{1} << 20;
// For `source: activations`, this many consecutive rows are one document.
inline constexpr std::uint64_t kRowsPerActivationDocument = 1024;

// Documents that go through a model at once, padded to its context.
inline constexpr std::int64_t kDocumentsPerForward = 16;

// Rows that learning curves are scored on while training, the first of the held-out documents.
inline constexpr std::uint64_t kHeldOutRows = 2048;

enum class Architecture : std::uint8_t {
  kStandard,
  kStandardBricken,
  kTopK,
  kBatchTopK,
  kPAnneal,
  kGated,
  kJumpRelu,
  kMatryoshka,
  kGatedPAnneal,
  kTranscoder,
  kSkipTranscoder,
  kCrosscoder,
  kEndToEnd,
  kBatchTopKCrosscoder,
  kJumpReluTranscoder,
};
// Reads one hook and predicts another.
constexpr bool is_transcoder(Architecture value) {
  return value == Architecture::kTranscoder || value == Architecture::kSkipTranscoder ||
         value == Architecture::kJumpReluTranscoder;
}
// Reads and reconstructs several hooks.
constexpr bool is_crosscoder(Architecture value) {
  return value == Architecture::kCrosscoder || value == Architecture::kBatchTopKCrosscoder;
}
// Has thresholds that it learns.
constexpr bool is_jumprelu(Architecture value) {
  return value == Architecture::kJumpRelu || value == Architecture::kJumpReluTranscoder;
}
// Is trained on the rows of several hooks at once.
constexpr bool is_joint(Architecture value) { return is_transcoder(value) || is_crosscoder(value); }
// Is trained on what the model says after its activations: on whole documents, not on rows.
constexpr bool is_end_to_end(Architecture value) { return value == Architecture::kEndToEnd; }
// Can be trained with `device: cuda`.
constexpr bool trains_on_gpu(Architecture value) { return !is_end_to_end(value); }
enum class Normalize : std::uint8_t { kNone, kUnitMeanSquare, kSqrtD };
enum class Shuffle : std::uint8_t { kFull, kWindow, kNone };
enum class Precision : std::uint8_t { kFloat32, kBFloat16 };
// After the warm-up, from decay_start on: in a line to 0 | along half a cosine to a tenth.
enum class LrSchedule : std::uint8_t { kLinear, kCosine };
enum class SparsityFunction : std::uint8_t { kLp, kLpP };  // (sum f^p)^(1/p) | sum f^p
// Penalty of jumprelu: c * L0 | c * (L0 / target - 1)^2 | c * sum tanh(scale * f |W_dec|).
enum class SparsityLoss : std::uint8_t { kL0, kL0Target, kTanh };

// As the sweep file spells them: "standard", "standard_bricken", "topk", "batchtopk", "p_anneal",
// "gated", "jumprelu", "matryoshka", "gated_p_anneal", "transcoder", "skip_transcoder",
// "crosscoder", "end_to_end", "batchtopk_crosscoder", "jumprelu_transcoder"; "none",
// "unit_mean_square", "sqrt_d"; "full", "window", "none";
// "fp32", "bf16"; "linear", "cosine"; "lp", "lp_p"; "l0", "l0_target", "tanh".
std::string_view to_string(Architecture value);
std::string_view to_string(Normalize value);
std::string_view to_string(Shuffle value);
std::string_view to_string(Precision value);
std::string_view to_string(LrSchedule value);
std::string_view to_string(SparsityFunction value);
std::string_view to_string(SparsityLoss value);
std::optional<Architecture> parse_architecture(std::string_view text);
std::optional<LrSchedule> parse_lr_schedule(std::string_view text);
std::optional<SparsityLoss> parse_sparsity_loss(std::string_view text);

struct ModelSpec {
  std::string name;  // last part of the folder's path, for people
  std::string path;  // absolute folder: config.json + model.safetensors
  bool random_weights = false;
  std::uint64_t seed = 0;  // of random weights
  std::string digest;      // SHA-256 hex over config and weights (shape and seed if random)
  Precision precision = Precision::kFloat32;  // of the products of its blocks
  // What its activations depend on: the digest, and the precision if it is not fp32.
  std::string identity() const;
  bool operator==(const ModelSpec&) const = default;
};

struct DataSpec {
  std::string source;  // "othello" | "activations"
  // othello
  int board = 8;
  std::string play = "uniform";
  std::uint64_t games = 0;
  std::uint64_t seed = 0;
  // activations
  std::string path;  // absolute: a safetensors file or a folder of them
  std::string tensor;
  std::string digest;  // SHA-256 hex over the files' content, in name order
  bool operator==(const DataSpec&) const = default;
};

// Rows that a stream leaves out. They are dropped when they are harvested: what counts, scales or
// stores rows never sees them.
struct RowFilters {
  bool remove_bos = false;  // those of the first token of each document
  std::vector<std::uint64_t> exclude_special_tokens = {};  // those of these tokens; ascending
  // Those whose norm is more than this many times the median norm of their chunk, at any hook; 0:
  // none.
  double max_activation_norm_multiple = 0;
  bool operator==(const RowFilters&) const = default;

  bool by_token() const { return remove_bos || !exclude_special_tokens.empty(); }
  bool by_norm() const { return max_activation_norm_multiple > 0; }
  bool any() const { return by_token() || by_norm(); }
  Json to_json() const;
};

// Everything that determines the rows of one activation stream and their order.
struct StreamSpec {
  std::optional<ModelSpec> model;  // none for `source: activations`
  DataSpec data;
  std::string hook;  // TransformerLens name; empty for `source: activations`
  // Further hooks of a joint stream: a row holds the values of all of them, in this order.
  std::vector<std::string> joined = {};
  std::uint64_t tokens = 0;  // rows of one pass
  DType dtype = DType::kBFloat16;
  Normalize normalize = Normalize::kNone;
  Shuffle shuffle = Shuffle::kFull;
  std::uint64_t shuffle_rows = 0;  // rows permuted together; 0: the default rule
  double holdout = 0;              // share of documents kept for evaluation
  std::uint64_t seed = 0;          // order
  RowFilters filters = {};
  bool operator==(const StreamSpec&) const = default;

  std::vector<std::string> hooks() const;  // all of them
  std::string label() const;               // "a+b"; of a single hook its name
  // How config.json names them: "hook", of transcoders "hook_out" too, of a crosscoder "hooks".
  Json hooks_json(Architecture architecture) const;

  Json to_json() const;
  Json identity_json() const;
  // The key of its chunks in the cache: the identity without what only orders or scales rows after
  // they are stored (tokens, normalize, shuffle_rows).
  Json cache_json() const;
  std::string cache_name() const;  // its digest, 64 hex digits
  // The same of what its rows are computed from, whichever hooks they are of: one forward pass of
  // the model yields rows of all streams of a family. Empty without a model.
  std::string family() const;
  static Result<StreamSpec> from_json(const Json& json);
};

// All step counts are absolute here.
struct TrainingSpec {
  Architecture architecture = Architecture::kTopK;
  std::string recipe;  // "saebench-v1"
  std::uint64_t d_sae = 0;
  std::optional<std::uint64_t> k;  // topk family, transcoders
  std::optional<double> l1;  // L1 coefficient: standard and gated families, crosscoder, end_to_end
  std::uint64_t tokens = 0;  // budget
  std::uint64_t batch = 0;   // rows a step
  double lr = 0;
  double adam_beta1 = 0.9, adam_beta2 = 0.999, adam_epsilon = 1e-8;
  std::uint64_t warmup_steps = 0;
  std::uint64_t decay_start = 0;  // step; equal to steps(): no decay
  LrSchedule lr_schedule = LrSchedule::kLinear;
  std::uint64_t sparsity_warmup_steps = 0;
  std::optional<double> grad_clip;  // global norm
  // topk family, transcoders (without a threshold)
  std::uint64_t aux_k = 0;  // 0: d_in / 2, the recipe's rule; of transcoders d_out / 2
  double aux_k_weight = 0;
  std::uint64_t dead_after_tokens = 0;
  double threshold_beta = 0;
  std::uint64_t threshold_start_step = 0;
  // p_anneal, gated_p_anneal
  double p_start = 1, p_end = 0.2;
  std::uint64_t anneal_start = 0, anneal_end = 0, n_sparsity_updates = 0;
  SparsityFunction sparsity_function = SparsityFunction::kLpP;
  // jumprelu
  SparsityLoss sparsity_loss = SparsityLoss::kL0Target;
  std::optional<double> l0_target;       // of kL0Target; beside l1: what it is steered to
  std::optional<double> l0_coefficient;  // of the penalty
  double bandwidth = 0;                  // width of the window that gives thresholds a gradient
  double init_threshold = 0;             // of every latent
  double tanh_scale = 0;                 // of kTanh, as the next
  double pre_act_weight = 0;             // of what thresholds exceed pre-activations by
  // matryoshka
  std::vector<double> group_fractions;  // of d_sae, innermost first; the last takes the rest
  // end_to_end: coefficients of the squared error of the residual streams after later blocks, in
  // all, and of the reconstruction itself
  double in_to_orig = 0, out_to_in = 0;

  std::uint64_t seed = 0;  // initialisation
  Precision precision = Precision::kFloat32;
  bool deterministic = true;
  std::string device = "cpu";  // "cpu" | "cuda"
  std::string init_path;       // absolute; empty: the recipe's initialisation
  std::string init_digest;
  // Tokens between looks at held-out rows, which change nothing that is trained and so are in no
  // identity; 0: none.
  std::uint64_t eval_every = 0;
  bool operator==(const TrainingSpec&) const = default;

  std::uint64_t steps() const { return batch == 0 ? 0 : tokens / batch; }
  // Latents of each group of a matryoshka; they sum to d_sae.
  std::vector<std::uint64_t> group_sizes() const;
  Json to_json() const;
  Json identity_json() const;
  static Result<TrainingSpec> from_json(const Json& json);
};

struct TrialSpec {
  StreamSpec stream;
  TrainingSpec training;
  bool operator==(const TrialSpec&) const = default;

  Sha256 identity() const;
  Json to_json() const;
  static Result<TrialSpec> from_json(const Json& json);
};

// One entry of `evaluate`.
struct EvaluationSpec {
  std::string kind;          // "core" | "board"
  std::uint64_t tokens = 0;  // core: of each of its two passes, rounded up to whole documents
  std::uint64_t games = 0;   // board: half for labels and thresholds, half for scores
  bool operator==(const EvaluationSpec&) const = default;

  Json to_json() const;
  static Result<EvaluationSpec> from_json(const Json& json);
};

// One row of `baselines` on one stream.
struct BaselineSpec {
  std::string name;   // identity | pca | random_sae | neurons | linear_probe | always_on |
                      // placement | random_model
  std::string hook;   // of the sweep, whose row and folder it is; empty as stream.hook is
  StreamSpec stream;  // random_model: with random weights; neurons: of that block's neurons
  std::optional<TrainingSpec> training;  // random_model: the SAE to train; random_sae: its shape
  bool operator==(const BaselineSpec&) const = default;

  // Folder under baselines/<hook>/: the name, with "-<d_sae>" for random_sae.
  std::string folder() const;
  Sha256 identity() const;
  Json to_json() const;
  static Result<BaselineSpec> from_json(const Json& json);
};

// Identity of a score: what was scored (a trial's or baseline's identity), how, and the version of
// the metrics.
Sha256 score_identity(const Sha256& subject, const EvaluationSpec& evaluation, int metric_version);

// A `train_lm` job: a decoder-only transformer trained from scratch.
struct TrainLmSpec {
  DataSpec data;
  int layers = 4, d_model = 128, heads = 4, d_mlp = 512, context = 31;
  std::string activation = "gelu";  // gelu (erf) | gelu_new (tanh) | relu
  bool tied = false, bias = true;
  std::uint64_t games = 0;  // games seen, repeats counted
  std::uint64_t batch = 0;  // games a step
  double lr = 0;
  std::uint64_t warmup_steps = 0;
  double final_lr_fraction = 0.1;  // where the cosine ends, in units of lr
  double weight_decay = 0.1, grad_clip = 1.0;
  // adamw, or muon: the matrices inside the blocks move along the orthogonalised momentum, all else
  // by AdamW.
  std::string optimizer = "adamw";
  // sampled: the move that was played. exact: all moves that could have been, each with its
  // probability under `data.play`: the same expected gradient without the noise of one draw.
  std::string targets = "sampled";
  // bf16: matrix products of training take their inputs in bf16 and add in fp32.
  Precision precision = Precision::kFloat32;
  double init_scale = 1;  // of the initial weights' deviation, in units of GPT-2's
  std::uint64_t seed = 0;
  double holdout = 0.05;
  bool operator==(const TrainLmSpec&) const = default;

  std::uint64_t steps() const { return batch == 0 ? 0 : games / batch; }
  Sha256 identity() const;
  Json to_json() const;
  static Result<TrainLmSpec> from_json(const Json& json);
};

}  // namespace saesweep::sweeps
