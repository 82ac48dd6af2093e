// What people ask for: cancel, pause, resume, retry, priority, drain; and whose turn it is.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/scheduler/decisions/decisions_words.h"

namespace saesweep::scheduler {
namespace {

using namespace std::chrono_literals;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Pair;
using testing::SizeIs;

struct Commands : testing::Test {
  World world;
  journal::Ending last_ending(const std::string& id) {
    const auto& attempts = world.task(id).attempts();
    return attempts.empty() ? journal::ENDING_UNSPECIFIED : attempts.rbegin()->ending();
  }
};

TEST_F(Commands, ACancelledSweepStopsWhatRunsAndEndsWithItsRowsCancelled) {
  world.hear("", sweep_of({"a", "b"}));
  world.join("w");
  const auto run = world.run();
  const Json said = world.command("cancel");
  EXPECT_EQ(said["trials"], 2);
  EXPECT_EQ(said["kept_for_others"], 0);
  EXPECT_THAT(world.controls(), ElementsAre(Pair("cancel", "train:a"), Pair("cancel", "train:b")));
  EXPECT_TRUE(world.task("train:a").has_cancelled());
  EXPECT_TRUE(world.task("eval:a").has_skipped());
  EXPECT_EQ(world.outcome(0), "cancelled");
  EXPECT_EQ(last_ending("train:a"), journal::ENDING_CANCELLED);
  world.tick();
  EXPECT_NE(world.state.sweeps().at("s").ended(), 0);
  EXPECT_EQ(world.done("w", run, 0), "stale") << "so that the worker forgets it";
  EXPECT_TRUE(world.task("train:a").has_cancelled());
}

TEST_F(Commands, CancellingKeepsWhatIsDoneAndWhatAnotherSweepWants) {
  world.hear("", sweep_of({"a", "b"}, "one"));
  world.hear("", sweep_of({"b", "c"}, "two"));
  world.join("w");
  const auto run = world.run();
  ASSERT_THAT(members_of(run), ElementsAre("train:a", "train:b", "train:c"));
  EXPECT_EQ(world.command("cancel", "one")["kept_for_others"], 2) << "b, trained and scored";
  EXPECT_THAT(world.controls(), ElementsAre(Pair("cancel", "train:a")));
  EXPECT_TRUE(is_leased(world.task("train:b")));
  EXPECT_EQ(world.outcome(1, "one"), "cancelled");
  EXPECT_EQ(world.outcome(0, "two"), "unfinished");
  world.tick();
  EXPECT_NE(world.state.sweeps().at("one").ended(), 0) << "it waits for nothing";
}

TEST_F(Commands, OneTrialIsCancelledAlone) {
  world.hear("", sweep_of({"a", "b"}));
  EXPECT_EQ(world.command("cancel", "s", {"b"})["trials"], 1);
  world.join("w");
  world.finish("w", world.run());
  world.finish("w", world.run());
  world.tick();
  EXPECT_EQ(world.outcome(0), "done");
  EXPECT_EQ(world.outcome(1), "cancelled");
  EXPECT_NE(world.state.sweeps().at("s").ended(), 0);
}

TEST_F(Commands, APausedSweepMakesCheckpointsAndGoesOnFromThem) {
  world.hear("", sweep_of({"a"}));
  world.join("w");
  const auto run = world.run();
  EXPECT_EQ(world.command("pause")["running"], 1);
  EXPECT_THAT(world.controls(), ElementsAre(Pair("pause", "train:a")));
  world.checkpoint("w", run, 0, 7);
  world.controlled("w", run, 0, "paused");
  world.beat("w", 1);
  EXPECT_THAT(world.tick(), IsEmpty());
  EXPECT_EQ(state_of(world.state, world.task("train:a")), "paused");
  EXPECT_EQ(outcome_of(world.state, world.state.sweeps().at("s"),
                       world.state.sweeps().at("s").subjects(0))
                .reason,
            "paused");
  EXPECT_EQ(last_ending("train:a"), journal::ENDING_PAUSED);
  EXPECT_THAT(world.codes("train:a"), ElementsAre("sweep_paused"));
  world.command("resume");
  EXPECT_EQ(world.run().members(0).resume().step(), 7u);
}

TEST_F(Commands, PausingGoesOnWithWhatAnotherSweepWants) {
  world.hear("", sweep_of({"a"}, "one"));
  world.hear("", sweep_of({"a"}, "two"));
  world.join("w");
  world.run();
  world.command("pause", "one");
  EXPECT_THAT(world.controls(), IsEmpty());
  world.command("pause", "two");
  EXPECT_THAT(world.controls(), ElementsAre(Pair("pause", "train:a")));
}

TEST_F(Commands, OneTrialIsPausedAndResumedByItself) {
  world.hear("", sweep_of({"a", "b"}));
  world.command("pause", "s", {"a"});
  world.join("w");
  EXPECT_THAT(world.codes("train:a"), ElementsAre("trial_paused"));
  const auto run = world.run();
  EXPECT_THAT(members_of(run), ElementsAre("train:b"));
  world.finish("w", run);
  world.command("resume", "s", {"a"});
  EXPECT_THAT(members_of(world.run()), testing::Contains("train:a"));
}

TEST_F(Commands, RetryBeginsWhatFailedAndOldWordsOfItAreStale) {
  world.hear("", sweep_of({"a"}));
  world.join("w");
  const auto run = world.run();
  const auto failed = World::result(run, run.members(0), protocol::OUTCOME_FAILED, "no such hook");
  world.say("w", failed);
  world.tick();
  EXPECT_NE(world.state.sweeps().at("s").ended(), 0);
  const Json said = world.command("retry");
  EXPECT_EQ(said["trials"], 1);
  EXPECT_EQ(said["tasks"], 1);
  EXPECT_EQ(world.state.sweeps().at("s").ended(), 0);
  EXPECT_EQ(world.say("w", failed), "stale") << "it would fail the new try";
  world.beat("w", 1);
  const auto again = world.run();
  EXPECT_GT(again.members(0).fence(), run.members(0).fence() + 1);
  world.finish("w", again);
  world.finish("w", world.run());
  EXPECT_EQ(world.outcome(0), "done");
  EXPECT_EQ(world.command("retry")["tasks"], 0);
}

TEST_F(Commands, ARowOfACancelledSweepIsTriedAgainAndTheSweepWorks) {
  world.hear("", sweep_of({"a", "b"}));
  world.command("cancel");
  world.tick();
  world.command("retry", "s", {"a"});
  world.join("w");
  world.finish("w", world.run());
  world.finish("w", world.run());
  world.tick();
  EXPECT_EQ(world.outcome(0), "done");
  EXPECT_EQ(world.outcome(1), "cancelled");
  EXPECT_NE(world.state.sweeps().at("s").ended(), 0);
}

TEST_F(Commands, ACancelledSweepWantsNothingThatAnotherBeginsAgain) {
  world.hear("", sweep_of({"a"}, "one"));
  world.hear("", sweep_of({"a"}, "two"));
  world.join("w");
  const auto run = world.run();
  world.say("w", World::result(run, run.members(0), protocol::OUTCOME_FAILED, "no such hook"));
  world.tick();
  world.command("cancel", "one");
  world.command("retry", "two");
  EXPECT_NE(world.state.sweeps().at("one").ended(), 0);
  EXPECT_EQ(world.state.sweeps().at("two").ended(), 0);
  world.command("pause", "two");
  EXPECT_EQ(state_of(world.state, world.task("train:a")), "paused");
  EXPECT_EQ(world.state.desk("one").open, 0u);
}

TEST_F(Commands, SubmittingACancelledSweepBeginsItAgain) {
  world.hear("", sweep_of({"a"}));
  world.command("cancel");
  world.hear("", sweep_of({"a"}));
  world.join("w");
  EXPECT_THAT(members_of(world.run()), ElementsAre("train:a"));
}

TEST_F(Commands, WhatIsNotThereOrNotKnownIsSaid) {
  world.hear("", sweep_of({"a"}));
  const auto refused = [&](Heard heard) {
    world.hear("", std::move(heard));
    return world.answer && world.answer->error ? *world.answer->error
                                               : Error{ErrorCode::kUnavailable, "no error"};
  };
  EXPECT_EQ(refused(SweepCommand{"t", "cancel", {}}).code, ErrorCode::kNotFound);
  EXPECT_THAT(refused(SweepCommand{"t", "cancel", {}}).message, HasSubstr("there is s"));
  EXPECT_EQ(refused(SweepCommand{"s", "cancel", {"zz"}}).code, ErrorCode::kNotFound);
  EXPECT_EQ(refused(SweepCommand{"s", "stop", {}}).code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(refused(SweepPriority{"s", 101, 1}).code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(refused(SweepPriority{"s", 0, 0}).code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(refused(WorkerCommand{"w", "drain"}).code, ErrorCode::kNotFound);
  EXPECT_EQ(refused(WorkerCommand{"w", "kill"}).code, ErrorCode::kInvalidArgument);
  world.command("cancel");
  EXPECT_EQ(refused(SweepCommand{"s", "resume", {}}).code, ErrorCode::kInvalidArgument);
}

// ---- workers ------------------------------------------------------------------------------------

TEST_F(Commands, ADrainingWorkerChecksInWhatItHasAndGetsNothingNew) {
  world.hear("", sweep_of({"a"}));
  world.join("w");
  const auto run = world.run();
  world.replies = world.hear("", WorkerCommand{"w", "drain"});
  EXPECT_EQ(world.answer->details["runs"], 1);
  EXPECT_THAT(world.controls(), ElementsAre(Pair("pause", "")));
  world.controlled("w", run, 0, "paused");
  EXPECT_EQ(last_ending("train:a"), journal::ENDING_DRAINED);
  EXPECT_EQ(world.task("train:a").retries(), 0u);
  world.beat("w", 1);
  EXPECT_THAT(world.tick(), IsEmpty());
  EXPECT_THAT(world.codes("train:a"), ElementsAre("workers_draining"));
  world.restart();
  world.join("w");
  EXPECT_THAT(world.tick(), IsEmpty()) << "over a restart too";
  world.hear("", WorkerCommand{"w", "undrain"});
  EXPECT_THAT(world.tick(), SizeIs(1));
}

// ---- turns --------------------------------------------------------------------------------------

TEST_F(Commands, AHigherPriorityGoesFirst) {
  world.hear("", sweep_of({"a"}, "low", "g1"));
  world.hear("", sweep_of({"b"}, "high", "g2"));
  world.hear("", SweepPriority{"high", 5, 1});
  world.join("w");
  EXPECT_THAT(members_of(world.run()), ElementsAre("train:b"));
  EXPECT_THAT(world.codes("train:a"), ElementsAre("workers_busy"));
}

TEST_F(Commands, SweepsOfOneClassShareByWeight) {
  // Every task is of a group of its own, and takes 20 s of one slot.
  for (const char* name : {"one", "two"}) {
    Submission submission = sweep_of(ids(32, name), name);
    for (auto& task : submission.tasks) task.set_group(task.id());
    world.hear("", submission);
  }
  world.hear("", SweepPriority{"one", 0, 3});
  world.join("w");
  std::map<std::string, int> begun;
  for (int i = 0; i < 40; ++i) {
    world.beat("w", 1);
    const auto run = world.run();
    ++begun[run.members(0).task().find("one") == std::string::npos ? "two" : "one"];
    for (int second = 0; second < 20; second += 5) {
      world.now += 5s;
      world.beat("w", 0);
      world.hear("", Tick{.may_place = false});
    }
    world.done("w", run, 0);
  }
  EXPECT_NEAR(begun["one"], 30, 3) << "three quarters, within a tenth";
}

TEST_F(Commands, ANewSweepHasNoCreditFromBefore) {
  world.hear("", sweep_of(ids(4, "a"), "old", "g1"));
  world.join("w");
  const auto run = world.run();
  for (int second = 0; second < 100; ++second) {
    world.now += 1s;
    world.beat("w", 0);
    world.tick();
  }
  EXPECT_NEAR(world.state.desk("old").charge, 100, 5);
  world.hear("", sweep_of({"b"}, "new", "g2"));
  EXPECT_NEAR(world.state.desk("new").charge, world.state.desk("old").charge, 1e-9);
}

// ---- rooms --------------------------------------------------------------------------------------

TEST_F(Commands, WhatIsLargerThanASlotWaitsForTheMemoryOfOthers) {
  Submission small = sweep_of({"a"}, "small", "g1"), large = sweep_of({"b"}, "large", "g2");
  small.tasks[0].set_memory_bytes(400);
  large.tasks[0].set_memory_bytes(900);
  world.hear("", small);
  world.join("w", 2, 1000);
  const auto first = world.run();
  EXPECT_EQ(first.memory_bytes(), 500u);
  world.hear("", large);
  EXPECT_THAT(world.tick(), IsEmpty());
  EXPECT_THAT(world.codes("train:b"), ElementsAre("needs_memory"));
  EXPECT_THAT(explain(world.state, "train:b", world.now)["reasons"][0]["text"].get<std::string>(),
              HasSubstr("w has"));
  world.done("w", first, 0);
  world.beat("w", 2);
  const auto runs = world.tick();
  ASSERT_THAT(runs, SizeIs(1)) << "nothing is left for the evaluation beside it, or the other way";
}

TEST_F(Commands, WhatOthersPassedForHalfAnHourIsKeptAWorkerFree) {
  Submission large = sweep_of({"b"}, "large", "g2");
  large.tasks[0].set_memory_bytes(900);
  Submission many = sweep_of(ids(50), "many");
  for (auto& task : many.tasks) {
    task.set_group(task.id());
    task.set_memory_bytes(400);
  }
  world.join("w", 2, 1000);
  world.hear("", many);
  auto runs = world.tick();
  ASSERT_THAT(runs, SizeIs(2));
  for (const auto& [worker, run] : runs) world.accept(worker, run);
  world.hear("", large);
  world.hear("", SweepPriority{"large", 1, 1});
  bool begun = false;
  int passed = 0;
  for (int minute = 0; minute < 60 && !begun; ++minute) {
    for (int i = 0; i < 6; ++i) {
      world.now += 10s;
      world.beat("w", 2 - static_cast<std::uint32_t>(runs.size()));
      if (i != 5) world.hear("", Tick{});
    }
    // One of two ends each minute, so that they never end together.
    if (!runs.empty()) {
      world.done("w", runs.front().second, 0);
      runs.erase(runs.begin());
    }
    world.beat("w", 2 - static_cast<std::uint32_t>(runs.size()));
    for (auto& [worker, run] : world.tick()) {
      world.accept(worker, run);
      begun |= run.members(0).task() == "train:b";
      ++passed;
      runs.emplace_back(worker, run);
    }
  }
  EXPECT_TRUE(begun);
  EXPECT_GT(passed, 20);
}

TEST_F(Commands, ARunGoesWhereItsStreamIs) {
  Submission submission = sweep_of({"a"});
  submission.tasks[0].set_stream("stream");
  world.join("v");
  world.join("w");
  protocol::Heartbeat beat;
  beat.set_free_slots(1);
  auto& held = *beat.add_streams();
  held.set_stream("stream");
  held.set_bytes(1 << 20);
  world.hear("w", beat);
  world.hear("", submission);
  const auto runs = world.tick();
  ASSERT_THAT(runs, SizeIs(1));
  EXPECT_EQ(runs[0].first, "w");
}

TEST_F(Commands, OutOfMemoryRaisesTheEstimate) {
  world.hear("", sweep_of({"a"}));
  world.join("w");
  const auto run = world.run();
  auto retry = World::result(run, run.members(0), protocol::OUTCOME_RETRY, "12 GiB");
  retry.set_out_of_memory(true);
  world.say("w", retry);
  EXPECT_EQ(memory_of(world.task("train:a")), 130u);
  EXPECT_EQ(last_ending("train:a"), journal::ENDING_OUT_OF_MEMORY);
}

}  // namespace
}  // namespace saesweep::scheduler
