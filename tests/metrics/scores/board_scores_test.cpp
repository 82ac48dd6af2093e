#include "metrics/scores/board_scores.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "core/philox.h"

namespace saesweep::metrics {
namespace {

TEST(LabelTest, NineteenOfTwentyIsPreciseEnoughAndTenHitsAreNeeded) {
  EXPECT_TRUE(is_label(19, 20));
  EXPECT_FALSE(is_label(18, 19));
  EXPECT_FALSE(is_label(9, 9));
  EXPECT_TRUE(is_label(10, 10));
}

TEST(BucketTest, ALatentIsOnStrictlyAboveItsThreshold) {
  EXPECT_EQ(bucket_of(0, 10), 0u);
  EXPECT_EQ(bucket_of(-3, 10), 0u);
  EXPECT_EQ(bucket_of(0.5f, 10), 1u);
  for (int t = 1; t <= 10; ++t)  // f = t * M is off at t
    EXPECT_EQ(bucket_of(static_cast<float>(t), 10), static_cast<std::size_t>(t)) << t;
  EXPECT_EQ(bucket_of(10.5f, 10), 11u);  // above the maximum: on even at 1
}

// Random codes, truth and blocks.
struct World {
  static constexpr std::size_t kPositions = 300, kLatents = 12, kProperties = 70, kBlocks = 9;
  std::vector<std::vector<float>> f;  // [latents][positions]
  std::vector<float> maximum;
  std::vector<std::vector<std::uint8_t>> truth;  // [positions][properties]

  World() : f(kLatents), maximum(kLatents, 0), truth(kPositions) {
    Rng rng(5, "test.board");
    for (auto& row : truth)
      for (std::size_t k = 0; k < kProperties; ++k) row.push_back(rng.below(3) == 0);
    for (std::size_t i = 0; i < kLatents; ++i)
      for (std::size_t p = 0; p < kPositions; ++p) {
        // Integers, so that f = t * M happens; latent 0 is dead.
        const auto value = static_cast<float>(rng.below(21));
        f[i].push_back(i == 0 || rng.below(2) == 0 ? 0.f : value);
        maximum[i] = std::max(maximum[i], f[i].back());
      }
  }
  static std::size_t block(std::size_t position) { return position * kBlocks / kPositions; }

