#include "scheduler/leaderboard/report_page.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <regex>

#include "tests/scheduler/leaderboard/example_board.h"

namespace saesweep::scheduler {
namespace {

using testing::HasSubstr;
using testing::Not;

constexpr std::string_view kDataOpens = "<script id=\"data\" type=\"application/json\">";

Json data_of(const std::string& page) {
  const std::size_t start = page.find(kDataOpens) + kDataOpens.size();
  const std::size_t end = page.find("</script>", start);
  return parse_json(std::string_view(page).substr(start, end - start)).value();
}

std::size_t count_of(const std::string& text, const std::string& part) {
  std::size_t count = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1))
    ++count;
  return count;
}

TEST(ReportPage, ItsDataParsesAndHoldsEveryRow) {
  const Leaderboard board = test::example_board();
  const Json data = data_of(report_page(board));
  EXPECT_EQ(data["sweep"], "othello-widths");
  ASSERT_EQ(data["rows"].size(), board.rows.size());
  for (std::size_t i = 0; i < board.rows.size(); ++i) {
    EXPECT_EQ(data["rows"][i]["state"], to_string(board.rows[i].state));
    EXPECT_EQ(data["rows"][i]["scores"], scores_to_json(board.rows[i].scores));
  }
}

TEST(ReportPage, LoadsNothing) {
  std::string page = report_page(test::example_board());
  EXPECT_THAT(page, HasSubstr("default-src 'none'"));
  // Addresses may stand in comments of the chart library alone: nothing fetches them.
  const std::regex fetches(
      R"((?:src|href|action|poster|data|srcset)\s*=\s*["']?\s*(?:https?:|//)|url\(\s*["']?(?:https?:|//)|@import|<link\b|<iframe\b|<img\b|sourceMappingURL)",
      std::regex::icase);
  std::smatch found;
  EXPECT_FALSE(std::regex_search(page, found, fetches)) << found.str();
  for (const char* call : {"fetch(", "XMLHttpRequest", "WebSocket", "sendBeacon", "importScripts",
                           "import(", "EventSource"})
    EXPECT_THAT(page, Not(HasSubstr(call)));
}

TEST(ReportPage, HostileTextStaysData) {
  Leaderboard board = test::example_board({.trials = 4});
  const std::string evil = "</script><script>alert(1)</script><!-- \xe2\x80\xa8 \xff & /*@STYLE@*/";
  board.sweep = evil;
  for (auto& row : board.rows) row.reason = row.arch = evil;
  board.rows[0].state = RowState::kFailed;
  board.rows[0].params["note"] = evil;
  const std::string page = report_page(board);
  const std::string clean = report_page(test::example_board({.trials = 4}));
  EXPECT_EQ(count_of(page, "<script"), count_of(clean, "<script"));
  EXPECT_EQ(count_of(page, "</script"), count_of(clean, "</script"));
  EXPECT_THAT(page, Not(HasSubstr("\xe2\x80\xa8")));
  EXPECT_THAT(data_of(page)["sweep"].get<std::string>(), HasSubstr("</script><script>alert(1)"));
}

TEST(ReportPage, NoScriptEndsItsOwnElement) {
  const std::string page = report_page({.sweep = "empty", .commit = "", .rows = {}});
  EXPECT_EQ(count_of(page, "<script"), count_of(page, "</script"));
  EXPECT_EQ(count_of(page, "</style"), 1u);
  EXPECT_THAT(page, Not(HasSubstr("/*@")));
}

TEST(ReportPage, WhatHeldOutRowsSayIsACurveOfItsOwn) {
  Leaderboard board = test::example_board({.trials = 1});
  board.rows[0].curve = parse_curve_csv(
                            "step,tokens,loss,fve,heldout_loss,heldout_fve\n"
                            "1,10,3,0.1,,\n2,20,2,0.2,2.5,0.15\n3,30,1,0.3,,\n4,40,1,0.4,1.5,\n")
                            .value();
  const Json curve = report_data(board)["rows"][0]["curve"];
  EXPECT_EQ(curve["columns"], Json({"step", "tokens", "loss", "fve"}));
  EXPECT_EQ(curve["rows"].size(), 4u);
  EXPECT_EQ(curve["held_out"]["columns"], Json({"tokens", "loss", "fve"}));
  EXPECT_EQ(curve["held_out"]["rows"], Json({{20, 2.5, 0.15}, {40, 1.5, nullptr}}));
}

TEST(ReportPage, ManyTrialsThinTheCurveOfTrainingAndKeepEveryLookAtHeldOutRows) {
  const Json rows = report_data(test::example_board({.trials = 400}))["rows"];
  for (const Json& row : rows) {
    if (!row.contains("curve") || row["state"] != "done") continue;
    EXPECT_LT(row["curve"]["rows"].size(), 100u);
    EXPECT_EQ(row["curve"]["held_out"]["rows"].size(), 10u);
  }
}

TEST(ReportPage, ACurveWithoutHeldOutRowsHasNone) {
  Leaderboard board = test::example_board({.trials = 1});
  board.rows[0].curve = parse_curve_csv("step,tokens,loss\n1,10,3\n").value();
  EXPECT_FALSE(report_data(board)["rows"][0]["curve"].contains("held_out"));
}

TEST(ReportPage, EqualBoardsGiveEqualBytes) {
  EXPECT_EQ(report_page(test::example_board()), report_page(test::example_board()));
}

TEST(ReportPage, StaysSmallWithFiveHundredTrials) {
  const std::string page = report_page(test::example_board({.trials = 500, .hooks = 2}));
  EXPECT_LT(page.size(), std::size_t{8} << 20);
  const Json data = data_of(page);
  for (const Json& row : data["rows"])
    if (row.contains("curve")) {
      EXPECT_LE(row["curve"]["rows"].size(), 100u);
    }
}

TEST(ReportPage, AThinnedCurveKeepsItsEnds) {
  Leaderboard board = test::example_board({.trials = 1, .curve_points = 5000});
  const auto& rows = board.rows[0].curve.rows;
  const Json curve = report_data(board)["rows"][0]["curve"];
  ASSERT_LE(curve["rows"].size(), 200u);
  EXPECT_NEAR(curve["rows"].front()[1].get<double>(), rows.front()[1], 1);
  EXPECT_NEAR(curve["rows"].back()[1].get<double>(), rows.back()[1], 100);
}

}  // namespace
}  // namespace saesweep::scheduler
