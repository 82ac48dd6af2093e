// The counter-based generator: known answers of Random123, and draws that are what they say.
#include "core/philox.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <set>
#include <vector>

namespace saesweep {
namespace {

using Block = std::array<std::uint32_t, 4>;

// Sum over cells of (seen - expected)^2 / expected.
double chi_square(const std::vector<std::uint64_t>& counts, double expected) {
  double sum = 0;
  for (const std::uint64_t count : counts) {
    const double difference = static_cast<double>(count) - expected;
    sum += difference * difference / expected;
  }
  return sum;
}

// Chi-square with n degrees of freedom has mean n and variance 2n; five deviations are passed once
// in a million by chance, and the draws here are fixed.
double five_deviations_above(std::size_t cells) {
  const double freedom = static_cast<double>(cells - 1);
  return freedom + 5 * std::sqrt(2 * freedom);
}

// Source: kat_vectors of Random123 (philox4x32 10).
TEST(PhiloxTest, AnswersAsRandom123DoesForZeros) {
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}),
            (Block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
}

TEST(PhiloxTest, AnswersAsRandom123DoesForOnes) {
  constexpr std::uint32_t kOnes = 0xffffffff;
  EXPECT_EQ(philox4x32({kOnes, kOnes, kOnes, kOnes}, {kOnes, kOnes}),
            (Block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
}

TEST(PhiloxTest, AnswersAsRandom123DoesForTheDigitsOfPi) {
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(RngTest, AStreamDependsOnSeedPurposeAndIndexAndOnNothingElse) {
  const auto first = [](std::uint64_t seed, std::string_view purpose, std::uint64_t index) {
    return Rng(seed, purpose, index).next_u64();
  };
  EXPECT_EQ(first(1, "init", 2), first(1, "init", 2));
  const std::set<std::uint64_t> distinct = {first(1, "init", 2), first(2, "init", 2),
                                            first(1, "games", 2), first(1, "init", 3),
                                            first(1, "init", std::uint64_t{2} << 32)};
  EXPECT_EQ(distinct.size(), 5u);
}

// These numbers are part of every result's bytes: a change here raises the numerics version.
TEST(RngTest, KeepsTheDrawsOfTheFirstVersion) {
  Rng rng(0, "golden", 7);
  std::vector<std::uint32_t> draws;
  for (int i = 0; i < 5; ++i) draws.push_back(rng.next_u32());
  EXPECT_THAT(draws,
              testing::ElementsAre(0xbea8f21a, 0x1f89081d, 0xb8b79e6f, 0x9b725996, 0x6c10d0db));
  EXPECT_EQ(rng.below(1000), 49u);
  EXPECT_EQ(rng.below64(std::uint64_t{1} << 40), 410065941481u);
  EXPECT_EQ(rng.uniform(), 0.60390323236107279);
}

TEST(RngTest, BelowIsUniformForBoundsThatDivideNothing) {
  for (const std::uint32_t bound : {2u, 3u, 7u, 10u, 60u, 1000u}) {
    SCOPED_TRACE(bound);
    Rng rng(3, "uniform", bound);
    std::vector<std::uint64_t> counts(bound);
    const std::uint64_t draws = 2000ull * bound;
    for (std::uint64_t i = 0; i < draws; ++i) {
      const std::uint32_t value = rng.below(bound);
      ASSERT_LT(value, bound);
      ++counts[value];
    }
    EXPECT_LT(chi_square(counts, 2000), five_deviations_above(bound));
  }
}

// Three quarters of 2^32: without rejection the lower third of values would come twice as often.
TEST(RngTest, BelowRejectsWhatWouldMakeSmallValuesMoreLikely) {
  constexpr std::uint32_t kBound = 3u << 30;
  Rng rng(4, "uniform");
  std::vector<std::uint64_t> thirds(3);
  for (int i = 0; i < 30000; ++i) ++thirds[rng.below(kBound) >> 30];
  EXPECT_LT(chi_square(thirds, 10000), five_deviations_above(3));
}

TEST(RngTest, Below64RejectsWhatWouldMakeSmallValuesMoreLikely) {
  constexpr std::uint64_t kBound = std::uint64_t{3} << 62;
  Rng rng(5, "uniform");
  std::vector<std::uint64_t> thirds(3);
  for (int i = 0; i < 30000; ++i) ++thirds[rng.below64(kBound) >> 62];
  EXPECT_LT(chi_square(thirds, 10000), five_deviations_above(3));
}

TEST(RngTest, BelowOneIsZero) {
  Rng rng(6, "uniform");
  EXPECT_EQ(rng.below(1), 0u);
  EXPECT_EQ(rng.below64(1), 0u);
}

TEST(RngDeathTest, ABoundOfZeroIsOurBug) {
  Rng rng(6, "uniform");
  EXPECT_DEATH(rng.below(0), "bound 0");
  EXPECT_DEATH(rng.below64(0), "bound 0");
}

TEST(RngTest, UniformFillsTheUnitIntervalAndNeverReachesOne) {
  Rng rng(7, "uniform");
  std::vector<std::uint64_t> tenths(10);
  for (int i = 0; i < 100000; ++i) {
    const double value = rng.uniform();
    ASSERT_GE(value, 0.0);
    ASSERT_LT(value, 1.0);
    ++tenths[static_cast<std::size_t>(value * 10)];
  }
  EXPECT_LT(chi_square(tenths, 10000), five_deviations_above(10));
}

// The first four moments of N(0, 1) are 0, 1, 0, 3; their estimates over n draws deviate by
// sqrt(1/n), sqrt(2/n), sqrt(15/n), sqrt(96/n).
TEST(RngTest, NormalHasTheMomentsOfANormal) {
  Rng rng(8, "normal");
  constexpr int kDraws = 200000;
  std::array<double, 4> moments{};
  for (int i = 0; i < kDraws; ++i) {
    const double value = rng.normal();
    ASSERT_TRUE(std::isfinite(value));
    double power = 1;
    for (double& moment : moments) moment += (power *= value) / kDraws;
  }
  EXPECT_NEAR(moments[0], 0, 5 * std::sqrt(1.0 / kDraws));
  EXPECT_NEAR(moments[1], 1, 5 * std::sqrt(2.0 / kDraws));
  EXPECT_NEAR(moments[2], 0, 5 * std::sqrt(15.0 / kDraws));
  EXPECT_NEAR(moments[3], 3, 5 * std::sqrt(96.0 / kDraws));
}

TEST(RngTest, StreamsOfNeighbouringIndicesAreNotCorrelated) {
  constexpr int kDraws = 100000;
  Rng left(9, "shard", 0);
  Rng right(9, "shard", 1);
  double product = 0;
  for (int i = 0; i < kDraws; ++i) product += (left.uniform() - 0.5) * (right.uniform() - 0.5);
  // Correlation has deviation 1/sqrt(n); the variance of a uniform draw is 1/12.
  EXPECT_LT(std::abs(product / kDraws * 12), 5 / std::sqrt(double{kDraws}));
}

}  // namespace
}  // namespace saesweep
