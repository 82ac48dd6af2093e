#include "scheduler/cli/results.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "tests/scheduler/cli/sample_sweep.h"
#include "tests/support/json_schema_check.h"
#include "tests/support/temp_dir.h"

namespace saesweep::cli {
namespace {

using scheduler::LeaderboardRow;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

struct Results : testing::Test {
  test::TempDir dir;
  test::SampleSweep sample{dir.path()};

  scheduler::Leaderboard board(bool curves = true) {
    return to_leaderboard(sample.result, {.commit = "abc", .curves = curves}).value();
  }
  static const LeaderboardRow& row_of(const scheduler::Leaderboard& board, std::uint32_t number) {
    return *std::ranges::find_if(board.rows, [&](const auto& row) { return row.number == number; });
  }
};

TEST_F(Results, ATrialIsARowWithItsNamesAndTheScoresOfAllItsEvaluations) {
  const auto all = board();
  const LeaderboardRow& row = row_of(all, 0);
  EXPECT_EQ(row.trial, sample.trial(0).identity.substr(0, 12));
  EXPECT_EQ(row.model, "othello-6x6@" + sha256("model").short_hex());
  EXPECT_EQ(row.hook, "blocks.2.hook_resid_post");
  EXPECT_EQ(row.arch, "topk");
  EXPECT_EQ(row.seed, 0u);
  EXPECT_EQ(row.tokens, 10'000u);
  EXPECT_DOUBLE_EQ(row.scores.at("core.ce_loss_score").value, 0.95);
  EXPECT_DOUBLE_EQ(row.scores.at("board.cov_occurring").value, 0.475);
}

// What reads one hook and predicts another competes with its like alone.
TEST_F(Results, ARowOfSeveralHooksNamesThemAll) {
  sample.trial(0).spec["stream"]["joined"] = {"blocks.3.hook_mlp_out"};
  sample.trial(0).spec["training"]["architecture"] = "skip_transcoder";
  sample.trial(1).spec["stream"]["joined"] = {"blocks.3.hook_resid_post", "hook_embed"};
  sample.trial(1).spec["training"]["architecture"] = "crosscoder";
  const auto all = board();
  EXPECT_EQ(row_of(all, 0).hook, "blocks.2.hook_resid_post->blocks.3.hook_mlp_out");
  EXPECT_EQ(row_of(all, 1).hook, "blocks.2.hook_resid_post+blocks.3.hook_resid_post+hook_embed");
}

TEST_F(Results, ParametersAreTheMainOnesAndThoseThatDifferWithinTheArchitecture) {
  const auto all = board();
  EXPECT_EQ(row_of(all, 0).params, (Json{{"d_sae", 64}, {"k", 8}}));
  EXPECT_EQ(row_of(all, 2).params, (Json{{"d_sae", 128}, {"k", 8}}));
  EXPECT_EQ(row_of(all, 4).params, (Json{{"d_sae", 64}, {"l1", 0.02}, {"lr", 3e-3}}));
}

TEST_F(Results, BaselinesAreRowsWithoutATrialAndRandomOnesTellTheirShape) {
  std::map<std::string, LeaderboardRow> baselines;
  for (const auto& row : board().rows)
    if (!row.is_trial()) baselines[row.baseline] = row;
  ASSERT_TRUE(baselines.contains("identity") && baselines.contains("random_sae"));
  EXPECT_EQ(baselines["identity"].params, Json::object());
  EXPECT_FALSE(baselines["identity"].number);
  EXPECT_EQ(baselines["random_sae"].params, (Json{{"d_sae", 64}, {"k", 8}}));
}

TEST_F(Results, CurvesAndHistogramsComeFromTheFiles) {
  const auto all = board();
  const LeaderboardRow& row = row_of(all, 1);
  EXPECT_THAT(row.curve.columns, ElementsAre("step", "tokens", "loss"));
  EXPECT_EQ(row.curve.rows.size(), 2u);
  EXPECT_THAT(row.density.counts, ElementsAre(3u, 4u));
  EXPECT_EQ(row.density.never, 1u);
  EXPECT_THAT(board(false).rows.front().curve.rows, IsEmpty());
}

TEST_F(Results, AFailedEvaluationIsSaidAndTheOtherScoresStay) {
  sample.trial(3).state = "failed";
  sample.trial(3).reason = "evaluation board: 12 held-out games, 2000 asked for";
  sample.trial(3).evaluations = {test::core_summary(20, 0.9)};
  const auto all = board();
  const LeaderboardRow& row = row_of(all, 3);
  EXPECT_EQ(row.state, scheduler::RowState::kFailed);
  EXPECT_THAT(row.reason, HasSubstr("12 held-out games"));
  EXPECT_TRUE(row.scores.contains("core.l0"));
  EXPECT_FALSE(row.front);
}

TEST_F(Results, BrokenFilesAreNamedWithTheTrial) {
  const std::string id = sample.trial(2).identity.substr(0, 12);
  sample.trial(2).files["curve.csv"] = sample.write("bad-curve", "step,loss\n1,x\n");
  const auto bad_curve = to_leaderboard(sample.result, {.commit = "abc"});
  ASSERT_FALSE(bad_curve);
  EXPECT_EQ(bad_curve.error().code, ErrorCode::kCorrupted);
  EXPECT_THAT(bad_curve.error().message, HasSubstr("trial " + id));
  sample.trial(2).files.erase("curve.csv");
  sample.trial(2).evaluations[0]["scores"]["core.l0"] = "many";
  EXPECT_THAT(to_leaderboard(sample.result, {.commit = "abc"}).error().message,
              HasSubstr("trial " + id));
}

TEST_F(Results, TheBoardKeepsItsSchema) {
  const Json json = parse_json(scheduler::leaderboard_json(board())).value();
  EXPECT_THAT(test::JsonSchemaCheck::problems(json, test::JsonSchemaCheck::schema("leaderboard")),
              IsEmpty());
  EXPECT_EQ(json["rows"].size(), 7u);
}

TEST_F(Results, ScoresJsonHoldsTheUnionAndKeepsItsSchema) {
  const Json json = parse_json(scores_json(sample.trial(0)).value()).value();
  EXPECT_THAT(test::JsonSchemaCheck::problems(json, test::JsonSchemaCheck::schema("scores")),
              IsEmpty());
  EXPECT_EQ(json["scores"].size(), 4u);
  EXPECT_EQ(json["histogram"]["never"], 1);
  EXPECT_EQ(json["details"][0]["density"], 0.5);
  EXPECT_EQ(json["heldout"], true);
  EXPECT_EQ(json["scores"]["core.l0"], test::score_json(8, 0.01));
}

TEST_F(Results, ScoresJsonOfNothingEvaluatedIsNoFileAndOfNothingThatAppliesIsEmpty) {
  sample.trial(0).evaluations.clear();
  EXPECT_EQ(scores_json(sample.trial(0)).value(), "");
  sample.trial(0).evaluations = {{{"scores", Json::object()}}};
  sample.trial(0).files.clear();
  EXPECT_EQ(parse_json(scores_json(sample.trial(0)).value()).value(),
            (Json{{"scores", Json::object()}}));
}

TEST_F(Results, OutHoldsAFolderForEachTrialAndBaselineAndTheRunsFacts) {
  const auto contents = to_out_contents(
      sample.result,
      {.host = {{"name", "h"}}, .versions = {{"saesweep", "1"}}, .state = "/s", .out = "/o"},
      "abc");
  ASSERT_TRUE(contents) << contents.error().message;
  EXPECT_EQ(contents->trials.size(), 5u);
  std::set<std::string> names;
  for (const auto& file : contents->trials[0].files) names.insert(file.name);
  EXPECT_THAT(names, ElementsAre("config.json", "curve.csv", "sae.safetensors", "scores.json"));
  ASSERT_EQ(contents->baselines.size(), 2u);
  EXPECT_EQ(contents->baselines[0].hook, "blocks.2.hook_resid_post");
  EXPECT_EQ(contents->baselines[1].name, "random_sae-64");
  EXPECT_THAT(test::JsonSchemaCheck::problems(contents->run, test::JsonSchemaCheck::schema("run")),
              IsEmpty());
  EXPECT_EQ(contents->run["started"], "2023-11-14T22:13:20Z");
  EXPECT_EQ(contents->run["seconds"], 65.0);
  EXPECT_TRUE(scheduler::write_out(dir.path() / "out", *contents));
  EXPECT_TRUE(std::filesystem::exists(dir.path() / "out" / "report.html"));
}

}  // namespace
}  // namespace saesweep::cli
