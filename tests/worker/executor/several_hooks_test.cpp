// Runs of different hooks of one model: what one harvests along, the next finds in the cache.
#include <gtest/gtest.h>

#include "tests/worker/executor/scene.h"

namespace saesweep::test {
namespace {

using sweeps::Architecture;
using SeveralHooks = Scene;

// The other hooks' chunks come from the forward passes of the first, and nobody can tell.
TEST_F(SeveralHooks, SeveralHooksOfOneModelAreHarvestedInOneForwardPass) {
  std::vector<sweeps::TrialSpec> trials(3, trial(Architecture::kTopK, 156));
  trials[1].stream.hook = "blocks.1.hook_resid_post";
  trials[2].stream.hook = "blocks.0.mlp.hook_post";  // rows twice as wide
  for (auto& spec : trials) {
    spec.stream.data.games = 6000;  // several chunks
    spec.stream.tokens = 40'000;
    spec.stream.normalize = sweeps::Normalize::kUnitMeanSquare;
  }
  FakeAgent apart(state("apart"), dir_.path() / "apart-cache"),
      agent(state(), dir_.path() / "cache");
  std::uint64_t harvested = 0;
  for (std::size_t i = 0; i < trials.size(); ++i) {
    auto run = run_of({train_member(trials[i])}, kNever, i + 1);
    run.set_cache_bytes(std::uint64_t{1} << 30);
    const auto expected = apart.run_to_end(run);
    EXPECT_GE(expected.harvested, 40'000u);
    for (const auto& other : trials)
      if (!(other.stream == trials[i].stream))
        run.add_siblings(canonical_json(other.stream.to_json()));
    const auto left = agent.run_to_end(run);
    harvested += left.harvested;
    if (i == 0) EXPECT_GT(left.harvested, 0u);
    for (const char* name : {"sae.safetensors", "curve.csv"})
      EXPECT_EQ(digest_of(left.results.at(task_of(trials[i])), name),
                digest_of(expected.results.at(task_of(trials[i])), name))
          << trials[i].stream.hook;
    if (i == 0) {
      EXPECT_EQ(left.harvested, expected.harvested);
    } else {
      EXPECT_EQ(left.harvested, 0u) << trials[i].stream.hook << " was there";
    }
  }
}

// What the cache does not hold beside the stream is not harvested along: it would be in vain.
TEST_F(SeveralHooks, HooksThatTheCacheHasNoRoomForAreNotHarvestedAlong) {
  auto first = trial(Architecture::kTopK, 30), second = first;
  second.stream.hook = "blocks.1.hook_resid_post";
  FakeAgent agent(state(), dir_.path() / "cache");
  auto run = run_of({train_member(first)}, kNever);
  run.add_siblings(canonical_json(second.stream.to_json()));
  // Room for the rows of one, and for a chunk.
  run.set_cache_bytes(2048 * 16 * 2 + sweeps::kChunkBytes + 100);
  agent.run_to_end(run);
  const std::uint64_t misses = agent.chunk_counters().misses;
  run.set_run_id(2);
  run.mutable_members(0)->CopyFrom(train_member(second));
  run.clear_siblings();
  run.set_cache_bytes(std::uint64_t{1} << 30);
  EXPECT_GT(agent.run_to_end(run).harvested, 0u);
  EXPECT_GT(agent.chunk_counters().misses, misses);
}

}  // namespace
}  // namespace saesweep::test
