#include "scheduler/leaderboard/leaderboard.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <limits>
#include <sstream>

#include "tests/scheduler/leaderboard/example_board.h"
#include "tests/support/json_schema_check.h"

namespace saesweep::scheduler {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

Leaderboard one_row(LeaderboardRow row) {
  return {.sweep = "s", .commit = "c0ffee", .rows = {std::move(row)}};
}

TEST(LeaderboardJson, IsExactlyThePromisedForm) {
  LeaderboardRow row;
  row.number = 3;
  row.trial = "3fa9b2c4d5e6";
  row.model = "othello-6x6@3b1c0a77d2e9";
  row.hook = "blocks.2.hook_resid_post";
  row.arch = "topk";
  row.params = {{"d_sae", 512}, {"k", 16}};
  row.seed = 0;
  row.tokens = 3'999'744;
  row.front = true;
  row.scores["core.ce_loss_score"] = {.value = 0.981, .low = 0.979, .high = 0.983, .n = 40000};
  EXPECT_EQ(leaderboard_json(one_row(row)), R"({
 "commit": "c0ffee",
 "rows": [
  {
   "arch": "topk",
   "baseline": null,
   "front": true,
   "hook": "blocks.2.hook_resid_post",
   "model": "othello-6x6@3b1c0a77d2e9",
   "params": {
    "d_sae": 512,
    "k": 16
   },
   "scores": {
    "core.ce_loss_score": {
     "high": 0.983,
     "low": 0.979,
     "n": 40000,
     "value": 0.981,
     "version": 1
    }
   },
   "seed": 0,
   "state": "done",
   "tied": false,
   "tokens": 3999744,
   "trial": "3fa9b2c4d5e6"
  }
 ],
 "schema": 1,
 "sweep": "s"
}
)");
}

TEST(LeaderboardJson, NumbersReadBackAsTheSameDouble) {
  Rng rng(0, "test.doubles");
  Leaderboard board = one_row({});
  Scores& scores = board.rows[0].scores;
  for (int i = 0; i < 2000; ++i) {
    const double value = std::bit_cast<double>(rng.next_u64());
    if (std::isfinite(value)) scores[fmt::format("core.x{}", i)] = {.value = value};
  }
  const Json json = parse_json(leaderboard_json(board)).value();
  const Scores back = parse_scores(json["rows"][0]["scores"]).value();
  ASSERT_EQ(back.size(), scores.size());
  for (const auto& [name, score] : scores)
    EXPECT_EQ(std::bit_cast<std::uint64_t>(back.at(name).value),
              std::bit_cast<std::uint64_t>(score.value));
}

TEST(LeaderboardJson, KeepsItsSchema) {
  for (const test::ExampleOptions& options :
       {test::ExampleOptions{}, test::ExampleOptions{.trials = 12, .model = false},
        test::ExampleOptions{.trials = 200, .hooks = 3}}) {
    const Json json = parse_json(leaderboard_json(test::example_board(options))).value();
    EXPECT_THAT(test::JsonSchemaCheck::problems(json, test::JsonSchemaCheck::schema("leaderboard")),
                IsEmpty());
  }
}

TEST(LeaderboardJson, TheSchemaNoticesWhatIsWrong) {
  const Json schema = test::JsonSchemaCheck::schema("leaderboard");
  const Json good = parse_json(leaderboard_json(test::example_board({.trials = 4}))).value();
  const auto broken = [&](auto&& edit) {
    Json json = good;
    edit(json);
    return test::JsonSchemaCheck::problems(json, schema);
  };
  EXPECT_THAT(broken([](Json& j) { j["schema"] = 2; }), ElementsAre("$.schema: 2 is not 1"));
  EXPECT_THAT(broken([](Json& j) { j["rows"][0].erase("front"); }),
              ElementsAre("$.rows[0]: lacks \"front\""));
  EXPECT_THAT(broken([](Json& j) { j["rows"][1]["trial"] = "XYZ"; }).size(), 1u);
  EXPECT_THAT(broken([](Json& j) { j["rows"][0]["state"] = "fine"; }).size(), 1u);
  EXPECT_THAT(broken([](Json& j) { j["rows"][0]["tokens"] = -1; }).size(), 1u);
  EXPECT_THAT(broken([](Json& j) { j["rows"][0]["scores"]["l0"] = 3; }).size(), 1u);
  EXPECT_THAT(broken([](Json& j) { j["host"] = "here"; }).size(), 1u);
}

TEST(LeaderboardJson, OnlyWhatIsNotDoneHasAReason) {
  const Leaderboard board = test::example_board();
  for (const LeaderboardRow& row : board.rows)
    EXPECT_EQ(row_to_json(row).contains("reason"), row.state != RowState::kDone);
}

TEST(Schemas, UseOnlyWhatTheCheckKnows) {
  std::size_t count = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator(SAESWEEP_SOURCE_DIR "/sweeps/schema")) {
    const std::string file = entry.path().filename().string();
    if (file == "sweep.schema.json") continue;  // has its own test beside the parser
    ++count;
    const Json schema = parse_json(read_file(entry.path()).value()).value();
    for (const std::string& problem : test::JsonSchemaCheck::problems(Json::object(), schema))
      EXPECT_THAT(problem, Not(HasSubstr("not checked"))) << file;
    EXPECT_TRUE(schema.contains("title")) << file;
  }
  EXPECT_GE(count, 10u);
}

