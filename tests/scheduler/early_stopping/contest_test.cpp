// The trials of one sweep: facts go in, the rule answers.
#include "scheduler/early_stopping/contest.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "core/philox.h"

namespace saesweep::scheduler {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

ContestRules halving(std::size_t rungs, std::uint32_t eta = 3) {
  ContestRules rules;
  rules.maximize = {true};
  rules.rungs = rungs;
  rules.eta = eta;
  rules.min_reports = eta;
  return rules;
}

Contest contest_of(ContestRules rules, TrialIndex trials) {
  Contest contest(std::move(rules));
  for (TrialIndex trial = 0; trial < trials; ++trial) contest.enter(trial, 0);
  return contest;
}

std::vector<std::pair<TrialIndex, std::size_t>> steps_of(const std::vector<Contest::Step>& steps) {
  std::vector<std::pair<TrialIndex, std::size_t>> pairs;
  for (const Contest::Step& step : steps) pairs.emplace_back(step.trial, step.rung);
  return pairs;
}

TEST(ContestTest, OneInEtaMayGoOnTheBestFirst) {
  Contest contest = contest_of(halving(2), 7);
  for (TrialIndex trial = 0; trial < 7; ++trial) contest.report(trial, 0, 100, {0.1 * trial});
  EXPECT_TRUE(contest.is_idle());
  EXPECT_THAT(steps_of(contest.promotions()), ElementsAre(std::pair(6u, 1u), std::pair(5u, 1u)));
  EXPECT_EQ(contest.promotions()[1].reason,
            "value 0.5, 2nd of 7 at rung 1 (100 tokens): the best one in 3 goes on");
  contest.went_on(6);
  EXPECT_THAT(steps_of(contest.promotions()), ElementsAre(std::pair(5u, 1u)));
  EXPECT_FALSE(contest.is_idle());
}

TEST(ContestTest, WhatIsNotFiniteRanksLastAndCounts) {
  Contest contest = contest_of(halving(1), 3);
  contest.report(0, 0, 100, {kNaN});
  contest.leave(0);
  contest.report(1, 0, 100, {-5});
  EXPECT_THAT(contest.promotions(), IsEmpty());
  contest.report(2, 0, 100, {-7});
  EXPECT_THAT(steps_of(contest.promotions()), ElementsAre(std::pair(1u, 1u)));
}

TEST(ContestTest, WhoLeftIsNeverPromoted) {
  Contest contest = contest_of(halving(1), 3);
  for (TrialIndex trial = 0; trial < 3; ++trial) contest.report(trial, 0, 100, {1.0 * trial});
  contest.leave(2);
  EXPECT_THAT(contest.promotions(), IsEmpty()) << "its place among the best is not given away";
  EXPECT_THAT(steps_of(contest.promotions_at_the_end()), ElementsAre(std::pair(1u, 1u)));
}

TEST(ContestTest, AtTheEndTheBestGoesOnUntilOneIsThrough) {
  Contest contest = contest_of(halving(2), 2);
  contest.report(0, 0, 100, {1});
  contest.report(1, 0, 100, {2});
  EXPECT_THAT(contest.promotions(), IsEmpty());
  EXPECT_THAT(steps_of(contest.promotions_at_the_end()), ElementsAre(std::pair(1u, 1u)));
  contest.went_on(1);
  contest.report(1, 1, 300, {2});
  EXPECT_THAT(steps_of(contest.promotions_at_the_end()), ElementsAre(std::pair(1u, 2u)));
  contest.went_on(1);
  contest.leave(1);  // it diverges on its last way: the other takes its place
  EXPECT_THAT(steps_of(contest.promotions_at_the_end()), ElementsAre(std::pair(0u, 1u)));
  contest.went_on(0);
  contest.finish(0);
  EXPECT_THAT(contest.promotions_at_the_end(), IsEmpty());
  EXPECT_TRUE(contest.is_idle());
  EXPECT_THAT(contest.waiting(), IsEmpty());
}

TEST(ContestTest, ATrialMayMissARung) {
  Contest contest = contest_of(halving(2, 2), 2);
  contest.report(0, 1, 300, {1});
  contest.report(1, 1, 300, {2});
  EXPECT_THAT(steps_of(contest.promotions()), ElementsAre(std::pair(1u, 2u)));
}

TEST(ContestTest, BracketsAreLaddersOfTheirOwn) {
  ContestRules rules = halving(2, 2);
  rules.brackets = 2;
  Contest contest(rules);
  for (TrialIndex trial = 0; trial < 4; ++trial) contest.enter(trial, trial % 2);
  contest.report(0, 0, 100, {1});
  contest.report(2, 0, 100, {2});
  contest.report(1, 1, 300, {9});
  contest.report(3, 1, 300, {8});
  EXPECT_THAT(steps_of(contest.promotions()), ElementsAre(std::pair(2u, 1u), std::pair(1u, 2u)));
  contest.went_on(2);
  contest.report(2, 1, 300, {5});
  EXPECT_THAT(contest.place_of(2).of, 1u) << "others of that rung are of another bracket";
}

TEST(ContestTest, TheStoppingFormJudgesEachReportWhenItComes) {
  ContestRules rules = halving(2);
  rules.promotes = false;
  Contest contest = contest_of(rules, 5);
  const auto judge = [&](TrialIndex trial, double value) {
    const Contest::Verdict verdict = contest.judge(trial, 0, 100, {value});
    contest.report(trial, 0, 100, {value});
    if (verdict.goes_on)
      contest.went_on(trial);
    else
      contest.leave(trial);
    return verdict;
  };
  EXPECT_TRUE(judge(0, 1).goes_on);
  EXPECT_THAT(judge(1, 3).reason, HasSubstr("nobody stops before 3 came"));
  EXPECT_FALSE(judge(2, 2).goes_on);
  EXPECT_TRUE(judge(3, 4).goes_on);
  const Contest::Verdict last = judge(4, 0);
  EXPECT_FALSE(last.goes_on);
  EXPECT_EQ(last.reason,
            "value 0, 5th of 5 at rung 1 (100 tokens): only the best one in 3 goes on");
  EXPECT_THAT(contest.promotions(), IsEmpty());
}

TEST(ContestTest, TwoMetricsAreRankedByFronts) {
  ContestRules rules = halving(1, 2);
  rules.maximize = {false, true};  // L0, loss recovered
  Contest contest = contest_of(rules, 4);
  contest.report(0, 0, 100, {10, 0.9});
  contest.report(1, 0, 100, {20, 0.8});  // dominated by 0
  contest.report(2, 0, 100, {5, 0.5});
  contest.report(3, 0, 100, {30, 0.7});  // dominated by 0 and 1
  EXPECT_THAT(steps_of(contest.promotions()), ElementsAre(std::pair(0u, 1u), std::pair(2u, 1u)));
  EXPECT_THAT(contest.promotions()[0].reason, HasSubstr("value 10, 0.9, 1st of 4"));
}

TEST(ContestTest, CurveRulesJudgeByTheCurve) {
  ContestRules rules = halving(9);
  rules.promotes = false;
  rules.kind = ContestRules::Kind::kPatience;
  rules.patience = {.reports = 2, .min_delta = 0.01};
  Contest patient = contest_of(rules, 1);
  std::size_t rung = 0;
  for (const double value : {0.5, 0.6, 0.605}) {
    EXPECT_TRUE(patient.judge(0, rung, 100 * (rung + 1), {value}).goes_on) << value;
    patient.report(0, rung, 100 * (rung + 1), {value});
    patient.went_on(0);
    ++rung;
  }
  EXPECT_EQ(patient.judge(0, rung, 400, {0.55}).reason,
            "value 0.55 at 400 tokens: no better in 2 reports");

  rules.kind = ContestRules::Kind::kThreshold;
  rules.threshold = {.low = std::nullopt, .high = 0.9, .warmup = 200};
  Contest bound = contest_of(rules, 1);
  EXPECT_TRUE(bound.judge(0, 0, 100, {0.95}).goes_on) << "it warms up";
  EXPECT_FALSE(bound.judge(0, 1, 200, {0.95}).goes_on) << "no sign is turned";

  rules.kind = ContestRules::Kind::kPercentile;
  rules.percentile = {.percentile = 50, .warmup = 0, .min_trials = 2};
  Contest among = contest_of(rules, 3);
  for (TrialIndex trial = 0; trial < 2; ++trial) {
    among.report(trial, 0, 100, {0.5 + trial});
    among.went_on(trial);
  }
  EXPECT_TRUE(among.judge(2, 0, 100, {1.2}).goes_on);
  EXPECT_FALSE(among.judge(2, 0, 100, {0.9}).goes_on);
}

// What it is does not depend on the order in which it came about: the objects of a journal say it.
TEST(ContestTest, TheSameFactsInAnotherOrderAreTheSameContest) {
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    SCOPED_TRACE(seed);
    Rng rng(seed, "contest");
    ContestRules rules = halving(2, 2 + rng.below(2));
    if (seed % 2 == 1) rules.maximize = {true, false};
    std::vector<std::vector<double>> values;
    Contest lived = contest_of(rules, 12);
    std::map<TrialIndex, std::size_t> rungs;
    std::map<TrialIndex, std::vector<std::vector<double>>> reports;
    for (TrialIndex trial = 0; trial < 12; ++trial) {
      std::vector<double> value{static_cast<double>(rng.below(5)),
                                static_cast<double>(rng.below(5))};
      value.resize(rules.maximize.size());
      lived.report(trial, 0, 10, value);
      reports[trial].push_back(value);
      for (const Contest::Step& step : lived.promotions()) {
        lived.went_on(step.trial);
        rungs[step.trial] = step.rung;
        if (step.rung == 2) {
          lived.finish(step.trial);
          continue;
        }
        lived.report(step.trial, step.rung, 30, value);
        reports[step.trial].push_back(value);
      }
    }
    Contest told = contest_of(rules, 12);
    for (TrialIndex trial = 12; trial-- > 0;) {
      for (std::size_t rung = 0; rung < reports[trial].size(); ++rung) {
        told.report(trial, rung, rung == 0 ? 10 : 30, reports[trial][rung]);
        if (rungs[trial] > rung) told.went_on(trial);
      }
      if (rungs[trial] == 2) told.finish(trial);
    }
    EXPECT_EQ(lived, told);
  }
}

}  // namespace
}  // namespace saesweep::scheduler
