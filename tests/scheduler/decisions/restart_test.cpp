// The scheduler dies and comes back: workers are re-adopted, nothing is lost, nothing is doubled.
// And the history and the reasons that it can tell.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "scheduler/decisions/attempts.h"
#include "scheduler/protocol/running_set.h"
#include "tests/scheduler/decisions/decisions_words.h"

namespace saesweep::scheduler {
namespace {

using namespace std::chrono_literals;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

struct Restart : testing::Test {
  World world;

  // w comes back and tells what it runs.
  std::vector<Reply> come_back(const std::vector<protocol::Run>& running,
                               const std::vector<protocol::Run>& finished = {}) {
    protocol::Hello hello;
    hello.set_worker_name("w");
    hello.set_slots(1);
    hello.set_known_epoch(world.state.meta().epoch() - 1);
    const auto welcome = world.hear("w", hello);
    EXPECT_THAT(welcome, SizeIs(1));
    resumed = std::get<protocol::Welcome>(welcome.at(0).body).resume();
    return resync(running, finished);
  }
  std::vector<Reply> resync(const std::vector<protocol::Run>& running,
                            const std::vector<protocol::Run>& finished = {}) {
    protocol::Resync told;
    told.set_epoch(world.state.meta().epoch());
    const auto add = [](const protocol::Run& run, auto* list) {
      for (const auto& member : run.members()) {
        auto& lease = *list->Add();
        lease.set_run_id(run.run_id());
        lease.set_task(member.task());
        lease.set_fence(member.fence());
      }
    };
    for (const auto& run : running) add(run, told.mutable_running());
    for (const auto& run : finished) add(run, told.mutable_finished());
    return world.replies = world.hear("w", told);
  }
  bool wants_list(const std::vector<protocol::Run>& running) {
    protocol::Heartbeat beat;
    std::uint64_t hash = 0;
    std::uint32_t count = 0;
    for (const auto& run : running)
      for (const auto& member : run.members()) {
        hash ^= protocol::lease_hash(member.task(), member.fence());
        ++count;
      }
    beat.set_running(count);
    beat.set_running_hash(hash);
    const auto replies = world.hear("w", beat);
    return std::get<protocol::HeartbeatAck>(replies.at(0).body).want_full_list();
  }
  bool resumed = false;
};

TEST_F(Restart, AWorkerThatComesBackGoesOnWithItsRun) {
  world.hear("", sweep_of({"a", "b"}));
  world.join("w");
  const auto run = world.run();
  world.restart();
  EXPECT_TRUE(is_leased(world.task("train:a")));
  EXPECT_TRUE(world.state.sweeps().at("s").active());
  EXPECT_THAT(world.codes("train:a"), ElementsAre("on_worker", "worker_awaited"));
  EXPECT_THAT(world.tick(100s), IsEmpty());
  EXPECT_THAT(come_back({run}), IsEmpty());
  EXPECT_TRUE(resumed);
  world.wait(kReadoption);
  EXPECT_EQ(world.done("w", run, 0), "committed");
  EXPECT_EQ(world.done("w", run, 1), "committed");
  EXPECT_EQ(world.task("train:a").attempts_size(), 1);
}

TEST_F(Restart, WhoDoesNotComeBackLosesItsRunAndIsLateTaken) {
  world.hear("", sweep_of({"a"}));
  world.join("w");
  const auto run = world.run();
  world.restart();
  world.tick(kReadoption - 1s);
  EXPECT_TRUE(is_leased(world.task("train:a")));
  world.tick(2s);
  EXPECT_TRUE(world.task("train:a").has_ready());
  EXPECT_EQ(world.task("train:a").attempts(0).ending(), journal::ENDING_LOST);
  EXPECT_EQ(world.done("w", run, 0), "committed") << "nobody else has it";
  EXPECT_EQ(world.task("train:a").attempts(0).ending(), journal::ENDING_DONE);
}

TEST_F(Restart, OfARunThatIsAdoptedWhatItTakesOnceIsCountedOnce) {
  Submission submission = sweep_of({"a", "b", "c"});
  for (auto& task : submission.tasks) {
    task.set_memory_bytes(400);
    task.set_shared_memory_bytes(300);
  }
  world.hear("", submission);
  world.join("w", 1, 600);
  const auto run = world.run();
  ASSERT_EQ(run.members_size(), 3);
  world.restart();
  world.hear("", Tick{.may_place = false});
  world.now += kReadoption + 1s;
  world.hear("", Tick{.may_place = false});
  ASSERT_TRUE(world.task("train:a").has_ready());
  EXPECT_THAT(come_back({run}), IsEmpty()) << "all of it goes on";
  EXPECT_TRUE(world.task("train:c").has_running());
  EXPECT_EQ(world.state.find_run(world.task("train:a").run())->memory_bytes(), 600u);
}

TEST_F(Restart, WhatWasTakenAndGivenToNobodyIsAdoptedWithItsFence) {
  world.hear("", sweep_of({"a"}));
  world.join("w");
  const auto run = world.run();
  world.restart();
  world.hear("", Tick{.may_place = false});
  world.now += kReadoption + 1s;
  world.hear("", Tick{.may_place = false});
  ASSERT_TRUE(world.task("train:a").has_ready());
  EXPECT_THAT(come_back({run}), IsEmpty()) << "it goes on";
  EXPECT_TRUE(world.task("train:a").has_running());
  EXPECT_EQ(world.task("train:a").fence(), 1u);
  EXPECT_EQ(world.task("train:a").attempts(0).ending(), journal::ENDING_UNSPECIFIED);
  EXPECT_FALSE(wants_list({run}));
  EXPECT_EQ(world.done("w", run, 0), "committed");
}

TEST_F(Restart, WhatWasGivenToAnotherIsCancelled) {
  world.hear("", sweep_of({"a"}));
  world.join("w");
  const auto run = world.run();
  world.restart();
  world.join("v");
  world.now += kReadoption + 1s;
  world.beat("v", 1);
  world.hear("", Tick{});
  ASSERT_THAT(world.tick(), SizeIs(1));
  come_back({run});
  EXPECT_THAT(world.controls(), ElementsAre(testing::Pair("cancel", "train:a")));
  EXPECT_EQ(world.done("w", run, 0), "stale");
}

TEST_F(Restart, AnAssignmentThatNeverLeftIsLostWithoutCounting) {
  world.hear("", sweep_of({"a"}));
  world.join("w");
  ASSERT_THAT(world.tick(), SizeIs(1));  // not answered
  world.restart();
  come_back({});
  EXPECT_TRUE(world.task("train:a").has_ready());
  const auto again = world.run();
  EXPECT_EQ(again.members(0).fence(), 2u);
}

TEST_F(Restart, AResultThatIsOnItsWayIsNotLost) {
  world.hear("", sweep_of({"a"}));
  world.join("w");
  const auto run = world.run();
  world.restart();
  come_back({}, {run});
  EXPECT_TRUE(is_leased(world.task("train:a")));
  EXPECT_EQ(world.done("w", run, 0), "committed");
}

TEST_F(Restart, AWorkerGetsNothingBeforeItHasToldWhatItRuns) {
  world.hear("", sweep_of({"a", "b"}));
  world.join("w");
  const auto run = world.run();
  world.restart();
  protocol::Hello hello;
  hello.set_slots(2);
  world.hear("w", hello);
  world.beat("w", 2);
  EXPECT_THAT(world.tick(), IsEmpty());
  EXPECT_TRUE(wants_list({run}));
  resync({run});
  EXPECT_FALSE(wants_list({run}));
}

TEST_F(Restart, AMismatchOfTwoHeartbeatsAsksForTheList) {
  world.hear("", sweep_of({"a"}));
  world.join("w");
  const auto run = world.run();
  EXPECT_FALSE(wants_list({run}));
  EXPECT_FALSE(wants_list({})) << "its result may be on its way";
  EXPECT_TRUE(wants_list({}));
  resync({});
  EXPECT_TRUE(world.task("train:a").has_ready());
  EXPECT_EQ(world.task("train:a").retries(), 0u);
}

TEST_F(Restart, AnAssignmentOnItsWayIsNotMissed) {
  world.hear("", sweep_of({"a"}));
  world.join("w");
  ASSERT_THAT(world.tick(), SizeIs(1));
  resync({});
  EXPECT_TRUE(world.task("train:a").has_assigned());
  world.wait(31s);
  EXPECT_FALSE(wants_list({}));
  EXPECT_TRUE(wants_list({})) << "it should have been answered by now";
  resync({});
  EXPECT_TRUE(world.task("train:a").has_ready());
}

TEST_F(Restart, ACancelOrAPauseThatDiedWithTheSchedulerIsSaidAgain) {
  world.hear("", sweep_of({"a"}, "one", "g1"));
  world.hear("", sweep_of({"b"}, "two", "g2"));
  world.join("w", 2);
  const auto runs = world.tick();
  ASSERT_THAT(runs, SizeIs(2));
  for (const auto& [worker, run] : runs) world.accept(worker, run);
  world.command("cancel", "one");
  world.command("pause", "two");
  world.restart();
  come_back({runs[0].second, runs[1].second});
  EXPECT_THAT(world.controls(), testing::UnorderedElementsAre(testing::Pair("cancel", "train:a"),
                                                              testing::Pair("pause", "train:b")));
}

// ---- history and reasons ------------------------------------------------------------------------

TEST_F(Restart, ATaskRemembersItsAttemptsUpToThirtyTwo) {
  world.hear("", sweep_of({"a"}));
  world.join("w");
  for (std::uint64_t i = 1; i <= 40; ++i) {
    const auto run = world.run(1h);
    world.checkpoint("w", run, 0, i);
    world.die("w", run);
  }
  const auto& attempts = world.task("train:a").attempts();
  ASSERT_EQ(attempts.size(), kMostAttemptsKept);
  EXPECT_EQ(attempts.rbegin()->fence(), 40u);
  EXPECT_EQ(attempts.rbegin()->worker(), "w");
  EXPECT_EQ(to_string(attempts.rbegin()->ending()), "crash");
  EXPECT_EQ(attempts.rbegin()->reason(), "signal 11");
  EXPECT_GE(attempts.rbegin()->ended(), attempts.rbegin()->began());
  // All of it is in the events.
  const SweepState folded = replay(world.log);
  EXPECT_EQ(folded.find_task("train:a")->SerializeAsString(),
            world.task("train:a").SerializeAsString());
}

TEST_F(Restart, ReasonsFollowATaskThroughItsLife) {
  EXPECT_TRUE(explain(world.state, "train:a", world.now).is_null());
  world.hear("", sweep_of({"a", "b"}));
  EXPECT_THAT(world.codes("train:a"), ElementsAre("no_worker"));
  EXPECT_THAT(world.codes("eval:a"), ElementsAre("needs_input"));
  world.join("w");
  EXPECT_THAT(world.codes("train:a"), ElementsAre("next"));
  EXPECT_THAT(world.codes("train:b"), ElementsAre("behind_others"));
  auto run = world.run();
  EXPECT_THAT(world.codes("train:a"), ElementsAre("on_worker"));
  world.die("w", run);
  EXPECT_THAT(world.codes("train:a"), ElementsAre("backoff", "run_waits"));
  world.wait(5s);
  world.now += kSuspectAfter;
  EXPECT_THAT(world.codes("train:a"), ElementsAre("run_waits", "workers_suspect"));
  world.beat("w", 1);
  const Json explained = explain(world.state, "train:a", world.now);
  EXPECT_EQ(explained["state"], "backoff");
  EXPECT_EQ(explained["attempts"].size(), 1u);
  EXPECT_EQ(explained["attempts"][0]["outcome"], "crash");
  EXPECT_THAT(explained["reasons"][0]["text"].get<std::string>(), HasSubstr("signal 11"));
}

TEST_F(Restart, WhatDiedTooOftenTellsOfItsDeaths) {
  world.hear("", sweep_of({"a"}));
  world.join("w");
  for (int i = 0; i < 3; ++i) world.die("w", world.run(1h));
  EXPECT_THAT(world.codes("train:a"), ElementsAre("deaths"));
  EXPECT_THAT(world.codes("eval:a"), ElementsAre("skipped"));
}

}  // namespace
}  // namespace saesweep::scheduler
