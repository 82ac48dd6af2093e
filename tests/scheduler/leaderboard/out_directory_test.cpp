#include "scheduler/leaderboard/out_directory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "core/files.h"
#include "tests/scheduler/leaderboard/example_board.h"
#include "tests/support/temp_dir.h"

namespace saesweep::scheduler {
namespace {

namespace fs = std::filesystem;
using testing::Contains;
using testing::ElementsAre;
using testing::Not;

struct OutDirectory : testing::Test {
  test::TempDir dir;
  const fs::path out = dir.path() / "deep" / "out";
  const fs::path artifact = dir.path() / "artifact";

  OutContents contents() {
    EXPECT_TRUE(write_file_atomically(artifact, std::string(3 << 20, 'w')));
    OutContents all;
    all.board = test::example_board({.trials = 4});
    all.sweep_yaml = "name: othello-widths\n";
    all.run = {{"host", "here"}};
    const std::string id = all.board.rows[0].trial;
    all.trials = {{"", id, {{"sae.safetensors", artifact, ""}, {"config.json", {}, "{}"}}}};
    all.baselines = {{"blocks.2.hook_resid_post", "random_sae-512", {{"scores.json", {}, "{}"}}}};
    return all;
  }
  std::map<std::string, fs::file_time_type> files() const {
    std::map<std::string, fs::file_time_type> found;
    for (const auto& entry : fs::recursive_directory_iterator(out))
      if (entry.is_regular_file())
        found[fs::relative(entry.path(), out).string()] = entry.last_write_time();
    return found;
  }
};

TEST_F(OutDirectory, HoldsWhatWasPromised) {
  const OutContents all = contents();
  ASSERT_TRUE(write_out(out, all));
  std::vector<std::string> names;
  for (const auto& [name, time] : files()) names.push_back(name);
  const std::string trial = "trials/" + all.board.rows[0].trial;
  EXPECT_THAT(names, ElementsAre("baselines/blocks.2.hook_resid_post/random_sae-512/scores.json",
                                 "leaderboard.csv", "leaderboard.json", "report.html", "run.json",
                                 "sweep.yaml", trial + "/config.json", trial + "/sae.safetensors"));
  EXPECT_EQ(read_file(out / trial / "sae.safetensors")->size(), std::size_t{3} << 20);
  EXPECT_EQ(*read_file(out / "leaderboard.json"), leaderboard_json(all.board));
}

TEST_F(OutDirectory, WritingTheSameAgainTouchesNothing) {
  const OutContents all = contents();
  ASSERT_TRUE(write_out(out, all));
  for (const auto& [name, time] : files())
    fs::last_write_time(out / name, time - std::chrono::hours(1));
  const auto before = files();
  ASSERT_TRUE(write_out(out, all));
  EXPECT_EQ(files(), before);
}

TEST_F(OutDirectory, WhatChangedIsReplacedAndOtherTrialsStay) {
  OutContents all = contents();
  ASSERT_TRUE(write_out(out, all));
  std::string other(3 << 20, 'w');
  other.back() = 'x';  // same size, other bytes
  ASSERT_TRUE(write_file_atomically(artifact, other));
  const std::string first = all.trials[0].name;
  all.trials[0].name = "0123456789ab";
  ASSERT_TRUE(write_out(out, all));
  EXPECT_EQ(read_file(out / "trials" / first / "sae.safetensors")->back(), 'w');
  EXPECT_EQ(read_file(out / "trials" / "0123456789ab" / "sae.safetensors")->back(), 'x');
  all.trials[0].name = first;
  ASSERT_TRUE(write_out(out, all));
  EXPECT_EQ(read_file(out / "trials" / first / "sae.safetensors")->back(), 'x');
}

TEST_F(OutDirectory, ALostArtifactIsAnErrorBeforeTheLeaderboardSpeaksOfIt) {
  const OutContents all = contents();
  fs::remove(artifact);
  const auto result = write_out(out, all);
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, ErrorCode::kNotFound);
  EXPECT_FALSE(fs::exists(out / "leaderboard.json"));
}

TEST_F(OutDirectory, AModelOfTrainLmHasItsFolder) {
  OutContents all = contents();
  all.model = {{"training.json", {}, "{}"}};
  ASSERT_TRUE(write_out(out, all));
  EXPECT_TRUE(fs::exists(out / "model" / "training.json"));
}

TEST(HookFolder, NeverLeavesItsDirectory) {
  EXPECT_EQ(hook_folder("blocks.2.hook_resid_post"), "blocks.2.hook_resid_post");
  EXPECT_EQ(hook_folder(""), "activations");
  EXPECT_EQ(hook_folder("../../etc"), "_._.._etc");
  EXPECT_EQ(hook_folder("."), "_");
}

}  // namespace
}  // namespace saesweep::scheduler
