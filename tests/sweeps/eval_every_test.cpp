// train.eval_every: how often learning curves look at held-out rows.
#include <gmock/gmock.h>

#include "sweeps/training_rules.h"
#include "tests/sweeps/sweep_words.h"

namespace saesweep::sweeps {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

class EvalEvery : public SweepTest {
 protected:
  std::uint64_t of(std::string_view train, std::string_view trials =
                                               "[{arch: topk, d_sae: 64, "
                                               "k: 4}]") {
    const SweepPlan result = plan(sweep(trials, "", train));
    return result.trials.empty() ? 99 : result.trials[0].spec.training.eval_every;
  }
  std::string wrong(std::string_view train) { return error(sweep(kTrials, "", train)); }
  static std::string without_holdout(std::string_view train) {
    std::string text = sweep(kTrials, "", train);
    text.replace(text.find("tokens: 100k"), 12, "tokens: 100k, holdout: 0");
    return text;
  }
  static constexpr std::string_view kTrials = "[{arch: topk, d_sae: 64, k: 4}]";
};

TEST_F(EvalEvery, IsACountOfTokensOrAShareOfTheRun) {
  EXPECT_EQ(of(", eval_every: 250k"), 250'000u);
  EXPECT_EQ(of(", eval_every: 2%"), 20'000u);
  EXPECT_EQ(of(", eval_every: 100%"), 1'000'000u);
  EXPECT_EQ(of(", eval_every: 0"), 0u);
  EXPECT_EQ(of(", eval_every: 0%"), 0u);
  // A family of its own budget has its share of that.
  EXPECT_EQ(of(", eval_every: 2%", "[{arch: topk, d_sae: 64, k: 4, tokens: 600k}]"), 12'000u);
  EXPECT_EQ(of(", eval_every: 0.00001%"), 1u) << "a tenth of a token";
}

TEST_F(EvalEvery, WhatIsNotSaidIsTwentyLooksButNotMoreThanASixtyFourthOfTheRows) {
  EXPECT_EQ(of("", "[{arch: topk, d_sae: 64, k: 4, tokens: 100M}]"), 5'000'000u);
  EXPECT_EQ(of(""), 131'072u);
  EXPECT_EQ(kHeldOutRows, 2048u);
}

TEST_F(EvalEvery, IsInNoIdentity) {
  const auto usual = plan(sweep()).trials.at(0),
             other = plan(sweep(kTrials, "", ", eval_every: 0")).trials.at(0);
  EXPECT_NE(usual.spec, other.spec);
  EXPECT_EQ(usual.identity, other.identity);
  EXPECT_EQ(TrialSpec::from_json(usual.spec.to_json()).value(), usual.spec);
  EXPECT_EQ(TrialSpec::from_json(other.spec.to_json()).value(), other.spec);
}

TEST_F(EvalEvery, NeedsHeldOutRows) {
  EXPECT_EQ(plan(without_holdout("")).trials.at(0).spec.training.eval_every, 0u);
  EXPECT_EQ(plan(without_holdout(", eval_every: 0")).trials.at(0).spec.training.eval_every, 0u);
  EXPECT_THAT(error(without_holdout(", eval_every: 5%")),
              AllOf(StartsWith("sweep.yaml:4:"),
                    HasSubstr("train.eval_every: is 5%, and activations.holdout is 0"),
                    HasSubstr("a share like 5% there, or 0 here, would be right")));
}

TEST_F(EvalEvery, OtherThingsAreRefused) {
  for (const char* value : {"often", "-1", "101%", "60s", "1.5"})
    EXPECT_THAT(wrong(fmt::format(", eval_every: {}", value)),
                AllOf(HasSubstr("train.eval_every: is "), HasSubstr(value),
                      HasSubstr("500k, a share of the run like 5%, or 0 for never")));
  EXPECT_THAT(wrong(", eval_every: [1k, 2k]"), HasSubstr("train.eval_every"));
  EXPECT_THAT(wrong(", eval_evry: 1k"), HasSubstr("eval_every"));
  // Trials that differ in nothing else would be the same trial.
  EXPECT_THAT(error(sweep("[{arch: topk, d_sae: 64, k: 4, eval_every: 1k}]")),
              HasSubstr("trials[0].eval_every"));
}

TEST_F(EvalEvery, TheRandomModelOfTheBaselinesIsNotLookedAt) {
  const SweepPlan result = plan(sweep(kTrials, "baselines: [random_model]"));
  ASSERT_EQ(result.baselines.size(), 1u);
  EXPECT_EQ(result.baselines[0].spec.training->eval_every, 0u);
}

}  // namespace
}  // namespace saesweep::sweeps