  LatentCounts counts(std::size_t latent) const {
    LatentCounts result(kBlocks, kProperties);
    for (std::size_t p = 0; p < kPositions; ++p)
      if (const std::size_t bucket = bucket_of(f[latent][p], maximum[latent]); bucket > 0)
        result.add(block(p), bucket, truth[p].data());
    result.finish();
    return result;
  }
  std::vector<std::vector<std::uint64_t>> positives() const {
    std::vector<std::vector<std::uint64_t>> sums(kBlocks, std::vector<std::uint64_t>(kProperties));
    for (std::size_t p = 0; p < kPositions; ++p)
      for (std::size_t k = 0; k < kProperties; ++k) sums[block(p)][k] += truth[p][k];
    return sums;
  }
};

TEST(BucketTest, TheKernelEqualsADenseTripleLoop) {
  const World world;
  for (std::size_t i = 0; i < World::kLatents; ++i) {
    const LatentCounts counts = world.counts(i);
    for (std::size_t t = 0; t < kThresholds; ++t)
      for (std::size_t block = 0; block < World::kBlocks; ++block) {
        std::uint32_t on = 0;
        std::vector<std::uint32_t> hits(World::kProperties, 0);
        for (std::size_t p = 0; p < World::kPositions; ++p) {
          const float value = world.f[i][p];
          const bool is_on =
              t == 0 ? value > 0
                     : value * 10.0 > static_cast<double>(t) * world.maximum[i] && value > 0;
          if (World::block(p) != block || !is_on) continue;
          ++on;
          for (std::size_t k = 0; k < World::kProperties; ++k) hits[k] += world.truth[p][k];
        }
        ASSERT_EQ(counts.on(block, t), on);
        for (std::size_t k = 0; k < World::kProperties; ++k)
          ASSERT_EQ(counts.hits(block, t)[k], hits[k]);
      }
  }
}

TEST(CoverageTest, LeavingABlockOutIsScoringTheOthersAlone) {
  const World world;
  const auto positives = world.positives();
  BestF1 best(positives);
  std::vector<LatentCounts> latents;
  for (std::size_t i = 0; i < World::kLatents; ++i) {
    latents.push_back(world.counts(i));
    best.add(latents.back());
  }
  for (const std::size_t without : {std::size_t{0}, std::size_t{4}, World::kBlocks})
    for (std::size_t t = 0; t < kThresholds; ++t)
      for (std::size_t k = 0; k < World::kProperties; ++k) {
        double expected = 0;
        for (const LatentCounts& counts : latents) {
          std::uint64_t hits = 0, on = 0, holds = 0;
          for (std::size_t block = 0; block < World::kBlocks; ++block) {
            if (block == without) continue;
            hits += counts.hits(block, t)[k];
            on += counts.on(block, t);
            holds += positives[block][k];
          }
          if (on > 0) expected = std::max(expected, f1(hits, on, holds));
        }
        ASSERT_DOUBLE_EQ(best.best(without, t, k), expected) << without << " " << t << " " << k;
      }
}

TEST(CoverageTest, MergingPartsEqualsAddingAll) {
  const World world;
  BestF1 all(world.positives()), odd(world.positives()), even(world.positives());
  for (std::size_t i = 0; i < World::kLatents; ++i) {
    all.add(world.counts(i));
    (i % 2 == 0 ? even : odd).add(world.counts(World::kLatents - 1 - i));
  }
  odd.merge(even);
  for (std::size_t t = 0; t < kThresholds; ++t)
    for (std::size_t k = 0; k < World::kProperties; ++k)
      ASSERT_EQ(all.best(World::kBlocks, t, k), odd.best(World::kBlocks, t, k));
}

// Two blocks, two properties: latent 0 tells property 0 only above .5, latent 1 tells property 1
// only at 0; property 2 never holds.
BestF1 two_latents() {
  const std::uint8_t first[] = {1, 0, 0}, second[] = {0, 1, 0}, neither[] = {0, 0, 0};
  LatentCounts a(1, 3), b(1, 3);
  for (int i = 0; i < 10; ++i) {
    a.add(0, 11, first);
    a.add(0, 1, neither);
    b.add(0, 1, second);
  }
  a.finish();
  b.finish();
  BestF1 best({{10, 10, 0}});
  best.add(a);
  best.add(b);
  return best;
}

TEST(CoverageTest, OneThresholdForAllIsWorseThanOneForEach) {
  Scores scores;
  add_coverage(scores, two_latents(), {"board.", 0, 3}, 1);
  // At t = 0: property 0 has precision 1/2, F1 2/3; property 1 has F1 1.
  EXPECT_NEAR(scores.at("board.cov_single_t").value, (2.0 / 3 + 1) / 3, 1e-9);
  EXPECT_NEAR(scores.at("board.cov_best_t").value, 2.0 / 3, 1e-9);
  EXPECT_NEAR(scores.at("board.cov_occurring").value, 1, 1e-9);
  EXPECT_EQ(scores.at("board.cov_best_t").n, 3u);
  EXPECT_EQ(scores.at("board.cov_occurring").n, 2u);
  EXPECT_EQ(scores.at("board.cov_best_t").low, std::nullopt);
}

TEST(CoverageTest, APredictorOfOnePropertyStandsAtEveryThreshold) {
  BestF1 best({{10, 4}, {10, 4}});
  const std::uint64_t hits[] = {8, 9}, on[] = {8, 12};
  best.add_predictor(0, hits, on);
  EXPECT_DOUBLE_EQ(best.best(2, 0, 0), f1(17, 20, 20));
  EXPECT_DOUBLE_EQ(best.best(2, 10, 0), f1(17, 20, 20));
  EXPECT_DOUBLE_EQ(best.best(0, 3, 0), f1(9, 12, 10));
  EXPECT_EQ(best.best(2, 0, 1), 0);
}

TEST(ReconstructionTest, TheThresholdIsChosenOnValidationAndLegacyChoosesOnTheTest) {
  BoardCounts validation(1), test(1);
  validation.at(0, 3).add_board(9, 10, 10);  // best here
  validation.at(0, 5).add_board(5, 10, 10);
  test.at(0, 3).add_board(4, 10, 10);
  test.at(0, 5).add_board(8, 10, 10);  // best there
  for (std::size_t t = 0; t < kReconstructionThresholds; ++t)
    if (t != 3 && t != 5) {
      validation.at(0, t).add_board(0, 10, 10);
      test.at(0, t).add_board(0, 10, 10);
    }
  const ChosenThresholds chosen = choose_thresholds(validation);
  EXPECT_EQ(chosen.micro, 3u);
  EXPECT_EQ(chosen.board_mean, 3u);
  Scores scores;
  add_reconstruction_scores(scores, test, chosen, {"board.", 0, 1}, 1);
  EXPECT_NEAR(scores.at("board.rec_micro").value, .4, 1e-9);
  EXPECT_NEAR(scores.at("board.rec_boardmean").value, .4, 1e-9);
  EXPECT_NEAR(scores.at("board.rec_legacy").value, .8, 1e-9);
}

TEST(ReconstructionTest, MicroAddsCountsAndBoardMeanAddsScores) {
  BoardCounts counts(2);
  for (std::size_t t = 0; t < kReconstructionThresholds; ++t) {
    counts.at(0, t).add_board(1, 1, 1);    // F1 1
    counts.at(1, t).add_board(0, 10, 10);  // F1 0
  }
  Scores scores;
  add_reconstruction_scores(scores, counts, {}, {"board.", 0, 1}, 1);
  EXPECT_NEAR(scores.at("board.rec_micro").value, 2.0 / 22, 1e-9);
  EXPECT_NEAR(scores.at("board.rec_boardmean").value, .5, 1e-8);
  EXPECT_EQ(scores.at("board.rec_micro").n, 2u);
}

}  // namespace
}  // namespace saesweep::metrics
