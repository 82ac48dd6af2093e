// bench harvest, bench generate, and what the benches share.
#include <ATen/ATen.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <ctime>
#include <numeric>
#include <thread>

#include "worker/activations/harvest.h"
#include "worker/data/documents.h"
#include "worker/data/othello.h"
#include "worker/executor/bench.h"
#include "worker/models/transformer.h"
#include "worker/parallel/thread_pool.h"
#include "worker/products/isa.h"
#include "worker/products/product.h"

namespace saesweep::worker {
namespace {

double seconds_of(const std::function<void()>& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

double median(std::vector<double> values) {
  std::ranges::sort(values);
  const std::size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

Result<Transformer> make_model(const HarvestBench& bench) {
  if (!bench.model.empty()) return Transformer::load(bench.model);
  const othello::Rules rules(bench.board);
  TransformerConfig config;
  config.layers = bench.layers;
  config.d_model = bench.d_model;
  config.heads = bench.heads;
  config.d_mlp = bench.d_mlp;
  config.context = rules.context();
  config.vocabulary = rules.vocabulary();
  SAE_TRY(config, TransformerConfig::from_json(config.to_json()));
  return Transformer::random(config, 0);
}

// All of the model for the same micro-batches.
void forward_all(const Transformer& model, const TokenDocuments& documents, ThreadPool& pool) {
  const auto count = static_cast<std::int64_t>(documents.count());
  pool.run((count + kDocumentsPerForward - 1) / kDocumentsPerForward, [&](std::int64_t piece) {
    const std::int64_t begin = piece * kDocumentsPerForward;
    at::Tensor tokens = at::zeros({kDocumentsPerForward, documents.context()}, at::kLong);
    auto ids = tokens.accessor<std::int64_t, 2>();
    for (std::int64_t i = begin; i < std::min(count, begin + kDocumentsPerForward); ++i) {
      const auto sequence = documents.tokens(static_cast<std::uint64_t>(i));
      for (std::size_t at = 0; at < documents.rows(static_cast<std::uint64_t>(i)); ++at)
        ids[i - begin][static_cast<std::int64_t>(at)] = sequence[at];
    }
    model.forward(tokens, {});
  });
}

// The products of the blocks that are gone through, attention left out, against the inner loop
// alone; both for a second of one core.
Json roofline(const Transformer& model, const std::string& hook, bool rounded, const Rates& rates) {
  const TransformerConfig& shape = model.config();
  const double d = shape.d_model;
  const double flops = 2 * (model.hook_block(hook) + 1) * (4 * d * d + 2 * d * shape.d_mlp);
  const double ceiling =
      products::flops_per_second(rounded ? products::bf16_numbers() : products::Numbers::kFloat);
  const double reached = flops * rates.ours_per_cpu_second;
  return {{"flops_per_token", flops},
          {"gflops_per_core", reached * 1e-9},
          {"ceiling_gflops_per_core", ceiling * 1e-9},
          {"share", reached / ceiling},
          {"instructions", products::to_string(products::current_isa())}};
}

}  // namespace

unsigned bench_threads(unsigned asked) {
  return asked > 0 ? asked : std::max(1U, std::thread::hardware_concurrency());
}

Rates compare(unsigned rounds, double units, const std::function<void()>& ours,
              const std::function<void()>& baseline) {
  ours();
  baseline();
  std::vector<double> our_seconds, our_cpu_seconds, baseline_seconds;
  for (unsigned round = 0; round < std::max(1U, rounds); ++round) {
    const std::clock_t before = std::clock();
    our_seconds.push_back(seconds_of(ours));
    our_cpu_seconds.push_back(static_cast<double>(std::clock() - before) / CLOCKS_PER_SEC);
    baseline_seconds.push_back(seconds_of(baseline));
  }
  return {units / median(our_seconds), units / median(baseline_seconds),
          units / median(our_cpu_seconds)};
}

Result<Json> bench_harvest(const HarvestBench& bench) {
  ThreadPool pool(bench_threads(bench.threads));
  if (bench.precision != "fp32" && bench.precision != "bf16")
    return fail(ErrorCode::kInvalidArgument, "--precision {}: fp32 or bf16 would be right",
                bench.precision);
  const bool rounded = bench.precision == "bf16";
  SAE_TRY(Transformer model, make_model(bench));
  model.prepare(rounded ? sweeps::Precision::kBFloat16 : sweeps::Precision::kFloat32);
  const int middle = std::max(0, model.config().layers / 2 - 1);
  const std::string hook =
      bench.hook.empty() ? fmt::format("blocks.{}.hook_resid_post", middle) : bench.hook;
  SAE_TRY_VOID(model.check_hook(hook));
  sweeps::DataSpec data;
  data.source = "othello";
  data.board = bench.board;
  data.games = bench.games;
  SAE_TRY(const auto documents,
          TokenDocuments::open(data, 0, model.config().context, pool.threads()));
  if (documents->vocabulary() > model.config().vocabulary)
    return fail(ErrorCode::kInvalidArgument,
                "--board {}: the model in {} knows {} tokens, {} are needed", bench.board,
                bench.model, model.config().vocabulary, documents->vocabulary());
  std::vector<std::uint64_t> all(documents->count());
  std::iota(all.begin(), all.end(), std::uint64_t{0});
  double tokens = 0;
  for (const std::uint64_t document : all) tokens += static_cast<double>(documents->rows(document));

  const Rates rates = compare(
      bench.rounds, tokens, [&] { activations_of(model, hook, *documents, all, pool); },
      [&] { forward_all(model, *documents, pool); });
  return Json{{"tokens_per_s", rates.ours},
              {"tokens_per_cpu_s", rates.ours_per_cpu_second},
              {"baseline", {{"name", "whole forward pass"}, {"tokens_per_s", rates.baseline}}},
              {"ratio", rates.ours / rates.baseline},
              {"roofline", roofline(model, hook, rounded, rates)},
              {"precision", bench.precision},
              {"hook", hook},
              {"d_in", model.hook_width(hook)},
              {"layers", model.config().layers},
              {"threads", pool.threads()},
              {"rounds", bench.rounds}};
}

Result<Json> bench_generate(const GenerateBench& bench) {
  if (bench.board != 4 && bench.board != 6 && bench.board != 8)
    return fail(ErrorCode::kInvalidArgument, "--board {}: 4, 6 or 8 would be right", bench.board);
  if (bench.games == 0)
    return fail(ErrorCode::kInvalidArgument, "--games 0: at least 1 would be right");
  const othello::Rules rules(bench.board);
  constexpr std::uint64_t kGamesPerPiece = 1024;
  std::atomic<std::uint64_t> moves = 0;  // so that nothing is optimised away
  const auto play = [&](ThreadPool& pool) {
    const std::uint64_t pieces = (bench.games + kGamesPerPiece - 1) / kGamesPerPiece;
    pool.run(static_cast<std::int64_t>(pieces), [&](std::int64_t piece) {
      const std::uint64_t first = static_cast<std::uint64_t>(piece) * kGamesPerPiece;
      std::uint64_t played = 0;
      for (std::uint64_t game = first; game < std::min(bench.games, first + kGamesPerPiece); ++game)
        played += othello::play_uniform(rules, 0, game).moves.size();
      moves += played;
    });
  };
  ThreadPool all(bench_threads(bench.threads)), one(1);
  const Rates rates = compare(
      bench.rounds, static_cast<double>(bench.games), [&] { play(all); }, [&] { play(one); });
  return Json{{"games_per_s", rates.ours},
              {"games_per_s_per_core", rates.ours / all.threads()},
              {"baseline", {{"name", "one core"}, {"games_per_s", rates.baseline}}},
              {"ratio", rates.ours / rates.baseline},
              {"board", bench.board},
              {"moves_per_game", static_cast<double>(moves) /
                                     (static_cast<double>(bench.games) * 2 * (1 + bench.rounds))},
              {"threads", all.threads()},
              {"rounds", bench.rounds}};
}

}  // namespace saesweep::worker
