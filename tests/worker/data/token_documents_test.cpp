// Games as documents: their tokens, what is held out, what no model can beat.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "core/digest.h"
#include "worker/data/documents.h"
#include "worker/data/othello.h"

namespace saesweep::worker {
namespace {

using testing::HasSubstr;

sweeps::DataSpec games(int board, std::uint64_t count, std::uint64_t seed = 0) {
  sweeps::DataSpec data;
  data.source = "othello";
  data.board = board;
  data.games = count;
  data.seed = seed;
  return data;
}

std::shared_ptr<const TokenDocuments> open(const sweeps::DataSpec& data, double holdout = 0.1,
                                           int context = 1000, unsigned threads = 1) {
  return TokenDocuments::open(data, holdout, context, threads).value();
}

std::vector<std::uint8_t> tokens_of(const TokenDocuments& documents, std::uint64_t i) {
  const auto tokens = documents.tokens(i);
  return {tokens.begin(), tokens.end()};
}

TEST(TokenDocuments, ADocumentIsTheGameOfItsNumber) {
  const othello::Rules rules(6);
  const auto documents = open(games(6, 300, 4));
  ASSERT_EQ(documents->count(), 300u);
  EXPECT_EQ(documents->vocabulary(), 33);
  EXPECT_EQ(documents->context(), 31);
  EXPECT_EQ(documents->max_rows(), 31u);
  for (std::uint64_t i = 0; i < 300; ++i) {
    const auto game = othello::play_uniform(rules, 4, i);
    std::vector<std::uint8_t> expected;
    for (const auto move : game.moves)
      expected.push_back(static_cast<std::uint8_t>(rules.token_of(move)));
    EXPECT_EQ(tokens_of(*documents, i), expected);
    EXPECT_EQ(documents->rows(i), expected.size() - 1) << "the last move is only a target";
  }
}

TEST(TokenDocuments, AreCutToTheContextAndOneMoreTarget) {
  const auto whole = open(games(6, 50)), cut = open(games(6, 50), 0.1, 10);
  EXPECT_EQ(cut->context(), 10);
  for (std::uint64_t i = 0; i < 50; ++i) {
    auto expected = tokens_of(*whole, i);
    expected.resize(std::min<std::size_t>(expected.size(), 11));
    EXPECT_EQ(tokens_of(*cut, i), expected);
    EXPECT_EQ(cut->rows(i), expected.size() - 1);
  }
}

TEST(TokenDocuments, AreTheSameForAnyNumberOfThreadsAndGames) {
  const auto one = open(games(4, 10'000), 0.1, 1000, 1),
             three = open(games(4, 10'000), 0.1, 1000, 3);
  const auto few = open(games(4, 100));
  for (std::uint64_t i = 0; i < 10'000; ++i) {
    ASSERT_EQ(tokens_of(*one, i), tokens_of(*three, i));
    ASSERT_EQ(one->held_out(i), three->held_out(i));
  }
  EXPECT_EQ(one->held_out_documents(), three->held_out_documents());
  EXPECT_EQ(one->optimum(), three->optimum());
  for (std::uint64_t i = 0; i < 100; ++i) EXPECT_EQ(tokens_of(*one, i), tokens_of(*few, i));
}

TEST(TokenDocuments, TheHashOfTheTokensDecidesWhatIsHeldOut) {
  const auto documents = open(games(6, 5000, 3), 0.05);
  std::vector<std::uint64_t> expected;
  for (std::uint64_t i = 0; i < documents->count(); ++i) {
    std::vector<std::byte> bytes;  // of u32, little-endian
    for (const std::uint8_t token : documents->tokens(i)) {
      bytes.push_back(static_cast<std::byte>(token));
      bytes.insert(bytes.end(), 3, std::byte{0});
    }
    const auto hash = static_cast<long double>(xxh3_64(bytes));
    if (hash < 0.05L * 18446744073709551616.0L) expected.push_back(i);
    EXPECT_EQ(documents->held_out(i), !expected.empty() && expected.back() == i);
  }
  EXPECT_EQ(documents->held_out_documents(), expected);
  EXPECT_NEAR(static_cast<double>(expected.size()) / 5000, 0.05, 0.01);
}

std::string text_of(const TokenDocuments& documents, std::uint64_t i) {
  const auto tokens = documents.tokens(i);
  return {tokens.begin(), tokens.end()};
}

// There are few games on a 4x4 board, so two collections share many.
TEST(TokenDocuments, TheSameGameIsHeldOutInEveryCollection) {
  const auto a = open(games(4, 20'000, 1), 0.2), b = open(games(4, 20'000, 2), 0.2);
  std::map<std::string, bool> side;
  for (std::uint64_t i = 0; i < a->count(); ++i) side[text_of(*a, i)] = a->held_out(i);
  int shared = 0;
  for (std::uint64_t i = 0; i < b->count(); ++i) {
    const auto found = side.find(text_of(*b, i));
    if (found == side.end()) continue;
    ++shared;
    EXPECT_EQ(found->second, b->held_out(i));
  }
  EXPECT_GT(shared, 1000);
}

TEST(TokenDocuments, ALargerShareHoldsOutTheSameAndMore) {
  const auto none = open(games(6, 2000), 0), some = open(games(6, 2000), 0.1),
             more = open(games(6, 2000), 0.3);
  EXPECT_TRUE(none->held_out_documents().empty());
  for (const std::uint64_t document : some->held_out_documents())
    EXPECT_TRUE(more->held_out(document));
  EXPECT_GT(more->held_out_documents().size(), some->held_out_documents().size());
}

// Of uniform play on this board, over moves 2 and on.
TEST(TokenDocuments, TheOptimumIsTheMeanLogarithmOfTheLegalMoves) {
  EXPECT_NEAR(open(games(6, 20'000))->optimum(), 1.536, 0.003);
  double sum = 0, count = 0;
  for (std::uint64_t i = 0; i < 100; ++i) {
    const auto game = othello::play_uniform(othello::Rules(4), 0, i);
    for (std::size_t move = 1; move < game.moves.size(); ++move, ++count)
      sum += game.log_legal[move];
  }
  EXPECT_NEAR(open(games(4, 100))->optimum(), sum / count, 1e-12);
}

TEST(TokenDocuments, WhatCannotBeIsRefused) {
  const auto refused = [](const sweeps::DataSpec& data, ErrorCode code, const char* words) {
    const auto opened = TokenDocuments::open(data, 0.1, 31, 1);
    ASSERT_FALSE(opened);
    EXPECT_EQ(opened.error().code, code);
    EXPECT_THAT(opened.error().message, HasSubstr(words));
  };
  refused(games(5, 10), ErrorCode::kInvalidArgument, "data.board 5");
  refused(games(6, 0), ErrorCode::kInvalidArgument, "data.games");
  auto chess = games(6, 10);
  chess.source = "chess";
  refused(chess, ErrorCode::kInvalidArgument, "chess");
  refused(games(6, std::uint64_t{1} << 62), ErrorCode::kResourceExhausted, "data.games");
}

}  // namespace
}  // namespace saesweep::worker
