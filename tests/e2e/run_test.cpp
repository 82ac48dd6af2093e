// `saesweep run` as a user types it: real programs, real files.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "tests/e2e/scene.h"
#include "tests/support/json_schema_check.h"

namespace saesweep::test {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

std::vector<Json> events(const std::string& lines) {
  std::vector<Json> found;
  std::size_t begin = 0;
  while (begin < lines.size()) {
    const std::size_t end = lines.find('\n', begin);
    found.push_back(
        parse_json(lines.substr(begin, end - begin)).value_or(Json("not JSON: " + lines)));
    if (end == std::string::npos) break;
    begin = end + 1;
  }
  return found;
}

TEST(Run, LeavesEverythingThatTheReadmePromises) {
  Scene scene;
  scene.write("sweep.yaml", tiny_sweep("80k"));
  const Finished run = scene.run("sweep.yaml", "a", {"--json"});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const std::vector<Json> said = events(run.out);
  const Json schema = JsonSchemaCheck::schema("events");
  for (const Json& event : said)
    EXPECT_THAT(JsonSchemaCheck::problems(event, schema), IsEmpty()) << event.dump();
  ASSERT_FALSE(said.empty());
  EXPECT_EQ(said.front()["event"], "sweep.started");
  EXPECT_EQ(said.back()["event"], "sweep.finished");
  EXPECT_EQ(said.back()["trials"], 5);
  EXPECT_EQ(said.back()["failed"], 0);
  EXPECT_EQ(said.back()["out"], scene.out("a").string());

  for (const char* name :
       {"leaderboard.json", "leaderboard.csv", "report.html", "sweep.yaml", "run.json"})
    EXPECT_TRUE(fs::exists(scene.out("a") / name)) << name;
  const Json board = scene.leaderboard("a");
  EXPECT_THAT(JsonSchemaCheck::problems(board, JsonSchemaCheck::schema("leaderboard")), IsEmpty());
  std::size_t trials = 0, baselines = 0;
  for (const Json& row : board["rows"]) {
    EXPECT_EQ(row["state"], "done") << row.dump();
    if (!row["trial"].is_string()) {
      ++baselines;
      continue;
    }
    ++trials;
    for (const char* name : {"core.ce_loss_score", "core.l0", "core.explained_variance",
                             "recon.fve", "board.cov_occurring", "board.rec_micro",
                             "board.true_mover.cov_best_t", "board.valid_moves.rec_micro"})
      EXPECT_TRUE(row["scores"].contains(name)) << name << " of " << row["arch"];
    EXPECT_EQ(row["tokens"], 80'000 / 256 * 256);
    const fs::path folder = scene.out("a") / "trials" / row["trial"].get<std::string>();
    for (const char* name : {"sae.safetensors", "config.json", "scores.json", "curve.csv"})
      EXPECT_TRUE(fs::exists(folder / name)) << name;
    EXPECT_THAT(JsonSchemaCheck::problems(parse_json(scene.read(folder / "config.json")).value(),
                                          JsonSchemaCheck::schema("config")),
                IsEmpty());
    EXPECT_THAT(JsonSchemaCheck::problems(parse_json(scene.read(folder / "scores.json")).value(),
                                          JsonSchemaCheck::schema("scores")),
                IsEmpty());
  }
  EXPECT_EQ(trials, 5u);
  EXPECT_EQ(baselines, 7u);
  EXPECT_THAT(JsonSchemaCheck::problems(parse_json(scene.read(scene.out("a") / "run.json")).value(),
                                        JsonSchemaCheck::schema("run")),
              IsEmpty());
  // The identity baseline is perfect by construction.
  for (const Json& row : board["rows"])
    if (row["baseline"] == "identity") {
      EXPECT_NEAR(row["scores"]["core.ce_loss_score"]["value"].get<double>(), 1, 1e-9);
      EXPECT_EQ(row["scores"]["core.l0"]["value"], 32);
    }
}

TEST(Run, IsNotRepeatedWhenItIsFinished) {
  Scene scene;
  scene.write("sweep.yaml", tiny_sweep("40k"));
  ASSERT_EQ(scene.run("sweep.yaml", "a").exit_code, 0);
  const auto first = scene.results("a");
  fs::remove_all(scene.out("a"));
  const Finished again = scene.run("sweep.yaml", "a", {"--json"});
  ASSERT_EQ(again.exit_code, 0) << again.err;
  for (const Json& event : events(again.out)) EXPECT_NE(event["event"], "stage.progress");
  EXPECT_EQ(scene.results("a"), first);
}

TEST(Run, AsksItsExecutorsForTheLogThatItIsAskedFor) {
  Scene scene;
  scene.write("sweep.yaml", tiny_sweep("20k"));
  const auto said_by_executors = [&](const std::string& place) {
    std::string all;
    for (const auto& log : fs::directory_iterator(scene.state(place) / "logs"))
      all += scene.read(log.path());
    return all;
  };
  ASSERT_EQ(scene.run("sweep.yaml", "a", {"--log-level", "info"}).exit_code, 0);
  EXPECT_THAT(said_by_executors("a"), HasSubstr("run.begin"));
  ASSERT_EQ(scene.run("sweep.yaml", "b").exit_code, 0);
  EXPECT_THAT(said_by_executors("b"), Not(HasSubstr("run.begin")));
}

TEST(Run, OfAChangedFileTrainsOnlyWhatChanged) {
  Scene scene;
  scene.write("sweep.yaml", tiny_sweep("40k"));
  ASSERT_EQ(scene.run("sweep.yaml", "a").exit_code, 0);
  const auto first = scene.results("a");
  const Finished changed =
      scene.run("sweep.yaml", "a", {"--json", "--set", "trials.2.l1=[0.05, 0.1]"});
  ASSERT_EQ(changed.exit_code, 0) << changed.err;
  std::size_t finished = 0;
  for (const Json& event : events(changed.out))
    finished += event["event"] == "trial.finished" ? 1 : 0;
  EXPECT_EQ(finished, 1u) << changed.out;
  const auto second = scene.results("a");
  EXPECT_GT(second.size(), first.size());
  for (const auto& [name, bytes] : first)
    if (name != "leaderboard.json") {
      EXPECT_EQ(second.at(name), bytes) << name;
    }
}

TEST(Run, ListsATrialThatDivergesAndKeepsTheOthersBytes) {
  Scene scene;
  scene.write("sweep.yaml", tiny_sweep("40k"));
  ASSERT_EQ(scene.run("sweep.yaml", "calm").exit_code, 0);
  scene.write("wild.yaml", tiny_sweep("40k"));
  const Finished wild = scene.run(
      "wild.yaml", "wild",
      {"--set",
       "trials.3={arch: standard, d_sae: 64, l1: 0.05, lr: [0.0003, 1e30], grad_clip: none}"});
  EXPECT_EQ(wild.exit_code, 1) << wild.err;
  std::size_t diverged = 0;
  const Json board = scene.leaderboard("wild");
  for (const Json& row : board["rows"]) {
    if (row["state"] != "diverged") continue;
    ++diverged;
    EXPECT_THAT(row["reason"].get<std::string>(), HasSubstr("step"));
  }
  EXPECT_EQ(diverged, 1u);
  const auto calm = scene.results("calm");
  const auto beside = scene.results("wild");
  std::size_t same = 0;
  for (const auto& [name, bytes] : calm)
    if (name.ends_with("sae.safetensors") && beside.contains(name)) {
      EXPECT_EQ(beside.at(name), bytes) << name;
      ++same;
    }
  EXPECT_GE(same, 4u);
}

TEST(Run, RefusesAStateDirectoryThatAnotherProcessHolds) {
  Scene scene;
  scene.write("sweep.yaml", tiny_sweep("20M"));
  Program first(scene.run_words("sweep.yaml", "a"), scene.path());
  ASSERT_TRUE(eventually([&] { return fs::exists(scene.state("a") / "endpoint.json"); }));
  const Finished second = scene.run("sweep.yaml", "a");
  EXPECT_EQ(second.exit_code, 3);
  EXPECT_THAT(second.err, HasSubstr(scene.state("a").string()));
}

TEST(Run, RefusesABadFileWithAllItsErrorsAndStartsNothing) {
  Scene scene;
  scene.write("sweep.yaml",
              "name: bad\nmodell: {path: shape}\ndata: {source: othello, board: 5}\n"
              "trials:\n  - {arch: topk, d_sae: 0, k: 4}\n  - {arch: topk, d_sae: 8, k: 16}\n");
  const Finished run = scene.run("sweep.yaml", "a");
  EXPECT_EQ(run.exit_code, 2);
  EXPECT_THAT(run.err, HasSubstr("sweep.yaml:2:1: modell"));
  EXPECT_THAT(run.err, HasSubstr("model"));
  EXPECT_THAT(run.err, HasSubstr("data.board"));
  EXPECT_THAT(run.err, HasSubstr("trials[0].d_sae"));
  EXPECT_FALSE(fs::exists(scene.state("a")));
}

TEST(Leaderboard, AndExportReadWhatARunLeft) {
  Scene scene;
  scene.write("sweep.yaml", tiny_sweep("40k"));
  ASSERT_EQ(scene.run("sweep.yaml", "a").exit_code, 0);
  const std::string state = scene.state("a").string();
  const Finished json = scene.saesweep({"leaderboard", "tiny", "--state", state, "--json"});
  EXPECT_EQ(json.exit_code, 0) << json.err;
  EXPECT_EQ(parse_json(json.out).value()["rows"], scene.leaderboard("a")["rows"]);
  const Finished filtered =
      scene.saesweep({"leaderboard", "--state", state, "--json", "--filter", "arch=topk and k>=8"});
  EXPECT_EQ(parse_json(filtered.out).value()["rows"].size(), 1u) << filtered.out << filtered.err;
  const Finished exported =
      scene.saesweep({"export", "0", "--format", "native", "--to",
                      (scene.path() / "exported").string(), "--state", state});
  EXPECT_EQ(exported.exit_code, 0) << exported.err;
  std::size_t files = 0;
  for (const auto& entry : fs::recursive_directory_iterator(scene.path() / "exported"))
    files += entry.path().filename() == "sae.safetensors" ? 1 : 0;
  EXPECT_EQ(files, 1u);
  EXPECT_EQ(scene.saesweep({"export", "99", "--to", "x", "--state", state}).exit_code, 2);
}

TEST(TrainLm, WritesAModelThatASweepThenReads) {
  Scene scene;
  scene.write("lm.yaml",
              "name: small-lm\ndata: {source: othello, board: 4, games: 2k, seed: 0}\n"
              "train_lm: {layers: 2, d_model: 32, heads: 2, d_mlp: 64, context: 11, activation: "
              "gelu, tied: false, "
              "bias: true, games: 4k, batch: 64, lr: 0.003, warmup_steps: 5, weight_decay: 0.1, "
              "grad_clip: 1.0, seed: 0}\n");
  const Finished lm = scene.run("lm.yaml", "lm");
  ASSERT_EQ(lm.exit_code, 0) << lm.err;
  const fs::path model = scene.out("lm") / "model";
  const Json training = parse_json(scene.read(model / "training.json")).value_or(Json());
  EXPECT_THAT(JsonSchemaCheck::problems(training, JsonSchemaCheck::schema("training")), IsEmpty());
  scene.write("sweep.yaml", tiny_sweep("20k"));
  const Finished run =
      scene.run("sweep.yaml", "a", {"--set", "model={path: " + model.string() + "}"});
  EXPECT_EQ(run.exit_code, 0) << run.err;
}

// `device: cuda` as a user meets it: without a GPU it is said before anything begins; with one
// (here the emulated module beside the executor) the sweep runs, and says on which device.
TEST(Run, TrainsOnAGpuOrSaysWhatIsMissing) {
  Scene scene;
  scene.write("sweep.yaml", tiny_sweep("80k"));
  const std::vector<std::string> on_gpu = {
      "--set", "train.device=cuda", "--set",
      "trials=[{arch: topk, d_sae: 64, k: [4, 8], threshold_start_step: 20%}]"};
  const fs::path task = fs::path(SAESWEEP_PROGRAM).parent_path() / "saesweep-task";
  const auto with_task = [&](const fs::path& program) {
    std::vector<std::string> words = on_gpu;
    words.insert(words.end(), {"--task", program.string()});
    return words;
  };
  for (const char* folder : {"with", "without"}) {
    fs::create_directory(scene.path() / folder);
    fs::copy_file(task, scene.path() / folder / "saesweep-task");
  }
  fs::copy_file(EMULATED_GPU, scene.path() / "with" / "libsaesweep_cuda.so");

  const Finished without =
      scene.run("sweep.yaml", "without", with_task(scene.path() / "without" / "saesweep-task"));
  EXPECT_EQ(without.exit_code, 2);
  EXPECT_THAT(without.err, HasSubstr("train.device: cuda"));
  EXPECT_THAT(without.err, HasSubstr("libsaesweep_cuda.so is not there"));

  const Finished with =
      scene.run("sweep.yaml", "with", with_task(scene.path() / "with" / "saesweep-task"));
  ASSERT_EQ(with.exit_code, 0) << with.err;
  EXPECT_THAT(scene.read(scene.out("with") / "sweep.yaml"), HasSubstr("device: cuda"));
  const Json board = scene.leaderboard("with");
  std::size_t trials = 0;
  for (const Json& row : board["rows"]) {
    EXPECT_EQ(row["state"], "done") << row.dump();
    trials += row["trial"].is_string() ? 1 : 0;
  }
  EXPECT_EQ(trials, 2u);

  // The emulated one has 4 GiB.
  const Finished large =
      scene.run("sweep.yaml", "large",
                {"--task", (scene.path() / "with" / "saesweep-task").string(), "--set",
                 "train.device=cuda", "--set", "trials=[{arch: standard, d_sae: 16M, l1: 0.1}]"});
  EXPECT_EQ(large.exit_code, 2);
  EXPECT_THAT(large.err, HasSubstr("of a GPU's memory, of which a slot has 4.0 GiB here"));

  const Finished unknown = scene.run(
      "sweep.yaml", "unknown",
      {"--set", "train.device=cuda", "--set", "trials=[{arch: end_to_end, d_sae: 64, l1: 0.1}]"});
  EXPECT_EQ(unknown.exit_code, 2);
  EXPECT_THAT(unknown.err, HasSubstr("is end_to_end, which is not trained on a GPU"));
}

}  // namespace
}  // namespace saesweep::test
