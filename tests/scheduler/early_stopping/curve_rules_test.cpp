#include "scheduler/early_stopping/curve_rules.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

namespace saesweep::scheduler {
namespace {

using testing::ElementsAre;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

Curve curve_of(std::initializer_list<double> values) {
  Curve curve;
  for (const double value : values) curve.push_back({100 * (curve.size() + 1), value});
  return curve;
}

TEST(PercentileRuleTest, StopsWhoseBestIsWorseThanTheMedianOfTheOthersMeans) {
  // Means up to 300 tokens: 1, 2, 3, 4, 5; the median is 3.
  std::map<TrialIndex, Curve> curves;
  for (TrialIndex i = 1; i <= 5; ++i) {
    const double mean = i;
    curves[i] = curve_of({mean + 1, mean, mean - 1, 99});
  }
  const PercentileRule median;
  curves[0] = curve_of({9, 3.01, 9});
  EXPECT_TRUE(median.stops(curves, 0));
  curves[0] = curve_of({9, 3.0, 9});
  EXPECT_FALSE(median.stops(curves, 0)) << "strictly worse";
  const PercentileRule best_quarter{.percentile = 25};
  EXPECT_TRUE(best_quarter.stops(curves, 0)) << "the first quartile is 2";
}

TEST(PercentileRuleTest, WaitsForTheWarmUpAndForEnoughOthersThatCameAsFar) {
  std::map<TrialIndex, Curve> curves;
  curves[0] = curve_of({9, 9, 9});
  for (TrialIndex i = 1; i <= 4; ++i) curves[i] = curve_of({1, 1, 1});
  curves[5] = curve_of({1});  // did not come as far
  EXPECT_FALSE(PercentileRule{}.stops(curves, 0));
  curves[5] = curve_of({1, 1, 1});
  EXPECT_TRUE(PercentileRule{}.stops(curves, 0));
  EXPECT_FALSE(PercentileRule{.warmup = 301}.stops(curves, 0));
  EXPECT_TRUE(PercentileRule{.warmup = 300}.stops(curves, 0));
  EXPECT_FALSE(PercentileRule{}.stops(curves, 17)) << "nobody";
}

TEST(PercentileRuleTest, WhatIsNotFiniteIsTheWorst) {
  std::map<TrialIndex, Curve> curves;
  for (TrialIndex i = 1; i <= 5; ++i) curves[i] = curve_of({1});
  curves[0] = curve_of({kNan});
  EXPECT_TRUE(PercentileRule{}.stops(curves, 0));
  for (TrialIndex i = 1; i <= 5; ++i) curves[i] = curve_of({kNan});
  EXPECT_FALSE(PercentileRule{}.stops(curves, 0)) << "none is better";
}

TEST(PatienceRuleTest, StopsAfterSoManyReportsWithoutImprovement) {
  const PatienceRule rule{.reports = 3, .min_delta = 0.25};
  EXPECT_FALSE(rule.stops(curve_of({1, 1, 1}))) << "too few to say";
  EXPECT_TRUE(rule.stops(curve_of({1, 1, 1, 0.95})));
  EXPECT_FALSE(rule.stops(curve_of({1, 1, 0.7, 1})));
  EXPECT_FALSE(rule.stops(curve_of({1, 5, 5, 0.75}))) << "by exactly as much";
  EXPECT_TRUE(rule.stops(curve_of({kNan, kNan, kNan, kNan})));
  EXPECT_FALSE(rule.stops(curve_of({kNan, kNan, kNan, 1})));
  EXPECT_TRUE((PatienceRule{.reports = 1}.stops(curve_of({1, 1})))) << "equal is no improvement";
}

TEST(ThresholdRuleTest, StopsOutsideOfItsBoundsAfterTheWarmUp) {
  const ThresholdRule rule{.low = std::nullopt, .high = 0.9, .warmup = 200};
  EXPECT_FALSE(rule.stops(curve_of({0.95})));
  EXPECT_TRUE(rule.stops(curve_of({0.5, 0.95})));
  EXPECT_FALSE(rule.stops(curve_of({0.95, 0.9})));
  EXPECT_TRUE((ThresholdRule{.low = 1, .high = std::nullopt}.stops(curve_of({0.5}))));
  EXPECT_TRUE((ThresholdRule{.low = 1, .high = std::nullopt}.stops(curve_of({kNan}))));
}

TEST(RankByFronts, ComparesFrontsThenHowAloneAPointIs) {
  // Front 1: 0, 1, 2, 3 on a line; 1 has nearer neighbours than 2. Front 2: 4. Front 3: 5.
  const std::vector<TwoValues> points = {{0, 10}, {1, 9}, {4, 6}, {10, 0}, {5, 7}, {6, 8}};
  EXPECT_THAT(rank_by_fronts(points), ElementsAre(0, 3, 2, 1, 4, 5));
  EXPECT_TRUE(rank_by_fronts({}).empty());
}

TEST(RankByFronts, EqualPointsShareAFrontAndNoNumberIsLast) {
  EXPECT_THAT(rank_by_fronts({{kNan, kNan}, {1, 1}, {1, 1}, {2, 1}}), ElementsAre(1, 2, 3, 0));
}

}  // namespace
}  // namespace saesweep::scheduler
