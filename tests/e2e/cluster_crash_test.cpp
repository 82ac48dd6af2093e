// A served sweep whose scheduler, agents and executors are killed at random moments, again and
// again: nothing is lost, nothing is done twice, no byte differs.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <map>
#include <set>

#include "core/philox.h"
#include "tests/e2e/cluster.h"

namespace saesweep::test {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

// SAESWEEP_KILL_ROUNDS=100 build/release/bin/cluster_crash_e2e_test: for a long evening.
int rounds() {
  const char* asked = std::getenv("SAESWEEP_KILL_ROUNDS");
  return asked == nullptr ? 5 : std::atoi(asked);
}

struct ClusterCrash : testing::Test {
  ServedScene scene;
  fs::path state = scene.state("a");
  Rng rng{11, "test.cluster_crash"};
  std::unique_ptr<Program> scheduler;
  std::map<std::string, std::unique_ptr<Program>> workers;

  void wait_a_moment() {
    const auto end =
        std::chrono::steady_clock::now() + std::chrono::milliseconds(100 + rng.below(2500));
    eventually([&] { return std::chrono::steady_clock::now() > end; });
  }
  void kill_somebody() {
    const auto worker = std::next(workers.begin(), static_cast<long>(rng.below(workers.size())));
    switch (rng.below(3)) {
      case 0:
        scheduler->signal(SIGKILL);
        scheduler->wait();
        scheduler = scene.serve("a");
        return;
      case 1:
        worker->second->signal(SIGKILL);
        worker->second->wait();
        worker->second = scene.worker(worker->first);
        return;
      default:
        for (const pid_t executor : worker->second->children("saesweep-task"))
          ::kill(executor, SIGKILL);
    }
  }
  std::string errors() const {
    std::string all = scheduler->err();
    for (const auto& [name, worker] : workers) all += worker->err();
    return all;
  }
  // What the journal tells: every task has one result at most, and the state is what they make.
  void expect_a_sound_journal() {
    scheduler->signal(SIGTERM);
    EXPECT_EQ(scheduler->wait().exit_code, 0);
    const Finished verified = scene.saesweep({"journal", "verify", "--state", state.string()});
    EXPECT_EQ(verified.exit_code, 0) << verified.out << verified.err;
    const Finished exported = scene.saesweep({"journal", "export", "--state", state.string()});
    ASSERT_EQ(exported.exit_code, 0) << exported.err;
    std::istringstream lines(exported.out);
    std::set<std::string> done;
    for (std::string line; std::getline(lines, line);) {
      const Json row = parse_json(line, 64).value_or(Json());
      if (row.value("family", "") != "event" || !row["value"].contains("task_finished")) continue;
      const Json& result = row["value"]["task_finished"]["result"];
      if (result.value("outcome", "") != "OUTCOME_DONE") continue;
      EXPECT_TRUE(done.insert(result["task"].get<std::string>()).second)
          << "committed twice: " << line;
    }
    EXPECT_FALSE(done.empty());
  }
};

TEST_F(ClusterCrash, AtRandomMomentsOfWhomeverChangesNoByte) {
  scene.write("sweep.yaml", tiny_sweep("1M", "0.2s"));
  const auto expected = scene.calm();
  scheduler = scene.serve("a");
  for (const char* name : {"one", "two"}) workers[name] = scene.worker(name);
  ASSERT_EQ(scene.submit("a").exit_code, 0);
  for (int round = 0; round < rounds(); ++round) {
    wait_a_moment();
    kill_somebody();
  }
  const Finished watched = scene.watch("a");
  ASSERT_EQ(watched.exit_code, 0) << watched.err << errors();
  scene.expect_the_same("a", expected);
  expect_a_sound_journal();
}

// Workers without the scheduler's folder: what a trial reached when it was told to wait at a rung
// travels, so that any other goes on from there.
TEST_F(ClusterCrash, OfAWorkerWhoseTrialsWaitAtARungLosesNothing) {
  std::string text = tiny_sweep("400k", "10s");
  text.resize(text.find("trials:"));
  text +=
      "trials: [{arch: topk, d_sae: 64, k: [2, 4, 6, 8], threshold_start_step: 20%}]\n"
      "evaluate: [{core: {tokens: 2k}}]\n"
      "resources: {memory: 1GiB, slots: 1}\n";
  scene.write("whole.yaml", text);
  scene.write("sweep.yaml", text +
                                "early_stopping: {rule: asha, metric: core.ce_loss_score, "
                                "direction: max, min_tokens: 100k, eta: 2}\n");
  const Finished run = scene.run("whole.yaml", "calm");
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const auto whole = scene.results("calm");

  scheduler = scene.serve("a");
  // All of this is one machine: without the token a worker does not know the scheduler's folder.
  fs::rename(state / "store-token", state / "store-token.gone");
  workers["one"] = scene.worker("one");
  ASSERT_EQ(scene.submit("a").exit_code, 0);
  // Checkpoints come at rungs only, so what the scheduler's store holds is one of a rung.
  const auto has_travelled = [&] {
    std::error_code ignored;
    for (const auto& entry : fs::recursive_directory_iterator(state / "trials", ignored))
      if (entry.path().filename() == "manifest.json") return true;
    return false;
  };
  ASSERT_TRUE(eventually(has_travelled)) << errors();
  workers["one"]->signal(SIGKILL);
  workers["one"]->wait();
  fs::remove_all(scene.path() / "one-worker");  // its machine is gone
  workers["two"] = scene.worker("two");
  const Finished watched = scene.watch("a");
  ASSERT_EQ(watched.exit_code, 0) << watched.err << errors();
  EXPECT_THAT(scene.asked("a", {"status"}, "status")["sweeps"][0]["state"].get<std::string>(),
              HasSubstr("done"));
  int finished = 0;
  std::string states;
  const auto bytes = scene.results("a");
  const Json board = scene.leaderboard("a");
  for (const Json& row : board["rows"]) {
    states += row["state"].dump() + " " + row["reason"].dump() + "\n";
    if (row["state"] != "done") continue;
    ++finished;
    for (const char* file : {"sae.safetensors", "curve.csv", "scores.json"}) {
      const std::string name = "trials/" + row["trial"].get<std::string>() + "/" + file;
      EXPECT_EQ(bytes.at(name), whole.at(name)) << name;
    }
  }
  EXPECT_GE(finished, 1) << states << errors();
  expect_a_sound_journal();
}

}  // namespace
}  // namespace saesweep::test
