// `early_stopping` of a sweep file: what is read, and what is refused with its place and remedy.
#include "sweeps/early_stopping.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/sweeps/sweep_words.h"

namespace saesweep::sweeps {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::StartsWith;

struct EarlyStopping : SweepTest {
  static std::string with(const std::string& settings, const std::string& more = "") {
    return sweep("[{arch: topk, d_sae: 64, k: [4, 8]}]",
                 "early_stopping: {" + settings + "}\n" + more);
  }
  EarlyStoppingSpec spec(const std::string& settings) {
    const auto read = plan(with(settings)).early_stopping;
    EXPECT_TRUE(read.has_value());
    return read.value_or(EarlyStoppingSpec{});
  }
};

TEST_F(EarlyStopping, IsReadAsItIsWritten) {
  const auto read = plan(with("rule: asha, metric: core.ce_loss_score, direction: max, min_tokens: "
                              "100k, eta: 3, mode: promote",
                              "evaluate: [core: {tokens: 20k}]"))
                        .early_stopping;
  ASSERT_TRUE(read.has_value());
  const EarlyStoppingSpec& asha = *read;
  EXPECT_EQ(asha.rule, StoppingRule::kAsha);
  EXPECT_TRUE(asha.promotes);
  EXPECT_EQ(asha.min_tokens, 100'000u);
  EXPECT_EQ(asha.eta, 3u);
  ASSERT_EQ(asha.metrics.size(), 1u);
  EXPECT_EQ(asha.metrics[0].name, "core.ce_loss_score");
  EXPECT_TRUE(asha.metrics[0].maximize);
  EXPECT_EQ(asha.metrics[0].evaluation.kind, "core");
  EXPECT_EQ(asha.metrics[0].evaluation.tokens, 20'000u);
}

TEST_F(EarlyStopping, DefaultsAreAshaThatPromotesOneInFour) {
  const auto asha = spec("metric: recon.fve, direction: max, min_tokens: 100k");
  EXPECT_EQ(asha.rule, StoppingRule::kAsha);
  EXPECT_TRUE(asha.promotes);
  EXPECT_EQ(asha.eta, 4u);
  EXPECT_EQ(
      spec("metric: recon.fve, direction: max, min_tokens: 100k, mode: stop, eta: 3").min_reports,
      3u);
}

TEST_F(EarlyStopping, EveryRuleHasItsKeys) {
  const auto front =
      spec("metric: [core.l0, core.ce_loss_score], direction: [min, max], min_tokens: 100k");
  ASSERT_EQ(front.metrics.size(), 2u);
  EXPECT_FALSE(front.metrics[0].maximize);
  EXPECT_TRUE(front.metrics[1].maximize);
  EXPECT_EQ(spec("rule: hyperband, metric: core.l0, direction: min, min_tokens: 10k").rule,
            StoppingRule::kHyperband);
  const auto median = spec(
      "rule: median, metric: core.mse, direction: min, interval: 100k, warmup: 200k, min_trials: "
      "3");
  EXPECT_FALSE(median.promotes);
  EXPECT_EQ(median.interval, 100'000u);
  EXPECT_EQ(median.warmup, 200'000u);
  EXPECT_EQ(median.min_trials, 3u);
  EXPECT_EQ(spec("rule: percentile, metric: core.mse, direction: min, interval: 100k, "
                 "percentile: 25")
                .percentile,
            25);
  const auto patience = spec(
      "rule: patience, metric: core.mse, direction: min, interval: 100k, reports: 2, min_delta: "
      "1e-3");
  EXPECT_EQ(patience.reports, 2u);
  EXPECT_EQ(patience.min_delta, 1e-3);
  const auto threshold =
      spec("rule: threshold, metric: recon.dead_fraction, interval: 100k, high: 0.9, low: -0.5");
  EXPECT_EQ(threshold.high, 0.9);
  EXPECT_EQ(threshold.low, -0.5);
}

TEST_F(EarlyStopping, IsInNoIdentity) {
  const auto stopped = plan(with("metric: core.l0, direction: min, min_tokens: 100k")).trials;
  const auto whole = plan(sweep("[{arch: topk, d_sae: 64, k: [4, 8]}]")).trials;
  ASSERT_EQ(stopped.size(), 2u);
  for (std::size_t i = 0; i < 2; ++i) EXPECT_EQ(stopped[i].identity, whole[i].identity);
}

TEST_F(EarlyStopping, WhatIsWrongIsSaidWithItsPlaceAndWhatWouldBeRight) {
  struct Case {
    std::string settings, expected;
  };
  for (const auto& [settings, expected] : {
           Case{"direction: max, min_tokens: 100k", "early_stopping.metric: is missing"},
           Case{"metric: core.ce_loss_scor, direction: max, min_tokens: 100k",
                "'core.ce_loss_scor' is no score that evaluate of this sweep computes; did you "
                "mean 'core.ce_loss_score'?"},
           Case{"metric: board.cov_best_t, direction: max, min_tokens: 100k",
                "is no score that evaluate of this sweep computes"},
           Case{"metric: [core.l0, core.l1, core.mse], direction: min, min_tokens: 100k",
                "early_stopping.metric: is a list of 3; one score, or two that are ranked by "
                "fronts, would be right"},
           Case{"metric: [core.l0, core.l0], direction: [min, min], min_tokens: 100k",
                "names 'core.l0' twice"},
           Case{"metric: core.l0, min_tokens: 100k",
                "early_stopping.direction: is missing; max or min would be right"},
           Case{"metric: core.l0, direction: up, min_tokens: 100k",
                "early_stopping.direction: 'up' is not one of its values"},
           Case{"metric: [core.l0, core.mse], direction: min, min_tokens: 100k",
                "early_stopping.direction: has 1 words for 2 scores"},
           Case{"metric: core.l0, direction: min",
                "early_stopping.min_tokens: is missing; the tokens of the first rung"},
           Case{"metric: core.l0, direction: min, min_tokens: 100",
                "early_stopping.min_tokens: 100 tokens are less than a step of 256; at least that "
                "many would be right"},
           Case{"metric: core.l0, direction: min, min_tokens: 2M",
                "early_stopping.min_tokens: 2000000 tokens are no less than the 999936 that a "
                "trial trains on, so nothing would be stopped; at most 999935 would be right"},
           Case{"metric: core.l0, direction: min, min_tokens: 100k, eta: 1",
                "early_stopping.eta: 1 is out of range; 2 to 1000 would be right"},
           Case{"metric: core.l0, direction: min, min_tokens: 100k, mode: halt",
                "early_stopping.mode: 'halt' is not one of its values"},
           Case{"rule: asah, metric: core.l0, direction: min, min_tokens: 100k",
                "early_stopping.rule: 'asah' is not one of its values; did you mean 'asha'?"},
           Case{"metric: core.l0, direction: min, min_tokens: 100k, min_reports: 3",
                "early_stopping.min_reports: has no meaning for mode promote"},
           Case{"metric: core.l0, direction: min, min_tokens: 100k, interval: 10k",
                "early_stopping.interval: has no meaning for rule asha"},
           Case{"rule: median, metric: core.l0, direction: min, interval: 100k, eta: 3",
                "early_stopping.eta: has no meaning for rule median"},
           Case{"rule: median, metric: core.l0, direction: min",
                "early_stopping.interval: is missing"},
           Case{"rule: percentile, metric: core.l0, direction: min, interval: 100k, percentile: "
                "101",
                "early_stopping.percentile: 101 is too large"},
           Case{"rule: threshold, metric: core.l0, interval: 100k",
                "early_stopping.low: and high are both missing"},
           Case{"rule: threshold, metric: core.l0, interval: 100k, low: 2, high: 1",
                "early_stopping.low: 2 is not below high, 1"},
           Case{"rule: threshold, metric: core.l0, direction: min, interval: 100k, low: 2",
                "early_stopping.direction: has no meaning for rule threshold"},
           Case{"rule: patience, metric: core.l0, direction: min, interval: 256",
                "early_stopping.interval: 256 tokens make 3906 reports of a trial; at least 1000"},
           Case{"metric: core.l0, direction: min, min_tokens: 100k, etta: 3",
                "early_stopping.etta: unknown key 'etta'; did you mean 'eta'?"},
       }) {
    SCOPED_TRACE(settings);
    const auto lines = errors(with(settings));
    ASSERT_FALSE(lines.empty());
    EXPECT_THAT(lines, testing::Contains(HasSubstr(expected)));
  }
  EXPECT_THAT(error(with("metric: core.l0, direction: min, min_tokens: 100")),
              StartsWith("sweep.yaml:6:"));
}

}  // namespace
}  // namespace saesweep::sweeps
