#include "worker/evaluation/board_evaluation.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <numeric>

#include "tests/worker/evaluation/evaluation_words.h"

namespace saesweep::worker {
namespace {

BoardSample board_sample(const TokenDocuments& documents, std::size_t half, ThreadPool& pool) {
  std::vector<std::uint64_t> all(2 * half);
  std::iota(all.begin(), all.end(), 0);
  const std::span<const std::uint64_t> chosen(all);
  return {label_games(documents, chosen.first(half), pool),
          label_games(documents, chosen.subspan(half), pool)};
}

// Latent k is property first + k, value 1, up to `end`; after them `noise` latents that are on by
// chance.
CodeSource oracle(std::size_t first_property, std::size_t end_property, std::size_t noise) {
  const std::size_t properties = end_property - first_property;
  return {properties + noise, [=](const BoardHalf& half, std::size_t first, std::size_t end) {
            SparseCodes codes;
            codes.first.push_back(0);
            for (std::size_t row = half.first_row[first]; row < half.first_row[end]; ++row) {
              for (std::size_t k = 0; k < properties; ++k)
                if (half.truth[row * half.properties + first_property + k] != 0) {
                  codes.latent.push_back(static_cast<std::uint32_t>(k));
                  codes.value.push_back(1);
                }
              Rng rng(half.documents[0], "test.noise", row);
              for (std::size_t i = 0; i < noise; ++i)
                if (rng.below(3) == 0) {
                  codes.latent.push_back(static_cast<std::uint32_t>(properties + i));
                  codes.value.push_back(static_cast<float>(rng.uniform() + .01));
                }
              codes.first.push_back(static_cast<std::uint32_t>(codes.latent.size()));
            }
            return codes;
          }};
}

TEST(BoardEvaluationTest, AnOracleIsPerfectAndNoiseBesideItChangesNothing) {
  ThreadPool pool(2);
  const auto documents = games(6, 300, 0);
  const BoardSample sample = board_sample(*documents, 150, pool);
  for (const metrics::PropertyGroup& group : property_groups(sample.labels.properties))
    for (const std::size_t noise : {0u, 1000u}) {
      if (noise > 0 && group.first > 0) continue;
      const auto scores =
          score_board(sample, oracle(group.first, group.end, noise), 1, pool)->scores;
      EXPECT_NEAR(scores.at(group.prefix + "cov_occurring").value, 1, 1e-9) << group.prefix;
      EXPECT_NEAR(scores.at(group.prefix + "rec_micro").value, 1, 1e-9) << group.prefix;
      EXPECT_NEAR(scores.at(group.prefix + "rec_boardmean").value, 1, 1e-8) << group.prefix;
      if (group.first < 4 * 36) continue;
      // Centre squares are never legal: they count in cov_best_t alone.
      EXPECT_NEAR(scores.at("board.valid_moves.cov_best_t").value, 32.0 / 36, 1e-9);
      EXPECT_EQ(scores.at("board.valid_moves.cov_occurring").n, 32u);
    }
}

double always_on_by_frequency(const BoardHalf& half, std::size_t first, std::size_t end) {
  double sum = 0;
  for (std::size_t k = first; k < end; ++k) {
    std::uint64_t holds = 0;
    for (std::size_t row = 0; row < half.rows(); ++row)
      holds += half.truth[row * half.properties + k];
    const double p = static_cast<double>(holds) / static_cast<double>(half.rows());
    sum += 2 * p / (1 + p);
  }
  return sum / static_cast<double>(end - first);
}

// Figures of uniform play on the full board.
TEST(BoardEvaluationTest, BaselinesOfTheFullBoardHaveTheirKnownScores) {
  ThreadPool pool(2);
  const auto documents = games(8, 2400, 0);
  const BoardSample sample = board_sample(*documents, 1200, pool);

  const auto on = score_board(sample, always_on(), 1, pool).value();
  const double expected = always_on_by_frequency(sample.scores, 0, 128);
  for (const char* name : {"board.cov_single_t", "board.cov_best_t", "board.cov_occurring"})
    EXPECT_NEAR(on.scores.at(name).value, expected, 1e-9) << name;
  EXPECT_NEAR(expected, .409, .005);
  EXPECT_EQ(on.scores.at("board.rec_micro").value, 0);
  EXPECT_NEAR(on.scores.at("board.valid_moves.cov_best_t").value,
              always_on_by_frequency(sample.scores, 256, 320), 1e-9);

  const auto placed = score_board(sample, placement(*documents), 1, pool).value();
  EXPECT_NEAR(placed.scores.at("board.cov_best_t").value, .673, .01);
  EXPECT_NEAR(placed.scores.at("board.rec_micro").value, .057, .01);
  // Only corners, which never flip: mine and yours of four squares.
  EXPECT_EQ(placed.chosen["board"]["labels"], 8);
  for (const auto& [name, score] : placed.scores) {
    ASSERT_TRUE(score.low.has_value()) << name;
    EXPECT_LE(*score.low, score.value);
    EXPECT_GE(*score.high, score.value);
  }
}

TEST(BoardEvaluationTest, ThreadsAndMemoryChangeNoByte) {
  std::string expected;
  for (const unsigned threads : {1u, 2u, 3u}) {
    ThreadPool pool(threads);
    const auto documents = games(4, 300, 0);
    const BoardSample sample = board_sample(*documents, 150, pool);
    const CodeSource source = oracle(0, 20, 60);
    for (const BoardLimits limits : {BoardLimits{}, BoardLimits{0, 3000}}) {
      const auto result = score_board(sample, source, 1, pool, {}, {}, limits).value();
      const std::string text = metrics::to_json(result.scores).dump() + result.chosen.dump();
      if (expected.empty()) expected = text;
      EXPECT_EQ(text, expected) << threads << " " << limits.turned_codes;
    }
  }
}

TEST(BoardEvaluationTest, ALatentThatIsDeadOnTheLabelsIsSkipped) {
  ThreadPool pool(1);
  const auto documents = games(4, 100, 0);
  const BoardSample sample = board_sample(*documents, 50, pool);
  const std::uint64_t first_scored = sample.scores.documents[0];
  // On only in the half for scores.
  const CodeSource late = {1, [&](const BoardHalf& half, std::size_t first, std::size_t end) {
                             SparseCodes codes = always_on().codes(half, first, end);
                             if (half.documents[0] == first_scored) return codes;
                             std::ranges::fill(codes.first, 0);
                             codes.latent.clear();
                             codes.value.clear();
                             return codes;
                           }};
  EXPECT_EQ(score_board(sample, late, 1, pool)->scores.at("board.cov_best_t").value, 0);
}

TEST(BoardEvaluationTest, PredictionsAreScoredAsTheyStand) {
  ThreadPool pool(1);
  const auto documents = games(4, 100, 0);
  const BoardHalf half = board_sample(*documents, 50, pool).scores;
  const metrics::Scores perfect = score_predictions(half, half.bits, 1);
  for (const char* name : {"board.cov_occurring", "board.rec_micro", "board.true_mover.rec_legacy",
                           "board.valid_moves.cov_occurring"})
    EXPECT_NEAR(perfect.at(name).value, 1, 1e-9) << name;
  const metrics::Scores nothing =
      score_predictions(half, std::vector<std::uint64_t>(half.bits.size(), 0), 1);
  EXPECT_EQ(nothing.at("board.rec_micro").value, 0);
  EXPECT_EQ(nothing.at("board.cov_best_t").value, 0);
}

TEST(BoardEvaluationTest, ADictionaryIsScoredThroughTheModel) {
  Scene scene(4, 300, .5, 2);
  const Json result = evaluate_sae(board(100), random_relu(16, 48), {}, scene.inputs).value();
  for (const char* group : {"board.", "board.true_mover.", "board.valid_moves."})
    for (const char* name : {"cov_single_t", "cov_best_t", "cov_occurring", "rec_micro",
                             "rec_boardmean", "rec_legacy"})
      EXPECT_TRUE(result["scores"].contains(std::string(group) + name)) << group << name;
  EXPECT_EQ(result["scores"].size(), 18u);
  EXPECT_GT(score(result, "board.cov_best_t"), .2);
  EXPECT_LE(score(result, "board.cov_single_t"), score(result, "board.cov_best_t"));
  EXPECT_LE(score(result, "board.rec_micro"), score(result, "board.rec_legacy"));
  EXPECT_EQ(result["heldout"], true);
}

TEST(BoardEvaluationTest, WhatCannotBeAskedIsRefused) {
  Scene scene(4, 40);
  for (const std::uint64_t count : {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{1000}}) {
    const auto result = evaluate_sae(board(count), identity(), {}, scene.inputs);
    ASSERT_FALSE(result) << count;
    EXPECT_EQ(result.error().code, ErrorCode::kInvalidArgument);
  }
  EXPECT_THAT(evaluate_sae(board(1000), identity(), {}, scene.inputs).error().message,
              testing::HasSubstr("have: " +
                                 std::to_string(scene.inputs.tokens->held_out_documents().size())));
  const test::TempDir folder;
  EvaluationInputs files;
  files.pool = &scene.pool;
  files.activations = activations(folder.path(), normal({2048, 4}, 1), 0);
  EXPECT_THAT(evaluate_sae(board(10), identity(), {}, files).error().message,
              testing::HasSubstr("needs games"));
}

TEST(BenchBoardTest, BothWaysCountTheSame) {
  const Json result = bench_board().value();
  EXPECT_EQ(result["equal"], true);
  EXPECT_GT(result["ratio"].get<double>(), 0);
}

}  // namespace
}  // namespace saesweep::worker
