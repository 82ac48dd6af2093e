#include "worker/evaluation/evaluate.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <exception>
#include <limits>
#include <optional>
#include <string>
#include <utility>

#include "metrics/scores/core_scores.h"
#include "metrics/scores/metric_version.h"
#include "worker/activations/harvest.h"
#include "worker/evaluation/baselines.h"
#include "worker/evaluation/board_evaluation.h"
#include "worker/evaluation/core_evaluation.h"
#include "worker/evaluation/linear_probe.h"
#include "worker/evaluation/sample.h"
#include "worker/thrown.h"

namespace saesweep::worker {

// Labelled games, and the activations on them where they are few.
struct BoardReference {
  std::shared_ptr<const TokenDocuments> tokens;
  std::uint64_t games = 0;
  double holdout = 0;
  BoardSample sample;
  bool held_out = true;

  std::shared_ptr<const Transformer> model;  // of the activations
  std::vector<std::string> hooks;
  at::Tensor labels_x, scores_x;  // [rows, width] or undefined
};

struct EvaluationCache::State {
  std::vector<std::shared_ptr<const CoreReference>> core;  // by target
  std::shared_ptr<BoardReference> board;
};

EvaluationCache::EvaluationCache() : state_(std::make_unique<State>()) {}
EvaluationCache::~EvaluationCache() = default;

namespace {

// Activations of the board games are kept for the next dictionary up to this many bytes.
constexpr std::uint64_t kKeptBytes = std::uint64_t{256} << 20;

Result<void> check_inputs(const EvaluationInputs& inputs) {
  if (inputs.model == nullptr) return {};
  for (const std::string& hook : inputs.stream.hooks())
    SAE_TRY_VOID(inputs.model->check_hook(hook));
  if (inputs.tokens != nullptr && inputs.model->config().vocabulary < inputs.tokens->vocabulary())
    return fail(ErrorCode::kInvalidArgument,
                "the model knows {} tokens, but `data` needs {}: was it trained on another board?",
                inputs.model->config().vocabulary, inputs.tokens->vocabulary());
  return {};
}

// How much of a crosscoder's latent each hook gets: norms of its decoder rows, which sum to 1.
void add_decoder_norms(Json& details, const Sae& sae) {
  const at::Tensor norms = sae.w_dec.view({sae.d_sae(), sae.sources, -1}).norm(2, {2});
  for (std::int64_t latent = 0; latent < sae.d_sae(); ++latent) {
    const float* of = norms.const_data_ptr<float>() + latent * sae.sources;
    details[static_cast<std::size_t>(latent)]["decoder_norms"] =
        std::vector<float>(of, of + sae.sources);
  }
}

Result<Json> evaluate_core(const sweeps::EvaluationSpec& evaluation, const Sae& sae,
                           const Json& trained, const EvaluationInputs& inputs,
                           EvaluationCache::State& cache) {
  const Documents& documents = inputs.tokens != nullptr
                                   ? static_cast<const Documents&>(*inputs.tokens)
                                   : static_cast<const Documents&>(*inputs.activations);
  SAE_TRY(const Sample sample, first_tokens(documents, inputs.stream.holdout,
                                            std::max<std::uint64_t>(evaluation.tokens, 1)));
  SAE_TRY(const std::vector<Target> targets, targets_of(sae, inputs));
  cache.core.resize(targets.size());
  const int version = metrics::metric_version("core");
  // A crosscoder's own scores are of all its hooks together, without the model, whose behaviour is
  // asked for each of them.
  Target whole = targets.front();
  if (targets.size() > 1) whole = {0, sae.d_out(), 0, ""};
  std::shared_ptr<const CoreReference> none;
  SAE_TRY(metrics::CoreSums sums, core_sums(sae, inputs, sample, whole, kKeptCoreBytes,
                                            targets.size() > 1 ? none : cache.core.front()));
  if (const auto l0 = trained.find("l0_train"); l0 != trained.end() && l0->is_number())
    sums.l0_train = l0->get<double>();
  metrics::Scores scores = metrics::core_scores(sums, version);
  Json details = metrics::feature_details(sums);
  for (std::size_t i = 0; targets.size() > 1 && i < targets.size(); ++i) {
    SAE_TRY(const metrics::CoreSums own, core_sums(sae, inputs, sample, targets[i],
                                                   kKeptCoreBytes / targets.size(), cache.core[i]));
    for (const auto& [name, score] : metrics::hook_scores(own, version, i)) scores[name] = score;
  }
  if (targets.size() > 1) add_decoder_norms(details, sae);
  return Json{{"scores", metrics::to_json(scores)},
              {"heldout", sample.held_out},
              {"details", std::move(details)},
              {"histogram", metrics::density_histogram(sums)}};
}

// The hooks whose activations a dictionary reads.
std::vector<std::string> read_by(const Sae& sae, const sweeps::StreamSpec& stream) {
  if (sae.predicts) return {stream.hook};
  return stream.hooks();
}

Result<std::shared_ptr<BoardReference>> board_reference(const sweeps::EvaluationSpec& evaluation,
                                                        const EvaluationInputs& inputs,
                                                        EvaluationCache::State& cache) {
  if (inputs.tokens == nullptr)
    return fail(ErrorCode::kInvalidArgument, "evaluate.board needs games; data.source is {}",
                inputs.stream.data.source);
  const std::uint64_t half = evaluation.games / 2;
  if (half == 0)
    return fail(ErrorCode::kInvalidArgument, "evaluate.board.games: {}; at least 2 would be right",
                evaluation.games);
  if (cache.board != nullptr && cache.board->tokens == inputs.tokens &&
      cache.board->games == evaluation.games && cache.board->holdout == inputs.stream.holdout)
    return cache.board;
  SAE_TRY(const Sample sample, first_documents(*inputs.tokens, inputs.stream.holdout, 2 * half));
  cache.board = std::make_shared<BoardReference>();
  BoardReference& board = *cache.board;
  board.tokens = inputs.tokens;
  board.games = evaluation.games;
  board.holdout = inputs.stream.holdout;
  board.held_out = sample.held_out;
  const std::span<const std::uint64_t> chosen(sample.documents);
  board.sample.labels = label_games(*inputs.tokens, chosen.first(half), *inputs.pool);
  board.sample.scores = label_games(*inputs.tokens, chosen.subspan(half), *inputs.pool);
  return cache.board;
}

// The board's activations, once for all dictionaries of the hook.
void keep_activations(BoardReference& board, const EvaluationInputs& inputs,
                      std::vector<std::string> hooks) {
  if (board.model == inputs.model && board.hooks == hooks) return;
  board.model = inputs.model;
  board.hooks = std::move(hooks);
  board.labels_x.reset();
  board.scores_x.reset();
  const std::uint64_t bytes = (board.sample.labels.rows() + board.sample.scores.rows()) *
                              sizeof(float) *
                              static_cast<std::uint64_t>(width_of(*inputs.model, board.hooks));
  if (bytes > kKeptBytes) return;
  for (auto [half, x] :
       {std::pair{&board.sample.labels, &board.labels_x}, {&board.sample.scores, &board.scores_x}})
    *x = activations_of(*inputs.model, board.hooks, *inputs.tokens, half->documents, *inputs.pool);
}

// Codes of a dictionary on the board's activations. The arguments outlive the source.
CodeSource codes_of(const Sae& sae, const BoardReference& board, const EvaluationInputs& inputs) {
  const std::int64_t width = width_of(*inputs.model, board.hooks);
  const bool identity = sae.selection == Sae::Selection::kIdentity;
  const auto latents = static_cast<std::size_t>(identity ? width : sae.d_sae());
  return {
      latents,
      [&sae, &board, &inputs, latents](const BoardHalf& half, std::size_t first, std::size_t end) {
        const at::Tensor& kept = &half == &board.sample.labels ? board.labels_x : board.scores_x;
        const auto first_row = static_cast<std::int64_t>(half.first_row[first]);
        const auto rows = static_cast<std::int64_t>(half.first_row[end]) - first_row;
        // A nested run of the pool stays on this thread.
        const at::Tensor x =
            kept.defined() ? kept.narrow(0, first_row, rows)
                           : activations_of(*inputs.model, board.hooks, *inputs.tokens,
                                            std::span(half.documents).subspan(first, end - first),
                                            *inputs.pool);
        SparseCodes codes;
        codes.first.push_back(0);
        for (std::int64_t begin = 0; begin < rows; begin += kRowsPerEncode) {
          const std::int64_t count = std::min(kRowsPerEncode, rows - begin);
          const at::Tensor dense = sae.encode(x.narrow(0, begin, count)).contiguous();
          const float* f = dense.const_data_ptr<float>();
          for (std::int64_t row = 0; row < count; ++row, f += latents) {
            for (std::size_t latent = 0; latent < latents; ++latent)
              if (f[latent] > 0) {
                codes.latent.push_back(static_cast<std::uint32_t>(latent));
                codes.value.push_back(f[latent]);
              }
            codes.first.push_back(static_cast<std::uint32_t>(codes.latent.size()));
          }
        }
        return codes;
      }};
}

Result<Json> board_json(const BoardReference& board, const CodeSource& source,
                        const EvaluationInputs& inputs) {
  SAE_TRY(const BoardResult result,
          score_board(board.sample, source, metrics::metric_version("board"), *inputs.pool,
                      inputs.stop, inputs.progress));
  return Json{{"scores", metrics::to_json(result.scores)},
              {"heldout", board.held_out},
              {"board", result.chosen}};
}

Result<Json> evaluate_board(const sweeps::EvaluationSpec& evaluation, const Sae& sae,
                            const EvaluationInputs& inputs, EvaluationCache::State& cache) {
  SAE_TRY(const auto board, board_reference(evaluation, inputs, cache));
  const auto hooks = read_by(sae, inputs.stream);
  const std::int64_t width = width_of(*inputs.model, hooks);
  if (sae.selection != Sae::Selection::kIdentity && sae.d_in() != width)
    return fail(ErrorCode::kInvalidArgument,
                "the dictionary reads {} values, but the activations have {}", sae.d_in(), width);
  keep_activations(*board, inputs, hooks);
  return board_json(*board, codes_of(sae, *board, inputs), inputs);
}

// LibTorch throws.
template <class Body>
Result<Json> guarded(const EvaluationInputs& inputs, const Body& body) {
  try {
    if (inputs.cache != nullptr) return body(inputs.cache->state());
    EvaluationCache own;
    return body(own.state());
  } catch (const std::exception& thrown) {  // a decomposition that does not converge, say
    return fail(error_of(thrown));
  }
}

Result<Json> evaluate_dictionary(const sweeps::EvaluationSpec& evaluation, const Sae& sae,
                                 const Json& trained, const EvaluationInputs& inputs,
                                 EvaluationCache::State& cache) {
  SAE_TRY_VOID(check_inputs(inputs));
  if (evaluation.kind == "core") return evaluate_core(evaluation, sae, trained, inputs, cache);
  if (evaluation.kind == "board") return evaluate_board(evaluation, sae, inputs, cache);
  return fail(ErrorCode::kInvalidArgument, "no evaluation \"{}\"; core or board would be right",
              evaluation.kind);
}

std::int64_t width_of(const EvaluationInputs& inputs) {
  return inputs.model != nullptr ? width_of(*inputs.model, inputs.stream.hooks())
                                 : inputs.activations->d_in();
}

Result<Json> evaluate_baseline_with(const sweeps::EvaluationSpec& evaluation,
                                    const sweeps::BaselineSpec& baseline, const Sae* trained_sae,
                                    const EvaluationInputs& inputs, EvaluationCache::State& cache) {
  SAE_TRY_VOID(check_inputs(inputs));
  const bool board_only = baseline.name == "neurons" || baseline.name == "linear_probe" ||
                          baseline.name == "always_on" || baseline.name == "placement";
  if (board_only && evaluation.kind != "board") return Json{{"scores", Json::object()}};
  const Json untrained = Json::object();

  if (baseline.name == "identity" || baseline.name == "neurons")
    return evaluate_dictionary(evaluation, identity_dictionary(), untrained, inputs, cache);
  if (baseline.name == "random_sae") {
    if (!baseline.training) return fail(ErrorCode::kInvalidArgument, "random_sae without a shape");
    return evaluate_dictionary(evaluation, random_dictionary(*baseline.training, width_of(inputs)),
                               untrained, inputs, cache);
  }
  if (baseline.name == "random_model") {
    if (trained_sae == nullptr)
      return fail(ErrorCode::kInvalidArgument, "random_model without its trained SAE");
    return evaluate_dictionary(evaluation, *trained_sae, untrained, inputs, cache);
  }
  if (baseline.name == "pca") {
    if (!inputs.open_stream)
      return fail(ErrorCode::kInvalidArgument, "pca without a training stream");
    SAE_TRY(const auto stream, inputs.open_stream());
    SAE_TRY(const RowMoments moments, row_moments(*stream, *inputs.pool, inputs.stop));
    std::optional<Sae> sae;
    inputs.pool->run(1, [&](std::int64_t) { sae = principal_components(moments, stream->d_in()); });
    return evaluate_dictionary(evaluation, *sae, untrained, inputs, cache);
  }
  if (board_only) {
    SAE_TRY(const auto board, board_reference(evaluation, inputs, cache));
    if (baseline.name == "always_on") return board_json(*board, always_on(), inputs);
    if (baseline.name == "placement") return board_json(*board, placement(*inputs.tokens), inputs);
    SAE_TRY(const auto predicted,
            probe_predictions(*inputs.model, inputs.stream.hook, *inputs.tokens,
                              board->sample.scores, *inputs.pool, inputs.stop));
    return Json{{"scores", metrics::to_json(score_predictions(board->sample.scores, predicted,
                                                              metrics::metric_version("board")))},
                {"heldout", board->held_out}};
  }
  return fail(ErrorCode::kInvalidArgument, "no baseline \"{}\"", baseline.name);
}

}  // namespace

Result<Json> evaluate_sae(const sweeps::EvaluationSpec& evaluation, const Sae& sae,
                          const Json& trained, const EvaluationInputs& inputs) {
  return guarded(inputs, [&](EvaluationCache::State& cache) {
    return evaluate_dictionary(evaluation, sae, trained, inputs, cache);
  });
}

Result<Json> evaluate_baseline(const sweeps::EvaluationSpec& evaluation,
                               const sweeps::BaselineSpec& baseline, const Sae* trained_sae,
                               const EvaluationInputs& inputs) {
  return guarded(inputs, [&](EvaluationCache::State& cache) {
    return evaluate_baseline_with(evaluation, baseline, trained_sae, inputs, cache);
  });
}

}  // namespace saesweep::worker
