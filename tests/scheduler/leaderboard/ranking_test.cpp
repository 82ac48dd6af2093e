#include "scheduler/leaderboard/ranking.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/scheduler/leaderboard/example_board.h"

namespace saesweep::scheduler {
namespace {

using testing::ElementsAre;

LeaderboardRow trial(const std::string& id, double l0, double quality, double half_width = 0.001) {
  LeaderboardRow row;
  row.trial = id;
  row.model = "m@1";
  row.hook = "blocks.0.hook_resid_post";
  row.arch = "topk";
  row.scores["core.l0"] = {.value = l0};
  row.scores["core.ce_loss_score"] = {
      .value = quality, .low = quality - half_width, .high = quality + half_width};
  return row;
}

LeaderboardRow baseline(const std::string& name, double quality, int d_sae = 0) {
  LeaderboardRow row = trial("", 1, quality);
  row.baseline = name;
  if (d_sae > 0) row.params["d_sae"] = d_sae;
  return row;
}

std::vector<std::string> names(const std::vector<LeaderboardRow>& rows) {
  std::vector<std::string> all;
  for (const auto& row : rows) all.push_back(row.is_trial() ? row.trial : row.baseline);
  return all;
}

std::vector<std::string> front(std::vector<LeaderboardRow> rows) {
  rank(rows);
  std::erase_if(rows, [](const auto& row) { return !row.front; });
  return names(rows);
}

TEST(Ranking, TheFrontHoldsWhatNoOtherTrialBeatsInBoth) {
  EXPECT_THAT(front({trial("a", 10, .80), trial("b", 20, .90), trial("c", 30, .85),
                     trial("d", 40, .95), trial("e", 40, .94)}),
              ElementsAre("d", "b", "a"));
}

TEST(Ranking, EqualTrialsShareTheFrontButAnEqualQualityAtAHigherL0DoesNot) {
  EXPECT_THAT(front({trial("a", 10, .8), trial("b", 10, .8), trial("c", 20, .8)}),
              ElementsAre("a", "b"));
}

TEST(Ranking, FrontsAreOfOneModelAndHook) {
  auto other_hook = trial("b", 20, .7);
  other_hook.hook = "blocks.1.hook_resid_post";
  auto other_model = trial("c", 20, .6);
  other_model.model = "n@2";
  EXPECT_THAT(front({trial("a", 10, .8), other_hook, other_model}), ElementsAre("a", "c", "b"));
}

TEST(Ranking, OnlyTrialsThatAreDoneAndScoredAreOnTheFront) {
  auto diverged = trial("a", 1, .99);
  diverged.state = RowState::kDiverged;
  auto unscored = trial("b", 1, .99);
  unscored.scores.erase("core.l0");
  EXPECT_THAT(front({diverged, unscored, baseline("identity", 1), trial("c", 50, .5)}),
              ElementsAre("c"));
}

// Each of its hooks has a loss recovered of its own; what it explains is of all of them.
TEST(Ranking, TheQualityOfACrosscoderIsTheVarianceExplained) {
  auto sparse = trial("a", 10, .8), dense = trial("b", 20, .7);
  for (auto* row : {&sparse, &dense}) {
    row->arch = row == &sparse ? "crosscoder" : "batchtopk_crosscoder";
    row->scores.erase("core.ce_loss_score");
  }
  sparse.scores["recon.fve"].value = .8;
  dense.scores["recon.fve"].value = .9;
  EXPECT_EQ(quality_metric(sparse), "recon.fve");
  EXPECT_THAT(front({sparse, dense}), ElementsAre("b", "a"));
}

TEST(Ranking, WithoutAModelTheQualityIsTheVarianceExplained) {
  auto good = trial("a", 10, 0);
  auto bad = trial("b", 10, 1);
  for (auto* row : {&good, &bad}) row->model.clear();
  good.scores["recon.fve"] = {.value = .9};
  bad.scores["recon.fve"] = {.value = .8};
  EXPECT_THAT(front({good, bad}), ElementsAre("a"));
}

TEST(Ranking, OrderIsHookThenTrialsThenFrontThenQualityThenName) {
  auto no_quality = trial("z0", 5, 0);
  no_quality.scores.clear();
  auto later_hook = trial("y0", 1, 1);
  later_hook.hook = "blocks.1.hook_resid_post";
  std::vector<LeaderboardRow> rows{later_hook,
                                   baseline("random_sae", .5, 1024),
                                   baseline("identity", 1),
                                   no_quality,
                                   trial("c", 30, .85),
                                   trial("b", 20, .9),
                                   trial("a2", 31, .85),
                                   baseline("random_sae", .5, 512),
                                   trial("a", 10, .8)};
  rank(rows);
  EXPECT_THAT(names(rows),
              ElementsAre("b", "a", "a2", "c", "z0", "identity", "random_sae", "random_sae", "y0"));
  EXPECT_EQ(rows[6].params["d_sae"], 512);
}

TEST(Ranking, RowsWhoseIntervalsOverlapAreTied) {
  std::vector<LeaderboardRow> rows{trial("a", 10, .80, .01), trial("b", 20, .815, .01),
                                   trial("c", 30, .90, .01)};
  rank(rows);
  ASSERT_THAT(names(rows), ElementsAre("c", "b", "a"));
  EXPECT_FALSE(rows[0].tied);
  EXPECT_FALSE(rows[1].tied);
  EXPECT_TRUE(rows[2].tied);
  rows[2].scores["core.ce_loss_score"].low.reset();  // too few blocks for an interval
  rows[2].scores["core.ce_loss_score"].high.reset();
  rank(rows);
  EXPECT_FALSE(rows[2].tied);
}

TEST(Ranking, TheFrontEqualsTheDefinitionOnRandomBoards) {
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(seed);
    Rng rng(seed, "test.front");
    std::vector<LeaderboardRow> rows;
    const std::uint32_t count = 1 + rng.below(40);
    for (std::uint32_t i = 0; i < count; ++i)
      rows.push_back(trial(fmt::format("{:04}", i), rng.below(8), rng.below(8) / 8.0));
    const auto dominates = [](const LeaderboardRow& a, const LeaderboardRow& b) {
      const double l0_a = find_score(a, "core.l0")->value, l0_b = find_score(b, "core.l0")->value;
      const double q_a = quality(a)->value, q_b = quality(b)->value;
      return l0_a <= l0_b && q_a >= q_b && (l0_a < l0_b || q_a > q_b);
    };
    rank(rows);
    for (const auto& row : rows)
      EXPECT_EQ(row.front, std::ranges::none_of(
                               rows, [&](const auto& other) { return dominates(other, row); }));
  }
}

TEST(Ranking, OrderDoesNotDependOnTheOrderOfArrival) {
  auto rows = test::example_board().rows;
  const auto expected = names(rows);
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    const Permutation shuffle(rows.size(), seed, "test.shuffle");
    std::vector<LeaderboardRow> shuffled;
    for (std::size_t i = 0; i < rows.size(); ++i) shuffled.push_back(rows[shuffle(i)]);
    rank(shuffled);
    ASSERT_EQ(names(shuffled), expected);
  }
}

TEST(Ranking, SpreadIsOverTrialsThatDifferInTheSeedAlone) {
  std::vector<LeaderboardRow> rows{trial("a", 10, .80), trial("b", 10, .82), trial("c", 10, .9)};
  for (std::size_t i = 0; i < 3; ++i) rows[i].seed = i;
  rows[2].params["k"] = 7;
  const auto spreads = seed_spreads(rows);
  EXPECT_EQ(spreads[0]->seeds, 2u);
  EXPECT_NEAR(spreads[0]->mean, .81, 1e-12);
  EXPECT_NEAR(spreads[1]->deviation, 0.0141421356, 1e-9);
  EXPECT_EQ(spreads[2]->seeds, 1u);
  EXPECT_TRUE(seed_spreads({}).empty());
}

}  // namespace
}  // namespace saesweep::scheduler
