// Early stopping with real programs: the best reach the end with the bytes that they would have had
// anyway, the others say why they stopped; and a sweep that is killed decides the same from the
// same reports.
#include "sweeps/early_stopping.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <filesystem>
#include <set>
#include <string_view>

#include "core/philox.h"
#include "tests/e2e/scene.h"

namespace saesweep::test {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

std::string sweep(const std::string& stopping) {
  return "name: tiny\n"
         "model: {path: shape, random_weights: true, seed: 1}\n"
         "data: {source: othello, board: 4, play: uniform, games: 6k, seed: 0}\n"
         "activations:\n"
         "  hooks: [blocks.1.hook_resid_post]\n"
         "  tokens: 40k\n"
         "  normalize: unit_mean_square\n"
         "  holdout: 10%\n"
         "  cache: 64MiB\n"
         "train: {tokens: 400k, batch: 256, lr: [3e-5, 3e-4, 3e-3], warmup_steps: 5%,\n"
         "        sparsity_warmup_steps: 5%, threshold_start_step: 80%, checkpoint_every: 0.2s}\n"
         "trials:\n"
         "  - {arch: topk, d_sae: 64, k: [4, 8]}\n"
         "  - {arch: batchtopk, d_sae: 64, k: 4}\n"
         "evaluate:\n"
         "  - core: {tokens: 2k}\n"
         "resources: {memory: 1GiB, slots: 1}\n" +
         stopping;
}

constexpr const char* kAsha =
    "early_stopping: {rule: asha, metric: core.ce_loss_score, direction: max, min_tokens: 30k, "
    "eta: 3}\n";

std::string one_trial() {
  std::string text = tiny_sweep("20k");
  text.resize(text.find("trials:"));
  return text +
         "trials: [{arch: topk, d_sae: 64, k: 4, threshold_start_step: 20%}]\n"
         "evaluate: [{core: {tokens: 2k}}, {board: {games: 200}}]\n"
         "resources: {memory: 1GiB, slots: 1}\n";
}

struct EarlyStopping : testing::Test {
  Scene scene;
  std::map<std::string, std::string> whole;

  void SetUp() override {
    scene.write("whole.yaml", sweep(""));
    scene.write("asha.yaml", sweep(kAsha));
    const Finished run = scene.run("whole.yaml", "whole");
    ASSERT_EQ(run.exit_code, 0) << run.err;
    whole = scene.results("whole");
  }

  // Rows by state. What is done has the bytes of the run that stopped nobody.
  std::map<std::string, int> check(const std::string& place) {
    std::map<std::string, int> states;
    const auto bytes = scene.results(place);
    const Json board = scene.leaderboard(place);
    for (const Json& row : board["rows"]) {
      const std::string state = row["state"];
      ++states[state];
      const std::string folder = "trials/" + row["trial"].get<std::string>() + "/";
      if (state == "done") {
        EXPECT_EQ(row["tokens"], 399'872);
        for (const char* file : {"sae.safetensors", "config.json", "curve.csv", "scores.json"})
          EXPECT_EQ(bytes.at(folder + file), whole.at(folder + file)) << folder << file;
        continue;
      }
      EXPECT_EQ(state, "stopped");
      EXPECT_THAT(row["reason"].get<std::string>(), HasSubstr("not among those that go on"));
      const std::uint64_t tokens = row["tokens"];
      EXPECT_TRUE(tokens == 29'952 || tokens == 89'856 || tokens == 269'824) << tokens;
      EXPECT_TRUE(row["scores"].contains("core.ce_loss_score"));
      EXPECT_FALSE(bytes.contains(folder + "sae.safetensors"));
    }
    EXPECT_EQ(states["done"] + states["stopped"], 9);
    const Finished verified =
        scene.saesweep({"journal", "verify", "--state", scene.state(place).string()});
    EXPECT_EQ(verified.exit_code, 0) << verified.out << verified.err;
    return states;
  }
};

TEST_F(EarlyStopping, TheBestReachTheEndWithTheBytesThatTheyHaveAnyway) {
  const Finished run = scene.run("asha.yaml", "a");
  ASSERT_EQ(run.exit_code, 0) << run.err;
  auto states = check("a");
  EXPECT_GE(states["done"], 1);
  EXPECT_LE(states["done"], 3);
  const Finished again = scene.run("asha.yaml", "a");
  EXPECT_EQ(again.exit_code, 0) << again.err;
  check("a");
}

TEST_F(EarlyStopping, KilledAgainAndAgainEveryDecisionIsThatOfTheReports) {
  Rng rng(3, "test.early_stopping");
  for (int round = 0; round < 4; ++round) {
    Program run(scene.run_words("asha.yaml", "a"), scene.path());
    const auto end =
        std::chrono::steady_clock::now() + std::chrono::milliseconds(300 + rng.below(2500));
    eventually([&] { return std::chrono::steady_clock::now() > end || !run.running(); });
    run.signal(SIGKILL);
    run.wait();
  }
  const Finished run = scene.run("asha.yaml", "a");
  ASSERT_EQ(run.exit_code, 0) << run.err;
  EXPECT_GE(check("a")["done"], 1);
}

TEST_F(EarlyStopping, ASweepWithoutItFinishesWhatWasStopped) {
  ASSERT_EQ(scene.run("asha.yaml", "a").exit_code, 0);
  std::string text = sweep("");
  text.replace(text.find("tiny"), 4, "full");
  scene.write("full.yaml", text);
  const Finished run = scene.run("full.yaml", "a");
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const auto bytes = scene.results("a");
  for (const auto& [name, expected] : whole)
    if (name.ends_with("sae.safetensors")) {
      EXPECT_EQ(bytes.at(name), expected) << name;
    }
}

TEST_F(EarlyStopping, ARuleThatLooksAtCurvesStopsAtOnce) {
  scene.write("bound.yaml", sweep("early_stopping: {rule: threshold, metric: core.l0, interval: "
                                  "100k, high: 6}\n"));
  const Finished run = scene.run("bound.yaml", "a");
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const Json board = scene.leaderboard("a");
  ASSERT_FALSE(board["rows"].empty());
  for (const Json& row : board["rows"])
    EXPECT_EQ(row["state"], row["params"]["k"] == 8 ? "stopped" : "done") << row.dump();
}

// A sweep file may name what is computed, and nothing else.
TEST(Metrics, ThatASweepFileMayNameAreThoseThatAreComputed) {
  const Scene scene;
  scene.write("one.yaml", one_trial());
  const Finished run = scene.run("one.yaml", "a");
  ASSERT_EQ(run.exit_code, 0) << run.err;
  std::set<std::string> computed, known;
  const Json board = scene.leaderboard("a");
  for (const auto& [name, score] : board["rows"][0]["scores"].items()) computed.insert(name);
  // How many tokens were looked at says nothing about a dictionary.
  std::erase_if(computed, [](const auto& name) { return name.starts_with("core.total_tokens"); });
  for (const char* evaluation : {"core", "board"})
    for (const std::string_view name : sweeps::scores_of(evaluation, true)) known.emplace(name);
  EXPECT_EQ(computed, known);
}

}  // namespace
}  // namespace saesweep::test
