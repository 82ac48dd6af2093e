#include "worker/data/othello.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace saesweep::worker::othello {
namespace {

// ---- the rules ----------------------------------------------------------------------------------

// Counted independently of this code; on 8x8 they are the well-known table. At ply 9 the first
// games are over: 228 of the 24571284 lines of 10 plies.
TEST(OthelloRules, CountTheGamesOfAnEightByEightBoard) {
  const Rules rules(8);
  const std::vector<std::uint64_t> expected = {1,    4,     12,     56,      244,     1396,
                                               8200, 55092, 390216, 3005288, 24571284};
  for (std::size_t plies = 0; plies < expected.size(); ++plies)
    EXPECT_EQ(rules.perft(static_cast<int>(plies)), expected[plies]) << plies << " plies";
}

TEST(OthelloRules, CountTheGamesOfASixBySixBoard) {
  const Rules rules(6);
  const std::vector<std::uint64_t> expected = {1,    4,    12,    56,     244,
                                               1364, 7604, 47740, 308716, 2114912};
  for (std::size_t plies = 0; plies < expected.size(); ++plies)
    EXPECT_EQ(rules.perft(static_cast<int>(plies)), expected[plies]) << plies << " plies";
}

TEST(OthelloRules, CountTheGamesOfAFourByFourBoard) {
  const Rules rules(4);
  const std::vector<std::uint64_t> expected = {1, 4, 12, 44, 128, 424, 1256, 3624, 9116, 20044};
  for (std::size_t plies = 0; plies < expected.size(); ++plies)
    EXPECT_EQ(rules.perft(static_cast<int>(plies)), expected[plies]) << plies << " plies";
}

TEST(OthelloRules, BlackBeginsWithWhiteOnTheMainDiagonal) {
  const Rules rules(8);
  const Position start = rules.start();
  EXPECT_TRUE(start.black_to_move);
  EXPECT_EQ(start.white, rules.bit_of(27) | rules.bit_of(36));
  EXPECT_EQ(start.black, rules.bit_of(28) | rules.bit_of(35));
}

TEST(OthelloRules, TokensAreABijectionOfTheSquaresOutsideTheCentre) {
  for (const int size : {4, 6, 8}) {
    const Rules rules(size);
    std::set<int> seen;
    int previous = 0;
    for (int square = 0; square < rules.squares(); ++square) {
      const int token = rules.token_of(square);
      if (token == -1) continue;
      EXPECT_EQ(token, previous + 1) << "in ascending order of squares";
      previous = token;
      EXPECT_EQ(rules.square_of_token(token), square);
      seen.insert(token);
    }
    EXPECT_EQ(seen.size(), static_cast<std::size_t>(rules.max_moves()));
    EXPECT_EQ(rules.vocabulary(), rules.max_moves() + 1);
    EXPECT_EQ(rules.context(), rules.max_moves() - 1);
    for (const int no_move : {-1, 0, rules.vocabulary(), 1000})
      EXPECT_EQ(rules.square_of_token(no_move), -1);
  }
}

TEST(OthelloRules, TokensOfAnEightByEightBoardAreThoseOfOthelloGpt) {
  const Rules rules(8);
  const std::map<int, int> known = {{0, 1}, {26, 27}, {29, 28}, {34, 33}, {37, 34}, {63, 60}};
  for (const auto& [square, token] : known) EXPECT_EQ(rules.token_of(square), token);
  for (const int centre : {27, 28, 35, 36}) EXPECT_EQ(rules.token_of(centre), -1);
}

TEST(OthelloRules, RefuseAGameWithAnIllegalMove) {
  const Rules rules(6);
  const Game game = play_uniform(rules, 1, 1);
  EXPECT_TRUE(is_legal_game(rules, game.moves));
  EXPECT_TRUE(is_legal_game(rules, {}));

  auto twice = game.moves;
  twice[5] = twice[4];
  EXPECT_FALSE(is_legal_game(rules, twice)) << "a square that is taken";
  auto centre = game.moves;
  centre[0] = 14;
  EXPECT_FALSE(is_legal_game(rules, centre)) << "a centre square";
  auto corner = game.moves;
  corner[0] = 0;
  EXPECT_FALSE(is_legal_game(rules, corner)) << "a move that turns nothing";
  auto outside = game.moves;
  outside[0] = 36;
  EXPECT_FALSE(is_legal_game(rules, outside)) << "beyond the board";
  auto longer = game.moves;
  longer.push_back(0);
  EXPECT_FALSE(is_legal_game(rules, longer)) << "a move after the end";
}

// ---- games --------------------------------------------------------------------------------------

struct Statistics {
  double mean_length = 0, full_share = 0, skip_share = 0, mean_log_legal = 0;
  std::map<std::pair<int, int>, int> openings;
};

bool has_skip(const Game& game) {
  for (std::size_t i = 0; i < game.black_moved.size(); ++i)
    if (game.black_moved[i] != (i % 2 == 0)) return true;
  return false;
}

Statistics statistics_of(int size, std::uint64_t seed, int games) {
  const Rules rules(size);
  Statistics result;
  double moves = 0, logs = 0;
  int full = 0, skips = 0;
  for (int i = 0; i < games; ++i) {
    const Game game = play_uniform(rules, seed, static_cast<std::uint64_t>(i));
    moves += static_cast<double>(game.moves.size());
    full += game.moves.size() == static_cast<std::size_t>(rules.max_moves()) ? 1 : 0;
    skips += has_skip(game) ? 1 : 0;
    for (const double log_legal : game.log_legal) logs += log_legal;
    ++result.openings[{game.moves[0], game.moves[1]}];
  }
  result.mean_length = moves / games;
  result.full_share = static_cast<double>(full) / games;
  result.skip_share = static_cast<double>(skips) / games;
  result.mean_log_legal = logs / moves;
  return result;
}

TEST(UniformPlay, HasTheKnownStatisticsOnEightByEight) {
  const Statistics found = statistics_of(8, 0, 100'000);
  EXPECT_NEAR(found.mean_length, 59.968, 0.01);
  EXPECT_NEAR(found.full_share, 0.990, 0.001);
  EXPECT_NEAR(found.skip_share, 0.345, 0.003);
  EXPECT_NEAR(found.mean_log_legal, 1.9998, 0.002);

  // Four first moves, three replies to each, all equally likely.
  ASSERT_EQ(found.openings.size(), 12u);
  double chi_squared = 0;
  for (const auto& [opening, count] : found.openings)
    chi_squared += std::pow(count - 100'000 / 12.0, 2) / (100'000 / 12.0);
  EXPECT_LT(chi_squared, 31.3) << "the .999 quantile for 11 degrees of freedom";
  EXPECT_GT(chi_squared, 1.58) << "the .0005 quantile: chance does not fall that evenly";
}

TEST(UniformPlay, HasTheKnownStatisticsOnSixBySix) {
  const Statistics found = statistics_of(6, 0, 50'000);
  EXPECT_NEAR(found.mean_length, 31.95, 0.01);
  EXPECT_NEAR(found.full_share, 0.964, 0.004);
  EXPECT_NEAR(found.skip_share, 0.401, 0.008);
  EXPECT_NEAR(found.mean_log_legal, 1.531, 0.002);
}

TEST(UniformPlay, HasTheKnownStatisticsOnFourByFour) {
  EXPECT_NEAR(statistics_of(4, 0, 50'000).mean_log_legal, 0.880, 0.003);
}

TEST(UniformPlay, AGameDependsOnBoardSeedAndIndexAlone) {
  const Rules rules(6);
  const Game alone = play_uniform(rules, 7, 1000);
  for (std::uint64_t i = 990; i < 1000; ++i) (void)play_uniform(rules, 7, i);
  EXPECT_EQ(play_uniform(rules, 7, 1000).moves, alone.moves);
  EXPECT_NE(play_uniform(rules, 8, 1000).moves, alone.moves);
  EXPECT_NE(play_uniform(rules, 7, 1001).moves, alone.moves);
}

// A change here changes every data set: the numerics version must rise with it.
TEST(UniformPlay, ItsGamesAreTheSameForEver) {
  const auto text = [](int size) {
    return fmt::format("{}", fmt::join(play_uniform(Rules(size), 0, 0).moves, " "));
  };
  EXPECT_EQ(text(4), "1 2 7 0 14 13 8 15 11 3 4 12");
  EXPECT_EQ(
      text(6),
      "22 16 9 28 19 2 29 18 3 7 23 4 25 10 17 32 8 1 35 13 5 34 0 6 27 26 12 33 31 11 24 30");
}

TEST(UniformPlay, GamesEndOnlyWhenNobodyCanMove) {
  const Rules rules(4);
  for (std::uint64_t i = 0; i < 500; ++i) {
    Position position = rules.start();
    for (const std::uint8_t move : play_uniform(rules, 3, i).moves)
      position = rules.play(position, rules.bit_of(move));
    EXPECT_EQ(rules.legal(position), 0u);
    position.black_to_move = !position.black_to_move;
    EXPECT_EQ(rules.legal(position), 0u);
  }
}

// ---- labels -------------------------------------------------------------------------------------

// The rules once more, on an array with loops: nothing in common with the bitboards.
struct SlowBoard {
  int size;
  std::vector<int> at;  // +1 black, -1 white
  int to_move = 1;

  explicit SlowBoard(int board_size)
      : size(board_size), at(static_cast<std::size_t>(board_size * board_size), 0) {
    const int low = size / 2 - 1, high = size / 2;
    cell(low, low) = cell(high, high) = -1;
    cell(low, high) = cell(high, low) = 1;
  }
  int& cell(int row, int column) { return at[static_cast<std::size_t>(row * size + column)]; }
  bool inside(int row, int column) const {
    return row >= 0 && column >= 0 && row < size && column < size;
  }
  // Squares that a move of `player` would turn.
  std::vector<int> turned(int square, int player) {
    std::vector<int> all;
    if (at[static_cast<std::size_t>(square)] != 0) return all;
    for (int down = -1; down <= 1; ++down)
      for (int right = -1; right <= 1; ++right) {
        std::vector<int> line;
        int row = square / size + down, column = square % size + right;
        while ((down != 0 || right != 0) && inside(row, column) && cell(row, column) == -player) {
          line.push_back(row * size + column);
          row += down;
          column += right;
        }
        if (inside(row, column) && cell(row, column) == player)
          all.insert(all.end(), line.begin(), line.end());
      }
    return all;
  }
  bool can_move(int player) {
    for (int square = 0; square < size * size; ++square)
      if (!turned(square, player).empty()) return true;
    return false;
  }
  int play(int square) {  // returns who moved
    const int mover = to_move;
    for (const int other : turned(square, mover)) at[static_cast<std::size_t>(other)] = mover;
    at[static_cast<std::size_t>(square)] = mover;
    to_move = can_move(-mover) ? -mover : mover;
    return mover;
  }
};

TEST(OthelloLabels, AreWhatASlowBoardSays) {
  for (const int size : {4, 6, 8}) {
    const Rules rules(size);
    int skips = 0;
    for (std::uint64_t index = 0; index < 30; ++index) {
      const Game game = play_uniform(rules, 5, index);
      skips += has_skip(game) ? 1 : 0;
      const Labels labels = label_game(rules, game.moves, game.moves.size());
      ASSERT_EQ(labels.parity.size(), game.moves.size());
      SlowBoard board(size);
      for (std::size_t i = 0; i < game.moves.size(); ++i) {
        const int mover = board.play(game.moves[i]);
        ASSERT_EQ(mover == 1, game.black_moved[i]);
        const int parity = i % 2 == 0 ? 1 : -1;
        for (int square = 0; square < size * size; ++square) {
          const auto at = static_cast<std::size_t>(square);
          ASSERT_EQ(labels.parity[i][at], board.at[at] * parity);
          ASSERT_EQ(labels.true_mover[i][at], board.at[at] * mover);
          ASSERT_EQ(labels.valid[i][at] != 0, !board.turned(square, board.to_move).empty());
        }
      }
    }
    EXPECT_GT(skips, 0) << size << ": the games should tell the two kinds of labels apart";
  }
}

TEST(OthelloLabels, ParityAndTrueMoverDifferFromASkippedTurnOnly) {
  const Rules rules(6);
  std::uint64_t index = 0;
  while (!has_skip(play_uniform(rules, 0, index))) ++index;
  const Game game = play_uniform(rules, 0, index);
  const Labels labels = label_game(rules, game.moves, game.moves.size());
  bool differed = false;
  for (std::size_t i = 0; i < game.moves.size(); ++i) {
    const bool in_step = game.black_moved[i] == (i % 2 == 0);
    differed |= !in_step;
    for (std::size_t square = 0; square < 36; ++square)
      EXPECT_EQ(labels.parity[i][square], (in_step ? 1 : -1) * labels.true_mover[i][square]);
  }
  EXPECT_TRUE(differed);
}

TEST(OthelloLabels, CanBeAskedForAPrefix) {
  const Rules rules(4);
  const Game game = play_uniform(rules, 0, 3);
  const Labels all = label_game(rules, game.moves, game.moves.size());
  const Labels some = label_game(rules, game.moves, 4);
  ASSERT_EQ(some.valid.size(), 4u);
  for (std::size_t i = 0; i < 4; ++i) EXPECT_EQ(some.valid[i], all.valid[i]);
}

}  // namespace
}  // namespace saesweep::worker::othello
