#include "worker/evaluation/linear_probe.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <span>

#include "worker/activations/harvest.h"

namespace saesweep::worker {
namespace {

constexpr std::size_t kGamesPerStep = 16;
constexpr std::size_t kStepsPerPortion = 32;  // harvested together
constexpr std::uint64_t kKeptBytes = std::uint64_t{256} << 20;
constexpr double kDecay = 0.01, kBeta1 = 0.9, kBeta2 = 0.99, kEpsilon = 1e-8;

// Training games and what is true on them, as many as are harvested together.
struct Portion {
  BoardHalf games;
  at::Tensor x;  // [rows, d + 1], scaled, the last column is 1
};

// One of three problems that share nothing but the rows: classes 3 (mine, yours, blank; softmax) or
// 1 (logistic). Outputs are [rows, classes, squares]: squares innermost, where loops are long.
struct Probe {
  std::int64_t first_property, squares, classes;
  at::Tensor weight, m, v;  // [d + 1, classes * squares]

  // [rows, classes * squares], one-hot where there are classes
  at::Tensor targets(const BoardHalf& games, std::size_t first_row, std::int64_t rows) const {
    const auto width = static_cast<std::int64_t>(games.properties);
    // from_blob wants a pointer that could be written through; nothing here writes.
    auto* truth = const_cast<std::uint8_t*>(games.truth.data()) + first_row * games.properties;
    const at::Tensor known = at::from_blob(truth, {rows, width}, at::kByte)
                                 .narrow(1, first_property, squares * (classes == 1 ? 1 : 2))
                                 .to(at::kFloat);
    if (classes == 1) return known;
    const at::Tensor blank = 1 - known.narrow(1, 0, squares) - known.narrow(1, squares, squares);
    return at::cat({known, blank}, 1);
  }

  at::Tensor probabilities(const at::Tensor& x) const {
    at::Tensor logits = at::mm(x, weight);
    if (classes == 1) return logits.sigmoid_();
    // A softmax by hand: over a middle dimension of 3 the library's is ten times slower.
    const at::Tensor odds = logits.clamp_(-40, 40).exp_().view({x.size(0), classes, squares});
    odds.div_(odds.sum(1, /*keepdim=*/true));
    return logits;
  }

  // `progress` from 0 to 1 over the run
  void step(const at::Tensor& x, const at::Tensor& target, std::size_t number, double progress) {
    const at::Tensor gradient =
        at::mm(x.t(), probabilities(x) - target) / static_cast<double>(x.size(0));
    m.mul_(kBeta1).add_(gradient, 1 - kBeta1);
    v.mul_(kBeta2).addcmul_(gradient, gradient, 1 - kBeta2);
    const auto t = static_cast<double>(number + 1);
    const double rate = .1 / std::sqrt(static_cast<double>(x.size(1))) * (1 - progress);
    const at::Tensor denominator = (v / (1 - std::pow(kBeta2, t))).sqrt_().add_(kEpsilon);
    weight.mul_(1 - rate * kDecay);
    weight.addcdiv_(m, denominator, -rate / (1 - std::pow(kBeta1, t)));
  }

