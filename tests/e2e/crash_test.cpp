// Whatever is killed, whenever: the same command finishes the sweep with the same bytes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <filesystem>
#include <fstream>

#include "core/philox.h"
#include "tests/e2e/scene.h"

namespace saesweep::test {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

std::size_t checkpoints(const Scene& scene, const std::string& place) {
  std::size_t found = 0;
  std::error_code ignored;
  for (const auto& entry : fs::recursive_directory_iterator(scene.state(place) / "trials", ignored))
    found += entry.path().filename() == "manifest.json" ? 1 : 0;
  return found;
}

struct Crash : testing::Test {
  Scene scene;
  std::map<std::string, std::string> undisturbed;
  void SetUp() override {
    scene.write("sweep.yaml", tiny_sweep("1M", "0.2s"));
    const Finished run = scene.run("sweep.yaml", "calm");
    ASSERT_EQ(run.exit_code, 0) << run.err;
    undisturbed = scene.results("calm");
    ASSERT_GE(undisturbed.size(), 5u * 4 + 7 + 1);
  }
  void expect_the_same(const std::string& place) {
    const auto bytes = scene.results(place);
    EXPECT_EQ(bytes.size(), undisturbed.size());
    for (const auto& [name, expected] : undisturbed) {
      ASSERT_TRUE(bytes.contains(name)) << name;
      EXPECT_EQ(bytes.at(name), expected) << name;
    }
  }
};

TEST_F(Crash, OfExecutorAndThenOfTheProgramChangesNoByte) {
  {
    Program run(scene.run_words("sweep.yaml", "a"), scene.path());
    ASSERT_TRUE(eventually([&] { return checkpoints(scene, "a") > 0 || !run.running(); }));
    for (const pid_t executor : run.children("saesweep-task")) ::kill(executor, SIGKILL);
    // Another executor takes over.
    ASSERT_TRUE(
        eventually([&] { return !run.children("saesweep-task").empty() || !run.running(); }));
    run.signal(SIGKILL);
    EXPECT_EQ(run.wait().signal, SIGKILL) << "it was finished before it could be killed";
  }
  const Finished again = scene.run("sweep.yaml", "a");
  ASSERT_EQ(again.exit_code, 0) << again.err;
  expect_the_same("a");
}

TEST_F(Crash, AtRandomMomentsChangesNoByte) {
  Rng rng(7, "test.crash");
  for (int round = 0; round < 4; ++round) {
    Program run(scene.run_words("sweep.yaml", "a"), scene.path());
    const auto moment = std::chrono::milliseconds(200 + rng.below(2500));
    const auto end = std::chrono::steady_clock::now() + moment;
    eventually([&] { return std::chrono::steady_clock::now() > end || !run.running(); });
    run.signal(SIGKILL);
    run.wait();
  }
  const Finished again = scene.run("sweep.yaml", "a");
  ASSERT_EQ(again.exit_code, 0) << again.err;
  expect_the_same("a");
}

TEST_F(Crash, AnInterruptedRunSaysSoAndGoesOn) {
  {
    Program run(scene.run_words("sweep.yaml", "a"), scene.path());
    ASSERT_TRUE(eventually([&] { return checkpoints(scene, "a") > 0 || !run.running(); }));
    run.signal(SIGINT);
    const Finished stopped = run.wait();
    EXPECT_EQ(stopped.exit_code, 130) << stopped.err;
    EXPECT_THAT(stopped.err, HasSubstr("checkpoint"));
  }
  const Finished again = scene.run("sweep.yaml", "a");
  ASSERT_EQ(again.exit_code, 0) << again.err;
  expect_the_same("a");
}

TEST_F(Crash, ADamagedCacheIsHarvestedAgain) {
  fs::create_directories(scene.state("a"));
  fs::copy(scene.state("calm") / "cache", scene.state("a") / "cache", fs::copy_options::recursive);
  std::size_t damaged = 0;
  for (const auto& entry : fs::directory_iterator(scene.state("a") / "cache")) {
    if (entry.path().extension() != ".sst" || fs::file_size(entry) < 100'000) continue;
    std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
    for (std::uintmax_t at = 5'000; at < fs::file_size(entry) - 20'000; at += 50'000) {
      file.seekg(static_cast<std::streamoff>(at));
      char byte = 0;
      file.get(byte);
      file.seekp(static_cast<std::streamoff>(at));
      file.put(static_cast<char>(byte ^ 0x10));
      ++damaged;
    }
  }
  ASSERT_GT(damaged, 0u);
  const Finished run = scene.run("sweep.yaml", "a");
  ASSERT_EQ(run.exit_code, 0) << run.err;
  expect_the_same("a");
}

TEST_F(Crash, AndNoCacheAtAllGiveTheSameBytes) {
  const Finished run = scene.run("sweep.yaml", "a", {"--set", "activations.cache=0"});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  expect_the_same("a");
}

TEST_F(Crash, TwoSlotsGiveTheSameBytesAsOne) {
  const Finished run = scene.run("sweep.yaml", "a", {"--slots", "2"});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  expect_the_same("a");
}

}  // namespace
}  // namespace saesweep::test
