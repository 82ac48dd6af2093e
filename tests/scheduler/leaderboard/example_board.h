// A made-up sweep with the shape of a real one: four architectures on one or more hooks, several
// widths, sparsities and seeds, intervals, curves, histograms, baselines, a diverged and a failed
// trial. The same arguments give the same board.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "core/digest.h"
#include "core/philox.h"
#include "scheduler/leaderboard/leaderboard.h"
#include "scheduler/leaderboard/ranking.h"

namespace saesweep::test {

struct ExampleOptions {
  std::size_t trials = 48;
  std::size_t hooks = 1;
  bool model = true;  // without one there is no cross entropy and no board
  bool board = true;
  std::size_t curve_points = 100;
  std::uint64_t seed = 0;
};

namespace example_detail {

using scheduler::LeaderboardRow;
using scheduler::RowState;
using scheduler::Score;

inline Score score(double value, double half_width, std::uint64_t n) {
  return {.value = value, .low = value - half_width, .high = value + half_width, .n = n};
}

inline void add_scores(LeaderboardRow& row, double l0, double quality, double skill,
                       const ExampleOptions& options, Rng& rng) {
  const double blur = 0.001 + 0.012 * (1 - quality);
  row.scores["core.l0"] = score(l0, 0.01 * l0, 40'000);
  const double fve = std::clamp(1 - 2.2 * (1 - quality), -0.2, 1.0);
  row.scores["recon.fve"] = score(fve, 2 * blur, 40'000);
  row.scores["recon.dead_fraction"] = {
      .value = std::clamp(0.3 * (1 - skill) + 0.04 * rng.normal(), 0.0, 1.0), .n = 40'000};
  if (options.model) {
    row.scores["core.ce_loss_score"] = score(quality, blur, 40'000);
    row.scores["core.kl_div_score"] = score(quality + 0.004, blur, 40'000);
    row.scores["core.explained_variance"] = score(fve - 0.005, 2 * blur, 40'000);
  }
  if (options.board && options.model) {
    const double middle = std::exp(-std::pow(std::log(l0 / 30), 2) / 4);
    row.scores["board.cov_occurring"] = score(0.30 + 0.35 * middle * skill, 0.012, 1000);
    row.scores["board.cov_single_t"] = score(0.28 + 0.34 * middle * skill, 0.012, 1000);
    row.scores["board.rec_micro"] = score(0.45 + 0.48 * middle * skill, 0.015, 1000);
  }
}

inline void add_curve(LeaderboardRow& row, double l0, double fve, bool diverges,
                      const ExampleOptions& options, Rng& rng) {
  row.curve.columns = {"step",          "tokens",    "loss", "mse",          "fve",        "l0",
                       "dead_fraction", "grad_norm", "lr",   "heldout_loss", "heldout_fve"};
  const std::size_t between_looks = std::max<std::size_t>(options.curve_points / 10, 1);
  for (std::size_t i = 0; i < options.curve_points; ++i) {
    const double t = static_cast<double>(i + 1) / static_cast<double>(options.curve_points);
    const double tokens = 4e6 * t;
    const double rest = std::exp(-6 * t);
    double loss = (1 - fve) * 0.8 + 2.2 * rest + 0.01 * rng.normal();
    if (diverges && t > 0.45) loss *= std::exp(22 * (t - 0.45));
    row.curve.rows.push_back({tokens / 2048, tokens, loss, loss * 0.9, fve - 1.2 * rest,
                              l0 * (1 + 5 * rest), 0.25 * t * std::exp(-2 * t), 0.4 + rest, 3e-4,
                              std::nan(""), std::nan("")});
    if ((i + 1) % between_looks == 0) {
      std::vector<double>& now = row.curve.rows.back();
      now[9] = loss * 1.05;
      now[10] = now[4] - 0.01;
    }
    if (diverges && t > 0.6) break;
  }
}

inline void add_density(LeaderboardRow& row, double l0, double d_sae, Rng& rng) {
  const double middle = std::log10(l0 / d_sae) - 0.3;
  constexpr int kBins = 40;
  for (int bin = 0; bin <= kBins; ++bin) row.density.log10_edges.push_back(-6 + 6.0 * bin / kBins);
  for (int bin = 0; bin < kBins; ++bin) {
    const double at = -6 + 6.0 * (bin + 0.5) / kBins;
    const double share = std::exp(-std::pow((at - middle) / 0.6, 2) / 2) +
                         0.25 * std::exp(-std::pow((at + 4.6) / 0.3, 2) / 2);
    row.density.counts.push_back(
        static_cast<std::uint64_t>(d_sae * 0.1 * share * (0.85 + 0.3 * rng.uniform())));
  }
  row.density.never = static_cast<std::uint64_t>(d_sae * 0.03);
}

inline std::string id_of(const std::string& text) { return sha256(text).short_hex(); }

}  // namespace example_detail

inline scheduler::Leaderboard example_board(const ExampleOptions& options = {}) {
  using namespace example_detail;  // NOLINT(google-build-using-namespace): our own, above
  struct Family {
    const char* arch;
    const char* key;
    double skill;
  };
  constexpr Family kFamilies[] = {{"topk", "k", 0.93},
                                  {"batchtopk", "k", 1.0},
                                  {"standard", "l1", 0.62},
                                  {"p_anneal", "l1", 0.80}};
  constexpr int kWidths[] = {512, 1024, 2048};
  constexpr double kSparsities[] = {8, 16, 32, 64};

  scheduler::Leaderboard board{.sweep = "othello-widths", .commit = "0a8bb66", .rows = {}};
  const std::string model = options.model ? "othello-6x6@3b1c0a77d2e9" : "";
  const auto hook_name = [&](std::size_t h) {
    return options.model ? fmt::format("blocks.{}.hook_resid_post", 2 + h) : std::string();
  };
  for (std::size_t i = 0; i < options.trials; ++i) {
    Rng rng(options.seed, "test.example_board", i);
    const Family& family = kFamilies[i % 4];
    const int width = kWidths[i / 4 % 3];
    // A small board has one seed of each; from 48 on further seeds repeat the grid.
    const double sparsity = kSparsities[i / 12 % 4];
    LeaderboardRow& row = board.rows.emplace_back();
    row.number = static_cast<std::uint32_t>(i);
    row.seed = i / 48;
    row.trial = id_of(fmt::format("{} {}", options.seed, i));
    row.model = model;
    row.hook = hook_name(i % options.hooks);
    row.arch = family.arch;
    const bool topk = std::string(family.key) == "k";
    row.params = {{"d_sae", width}};
    if (topk) row.params["k"] = static_cast<int>(sparsity);
    if (!topk) row.params["l1"] = std::round(1e4 * 1.6 / sparsity) / 1e4;
    row.tokens = 3'999'744;
    row.details = {{"recipe", "saebench-v1"}, {"batch", 2048}, {"lr", 0.0003}};

    const double l0 = topk ? sparsity : sparsity * std::exp(0.25 * rng.normal() + 0.4);
    const double loss = 0.30 * std::pow(l0, -0.62) * std::pow(512.0 / width, 0.18) *
                        std::exp(0.05 * rng.normal()) * (1.9 - 0.9 * family.skill);
    const double quality = 1 - loss;
    const double fve = 1 - 2.2 * loss;
    if (i == 9 || i == 10) {
      row.state = i == 9 ? RowState::kDiverged : RowState::kFailed;
      row.reason = i == 9 ? "the loss was not finite for 10 steps from step 812"
                          : "the executor died 3 times at this trial: signal 11";
      row.tokens = i == 9 ? 1'662'976 : 0;
      add_curve(row, l0, fve, true, options, rng);
      if (i == 10) row.curve = {};
      continue;
    }
    add_scores(row, l0, quality, family.skill, options, rng);
    add_curve(row, l0, fve, false, options, rng);
    add_density(row, l0, width, rng);
  }
  for (std::size_t h = 0; h < options.hooks; ++h) {
    Rng rng(options.seed, "test.example_baselines", h);
    const auto baseline = [&](const std::string& name, double l0, double quality, double skill) {
      LeaderboardRow& row = board.rows.emplace_back();
      row.baseline = name;
      row.model = model;
      row.hook = hook_name(h);
      add_scores(row, l0, quality, skill, options, rng);
      return &row;
    };
    baseline("identity", 128, 1, 0.5);
    baseline("pca", 128, 0.9999, 0.55);
    for (const int width : {512, 1024}) {
      LeaderboardRow* row = baseline("random_sae", 16, 0.55 + 0.0001 * width, 0.2);
      row->arch = "topk";
      row->params = {{"d_sae", width}, {"k", 16}};
      row->seed = 0;
    }
    if (options.board && options.model) {
      LeaderboardRow* row = baseline("linear_probe", 0, 0, 0);
      row->scores = {{"board.cov_occurring", score(0.93, 0.004, 1000)}};
      row = baseline("always_on", 0, 0, 0);
      row->scores = {{"board.cov_occurring", score(0.41, 0.004, 1000)},
                     {"board.rec_micro", score(0.0, 0.0, 1000)}};
    }
  }
  scheduler::rank(board.rows);
  return board;
}

}  // namespace saesweep::test
