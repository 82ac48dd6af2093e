// What happens when memory is scarce: what is warm goes first, and who does not fit tries again.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <fstream>
#include <string>

#include "sweeps/estimates.h"
#include "tests/worker/executor/scene.h"
#include "worker/executor/warm_cache.h"

namespace saesweep::test {
namespace {

using sweeps::Architecture;
using testing::HasSubstr;

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;

struct WarmCacheTest : Scene {
  std::shared_ptr<const worker::Transformer> model(std::uint64_t seed) {
    sweeps::ModelSpec spec;
    spec.path = model_.string();
    spec.random_weights = true;
    spec.seed = seed;
    return warm.model(spec).value();
  }
  std::shared_ptr<const worker::TokenDocuments> games(std::uint64_t count) {
    sweeps::DataSpec data = stream().data;
    data.games = count;
    return warm.tokens(data, 0.1, 11, 1).value();
  }
  worker::WarmCache warm;
};

TEST_F(WarmCacheTest, CountsWhatIsLoaded) {
  EXPECT_EQ(warm.bytes(), 0u);
  const auto held = model(1);
  std::uint64_t weights = 0;
  for (const auto& [name, tensor] : held->weights()) weights += tensor.nbytes();
  EXPECT_EQ(warm.bytes(), held->bytes());
  EXPECT_GT(held->bytes(), weights);  // packed ones beside them
  games(1000);
  EXPECT_GE(warm.bytes(), held->bytes() + 1000 * 12);  // tokens and lengths
}

TEST_F(WarmCacheTest, RoomIsMadeOfWhatNobodyHolds) {
  const auto held = model(1);
  model(2);
  games(1000);
  const std::uint64_t all = warm.bytes(), of_model = worker::loaded_bytes(*held);
  const std::uint64_t needed = 10 * kMiB;

  warm.make_room(sweeps::kExecutorBytes + needed + all, needed);
  EXPECT_EQ(warm.bytes(), all) << "it fits beside the run";
  warm.make_room(sweeps::kExecutorBytes + needed + all - 1, needed);
  EXPECT_EQ(warm.bytes(), 2 * of_model) << "the games go first";
  warm.make_room(sweeps::kExecutorBytes, needed);
  EXPECT_EQ(warm.bytes(), of_model) << "what is held stays";
  EXPECT_EQ(model(1), held);
}

TEST_F(WarmCacheTest, WithoutAKnownMemoryAllStays) {
  model(1);
  const std::uint64_t all = warm.bytes();
  warm.make_room(0, 1000 * kMiB);
  EXPECT_EQ(warm.bytes(), all);
}

// What the executor may still allocate.
void leave_memory(pid_t pid, std::uint64_t bytes) {
  std::ifstream status("/proc/" + std::to_string(pid) + "/status");
  std::uint64_t data_kib = 0;
  for (std::string line; std::getline(status, line);)
    if (line.starts_with("VmData:")) data_kib = std::stoull(line.substr(7));
  ASSERT_GT(data_kib, 0u);
  const ::rlimit limit{data_kib * 1024 + bytes, RLIM_INFINITY};
  ASSERT_EQ(::prlimit(pid, RLIMIT_DATA, &limit, nullptr), 0);
}

using ScarceMemory = Scene;

TEST_F(ScarceMemory, WhoDoesNotFitTriesAgainAndTheOthersAreNotDisturbed) {
  const auto modest = trial(Architecture::kTopK, 20);
  auto greedy = trial(Architecture::kTopK, 20);
  greedy.training.d_sae = std::uint64_t{1} << 23;  // 2^23 x 16 fp32: half a gigabyte a tensor
  FakeAgent agent(state());
  // Warm first: what loads once is loaded.
  ASSERT_EQ(agent.run_to_end(run_of({train_member(modest)}, kNever))
                .results.at(task_of(modest))
                .outcome(),
            protocol::OUTCOME_DONE);
  leave_memory(agent.pid(), 300 * kMiB);
  const auto left =
      agent.run_to_end(run_of({train_member(greedy), train_member(modest, 2)}, kNever, 2));
  const auto& refused = left.results.at(task_of(greedy));
  EXPECT_EQ(refused.outcome(), protocol::OUTCOME_RETRY) << refused.reason();
  EXPECT_TRUE(refused.out_of_memory());
  EXPECT_THAT(refused.reason(), HasSubstr("memory"));
  EXPECT_EQ(digest_of(left.results.at(task_of(modest)), "sae.safetensors"),
            digest_of(undisturbed(modest), "sae.safetensors"));
}

TEST_F(ScarceMemory, AStepThatDoesNotFitIsPassingTroubleOfThatMemberAlone) {
  const auto modest = trial(Architecture::kTopK, 20);
  auto wide = trial(Architecture::kStandard, 20);
  wide.training.d_sae = std::uint64_t{1} << 17;  // weights of 8 MiB; a step has 32 MiB a matrix
  FakeAgent agent(state());
  ASSERT_EQ(agent.run_to_end(run_of({train_member(modest)}, kNever))
                .results.at(task_of(modest))
                .outcome(),
            protocol::OUTCOME_DONE);
  leave_memory(agent.pid(), 80 * kMiB);
  const auto left =
      agent.run_to_end(run_of({train_member(wide), train_member(modest, 2)}, kNever, 2));
  const auto& refused = left.results.at(task_of(wide));
  EXPECT_EQ(refused.outcome(), protocol::OUTCOME_RETRY) << refused.reason();
  EXPECT_TRUE(refused.out_of_memory());
  EXPECT_EQ(left.results.at(task_of(modest)).outcome(), protocol::OUTCOME_DONE);
}

TEST_F(ScarceMemory, ARunThatFitsOnlyWithoutWhatIsWarmSucceeds) {
  // The memory of the slot is as good as used up by LibTorch: everything warm goes, nothing fails.
  const auto spec = trial(Architecture::kTopK, 20);
  FakeAgent agent(state());
  auto run = run_of({train_member(spec)}, kNever);
  run.set_memory_bytes(1);
  EXPECT_EQ(agent.run_to_end(run).results.at(task_of(spec)).outcome(), protocol::OUTCOME_DONE);
}

// A stream is pinned in the cache only while a run reads it.
TEST_F(ScarceMemory, AStreamThatNoRunReadsMakesWayInTheCache) {
  const auto first = trial(Architecture::kTopK, 20);
  auto second = trial(Architecture::kTopK, 20);
  second.stream.hook = "blocks.1.hook_resid_post";
  FakeAgent agent(state(), dir_.path() / "cache");
  const auto run = [&](const sweeps::TrialSpec& spec, std::uint64_t id, std::uint64_t cache_bytes) {
    auto wanted = run_of({train_member(spec, id)}, kNever, id);
    wanted.set_cache_bytes(cache_bytes);
    const auto left = agent.run_to_end(wanted);
    EXPECT_EQ(left.results.at(task_of(spec)).outcome(), protocol::OUTCOME_DONE);
  };
  run(first, 1, 1000 * kMiB);
  const std::uint64_t of_one_stream = agent.chunk_counters().bytes;
  ASSERT_GT(of_one_stream, 0u);
  run(second, 2, of_one_stream * 3 / 2);  // room for one stream, not for two
  EXPECT_EQ(agent.chunk_counters().refused_writes, 0u);
  EXPECT_GE(agent.chunk_counters().evicted_bytes, of_one_stream);
}

}  // namespace
}  // namespace saesweep::test
