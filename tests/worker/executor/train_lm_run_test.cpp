// A run of train_lm: what it leaves, and that interruptions change nothing.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/files.h"
#include "tests/support/json_schema_check.h"
#include "tests/worker/executor/scene.h"

namespace saesweep::test {
namespace {

struct TrainLmRun : Scene {
  sweeps::TrainLmSpec spec;
  TrainLmRun() {
    spec.data.source = "othello";
    spec.data.board = 4;
    spec.data.games = 400;
    spec.layers = 1;
    spec.d_model = 16;
    spec.heads = 2;
    spec.d_mlp = 32;
    spec.context = 11;
    spec.games = 32 * 120;
    spec.batch = 32;
    spec.lr = 1e-3;
    spec.warmup_steps = 10;
  }
  std::string task() const { return "lm:" + spec.identity().hex(); }
  protocol::Member member(std::uint64_t fence = 1) const {
    protocol::Member made;
    made.set_task(task());
    made.set_fence(fence);
    made.set_kind(protocol::TASK_KIND_TRAIN_LM);
    made.set_spec(canonical_json(spec.to_json()));
    made.set_trial_directory("trials/" + spec.identity().short_hex());
    return made;
  }
};

TEST_F(TrainLmRun, LeavesAModelThatLoadsAndItsMeasurements) {
  FakeAgent agent(state());
  const auto left = agent.run_to_end(run_of({member()}, kNever));
  const auto& result = left.results.at(task());
  ASSERT_EQ(result.outcome(), protocol::OUTCOME_DONE) << result.reason();
  const auto folder = dir_.path() / "trained";
  ASSERT_TRUE(make_directories(folder));
  for (const char* name : {"config.json", "model.safetensors"})
    ASSERT_TRUE(write_file_atomically(folder / name, bytes_of(result, name)));
  EXPECT_TRUE(worker::Transformer::load(folder));

  const Json training = parse_json(bytes_of(result, "training.json")).value();
  EXPECT_THAT(JsonSchemaCheck::problems(training, JsonSchemaCheck::schema("training")),
              testing::IsEmpty());
  EXPECT_EQ(parse_json(result.summary()).value(), training);
  EXPECT_EQ(training["recipe"], spec.to_json());
  EXPECT_GE(training["cross_entropy"], training["optimum"]);
  // No scratch files stay behind.
  for (const auto& entry : std::filesystem::recursive_directory_iterator(state() / "trials"))
    EXPECT_FALSE(entry.is_regular_file()) << entry.path();
}

TEST_F(TrainLmRun, PausedKilledAndResumedItEndsWithTheSameBytes) {
  FakeAgent whole(state("undisturbed"));
  const auto expected = whole.run_to_end(run_of({member()}, kNever)).results.at(task());

  protocol::CheckpointRef checkpoint;
  {
    FakeAgent agent(state());
    agent.send_run(run_of({member()}));
    agent.wait_for(checkpoint_number(2));
    agent.send_control(1, "pause");
    const auto paused = agent.wait_for_end(1);
    EXPECT_EQ(paused.control.at(task()), "paused");
    auto again = member(2);
    *again.mutable_resume() = paused.checkpoints.at(task());
    agent.send_run(run_of({again}, 1e-9, 2));
    checkpoint = agent.wait_for(checkpoint_number(3))->checkpointed().checkpoint();
    agent.kill();
  }
  FakeAgent agent(state());
  auto last = member(3);
  *last.mutable_resume() = checkpoint;
  const auto result = agent.run_to_end(run_of({last}, kNever)).results.at(task());
  for (const char* name : {"config.json", "model.safetensors", "training.json"})
    EXPECT_EQ(digest_of(result, name), digest_of(expected, name)) << name;
}

}  // namespace
}  // namespace saesweep::test
