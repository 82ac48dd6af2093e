// Hand-made sums: the formulas on numbers that can be checked with pencil and paper.
#include "metrics/scores/core_scores.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "core/philox.h"

namespace saesweep::metrics {
namespace {

using Rows = std::vector<std::vector<float>>;

// Sums of one document that is its own batch.
CoreSums sums_of(const Rows& x, const Rows& x_hat, std::size_t d_sae = 1) {
  CoreSums sums(1, x[0].size(), d_sae);
  std::vector<double> mean(x[0].size(), 0);
  for (const auto& row : x)
    for (std::size_t j = 0; j < row.size(); ++j) mean[j] += row[j] / static_cast<double>(x.size());
  for (std::size_t t = 0; t < x.size(); ++t) {
    add_reconstruction(sums.documents[0], x[t], x_hat[t]);
    double error = 0, around = 0;
    for (std::size_t j = 0; j < x[t].size(); ++j) {
      error += std::pow(x[t][j] - x_hat[t][j], 2);
      around += std::pow(x[t][j] - mean[j], 2);
      sums.sum_x[0][j] += x[t][j];
    }
    sums.documents[0].mse += error / static_cast<double>(x.size());
    sums.documents[0].legacy += 1 - error / around;
  }
  return sums;
}

double value(const Scores& scores, const std::string& name) {
  const auto found = scores.find(name);
  if (found == scores.end()) {
    ADD_FAILURE() << "no " << name;
    return 0;
  }
  return found->second.value;
}

TEST(CoreScoresTest, VarianceOfTheHandExample) {
  const Scores scores = core_scores(sums_of({{2, 0}, {0, 4}}, {{2, 1}, {0, 3}}), 1);
  EXPECT_NEAR(value(scores, "recon.fve"), 0.8, 1e-12);
  EXPECT_NEAR(value(scores, "core.explained_variance_legacy"), 0.8, 1e-12);
  EXPECT_NEAR(value(scores, "core.explained_variance"), 1 - 1 / (10.0 - 25), 1e-12);
  EXPECT_NEAR(value(scores, "core.mse"), 0.5, 1e-12);
  EXPECT_NEAR(value(scores, "recon.mse_sum"), 1, 1e-12);
}

TEST(CoreScoresTest, TheThreeExplainedVariancesAreDifferentThings) {
  const Scores scores = core_scores(sums_of({{0}, {0}, {6}}, {{-1}, {-1}, {5}}), 1);
  EXPECT_NEAR(value(scores, "core.explained_variance_legacy"), 0.8125, 1e-12);
  EXPECT_NEAR(value(scores, "recon.fve"), 0.875, 1e-12);
  EXPECT_NEAR(value(scores, "core.explained_variance"), 1 - 1 / (12.0 - 144), 1e-12);
}

TEST(CoreScoresTest, TwoBatchesOfOneTokenDivideByOne) {
  // 17 documents: 16 in the first batch, of which only one has a token.
  CoreSums sums(17, 2, 1);
  add_reconstruction(sums.documents[0], std::vector<float>{2, 0}, std::vector<float>{2, 1});
  add_reconstruction(sums.documents[16], std::vector<float>{0, 4}, std::vector<float>{0, 3});
  sums.documents[0].mse = sums.documents[16].mse = 1;  // squared error / 1 token
  EXPECT_NEAR(value(core_scores(sums, 1), "core.mse"), 1, 1e-12);
  // The bias is a mean over batches: (5/4 + 9/12) / 2; gamma is (5 + 9) / (4 + 12).
  EXPECT_NEAR(value(core_scores(sums, 1), "core.relative_reconstruction_bias"), 1, 1e-12);
  EXPECT_NEAR(value(core_scores(sums, 1), "recon.gamma"), 14.0 / 16, 1e-12);
}

TEST(CoreScoresTest, AScaledReconstructionShrinks) {
  Rng rng(3, "test.core");
  constexpr double c = .7;
  Rows x(40, std::vector<float>(8)), scaled = x;
  double squares = 0;
  std::vector<double> mean(8, 0);
  for (std::size_t t = 0; t < x.size(); ++t)
    for (std::size_t j = 0; j < 8; ++j) {
      x[t][j] = static_cast<float>(rng.normal() + 1);
      scaled[t][j] = static_cast<float>(c) * x[t][j];
      squares += static_cast<double>(x[t][j]) * x[t][j] / 40;
      mean[j] += x[t][j] / 40.0;
    }
  double variance = squares;
  for (const double each : mean) variance -= each * each;
  const Scores scores = core_scores(sums_of(x, scaled), 1);
  EXPECT_NEAR(value(scores, "core.l2_ratio"), c, 1e-6);
  EXPECT_NEAR(value(scores, "core.relative_reconstruction_bias"), c, 1e-6);
  EXPECT_NEAR(value(scores, "recon.gamma"), c, 1e-6);
  EXPECT_NEAR(value(scores, "core.cossim"), 1, 1e-6);
  EXPECT_NEAR(value(scores, "core.mse"), (1 - c) * (1 - c) * squares / 40, 1e-6);
  EXPECT_NEAR(value(scores, "recon.fve"), 1 - (1 - c) * (1 - c) * squares / variance, 1e-6);
}

TEST(CoreScoresTest, AnErrorAcrossTheInputLengthensIt) {
  constexpr double e = .5;
  const Scores scores =
      core_scores(sums_of({{2, 0}, {0, 4}, {3, 0}}, {{2, 1}, {-2, 4}, {3, 1.5}}), 1);
  EXPECT_NEAR(value(scores, "core.l2_ratio"), std::sqrt(1 + e * e), 1e-9);
  EXPECT_NEAR(value(scores, "core.relative_reconstruction_bias"), 1 + e * e, 1e-9);
  EXPECT_NEAR(value(scores, "core.cossim"), 1 / std::sqrt(1 + e * e), 1e-9);
}

TEST(CoreScoresTest, AZeroReconstructionHasNoAngle) {
  const Scores scores = core_scores(sums_of({{2, 0}, {0, 4}}, {{0, 0}, {0, 0}}), 1);
  EXPECT_EQ(value(scores, "core.l2_ratio"), 0);
  EXPECT_TRUE(std::isnan(value(scores, "core.cossim")));
  EXPECT_TRUE(std::isnan(value(scores, "core.relative_reconstruction_bias")));
  EXPECT_TRUE(to_json(scores)["core.cossim"]["value"].is_null());
}

TEST(CoreScoresTest, ATinyInputIsNotDividedBy) {
  EXPECT_NEAR(value(core_scores(sums_of({{1e-5f}, {1.f}}, {{.5f}, {1.f}}), 1), "core.l2_ratio"),
              .75, 1e-9);
}

TEST(CoreScoresTest, CrossEntropyScoresAreRatiosOfMeans) {
  CoreSums sums = sums_of({{1}, {2}}, {{1}, {2}});
  sums.has_model = true;
  DocumentSums& document = sums.documents[0];
  document.ce_clean = 2 * 1.0;
  document.ce_sae = 2 * 1.5;
  document.ce_zero = 2 * 5.0;
  document.ce_mean = 2 * 3.0;
  document.kl_sae = {2 * .25, 2 * .25};
  document.kl_zero = {2 * 2.0, 2 * 2.0};
  const Scores scores = core_scores(sums, 1);
  EXPECT_NEAR(value(scores, "core.ce_loss_score"), 3.5 / 4, 1e-12);
  EXPECT_NEAR(value(scores, "recon.loss_recovered_mean"), 1.5 / 2, 1e-12);
  EXPECT_NEAR(value(scores, "core.kl_div_score"), 1.75 / 2, 1e-12);
  EXPECT_NEAR(value(scores, "core.kl_div_with_sae"), .25, 1e-12);
  EXPECT_NEAR(value(scores, "core.ce_loss_without_sae"), 1, 1e-12);
  EXPECT_EQ(value(scores, "core.total_tokens_eval_reconstruction"), 2);
}

TEST(CoreScoresTest, WithoutAModelItsNamesAreAbsent) {
  const Scores scores = core_scores(sums_of({{1}, {2}}, {{1}, {2}}), 1);
  for (const char* name : {"core.ce_loss_score", "core.kl_div_score", "recon.kl_score",
                           "recon.loss_recovered_mean", "core.total_tokens_eval_reconstruction"})
    EXPECT_FALSE(scores.contains(name)) << name;
  EXPECT_TRUE(scores.contains("core.l0"));
}

TEST(CoreScoresTest, DensitiesCountStrictly) {
  // 1000 tokens; densities 0, .005, .02, .2 and, apart, exactly .01.
  CoreSums sums(1, 1, 4);
  sums.documents[0].tokens = 1000;
  sums.fired[0] = {0, 5, 20, 200};
  Scores scores = core_scores(sums, 1);
  EXPECT_NEAR(value(scores, "core.frac_alive"), .75, 1e-12);
  EXPECT_NEAR(value(scores, "recon.dead_fraction"), .25, 1e-12);
  EXPECT_NEAR(value(scores, "core.freq_over_1_percent"), .5, 1e-12);
  EXPECT_NEAR(value(scores, "core.freq_over_10_percent"), .25, 1e-12);
  EXPECT_NEAR(value(scores, "core.normalized_freq_over_1_percent"), .22 / .225, 1e-12);
  EXPECT_NEAR(value(scores, "core.normalized_freq_over_10_percent"), .2 / .225, 1e-12);
  EXPECT_EQ(scores.at("core.frac_alive").n, 4u);
  sums.fired[0] = {10, 0, 0, 0};
  EXPECT_EQ(value(core_scores(sums, 1), "core.freq_over_1_percent"), 0);
  sums.fired[0] = {0, 0, 0, 0};
  EXPECT_EQ(value(core_scores(sums, 1), "core.normalized_freq_over_1_percent"), 0);
}

TEST(CoreScoresTest, DetailsSayHowOftenAFeatureFiresWhereItFires) {
  // 2 documents of 3 tokens; feature 0 fires on two tokens of the first; feature 1 never.
  CoreSums sums(2, 1, 2);
  sums.documents[0].tokens = sums.documents[1].tokens = 3;
  sums.fired[0] = {2, 0};
  sums.documents_fired = {1, 0};
  sums.encoder_norm = {1.23456789012345, 2};
  const Json details = feature_details(sums);
  ASSERT_EQ(details.size(), 2u);
  EXPECT_NEAR(details[0]["feature_density"].get<double>(), 1.0 / 3, 1e-10);
  EXPECT_EQ(details[0]["consistent_activation_heuristic"], 2.0);
  EXPECT_EQ(details[0]["encoder_norm"], 1.2345678901);
  EXPECT_EQ(details[1]["feature_density"], 0.0);
  EXPECT_TRUE(details[1]["consistent_activation_heuristic"].is_null());
  EXPECT_TRUE(details[1]["encoder_bias"].is_null());
}

TEST(CoreScoresTest, TheHistogramHoldsEveryFeatureOnce) {
  CoreSums sums(1, 1, 5);
  sums.documents[0].tokens = 1000;
  sums.fired[0] = {0, 1, 10, 999, 1000};
  const Json histogram = density_histogram(sums);
  ASSERT_EQ(histogram["log10_edges"].size(), 51u);
  EXPECT_EQ(histogram["log10_edges"][0], -7.0);
  EXPECT_EQ(histogram["log10_edges"][50], 0.0);
  ASSERT_EQ(histogram["counts"].size(), 50u);
  EXPECT_EQ(histogram["never"], 1);
  EXPECT_EQ(histogram["counts"][28], 1);  // 10^-3: (-3 + 7) / 7 * 50 = 28.6
  EXPECT_EQ(histogram["counts"][35], 1);  // 10^-2: 35.7
  EXPECT_EQ(histogram["counts"][49], 2);  // .999 and 1
}

TEST(DivergenceTest, OfTwoCoins) {
  // p = (1/2, 1/2), q = (1/4, 3/4)
  const Divergence kl = divergence(std::vector<float>{0, 0}, std::vector<float>{0, std::log(3.f)});
  EXPECT_NEAR(kl.value, 0.143841, 1e-6);
  EXPECT_EQ(kl.legacy, kl.value);
}

TEST(DivergenceTest, AnUnderflowIsFiniteOnlyByLogSoftmax) {
  const Divergence kl = divergence(std::vector<float>{0, -200}, std::vector<float>{0, 0});
  EXPECT_NEAR(kl.value, std::log(2.0), 1e-9);
  EXPECT_TRUE(std::isnan(kl.legacy));
}

TEST(DivergenceTest, CrossEntropyIsThatOfTheTarget) {
  EXPECT_NEAR(cross_entropy(std::vector<float>{0, std::log(3.f)}, 0), std::log(4.0), 1e-6);
  EXPECT_NEAR(cross_entropy(std::vector<float>{1000, 1000}, 1), std::log(2.0), 1e-9);
}

TEST(CoreScoresTest, IntervalsComeFromLeavingBlocksOfDocumentsOut) {
  // 32 documents of one token: blocks are documents, l0 is a mean: its usual standard error.
  CoreSums sums(32, 1, 1);
  Rng rng(4, "test.core.interval");
  std::vector<double> values(32);
  double mean = 0, squares = 0;
  for (std::size_t i = 0; i < 32; ++i) {
    values[i] = rng.normal();
    mean += values[i] / 32;
    sums.documents[i].tokens = 1;
    sums.documents[i].l0 = values[i];
  }
  for (const double each : values) squares += (each - mean) * (each - mean);
  const Score score = core_scores(sums, 1).at("core.l0");
  EXPECT_NEAR(*score.high - score.value, 2.039513446396 * std::sqrt(squares / 31 / 32), 1e-9);
  // Seven documents are too few; token counts are not sampled.
  CoreSums few(7, 1, 1);
  for (DocumentSums& document : few.documents) document.tokens = 1;
  for (const auto& [name, each] : core_scores(few, 1)) EXPECT_EQ(each.low, std::nullopt) << name;
  EXPECT_EQ(core_scores(sums, 1).at("core.total_tokens_eval_sparsity_variance").low, std::nullopt);
}

}  // namespace
}  // namespace saesweep::metrics
