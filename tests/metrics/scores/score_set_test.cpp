#include "metrics/scores/score_set.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "core/philox.h"

namespace saesweep::metrics {
namespace {

std::vector<double> means_without(const std::vector<double>& values) {
  const double sum = std::accumulate(values.begin(), values.end(), 0.0);
  std::vector<double> without;
  for (const double each : values)
    without.push_back((sum - each) / static_cast<double>(values.size() - 1));
  return without;
}

TEST(BlocksTest, AreContiguousAndOfNearlyEqualSize) {
  for (const std::size_t documents : {1u, 7u, 32u, 33u, 50u, 1290u}) {
    std::vector<std::size_t> sizes(block_count(documents), 0);
    std::size_t last = 0;
    for (std::size_t i = 0; i < documents; ++i) {
      const std::size_t block = block_of(i, documents);
      ASSERT_LT(block, sizes.size());
      ASSERT_TRUE(block == last || block == last + 1);
      last = block;
      ++sizes[block];
    }
    EXPECT_LE(*std::ranges::max_element(sizes) - *std::ranges::min_element(sizes), 1u) << documents;
    EXPECT_GE(*std::ranges::min_element(sizes), 1u) << documents;
  }
  EXPECT_EQ(block_count(5), 5u);
  EXPECT_EQ(block_count(5000), 32u);
}

TEST(JackknifeTest, OfAMeanIsTheUsualStandardError) {
  Rng rng(1, "test.jackknife");
  std::vector<double> values(20);
  for (double& each : values) each = rng.normal();
  const double mean = std::accumulate(values.begin(), values.end(), 0.0) / 20;
  double squares = 0;
  for (const double each : values) squares += (each - mean) * (each - mean);
  const double usual = std::sqrt(squares / 19 / 20);
  EXPECT_NEAR(jackknife_error(means_without(values)), usual, 1e-12);

  const Score score = with_interval(mean, means_without(values), 20, 3);
  EXPECT_NEAR(*score.high - mean, 2.0930240544 * usual, 1e-9);  // Student's t, 19 degrees
  EXPECT_NEAR(mean - *score.low, 2.0930240544 * usual, 1e-9);
  EXPECT_EQ(score.n, 20u);
  EXPECT_EQ(score.version, 3);
}

TEST(JackknifeTest, NineteenOfTwentyIntervalsHoldTheTruth) {
  // A ratio of means with truth 2: 32 blocks each.
  int held = 0;
  constexpr int kTrials = 2000;
  for (int trial = 0; trial < kTrials; ++trial) {
    Rng rng(2, "test.coverage", static_cast<std::uint64_t>(trial));
    std::vector<double> above(32), below(32);
    for (std::size_t i = 0; i < 32; ++i) {
      below[i] = 1 + 0.3 * rng.normal();
      above[i] = 2 + 0.5 * rng.normal();
    }
    const double a = std::accumulate(above.begin(), above.end(), 0.0);
    const double b = std::accumulate(below.begin(), below.end(), 0.0);
    std::vector<double> without(32);
    for (std::size_t i = 0; i < 32; ++i) without[i] = (a - above[i]) / (b - below[i]);
    const Score score = with_interval(a / b, without, 32, 1);
    held += *score.low <= 2 && 2 <= *score.high;
  }
  EXPECT_NEAR(static_cast<double>(held) / kTrials, .95, .02);
}

TEST(JackknifeTest, FewerThanEightBlocksGiveNoInterval) {
  EXPECT_EQ(with_interval(1, std::vector<double>(7, 1.0), 7, 1).low, std::nullopt);
  EXPECT_TRUE(with_interval(1, std::vector<double>(8, 1.0), 8, 1).low.has_value());
}

TEST(JackknifeTest, ValuesThatAreNotNumbersGiveNoInterval) {
  constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
  std::vector<double> without(16, 1.0);
  EXPECT_EQ(with_interval(kNaN, without, 1, 1).low, std::nullopt);
  without[3] = kNaN;
  EXPECT_EQ(with_interval(1, without, 1, 1).high, std::nullopt);
}

TEST(ScoreJsonTest, WritesNullForWhatIsNoNumber) {
  const Scores scores = {{"core.a", {.5, .25, .75, 9, 1}},
                         {"core.b", {std::numeric_limits<double>::quiet_NaN()}}};
  EXPECT_EQ(to_json(scores).dump(),
            R"({"core.a":{"high":0.75,"low":0.25,"n":9,"value":0.5,"version":1},)"
            R"("core.b":{"high":null,"low":null,"n":0,"value":null,"version":1}})");
}

}  // namespace
}  // namespace saesweep::metrics