TEST(Schemas, TheLastEventSaysHowItWent) {
  const Json schema = test::JsonSchemaCheck::schema("events");
  const Json finished{
      {"event", "sweep.finished"}, {"time", 1.5}, {"trials", 3}, {"failed", 0}, {"out", "x"}};
  EXPECT_THAT(test::JsonSchemaCheck::problems(finished, schema), IsEmpty());
  EXPECT_EQ(
      test::JsonSchemaCheck::problems({{"event", "sweep.finished"}, {"time", 1.5}}, schema).size(),
      3u);
  EXPECT_EQ(
      test::JsonSchemaCheck::problems({{"event", "sweep.eaten"}, {"time", 1.5}}, schema).size(),
      1u);
}

TEST(LeaderboardCsv, HasAColumnForEveryParameterAndScore) {
  const Leaderboard board = test::example_board();
  std::istringstream csv(leaderboard_csv(board));
  std::string header;
  std::getline(csv, header);
  EXPECT_THAT(header, HasSubstr("number,trial,baseline,model,hook,arch,seed,state,reason,tokens"));
  EXPECT_THAT(header, HasSubstr(",params.d_sae,params.k,params.l1,board.cov_occurring,"));
  EXPECT_THAT(header, HasSubstr(",core.l0,core.l0.low,core.l0.high,core.l0.n"));
  const auto commas = std::ranges::count(header, ',');
  std::size_t rows = 0;
  for (std::string line; std::getline(csv, line); ++rows)
    EXPECT_EQ(std::ranges::count(line, ','), commas) << line;
  EXPECT_EQ(rows, board.rows.size());
}

TEST(LeaderboardCsv, QuotesWhatNeedsIt) {
  LeaderboardRow row;
  row.state = RowState::kFailed;
  row.reason = "said \"no\",\nthen died";
  EXPECT_THAT(leaderboard_csv(one_row(row)),
              HasSubstr(",failed,\"said \"\"no\"\",\nthen died\",0,"));
}

TEST(Scores, SurviveTheirJson) {
  Scores scores{{"core.l0", {.value = 3.5, .low = 3.0, .high = 4.0, .n = 7, .version = 2}},
                {"recon.fve", {.value = std::numeric_limits<double>::quiet_NaN()}}};
  const Scores back = parse_scores({{"scores", scores_to_json(scores)}, {"details", {}}}).value();
  EXPECT_EQ(back.at("core.l0").high, 4.0);
  EXPECT_EQ(back.at("core.l0").version, 2);
  EXPECT_FALSE(back.at("recon.fve").low);
  LeaderboardRow row;
  row.scores = back;
  const Json json = parse_json(leaderboard_json(one_row(row))).value();
  EXPECT_TRUE(json["rows"][0]["scores"]["recon.fve"]["value"].is_null());
  EXPECT_EQ(find_score(row, "recon.fve"), nullptr);
}

TEST(Scores, WrongOnesAreNamed) {
  const auto message = [](const char* text) {
    const auto scores = parse_scores(parse_json(text).value());
    return scores ? "" : scores.error().message;
  };
  EXPECT_THAT(message(R"({"core.l0": 3})"), HasSubstr("score core.l0: not an object"));
  EXPECT_THAT(message(R"({"core.l0": {"low": 1}})"), HasSubstr("no value"));
  EXPECT_THAT(message(R"({"core.l0": {"value": "3"}})"), HasSubstr("value is no number"));
  EXPECT_THAT(message(R"({"a": {"value": 1, "low": 1}})"), HasSubstr("half an interval"));
  EXPECT_THAT(message(R"({"a": {"value": 1, "n": -1}})"), HasSubstr("n is no count"));
  EXPECT_THAT(message("[]"), HasSubstr("not an object"));
}

TEST(Curves, AreReadWithGapsAndLineEnds) {
  const Curve curve =
      parse_curve_csv("step,tokens,loss\r\n1,2048,0.5\r\n2,4096,\n\n3,6144,1e-3").value();
  EXPECT_THAT(curve.columns, ElementsAre("step", "tokens", "loss"));
  ASSERT_EQ(curve.rows.size(), 3u);
  EXPECT_TRUE(std::isnan(curve.rows[1][2]));
  EXPECT_EQ(curve.rows[2][2], 1e-3);
  EXPECT_TRUE(parse_curve_csv("")->columns.empty());
}

TEST(Curves, WrongLinesAreNamed) {
  EXPECT_THAT(parse_curve_csv("a,b\n1\n").error().message, HasSubstr("line 2: 1 cells under 2"));
  EXPECT_THAT(parse_curve_csv("a\nx\n").error().message, HasSubstr("\"x\" is no number"));
}

}  // namespace
}  // namespace saesweep::scheduler