  void predict(const at::Tensor& x, std::uint64_t* bits, std::size_t words) const {
    const at::Tensor outputs = probabilities(x).contiguous();
    const float* p = outputs.const_data_ptr<float>();
    for (std::int64_t row = 0; row < x.size(0); ++row, p += classes * squares, bits += words)
      for (std::int64_t s = 0; s < squares; ++s) {
        std::int64_t property = first_property + s;
        if (classes == 1) {
          if (!(p[s] > .5f)) continue;
        } else {
          const float mine = p[s], yours = p[squares + s], blank = p[2 * squares + s];
          if (blank >= std::max(mine, yours)) continue;
          if (yours > mine) property += squares;
        }
        bits[property / 64] |= std::uint64_t{1} << (property % 64);
      }
  }
};

at::Tensor with_bias(const at::Tensor& x, double scale) {
  return at::cat({x * scale, at::ones({x.size(0), 1}, at::kFloat)}, 1);
}

}  // namespace

Result<std::vector<std::uint64_t>> probe_predictions(const Transformer& model,
                                                     const std::string& hook,
                                                     const TokenDocuments& documents,
                                                     const BoardHalf& half, ThreadPool& pool,
                                                     const std::function<bool()>& stop,
                                                     const ProbeRecipe& recipe) {
  std::vector<std::uint64_t> training;
  for (std::uint64_t i = 0; i < documents.count() && training.size() < recipe.games; ++i)
    if (!documents.held_out(i)) training.push_back(i);
  if (training.empty()) return fail(ErrorCode::kInvalidArgument, "no training games for a probe");

  const std::int64_t width = model.hook_width(hook);
  const std::size_t games_per_portion = kGamesPerStep * kStepsPerPortion;
  const std::size_t portions = (training.size() + games_per_portion - 1) / games_per_portion;
  double scale = 0;  // makes the mean square of an entry 1
  const auto harvest = [&](std::size_t index) {
    const std::size_t first = index * games_per_portion;
    const auto chosen =
        std::span(training).subspan(first, std::min(games_per_portion, training.size() - first));
    const at::Tensor x = activations_of(model, hook, documents, chosen, pool);
    if (scale == 0) {
      const double mean_square = x.to(at::kDouble).square().mean().item<double>();
      scale = mean_square > 0 ? 1 / std::sqrt(mean_square) : 1;
    }
    return Portion{label_games(documents, chosen, pool), with_bias(x, scale)};
  };
  std::uint64_t rows = 0;
  for (const std::uint64_t document : training) rows += documents.rows(document);
  const bool keep = rows * static_cast<std::uint64_t>(width) * sizeof(float) <= kKeptBytes;
  std::vector<Portion> kept;

  const auto squares = static_cast<std::int64_t>(half.properties / 5);
  std::array<Probe, 3> probes = {Probe{0, squares, 3, {}, {}, {}},
                                 Probe{2 * squares, squares, 3, {}, {}, {}},
                                 Probe{4 * squares, squares, 1, {}, {}, {}}};
  for (Probe& probe : probes) {
    probe.weight = at::zeros({width + 1, squares * probe.classes}, at::kFloat);
    probe.m = at::zeros_like(probe.weight);
    probe.v = at::zeros_like(probe.weight);
  }

  for (std::size_t step = 0, index = 0; step < recipe.steps; index = (index + 1) % portions) {
    if (stop && stop()) return fail(ErrorCode::kUnavailable, "asked to stop");
    Portion fresh;
    if (!keep) {
      fresh = harvest(index);
    } else if (kept.size() <= index) {
      kept.push_back(harvest(index));
    }
    const Portion& portion = keep ? kept[index] : fresh;
    const std::size_t games = portion.games.games();
    const std::size_t steps =
        std::min((games + kGamesPerStep - 1) / kGamesPerStep, recipe.steps - step);
    // The three problems side by side, each on one thread.
    pool.run(static_cast<std::int64_t>(probes.size()), [&](std::int64_t p) {
      Probe& probe = probes[static_cast<std::size_t>(p)];
      for (std::size_t i = 0; i < steps; ++i) {
        const std::size_t end_game = std::min(games, (i + 1) * kGamesPerStep);
        const std::size_t first = portion.games.first_row[i * kGamesPerStep];
        const std::size_t count = portion.games.first_row[end_game] - first;
        probe.step(
            portion.x.narrow(0, static_cast<std::int64_t>(first), static_cast<std::int64_t>(count)),
            probe.targets(portion.games, first, static_cast<std::int64_t>(count)), step + i,
            static_cast<double>(step + i) / static_cast<double>(recipe.steps));
      }
    });
    step += steps;
  }
  kept.clear();

  std::vector<std::uint64_t> predicted(half.rows() * half.words, 0);
  for (std::size_t first = 0; first < half.games(); first += games_per_portion) {
    const std::size_t end = std::min(half.games(), first + games_per_portion);
    const at::Tensor x =
        with_bias(activations_of(model, hook, documents,
                                 std::span(half.documents).subspan(first, end - first), pool),
                  scale);
    for (const Probe& probe : probes)
      probe.predict(x, predicted.data() + half.first_row[first] * half.words, half.words);
  }
  return predicted;
}

}  // namespace saesweep::worker
