#include "scheduler/early_stopping/rungs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <vector>

#include "core/philox.h"

namespace saesweep::scheduler {
namespace {

using testing::ElementsAre;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

TEST(RungTokens, GrowByEtaAndEndAtTheBudget) {
  EXPECT_THAT(rung_tokens(1, 27, 3), ElementsAre(1, 3, 9, 27));
  EXPECT_THAT(rung_tokens(1, 30, 3), ElementsAre(1, 3, 9, 27, 30));
  EXPECT_THAT(rung_tokens(1, 27, 3, 1), ElementsAre(3, 9, 27));
  EXPECT_THAT(rung_tokens(1, 27, 3, 9), ElementsAre(27));
  EXPECT_THAT(rung_tokens(500, 500, 4), ElementsAre(500));
  EXPECT_THAT(rung_tokens(600, 500, 4), ElementsAre(500));
  EXPECT_EQ(last_bracket(1, 27, 3), 2u);
  EXPECT_EQ(last_bracket(5, 5, 3), 0u);
  const std::uint64_t huge = ~std::uint64_t{0};
  EXPECT_EQ(rung_tokens(1, huge, 4).back(), huge) << "64 bits are enough";
  EXPECT_EQ(rung_tokens(1, huge, 4).size(), 33u);
}

TEST(RungTest, PromotesTheBestThirdAndNobodyTwice) {
  Rung rung(3);
  rung.report(7, 0.5);
  rung.report(8, 0.4);
  EXPECT_FALSE(rung.best_to_promote()) << "one of three, and only two are here";
  rung.report(9, 0.6);
  EXPECT_EQ(rung.best_to_promote(), 8u);
  rung.promote(8);
  EXPECT_FALSE(rung.best_to_promote());
  EXPECT_EQ(rung.best_waiting(), 7u);
}

TEST(RungTest, WhoWasPromotedStaysPromotedWhenOthersOvertakeIt) {
  Rung rung(2);
  rung.report(0, 5);
  rung.report(1, 6);
  ASSERT_EQ(rung.best_to_promote(), 0u);
  rung.promote(0);
  rung.report(2, 1);
  EXPECT_EQ(rung.best_to_promote(), 2u) << "the best of three is one trial: the new one";
  EXPECT_TRUE(rung.was_promoted(0));
}

TEST(RungTest, EqualValuesGoByIndexAndWhatIsNotFiniteComesLast) {
  Rung rung(2);
  rung.report(3, kNan);
  rung.report(2, -std::numeric_limits<double>::infinity());
  rung.report(5, 1);
  rung.report(4, 1);
  ASSERT_EQ(rung.best_to_promote(), 4u);
  rung.promote(4);
  ASSERT_EQ(rung.best_to_promote(), 5u);
  rung.promote(5);
  EXPECT_FALSE(rung.best_to_promote());
  EXPECT_EQ(rung.best_waiting(), 2u);
}

// Against sorting everything anew, over many random orders.
TEST(RungTest, RanksLikeASort) {
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(seed);
    Rng rng(seed, "rung");
    const std::uint32_t eta = 2 + static_cast<std::uint32_t>(seed % 3);
    Rung rung(eta);
    std::vector<std::pair<double, TrialIndex>> all;
    std::vector<TrialIndex> promoted;
    for (TrialIndex trial = 0; trial < 60; ++trial) {
      const double value = std::floor(10 * rng.uniform());
      rung.report(trial, value);
      all.emplace_back(value, trial);
      std::ranges::sort(all);
      const auto expected = std::ranges::find_if(
          all.begin(), all.begin() + static_cast<std::ptrdiff_t>(all.size() / eta),
          [&](const auto& entry) {
            return std::ranges::find(promoted, entry.second) == promoted.end();
          });
      const bool somebody = expected - all.begin() < static_cast<std::ptrdiff_t>(all.size() / eta);
      ASSERT_EQ(rung.best_to_promote().has_value(), somebody);
      if (!somebody || rng.uniform() < 0.5) continue;
      ASSERT_EQ(*rung.best_to_promote(), expected->second);
      rung.promote(expected->second);
      promoted.push_back(expected->second);
    }
  }
}

// Nine trials of three rungs, eta 3, one slot: worked by hand.
TEST(AshaPromotionTest, PromotesFromTheHighestRungFirst) {
  AshaPromotion asha(3, 3);
  for (TrialIndex trial = 0; trial < 9; ++trial) asha.report(trial, 0, trial);
  for (const TrialIndex expected : {0u, 1u, 2u}) {
    ASSERT_EQ(asha.next(), (Promotion{expected, 1}));
    asha.promoted(*asha.next());
    asha.report(expected, 1, 10.0 - expected);
  }
  ASSERT_EQ(asha.next(), (Promotion{2, 2})) << "the best of the three at rung 1";
  asha.promoted({2, 2});
  EXPECT_FALSE(asha.next());
  asha.report(2, 2, 1);
  EXPECT_FALSE(asha.next_at_the_end()) << "somebody has finished";
}

TEST(AshaPromotionTest, AtTheEndTheBestOfTheHighestRungGoesOnUntilOneIsThrough) {
  AshaPromotion asha(3, 4);
  asha.report(0, 0, 2);
  asha.report(1, 0, 1);
  EXPECT_FALSE(asha.next());
  ASSERT_EQ(asha.next_at_the_end(), (Promotion{1, 1}));
  asha.promoted({1, 1});
  ASSERT_EQ(asha.next_at_the_end(), (Promotion{0, 1})) << "nobody has reached rung 1 yet";
  asha.report(1, 1, 5);
  ASSERT_EQ(asha.next_at_the_end(), (Promotion{1, 2}));
  asha.promoted({1, 2});
  EXPECT_FALSE(asha.next_at_the_end()) << "it is on its way";
  asha.report(1, 2, 5);
  EXPECT_FALSE(asha.next_at_the_end());
}

TEST(AshaPromotionTest, TheSameReportsInTheSameOrderDecideTheSame) {
  const auto run = [](std::uint64_t seed) {
    Rng rng(seed, "asha");
    AshaPromotion asha(4, 3);
    std::vector<std::pair<TrialIndex, std::size_t>> decisions;
    for (TrialIndex trial = 0; trial < 200; ++trial) {
      asha.report(trial, 0, rng.uniform());
      while (const auto promotion = asha.next()) {
        asha.promoted(*promotion);
        decisions.emplace_back(promotion->trial, promotion->rung);
        asha.report(promotion->trial, promotion->rung, rng.uniform());
      }
    }
    return decisions;
  };
  EXPECT_EQ(run(1), run(1));
  EXPECT_NE(run(1), run(2));
  std::map<std::size_t, std::size_t> counts;
  for (const auto& [trial, rung] : run(3)) ++counts[rung];
  EXPECT_GE(counts[1], 200u / 3) << "a third, and those whom later reports overtook";
  EXPECT_LT(counts[1], 100u);
  EXPECT_GT(counts[3], 0u);
}

TEST(AshaStoppingTest, StopsWhoIsNotAmongTheBestOnceEnoughReported) {
  AshaStopping asha(2, 4, 4);
  EXPECT_TRUE(asha.report(0, 0, 5));
  EXPECT_TRUE(asha.report(1, 0, 9)) << "too few to judge";
  EXPECT_TRUE(asha.report(2, 0, 9.5));
  EXPECT_FALSE(asha.report(3, 0, 6));
  EXPECT_TRUE(asha.report(4, 0, 4));
  EXPECT_TRUE(asha.report(0, 1, 99)) << "nobody is stopped at the top";
}

TEST(BracketsTest, ANewTrialJoinsTheOneThatUsedTheLeast) {
  Brackets brackets(3);
  EXPECT_EQ(brackets.next(), 0u);
  brackets.charge(0, 10);
  EXPECT_EQ(brackets.next(), 1u);
  brackets.charge(1, 30);
  brackets.charge(2, 20);
  EXPECT_EQ(brackets.next(), 0u);
}

}  // namespace
}  // namespace saesweep::scheduler
