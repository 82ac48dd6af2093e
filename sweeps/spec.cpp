#include "sweeps/spec.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <span>

#include "sweeps/json_fields.h"
#include "sweeps/recipes.h"

namespace saesweep::sweeps {
namespace {

template <class Enum>
struct Word {
  Enum value;
  std::string_view text;
};
template <class Enum>
Word(Enum, std::string_view) -> Word<Enum>;  // clang 14 deduces no aggregates
constexpr std::array kArchitectureWords{
    Word{Architecture::kStandard, "standard"},
    Word{Architecture::kStandardBricken, "standard_bricken"},
    Word{Architecture::kTopK, "topk"},
    Word{Architecture::kBatchTopK, "batchtopk"},
    Word{Architecture::kPAnneal, "p_anneal"},
    Word{Architecture::kGated, "gated"},
    Word{Architecture::kJumpRelu, "jumprelu"},
    Word{Architecture::kMatryoshka, "matryoshka"},
    Word{Architecture::kGatedPAnneal, "gated_p_anneal"},
    Word{Architecture::kTranscoder, "transcoder"},
    Word{Architecture::kSkipTranscoder, "skip_transcoder"},
    Word{Architecture::kCrosscoder, "crosscoder"},
    Word{Architecture::kEndToEnd, "end_to_end"},
    Word{Architecture::kBatchTopKCrosscoder, "batchtopk_crosscoder"},
    Word{Architecture::kJumpReluTranscoder, "jumprelu_transcoder"}};
constexpr std::array kNormalizeWords{Word{Normalize::kNone, "none"},
                                     Word{Normalize::kUnitMeanSquare, "unit_mean_square"},
                                     Word{Normalize::kSqrtD, "sqrt_d"}};
constexpr std::array kShuffleWords{Word{Shuffle::kFull, "full"}, Word{Shuffle::kWindow, "window"},
                                   Word{Shuffle::kNone, "none"}};
constexpr std::array kPrecisionWords{Word{Precision::kFloat32, "fp32"},
                                     Word{Precision::kBFloat16, "bf16"}};
constexpr std::array kLrScheduleWords{Word{LrSchedule::kLinear, "linear"},
                                      Word{LrSchedule::kCosine, "cosine"}};
constexpr std::array kSparsityWords{Word{SparsityFunction::kLp, "lp"},
                                    Word{SparsityFunction::kLpP, "lp_p"}};
constexpr std::array kSparsityLossWords{Word{SparsityLoss::kL0, "l0"},
                                        Word{SparsityLoss::kL0Target, "l0_target"},
                                        Word{SparsityLoss::kTanh, "tanh"}};
constexpr std::array kDTypeWords{Word{DType::kFloat32, "fp32"}, Word{DType::kBFloat16, "bf16"}};

template <class Enum, std::size_t n>
std::string_view word_of(const std::array<Word<Enum>, n>& words, Enum value) {
  for (const auto& word : words)
    if (word.value == value) return word.text;
  return "?";
}

template <class Enum, std::size_t n>
void read_word(JsonFields& fields, const char* name, const std::array<Word<Enum>, n>& words,
               Enum& out) {
  std::string text;
  fields.read(name, text);
  for (const auto& word : words)
    if (word.text == text) {
      out = word.value;
      return;
    }
  fields.refuse(name, text);
}

Json model_json(const ModelSpec& model) {
  return {
      {"name", model.name}, {"path", model.path},     {"random_weights", model.random_weights},
      {"seed", model.seed}, {"digest", model.digest}, {"precision", to_string(model.precision)}};
}

Json data_json(const DataSpec& data) {
  if (data.source == "activations")
    return {{"source", data.source},
            {"path", data.path},
            {"tensor", data.tensor},
            {"digest", data.digest}};
  return {{"source", data.source},
          {"board", data.board},
          {"play", data.play},
          {"games", data.games},
          {"seed", data.seed}};
}

Json data_identity(const DataSpec& data) {
  Json json = data_json(data);
  json.erase("path");
  return json;
}

Result<DataSpec> data_from(const Json& json) {
  DataSpec data;
  JsonFields fields("data", json);
  fields.read("source", data.source);
  if (data.source == "activations") {
    fields.read("path", data.path);
    fields.read("tensor", data.tensor);
    fields.read("digest", data.digest);
  } else {
    fields.read("board", data.board);
    fields.read("play", data.play);
    fields.read("games", data.games);
    fields.read("seed", data.seed);
  }
  SAE_TRY_VOID(fields.finish());
  return data;
}

// What a baseline's identity takes from its training spec: for the random dictionary its shape.
Json baseline_parameters(const BaselineSpec& spec) {
  if (!spec.training) return nullptr;
  if (spec.name != "random_sae") return spec.training->identity_json();
  Json json{{"d_sae", spec.training->d_sae}, {"seed", spec.training->seed}};
  if (spec.training->k) json["k"] = *spec.training->k;
  return json;
}

Sha256 digest_of(const Json& json) { return sha256(canonical_json(json)); }

}  // namespace

std::string_view to_string(Architecture value) { return word_of(kArchitectureWords, value); }
std::string_view to_string(Normalize value) { return word_of(kNormalizeWords, value); }
std::string_view to_string(Shuffle value) { return word_of(kShuffleWords, value); }
std::string_view to_string(Precision value) { return word_of(kPrecisionWords, value); }
std::string_view to_string(LrSchedule value) { return word_of(kLrScheduleWords, value); }
std::string_view to_string(SparsityFunction value) { return word_of(kSparsityWords, value); }
std::string_view to_string(SparsityLoss value) { return word_of(kSparsityLossWords, value); }

std::optional<Architecture> parse_architecture(std::string_view text) {
  for (const auto& word : kArchitectureWords)
    if (word.text == text) return word.value;
  return std::nullopt;
}

std::optional<LrSchedule> parse_lr_schedule(std::string_view text) {
  for (const auto& word : kLrScheduleWords)
    if (word.text == text) return word.value;
  return std::nullopt;
}

std::optional<SparsityLoss> parse_sparsity_loss(std::string_view text) {
  for (const auto& word : kSparsityLossWords)
    if (word.text == text) return word.value;
  return std::nullopt;
}

// ---- streams ------------------------------------------------------------------------------------

Json RowFilters::to_json() const {
  return {{"remove_bos", remove_bos},
          {"exclude_special_tokens", exclude_special_tokens},
          {"max_activation_norm_multiple", max_activation_norm_multiple}};
}

std::vector<std::string> StreamSpec::hooks() const {
  std::vector<std::string> all{hook};
  all.insert(all.end(), joined.begin(), joined.end());
  return all;
}

std::string ModelSpec::identity() const {
  return precision == Precision::kFloat32 ? digest
                                          : fmt::format("{} {}", digest, to_string(precision));
}

std::string StreamSpec::label() const { return fmt::format("{}", fmt::join(hooks(), "+")); }

Json StreamSpec::hooks_json(Architecture architecture) const {
  if (is_crosscoder(architecture)) return {{"hooks", hooks()}};
  Json json{{"hook", hook}};
  if (is_transcoder(architecture) && !joined.empty()) json["hook_out"] = joined.front();
  return json;
}

Json StreamSpec::to_json() const {
  Json json{{"data", data_json(data)},
            {"hook", hook},
            {"tokens", tokens},
            {"dtype", saesweep::to_string(dtype)},
            {"normalize", sweeps::to_string(normalize)},
            {"shuffle", sweeps::to_string(shuffle)},
            {"shuffle_rows", shuffle_rows},
            {"holdout", holdout},
            {"seed", seed}};
  if (model) json["model"] = model_json(*model);
  if (!joined.empty()) json["joined"] = joined;
  if (filters.any()) json["filters"] = filters.to_json();
  return json;
}

Json StreamSpec::identity_json() const {
  Json json = to_json();
  json["numerics"] = kNumericsVersion;
  json["data"] = data_identity(data);
  if (model) json["model"] = model->identity();
  return json;
}

Json StreamSpec::cache_json() const {
  Json json = identity_json();
  for (const char* later : {"tokens", "normalize", "shuffle_rows"}) json.erase(later);
  return json;
}

std::string StreamSpec::cache_name() const { return digest_of(cache_json()).hex(); }

std::string StreamSpec::family() const {
  if (!model) return {};
  Json json = cache_json();
  for (const char* own : {"hook", "joined"}) json.erase(own);
  return digest_of(json).hex();
}

Result<StreamSpec> StreamSpec::from_json(const Json& json) {
  StreamSpec stream;
  JsonFields fields("stream", json);
  if (const Json* model = fields.optional("model")) {
    stream.model.emplace();
    JsonFields inner("model", *model);
    inner.read("name", stream.model->name);
    inner.read("path", stream.model->path);
    inner.read("random_weights", stream.model->random_weights);
    inner.read("seed", stream.model->seed);
    inner.read("digest", stream.model->digest);
    read_word(inner, "precision", kPrecisionWords, stream.model->precision);
    SAE_TRY_VOID(inner.finish());
  }
  if (const Json* data = fields.object("data")) {
    SAE_TRY(stream.data, data_from(*data));
  }
  fields.read("hook", stream.hook);
  if (fields.optional("joined") != nullptr) fields.read("joined", stream.joined);
  fields.read("tokens", stream.tokens);
  read_word(fields, "dtype", kDTypeWords, stream.dtype);
  read_word(fields, "normalize", kNormalizeWords, stream.normalize);
  read_word(fields, "shuffle", kShuffleWords, stream.shuffle);
  fields.read("shuffle_rows", stream.shuffle_rows);
  fields.read("holdout", stream.holdout);
  fields.read("seed", stream.seed);
  if (const Json* filters = fields.optional("filters")) {
    JsonFields inner("filters", *filters);
    inner.read("remove_bos", stream.filters.remove_bos);
    inner.read("exclude_special_tokens", stream.filters.exclude_special_tokens);
    inner.read("max_activation_norm_multiple", stream.filters.max_activation_norm_multiple);
    SAE_TRY_VOID(inner.finish());
  }
  SAE_TRY_VOID(fields.finish());
  return stream;
}

// ---- training -----------------------------------------------------------------------------------

std::vector<std::uint64_t> TrainingSpec::group_sizes() const {
  std::vector<std::uint64_t> sizes;
  std::uint64_t rest = d_sae;
  for (std::size_t i = 0; i + 1 < group_fractions.size(); ++i) {
    const auto size = static_cast<std::uint64_t>(group_fractions[i] * static_cast<double>(d_sae));
    sizes.push_back(std::min(size, rest));
    rest -= sizes.back();
  }
  if (!group_fractions.empty()) sizes.push_back(rest);
  return sizes;
}

Json TrainingSpec::to_json() const {
  Json json{{"architecture", sweeps::to_string(architecture)},
            {"recipe", recipe},
            {"d_sae", d_sae},
            {"tokens", tokens},
            {"batch", batch},
            {"lr", lr},
            {"adam_betas", {adam_beta1, adam_beta2}},
            {"adam_epsilon", adam_epsilon},
            {"warmup_steps", warmup_steps},
            {"decay_start", decay_start},
            {"sparsity_warmup_steps", sparsity_warmup_steps},
            {"aux_k", aux_k},
            {"aux_k_weight", aux_k_weight},
            {"dead_after_tokens", dead_after_tokens},
            {"threshold_beta", threshold_beta},
            {"threshold_start_step", threshold_start_step},
            {"p_start", p_start},
            {"p_end", p_end},
            {"anneal_start", anneal_start},
            {"anneal_end", anneal_end},
            {"n_sparsity_updates", n_sparsity_updates},
            {"sparsity_function", sweeps::to_string(sparsity_function)},
            {"seed", seed},
            {"precision", sweeps::to_string(precision)},
            {"deterministic", deterministic},
            {"device", device},
            {"init_path", init_path},
            {"init_digest", init_digest}};
  if (eval_every > 0) json["eval_every"] = eval_every;
  if (k) json["k"] = *k;
  if (l1) json["l1"] = *l1;
  if (grad_clip) json["grad_clip"] = *grad_clip;
  // An architecture's own parameters are in the identity of its own trials alone.
  if (is_jumprelu(architecture)) {
    json["sparsity_loss"] = sweeps::to_string(sparsity_loss);
    if (l0_target) json["l0_target"] = *l0_target;
    if (l0_coefficient) json["l0_coefficient"] = *l0_coefficient;
    json["bandwidth"] = bandwidth;
    json["init_threshold"] = init_threshold;
    if (sparsity_loss == SparsityLoss::kTanh) {
      json["tanh_scale"] = tanh_scale;
      json["pre_act_weight"] = pre_act_weight;
    }
  } else if (l0_target) {
    json["l0_target"] = *l0_target;
  }
  if (architecture == Architecture::kMatryoshka) json["group_fractions"] = group_fractions;
  if (is_end_to_end(architecture)) {
    json["in_to_orig"] = in_to_orig;
    json["out_to_in"] = out_to_in;
  }
  // Identities of trials without it are those they had before there was a choice.
  if (lr_schedule != LrSchedule::kLinear) json["lr_schedule"] = sweeps::to_string(lr_schedule);
  return json;
}

Json TrainingSpec::identity_json() const {
  Json json = to_json();
  json.erase("init_path");
  json.erase("eval_every");
  json["recipe_hash"] = recipe_hash(recipe, architecture);
  return json;
}

Result<TrainingSpec> TrainingSpec::from_json(const Json& json) {
  TrainingSpec spec;
  JsonFields fields("training", json);
  read_word(fields, "architecture", kArchitectureWords, spec.architecture);
  fields.read("recipe", spec.recipe);
  fields.read("d_sae", spec.d_sae);
  fields.read_optional("k", spec.k);
  fields.read_optional("l1", spec.l1);
  fields.read("tokens", spec.tokens);
  fields.read("batch", spec.batch);
  fields.read("lr", spec.lr);
  std::array<double, 2> betas{};
  fields.read("adam_betas", betas);
  spec.adam_beta1 = betas[0];
  spec.adam_beta2 = betas[1];
  fields.read("adam_epsilon", spec.adam_epsilon);
  fields.read("warmup_steps", spec.warmup_steps);
  fields.read("decay_start", spec.decay_start);
  fields.read("sparsity_warmup_steps", spec.sparsity_warmup_steps);
  fields.read_optional("grad_clip", spec.grad_clip);
  fields.read("aux_k", spec.aux_k);
  fields.read("aux_k_weight", spec.aux_k_weight);
  fields.read("dead_after_tokens", spec.dead_after_tokens);
  fields.read("threshold_beta", spec.threshold_beta);
  fields.read("threshold_start_step", spec.threshold_start_step);
  fields.read("p_start", spec.p_start);
  fields.read("p_end", spec.p_end);
  fields.read("anneal_start", spec.anneal_start);
  fields.read("anneal_end", spec.anneal_end);
  fields.read("n_sparsity_updates", spec.n_sparsity_updates);
  read_word(fields, "sparsity_function", kSparsityWords, spec.sparsity_function);
  if (is_jumprelu(spec.architecture)) {
    read_word(fields, "sparsity_loss", kSparsityLossWords, spec.sparsity_loss);
    fields.read_optional("l0_target", spec.l0_target);
    fields.read_optional("l0_coefficient", spec.l0_coefficient);
    fields.read("bandwidth", spec.bandwidth);
    fields.read("init_threshold", spec.init_threshold);
    if (spec.sparsity_loss == SparsityLoss::kTanh) {
      fields.read("tanh_scale", spec.tanh_scale);
      fields.read("pre_act_weight", spec.pre_act_weight);
    }
  } else {
    fields.read_optional("l0_target", spec.l0_target);
  }
  if (spec.architecture == Architecture::kMatryoshka)
    fields.read("group_fractions", spec.group_fractions);
  if (is_end_to_end(spec.architecture)) {
    fields.read("in_to_orig", spec.in_to_orig);
    fields.read("out_to_in", spec.out_to_in);
  }
  if (fields.optional("lr_schedule") != nullptr)
    read_word(fields, "lr_schedule", kLrScheduleWords, spec.lr_schedule);
  fields.read("seed", spec.seed);
  read_word(fields, "precision", kPrecisionWords, spec.precision);
  fields.read("deterministic", spec.deterministic);
  fields.read("device", spec.device);
  fields.read("init_path", spec.init_path);
  fields.read("init_digest", spec.init_digest);
  if (fields.optional("eval_every") != nullptr) fields.read("eval_every", spec.eval_every);
  SAE_TRY_VOID(fields.finish());
  return spec;
}

// ---- trials, evaluations, baselines -------------------------------------------------------------

Sha256 TrialSpec::identity() const {
  return digest_of({{"kind", "trial"},
                    {"numerics", kNumericsVersion},
                    {"stream", stream.identity_json()},
                    {"training", training.identity_json()}});
}

Json TrialSpec::to_json() const {
  return {{"stream", stream.to_json()}, {"training", training.to_json()}};
}

Result<TrialSpec> TrialSpec::from_json(const Json& json) {
  TrialSpec spec;
  JsonFields fields("trial", json);
  if (const Json* stream = fields.object("stream")) {
    SAE_TRY(spec.stream, StreamSpec::from_json(*stream));
  }
  if (const Json* training = fields.object("training")) {
    SAE_TRY(spec.training, TrainingSpec::from_json(*training));
  }
  SAE_TRY_VOID(fields.finish());
  return spec;
}

Json EvaluationSpec::to_json() const {
  if (kind == "board") return {{"kind", kind}, {"games", games}};
  return {{"kind", kind}, {"tokens", tokens}};
}

Result<EvaluationSpec> EvaluationSpec::from_json(const Json& json) {
  EvaluationSpec spec;
  JsonFields fields("evaluation", json);
  fields.read("kind", spec.kind);
  if (spec.kind == "core")
    fields.read("tokens", spec.tokens);
  else if (spec.kind == "board")
    fields.read("games", spec.games);
  else
    fields.refuse("kind", spec.kind);
  SAE_TRY_VOID(fields.finish());
  return spec;
}

std::string BaselineSpec::folder() const {
  if (name == "random_sae" && training) return fmt::format("{}-{}", name, training->d_sae);
  return name;
}

Sha256 BaselineSpec::identity() const {
  return digest_of({{"kind", "baseline"},
                    {"numerics", kNumericsVersion},
                    {"name", name},
                    {"hook", hook},
                    {"stream", stream.identity_json()},
                    {"parameters", baseline_parameters(*this)}});
}

Json BaselineSpec::to_json() const {
  Json json{{"name", name}, {"hook", hook}, {"stream", stream.to_json()}};
  if (training) json["training"] = training->to_json();
  return json;
}

Result<BaselineSpec> BaselineSpec::from_json(const Json& json) {
  BaselineSpec spec;
  JsonFields fields("baseline", json);
  fields.read("name", spec.name);
  fields.read("hook", spec.hook);
  if (const Json* stream = fields.object("stream")) {
    SAE_TRY(spec.stream, StreamSpec::from_json(*stream));
  }
  if (const Json* training = fields.optional("training")) {
    SAE_TRY(spec.training, TrainingSpec::from_json(*training));
  }
  SAE_TRY_VOID(fields.finish());
  return spec;
}

Sha256 score_identity(const Sha256& subject, const EvaluationSpec& evaluation, int metric_version) {
  return digest_of({{"kind", "score"},
                    {"subject", subject.hex()},
                    {"evaluation", evaluation.to_json()},
                    {"metric_version", metric_version}});
}

// ---- training a model ---------------------------------------------------------------------------

Json TrainLmSpec::to_json() const {
  return {{"data", data_json(data)},
          {"layers", layers},
          {"d_model", d_model},
          {"heads", heads},
          {"d_mlp", d_mlp},
          {"context", context},
          {"activation", activation},
          {"tied", tied},
          {"bias", bias},
          {"games", games},
          {"batch", batch},
          {"lr", lr},
          {"warmup_steps", warmup_steps},
          {"final_lr_fraction", final_lr_fraction},
          {"weight_decay", weight_decay},
          {"grad_clip", grad_clip},
          {"optimizer", optimizer},
          {"targets", targets},
          {"precision", to_string(precision)},
          {"init_scale", init_scale},
          {"seed", seed},
          {"holdout", holdout}};
}

Sha256 TrainLmSpec::identity() const {
  Json json = to_json();
  json["data"] = data_identity(data);
  return digest_of({{"kind", "train_lm"}, {"numerics", kNumericsVersion}, {"train_lm", json}});
}

Result<TrainLmSpec> TrainLmSpec::from_json(const Json& json) {
  TrainLmSpec spec;
  JsonFields fields("train_lm", json);
  if (const Json* data = fields.object("data")) {
    SAE_TRY(spec.data, data_from(*data));
  }
  fields.read("layers", spec.layers);
  fields.read("d_model", spec.d_model);
  fields.read("heads", spec.heads);
  fields.read("d_mlp", spec.d_mlp);
  fields.read("context", spec.context);
  fields.read("activation", spec.activation);
  fields.read("tied", spec.tied);
  fields.read("bias", spec.bias);
  fields.read("games", spec.games);
  fields.read("batch", spec.batch);
  fields.read("lr", spec.lr);
  fields.read("warmup_steps", spec.warmup_steps);
  fields.read("final_lr_fraction", spec.final_lr_fraction);
  fields.read("weight_decay", spec.weight_decay);
  fields.read("grad_clip", spec.grad_clip);
  fields.read("optimizer", spec.optimizer);
  fields.read("targets", spec.targets);
  read_word(fields, "precision", kPrecisionWords, spec.precision);
  fields.read("init_scale", spec.init_scale);
  fields.read("seed", spec.seed);
  fields.read("holdout", spec.holdout);
  SAE_TRY_VOID(fields.finish());
  return spec;
}

}  // namespace saesweep::sweeps
