#include "scheduler/leaderboard/table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>

#include "tests/scheduler/leaderboard/example_board.h"

namespace saesweep::scheduler {
namespace {

using testing::Contains;
using testing::HasSubstr;
using testing::Not;

std::vector<std::string> lines_of(const std::string& text) {
  std::istringstream stream(text);
  std::vector<std::string> lines;
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

std::size_t columns(const std::string& line) {
  return static_cast<std::size_t>(
      std::ranges::count_if(line, [](char c) { return (c & 0xc0) != 0x80; }));
}

TEST(LeaderboardTable, EveryLineFitsAHundredColumns) {
  Leaderboard board = test::example_board({.trials = 400});
  board.rows[0].arch = "gated_p_anneal_of_a_long_name";
  board.rows[0].number = 123456;
  board.rows[0].params["d_sae"] = 1048576;
  board.rows[1].state = RowState::kDiverged;
  board.rows[1].reason = std::string(500, 'x');
  for (const std::string& line : lines_of(leaderboard_table(board)))
    EXPECT_LE(columns(line), 100u) << line;
}

TEST(LeaderboardTable, ShowsTheRowsInOrderWithMarks) {
  Leaderboard board{.sweep = "s", .commit = "", .rows = {}};
  for (int i = 0; i < 3; ++i) {
    LeaderboardRow& row = board.rows.emplace_back();
    row.number = i;
    row.trial = fmt::format("{}23456789abc", i);
    row.model = "m@012345678901";
    row.hook = "blocks.2.hook_resid_post";
    row.arch = "topk";
    row.params = {{"d_sae", 512}, {"k", 8 << i}};
    row.seed = 0;
    row.scores["core.l0"] = {.value = 8.0 * (1 << i)};
    const double quality = i == 2 ? .9295 : .9 + .03 * i;
    row.scores["core.ce_loss_score"] = {
        .value = quality, .low = quality - .002, .high = quality + .002};
    row.scores["recon.fve"] = {.value = .8};
  }
  rank(board.rows);
  EXPECT_EQ(leaderboard_table(board),
            "blocks.2.hook_resid_post  of  m@012345678901\n"
            "   # id           arch d_sae sparsity seed   L0 loss rec.    FVE state\n"
            "*  1 123456789abc topk   512 k=16        0 16.0 .9300±.0020 .800 done\n"
            "*  0 023456789abc topk   512 k=8         0  8.0 .9000±.0020 .800 done\n"
            "   2 223456789abc topk   512 k=32        0 32.0 .9295±.0020 .800 done\n"
            "  * on the front: no other trial has both a lower L0 and a higher quality\n");
}

TEST(LeaderboardTable, TellsWhyATrialIsNotDone) {
  const std::string table = leaderboard_table(test::example_board());
  EXPECT_THAT(table, HasSubstr("diverged: the loss was not finite for 10 steps from step 812"));
  EXPECT_THAT(table, HasSubstr("failed: the executor died 3 times"));
}

TEST(LeaderboardTable, SeedsAreShownWhereThereAreSeveral) {
  EXPECT_THAT(leaderboard_table(test::example_board({.trials = 96})), HasSubstr(" seeds "));
  EXPECT_THAT(leaderboard_table(test::example_board({.trials = 48})), Not(HasSubstr("seeds")));
}

TEST(LeaderboardTable, WithoutAModelTheIntervalIsThatOfTheVarianceExplained) {
  const std::string table = leaderboard_table(test::example_board({.trials = 4, .model = false}));
  EXPECT_THAT(table, Not(HasSubstr("loss rec.")));
  EXPECT_THAT(table, HasSubstr("±"));
  EXPECT_THAT(table, HasSubstr("stored activations"));
}

TEST(LeaderboardTable, AMessageCannotPaintTheTerminal) {
  Leaderboard board = test::example_board({.trials = 12});
  for (auto& row : board.rows) row.reason = "\x1b[2J\x07 evil";
  EXPECT_THAT(leaderboard_table(board), Not(HasSubstr("\x1b")));
  EXPECT_THAT(leaderboard_table(board, {.color = true}), HasSubstr("\x1b[32m"));
}

TEST(LeaderboardTable, AnEmptyBoardSaysSo) {
  EXPECT_EQ(leaderboard_table({.sweep = "s", .commit = "", .rows = {}}), "no rows\n");
}

}  // namespace
}  // namespace saesweep::scheduler
