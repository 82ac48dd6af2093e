#include "sweeps/draws.h"

#include <fmt/format.h>
#include <gmock/gmock.h>

#include <array>
#include <cmath>
#include <set>
#include <utility>

namespace saesweep::sweeps {
namespace {

constexpr std::array kStrategies{Strategy::kRandom, Strategy::kLatinHypercube, Strategy::kSobol};

DrawnAxis uniform(const std::string& name, double low, double high) {
  DrawnAxis axis;
  axis.name = name;
  axis.low = low;
  axis.high = high;
  return axis;
}
DrawnAxis whole(const std::string& name, std::uint64_t low, std::uint64_t high) {
  DrawnAxis axis;
  axis.name = name;
  axis.kind = DrawnAxis::Kind::kIntUniform;
  axis.int_low = low;
  axis.int_high = high;
  return axis;
}

std::vector<std::vector<DrawnValue>> points(const PointSource& source) {
  std::vector<std::vector<DrawnValue>> result;
  for (std::uint64_t i = 0; i < source.samples(); ++i) result.push_back(source.point(i));
  return result;
}

// scipy.stats.qmc.Sobol(23, scramble=False, bits=32), points 7 and 1000, times 2^32.
TEST(SobolTest, BitsAreThoseOfThePublishedDirectionNumbers) {
  constexpr std::array<std::uint32_t, kMaxSobolAxes> kPoint7{
      536870912u,  2684354560u, 1610612736u, 536870912u,  536870912u,  1610612736u,
      2684354560u, 2684354560u, 2684354560u, 3758096384u, 2684354560u, 536870912u,
      2684354560u, 1610612736u, 536870912u,  536870912u,  536870912u,  536870912u,
      2684354560u, 3758096384u, 3758096384u, 1610612736u, 2684354560u};
  constexpr std::array<std::uint32_t, kMaxSobolAxes> kPoint1000{
      943718400u,  415236096u,  2227175424u, 2906652672u, 1203765248u, 3896508416u,
      197132288u,  3862953984u, 2151677952u, 297795584u,  364904448u,  1094713344u,
      692060160u,  1648361472u, 616562688u,  1589641216u, 3091202048u, 1480589312u,
      4257218560u, 3116367872u, 2243952640u, 2361393152u, 4081057792u};
  for (std::size_t axis = 0; axis < kMaxSobolAxes; ++axis) {
    SCOPED_TRACE(axis);
    EXPECT_EQ(sobol_bits(axis, 7), kPoint7[axis]);
    EXPECT_EQ(sobol_bits(axis, 1000), kPoint1000[axis]);
  }
}

TEST(SobolTest, APowerOfTwoOfPointsFillsEveryBoxOnce) {
  const PointSource source(Strategy::kSobol, 3, {uniform("a", 0, 1), uniform("b", 0, 1)}, 64);
  std::set<std::pair<int, int>> boxes;
  for (const auto& point : points(source))
    boxes.emplace(static_cast<int>(std::get<double>(point[0]) * 8),
                  static_cast<int>(std::get<double>(point[1]) * 8));
  EXPECT_EQ(boxes.size(), 64u);
}

TEST(DrawsTest, LatinHypercubeFillsEveryRowAndColumnOnce) {
  const PointSource source(Strategy::kLatinHypercube, 3, {uniform("a", 0, 1), uniform("b", 0, 1)},
                           50);
  std::set<int> first, second;
  for (const auto& point : points(source)) {
    first.insert(static_cast<int>(std::get<double>(point[0]) * 50));
    second.insert(static_cast<int>(std::get<double>(point[1]) * 50));
  }
  EXPECT_EQ(first.size(), 50u);
  EXPECT_EQ(second.size(), 50u);
}

TEST(DrawsTest, RaisingSamplesKeepsEarlierPoints) {
  for (const Strategy strategy : {Strategy::kRandom, Strategy::kSobol}) {
    SCOPED_TRACE(to_string(strategy));
    const std::vector<DrawnAxis> axes{uniform("l1", 0.01, 0.3), whole("k", 1, 64)};
    const auto few = points(PointSource(strategy, 5, axes, 6));
    const auto many = points(PointSource(strategy, 5, axes, 60));
    for (std::size_t i = 0; i < few.size(); ++i) EXPECT_EQ(few[i], many[i]);
  }
}

TEST(DrawsTest, APointDoesNotDependOnTheOrderInWhichAxesAreWritten) {
  for (const Strategy strategy : kStrategies) {
    const PointSource one(strategy, 5, {uniform("a", 0, 1), whole("b", 0, 99)}, 8);
    const PointSource other(strategy, 5, {whole("b", 0, 99), uniform("a", 0, 1)}, 8);
    EXPECT_EQ(one.axes()[0].name, "a");
    EXPECT_EQ(points(one), points(other));
  }
}

TEST(DrawsTest, SeedStrategyAndRangesEachChangeThePoints) {
  const auto draw = [](Strategy strategy, std::uint64_t seed, double high) {
    return points(PointSource(strategy, seed, {uniform("a", 0, high), uniform("b", 0, 1)}, 8));
  };
  for (const Strategy strategy : kStrategies) {
    SCOPED_TRACE(to_string(strategy));
    EXPECT_NE(draw(strategy, 0, 1), draw(strategy, 1, 1));
    const auto near = draw(strategy, 0, 1), far = draw(strategy, 0, 2);
    EXPECT_NE(std::get<double>(near[0][1]), std::get<double>(far[0][1]));
  }
  EXPECT_NE(draw(Strategy::kRandom, 0, 1), draw(Strategy::kSobol, 0, 1));
}

TEST(DrawsTest, EveryValueLiesInItsRange) {
  DrawnAxis logarithmic = uniform("l1", 0.01, 0.3);
  logarithmic.kind = DrawnAxis::Kind::kLogUniform;
  DrawnAxis choice;
  choice.name = "act";
  choice.kind = DrawnAxis::Kind::kChoice;
  choice.choices = {"x", "y", "z"};
  for (const Strategy strategy : kStrategies) {
    SCOPED_TRACE(to_string(strategy));
    const PointSource source(strategy, 1,
                             {logarithmic, choice, whole("k", 3, 5), uniform("u", -2, 2)}, 300);
    std::set<std::uint64_t> seen_k, seen_choices;
    int below_middle = 0;
    for (const auto& point : points(source)) {
      seen_choices.insert(std::get<std::uint64_t>(point[0]));
      seen_k.insert(std::get<std::uint64_t>(point[1]));
      const double l1 = std::get<double>(point[2]);
      EXPECT_GE(l1, 0.01);
      EXPECT_LE(l1, 0.3);
      below_middle += l1 < std::sqrt(0.01 * 0.3) ? 1 : 0;
      EXPECT_LE(std::abs(std::get<double>(point[3])), 2);
    }
    EXPECT_THAT(seen_choices, testing::ElementsAre(0, 1, 2));
    EXPECT_THAT(seen_k, testing::ElementsAre(3, 4, 5));
    EXPECT_NEAR(below_middle, 150, 40);  // even in the logarithm
  }
}

TEST(DrawsTest, WholeNumbersOfTheWidestRangeAreDrawn) {
  const PointSource source(Strategy::kRandom, 1, {whole("n", 1, 9'000'000'000'000'000)}, 100);
  for (const auto& point : points(source)) {
    EXPECT_GE(std::get<std::uint64_t>(point[0]), 1u);
    EXPECT_LE(std::get<std::uint64_t>(point[0]), 9'000'000'000'000'000u);
  }
}

TEST(DrawsTest, AGridHasBothEndsAndEqualSteps) {
  const auto grid = points(PointSource(Strategy::kGrid, 0, {uniform("a", 1, 3)}, 5));
  const std::array expected{1.0, 1.5, 2.0, 2.5, 3.0};
  for (std::size_t i = 0; i < 5; ++i) EXPECT_EQ(std::get<double>(grid[i][0]), expected[i]);

  DrawnAxis logarithmic = uniform("a", 0.01, 1);
  logarithmic.kind = DrawnAxis::Kind::kLogUniform;
  const auto logs = points(PointSource(Strategy::kGrid, 0, {logarithmic}, 3));
  EXPECT_EQ(std::get<double>(logs[0][0]), 0.01);
  EXPECT_DOUBLE_EQ(std::get<double>(logs[1][0]), 0.1);
  EXPECT_EQ(std::get<double>(logs[2][0]), 1);

  const auto ints = points(PointSource(Strategy::kGrid, 0, {whole("a", 0, 10)}, 3));
  EXPECT_EQ(std::get<std::uint64_t>(ints[1][0]), 5u);
  EXPECT_EQ(
      std::get<double>(points(PointSource(Strategy::kGrid, 0, {uniform("a", 1, 3)}, 1))[0][0]),
      1.0);
}

// Drawn values are part of identities: these must never change.
TEST(DrawsTest, PointsOfAKnownSpaceAreTheGoldenOnes) {
  DrawnAxis logarithmic = uniform("l1", 0.01, 0.3);
  logarithmic.kind = DrawnAxis::Kind::kLogUniform;
  const auto third = [&](Strategy strategy) {
    const auto point =
        PointSource(strategy, 0, {logarithmic, whole("d_sae", 64, 4096)}, 6).point(2);
    return fmt::format("{} {}", std::get<std::uint64_t>(point[0]), std::get<double>(point[1]));
  };
  EXPECT_EQ(third(Strategy::kRandom), "248 0.0377867203742");
  EXPECT_EQ(third(Strategy::kLatinHypercube), "586 0.0439242886807");
  EXPECT_EQ(third(Strategy::kSobol), "566 0.0272565886525");
}

}  // namespace
}  // namespace saesweep::sweeps
