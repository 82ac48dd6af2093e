// Which tasks go to whom, when, and how many together.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/scheduler/decisions/decisions_words.h"

namespace saesweep::scheduler {
namespace {

using namespace std::chrono_literals;
using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;

struct Placing : testing::Test {
  World world;
};

TEST_F(Placing, OneGroupIsCutOverTheFreeSlots) {
  world.hear("", sweep_of(ids(5)));
  world.join("w", 2);
  const auto runs = world.tick();
  ASSERT_THAT(runs, SizeIs(2));
  EXPECT_EQ(runs[0].second.members_size(), 3);
  EXPECT_EQ(runs[1].second.members_size(), 2);
}

TEST_F(Placing, WhatNeedsAGpuGoesWhereOneIs) {
  Submission submission = sweep_of(ids(2));
  for (auto& task : submission.tasks) task.set_needs_gpu(task.kind() == protocol::TASK_KIND_TRAIN);
  world.hear("", submission);
  world.join("plain", 4, 10'000);
  EXPECT_THAT(world.tick(), IsEmpty());
  EXPECT_THAT(world.codes("train:t00"), testing::Contains("needs_gpu"));
  world.join("fast", 1, 1000, 2);
  const auto runs = world.tick();
  ASSERT_THAT(runs, SizeIs(1));
  EXPECT_EQ(runs[0].first, "fast");
  EXPECT_THAT(world.codes("train:t00"), testing::Not(testing::Contains("needs_gpu")));
  // Scoring needs none.
  world.accept("fast", runs[0].second);
  world.done("fast", runs[0].second, 0);
  const auto scored = world.tick();
  ASSERT_THAT(scored, SizeIs(1));
  EXPECT_EQ(scored[0].first, "plain");
}

// A cohort is cut so that what it needs of a GPU fits there; the rest has its turn later.
TEST_F(Placing, MemoryOfAGpuIsShared) {
  Submission submission = sweep_of(ids(5));
  for (auto& task : submission.tasks)
    if (task.kind() == protocol::TASK_KIND_TRAIN) {
      task.set_needs_gpu(true);
      task.set_gpu_memory_bytes(40);
    }
  world.hear("", submission);
  world.join("fast", 1, 10'000, 1, 100);
  const auto runs = world.tick();
  ASSERT_THAT(runs, SizeIs(1));
  EXPECT_EQ(runs[0].second.members_size(), 2);
}

TEST_F(Placing, WhatIsTooLargeForAGpuGoesToALargerOne) {
  Submission submission = sweep_of({"a"});
  submission.tasks[0].set_needs_gpu(true);
  submission.tasks[0].set_gpu_memory_bytes(500);
  world.hear("", submission);
  world.join("small", 1, 10'000, 1, 100);
  world.join("large", 1, 10'000, 1, 400);  // it tries there, alone
  const auto runs = world.tick();
  ASSERT_THAT(runs, SizeIs(1));
  EXPECT_EQ(runs[0].first, "large");
}

// What no worker with a GPU can hold tries the largest of those, whatever others have.
TEST_F(Placing, MemoryOfWorkersWithoutAGpuDoesNotCount) {
  Submission submission = sweep_of({"a"});
  submission.tasks[0].set_needs_gpu(true);
  submission.tasks[0].set_memory_bytes(5000);
  world.hear("", submission);
  world.join("plain", 1, 10'000);
  world.join("fast", 1, 1000, 1);
  const auto runs = world.tick();
  ASSERT_THAT(runs, SizeIs(1));
  EXPECT_EQ(runs[0].first, "fast");
}

TEST_F(Placing, SeveralGroupsTakeASlotEach) {
  world.hear("", sweep_of(ids(4, "x"), "one", "g1"));
  world.hear("", sweep_of(ids(4, "y"), "two", "g2"));
  world.join("w", 2);
  const auto runs = world.tick();
  ASSERT_THAT(runs, SizeIs(2));
  EXPECT_EQ(runs[0].second.members_size(), 4);
  EXPECT_EQ(runs[1].second.members_size(), 4);
}

TEST_F(Placing, ACohortFitsTheMemoryOfASlotAndHasOneMemberAtLeast) {
  Submission submission = sweep_of(ids(5));
  for (auto& task : submission.tasks) task.set_memory_bytes(400);
  world.hear("", submission);
  world.join("w", 1, 1000);
  const auto run = world.run();
  EXPECT_EQ(run.members_size(), 2);
  EXPECT_EQ(run.memory_bytes(), 1000u);
  World small;
  small.hear("", submission);
  small.join("w", 1, 100);
  EXPECT_EQ(small.run().members_size(), 1);
}

TEST_F(Placing, WhatARunTakesOnceIsCountedOnce) {
  Submission submission = sweep_of(ids(9));
  for (auto& task : submission.tasks) {
    task.set_memory_bytes(400);
    task.set_shared_memory_bytes(300);
  }
  world.hear("", submission);
  world.join("w", 1, 1000);
  EXPECT_EQ(world.run().members_size(), 7);
  EXPECT_THAT(world.codes("train:t08"), testing::Not(testing::Contains("needs_memory")));
  World apart;
  for (auto& task : submission.tasks) task.clear_shared_memory_bytes();
  apart.hear("", submission);
  apart.join("w", 1, 1000);
  EXPECT_EQ(apart.run().members_size(), 2);
}

// The most that one of them shares is enough for all.
TEST_F(Placing, OfWhatIsSharedTheMostCounts) {
  Submission submission = sweep_of(ids(4));
  const std::vector<std::uint64_t> shared{100, 500, 300, 0};
  std::size_t next = 0;
  for (auto& task : submission.tasks) {
    if (task.kind() != protocol::TASK_KIND_TRAIN) continue;
    task.set_memory_bytes(100 + shared[next]);
    task.set_shared_memory_bytes(shared[next++]);
  }
  world.hear("", submission);
  world.join("w", 1, 800);
  EXPECT_EQ(world.run().members_size(), 3) << "500 and 100 of each";
}

TEST_F(Placing, WhatTrialsShareOfAGpuIsCountedOnce) {
  Submission submission = sweep_of(ids(9));
  for (auto& task : submission.tasks)
    if (task.kind() == protocol::TASK_KIND_TRAIN) {
      task.set_needs_gpu(true);
      task.set_gpu_memory_bytes(40);
      task.set_shared_gpu_memory_bytes(30);
    }
  world.hear("", submission);
  world.join("fast", 1, 10'000, 1, 100);
  EXPECT_EQ(world.run().members_size(), 7);
}

TEST_F(Placing, WhatIsAloneNeedsWhatItSharesToo) {
  Submission submission = sweep_of({"a"});
  submission.tasks[0].set_memory_bytes(500);
  submission.tasks[0].set_shared_memory_bytes(400);
  world.hear("", submission);
  world.join("large", 2, 700);
  Submission other = sweep_of({"b"}, "other", "h");
  other.tasks[0].set_memory_bytes(350);
  world.hear("", other);
  EXPECT_THAT(world.tick(), SizeIs(1));
  EXPECT_THAT(world.codes("train:b"), testing::Contains("needs_memory"));
}

TEST_F(Placing, ARunIsNeverLargerThanItsLimits) {
  world.hear("", sweep_of(ids(70)));
  world.join("w");
  const auto train = world.run();
  EXPECT_EQ(train.members_size(), static_cast<int>(kMostTrainTasks));
  world.finish("w", train);
  world.finish("w", world.run());
  EXPECT_EQ(world.run().members_size(), static_cast<int>(kMostEvaluateTasks));
}

TEST_F(Placing, ASecondSlotEvaluatesWhatIsTrainedWhileTheOtherTrains) {
  world.hear("", sweep_of({"a", "b"}));
  world.join("w", 2);
  const auto runs = world.tick();
  ASSERT_THAT(runs, SizeIs(2));
  world.accept("w", runs[0].second);
  world.accept("w", runs[1].second);
  world.done("w", runs[0].second, 0);
  world.beat("w", 1);
  EXPECT_THAT(members_of(world.run()), ElementsAre("eval:a"));
}

TEST_F(Placing, ASlotIsFreeOnlyWhenTheWorkerSaysSo) {
  world.hear("", sweep_of({"a"}));
  world.join("w");
  const auto run = world.run();
  world.done("w", run, 0);
  EXPECT_THAT(world.tick(), IsEmpty()) << "the executor may still be winding down";
  world.beat("w", 1);
  EXPECT_THAT(world.tick(), SizeIs(1));
  EXPECT_THAT(world.tick(), IsEmpty()) << "one run a slot";
}

TEST_F(Placing, ARunOnItsWayTakesASlotThatTheWorkerStillCallsFree) {
  world.hear("", sweep_of({"a", "b", "c"}));
  world.join("w", 2);
  const auto runs = world.tick();
  ASSERT_THAT(runs, SizeIs(2));
  for (const auto& [worker, run] : runs) world.accept(worker, run);
  // One executor is idle, the other still winds down after its last word.
  for (const auto& [worker, run] : runs)
    for (int i = 0; i < run.members_size(); ++i) world.done("w", run, i);
  world.beat("w", 1);
  EXPECT_THAT(world.tick(), SizeIs(1));
  world.beat("w", 1);
  EXPECT_THAT(world.tick(), IsEmpty());
}

TEST_F(Placing, ARunFollowsTheNewestSweepThatWantsIt) {
  Submission old = sweep_of({"a"}, "old"), young = sweep_of({"a"}, "young");
  old.sweep.set_checkpoint_every_s(10);
  young.sweep.set_checkpoint_every_s(20);
  world.hear("", young);
  world.hear("", old);
  world.hear("", young);
  world.join("w");
  EXPECT_EQ(world.run().checkpoint_every_s(), 20);
}

TEST_F(Placing, ASuspectWorkerGetsNothing) {
  world.hear("", sweep_of({"a"}));
  world.join("w");
  EXPECT_THAT(world.tick(kSuspectAfter), IsEmpty());
  world.beat("w", 1);
  EXPECT_THAT(world.tick(), SizeIs(1));
}

TEST_F(Placing, OurOwnStallIsNobodysSilence) {
  world.hear("", sweep_of({"a"}));
  world.join("w");
  const auto run = world.run();
  world.now += 10min;
  world.hear("", Tick{.stalled = 10min});
  EXPECT_TRUE(is_leased(world.task("train:a")));
  world.now += kLostAfter;
  world.hear("", Tick{});
  EXPECT_FALSE(is_leased(world.task("train:a")));
}

TEST_F(Placing, AWorkerThatLeavesGivesItsRunsBack) {
  world.hear("", sweep_of({"a"}));
  world.join("w");
  const auto run = world.run();
  world.hear("w", protocol::Bye());
  EXPECT_TRUE(world.task("train:a").has_ready());
  EXPECT_TRUE(world.state.workers().empty());
}

TEST_F(Placing, StoppingPausesEveryRunAndPausedTasksWaitWithTheirCheckpoint) {
  world.hear("", sweep_of({"a", "b"}));
  world.join("w");
  const auto run = world.run();
  const auto replies = world.hear("", StopAsked{});
  ASSERT_THAT(replies, SizeIs(1));
  EXPECT_EQ(std::get<protocol::Control>(replies[0].body).verb(), "pause");
  EXPECT_EQ(std::get<protocol::Control>(replies[0].body).run_id(), run.run_id());
  for (int i = 0; i < 2; ++i) {
    world.checkpoint("w", run, i, 9);
    protocol::ControlDone done;
    done.set_run_id(run.run_id());
    done.set_task(run.members(i).task());
    done.set_fence(run.members(i).fence());
    done.set_verb("pause");
    done.set_outcome("paused");
    world.hear("w", done);
  }
  EXPECT_TRUE(world.state.runs().empty());
  world.beat("w", 1);
  const auto again = world.run();
  EXPECT_EQ(again.members(0).resume().step(), 9u);
}

TEST_F(Placing, WhatNobodyIntroducedIsNotHeard) {
  const auto replies = world.hear("stranger", protocol::Heartbeat());
  ASSERT_THAT(replies, SizeIs(1)) << "it learns from the epoch that it should say HELLO";
  EXPECT_EQ(std::get<protocol::HeartbeatAck>(replies[0].body).epoch(), 1u);
  EXPECT_TRUE(world.state.workers().empty());
  EXPECT_THAT(world.hear("stranger", protocol::Bye()), IsEmpty());
  protocol::TaskResult result;
  result.set_task("train:nobody");
  EXPECT_EQ(world.say("stranger", result), "stale");
}

// ---- where chunks come from ---------------------------------------------------------------------

struct PlacingStreams : Placing {
  void join(const std::string& worker, const std::string& host, const std::string& endpoint) {
    protocol::Hello hello;
    hello.set_worker_name(worker);
    hello.set_host(host);
    hello.set_slots(1);
    hello.set_chunks_endpoint(endpoint);
    if (!endpoint.empty()) hello.set_chunks_key("key of " + worker);
    world.hear(worker, hello);
  }
  void holds(const std::string& worker, std::uint64_t bytes, std::uint32_t free_slots = 1) {
    protocol::Heartbeat beat;
    beat.set_free_slots(free_slots);
    auto& held = *beat.add_streams();
    held.set_stream("stream");
    held.set_bytes(bytes);
    world.hear(worker, beat);
  }
  static Submission submission(const std::vector<std::string>& names) {
    Submission all = sweep_of(names);
    for (auto& task : all.tasks)
      if (task.kind() == protocol::TASK_KIND_TRAIN) task.set_stream("stream");
    return all;
  }
  // Of the run that each worker gets now; "-": none is named.
  std::map<std::string, std::string> sources() {
    std::map<std::string, std::string> all;
    for (const auto& [worker, run] : world.tick())
      all[worker] = run.has_chunk_source() ? run.chunk_source().endpoint() : "-";
    return all;
  }
};
using Sources = std::map<std::string, std::string>;

TEST_F(PlacingStreams, ARunIsToldWhoHasMoreOfItsStream) {
  join("a", "A", "tcp://10.0.0.1:1");
  join("b", "B", "tcp://10.0.0.2:1");
  join("c", "C", "tcp://10.0.0.3:1");
  holds("a", 100, 0);
  holds("b", 300, 0);
  holds("c", 200);
  world.hear("", submission({"x"}));
  const auto runs = world.tick();
  ASSERT_THAT(runs, SizeIs(1));
  EXPECT_EQ(runs[0].first, "c") << "the others are busy";
  const protocol::ChunkSource& source = runs[0].second.chunk_source();
  EXPECT_EQ(source.stream(), "stream");
  EXPECT_EQ(source.endpoint(), "tcp://10.0.0.2:1");
  EXPECT_EQ(source.server_key(), "key of b");
}

TEST_F(PlacingStreams, WhoHasTheMostIsToldOfNobody) {
  join("a", "A", "tcp://10.0.0.1:1");
  join("b", "B", "tcp://10.0.0.2:1");
  holds("a", 300);
  holds("b", 300, 0);
  world.hear("", submission({"x"}));
  EXPECT_EQ(sources(), (Sources{{"a", "-"}}));
}

TEST_F(PlacingStreams, WhoBeginsLaterIsToldWhoBeganFirst) {
  join("a", "A", "tcp://10.0.0.1:1");
  join("b", "B", "tcp://10.0.0.2:1");
  world.hear("", submission({"x", "y"}));
  const Sources together = sources();
  ASSERT_EQ(together.size(), 2u);
  EXPECT_EQ(std::ranges::count(together, "-", &Sources::value_type::second), 1)
      << "the first harvests, the second is told of it";
  for (const auto& [worker, source] : together)
    if (source != "-") {
      EXPECT_EQ(source, worker == "a" ? "tcp://10.0.0.2:1" : "tcp://10.0.0.1:1");
    }
  join("c", "C", "tcp://10.0.0.3:1");
  Submission more = submission({"z"});
  more.sweep.set_name("more");
  world.hear("", more);
  const Sources later = sources();
  ASSERT_TRUE(later.contains("c"));
  const auto first = std::ranges::find(together, "-", &Sources::value_type::second)->first;
  EXPECT_EQ(later.at("c"), first == "a" ? "tcp://10.0.0.1:1" : "tcp://10.0.0.2:1");
}

TEST_F(PlacingStreams, WhoIsSilentServesNobodyOrIsElsewhereOnLoopbackIsNotNamed) {
  join("silent", "A", "tcp://10.0.0.1:1");
  holds("silent", 300, 0);
  world.now += kSuspectAfter;
  join("closed", "B", "");
  holds("closed", 200, 0);
  join("inside", "C", "tcp://127.0.0.1:1");
  holds("inside", 100, 0);
  join("d", "D", "tcp://10.0.0.4:1");
  world.hear("", submission({"x"}));
  EXPECT_EQ(sources(), (Sources{{"d", "-"}}));
}

TEST_F(PlacingStreams, OnTheSameHostLoopbackIsEnough) {
  join("a", "A", "tcp://127.0.0.1:1");
  holds("a", 100, 0);
  join("b", "A", "tcp://127.0.0.1:2");
  world.hear("", submission({"x"}));
  EXPECT_EQ(sources(), (Sources{{"b", "tcp://127.0.0.1:1"}}));
}

// ---- several hooks of one model -----------------------------------------------------------------

struct PlacingFamilies : PlacingStreams {
  // Trials "a0", "a1", "b0", ...: of the stream that the letter names; all of one family.
  static Submission family(const std::vector<std::string>& names) {
    Submission all = sweep_of(names);
    for (auto& task : all.tasks)
      if (task.kind() == protocol::TASK_KIND_TRAIN) {
        const std::string stream = task.id().substr(6, 1);
        task.set_stream(stream);
        task.set_group(stream);
        task.set_stream_family("family");
        task.set_spec(R"({"stream":{"hook":")" + stream + R"("}})");
      }
    return all;
  }
  static std::vector<std::string> siblings(const protocol::Run& run) {
    return {run.siblings().begin(), run.siblings().end()};
  }
};
const std::string kA = R"({"hook":"a"})", kB = R"({"hook":"b"})", kC = R"({"hook":"c"})";

TEST_F(PlacingFamilies, ARunIsToldWhichOtherStreamsAreStillToBeTrainedOn) {
  world.join("w");
  world.hear("", family({"a0", "b0", "b1", "c0"}));
  const auto first = world.run();
  EXPECT_EQ(first.members(0).task(), "train:a0");
  EXPECT_THAT(siblings(first), ElementsAre(kB, kC));
  world.finish("w", first);
  world.finish("w", world.run());  // the scores of a0
  const auto second = world.run();
  EXPECT_EQ(second.members(0).task(), "train:b0");
  EXPECT_THAT(siblings(second), ElementsAre(kC)) << "a is trained";
}

TEST_F(PlacingFamilies, OnlyWhatSomebodyWantsIsHarvestedAlong) {
  world.join("w");
  world.hear("", family({"a0", "b0", "c0"}));
  world.command("cancel", "s", {"b0"});
  EXPECT_THAT(siblings(world.run()), ElementsAre(kC));
}

TEST_F(PlacingFamilies, SlotsOfOneWorkerShareWhatEitherHarvests) {
  world.join("w", 2);
  world.hear("", family({"a0", "b0"}));
  const auto runs = world.tick();
  ASSERT_THAT(runs, SizeIs(2));
  EXPECT_THAT(siblings(runs[0].second), ElementsAre(kB));
  EXPECT_THAT(siblings(runs[1].second), ElementsAre(kA));
}

TEST_F(PlacingFamilies, WorkersHarvestTheirOwnStreamsAndOneOfThemWhatNobodyRunsYet) {
  join("v", "V", "tcp://10.0.0.1:1");
  join("w", "W", "tcp://10.0.0.2:1");
  world.hear("", family({"a0", "b0", "c0"}));
  const auto runs = world.tick();
  ASSERT_THAT(runs, SizeIs(2));
  EXPECT_THAT(siblings(runs[0].second), ElementsAre(kC));
  EXPECT_THAT(siblings(runs[1].second), ElementsAre()) << "the other makes c's chunks";
}

TEST_F(PlacingFamilies, WithoutAFamilyNothingIsHarvestedAlong) {
  world.join("w");
  Submission alone = family({"a0", "b0"});
  for (auto& task : alone.tasks) task.clear_stream_family();
  world.hear("", alone);
  EXPECT_THAT(siblings(world.run()), IsEmpty());
}

}  // namespace
}  // namespace saesweep::scheduler
