#include "scheduler/decisions/decide.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/json.h"
#include "tests/scheduler/decisions/decisions_words.h"

namespace saesweep::scheduler {
namespace {

using namespace std::chrono_literals;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

struct Deciding : testing::Test {
  World world;
};

// ---- the graph ----------------------------------------------------------------------------------

TEST_F(Deciding, TrainsThenEvaluatesThenTheSweepHasEnded) {
  world.hear("", sweep_of({"a", "b"}));
  world.join("w");
  const auto train = world.run();
  EXPECT_THAT(members_of(train), ElementsAre("train:a", "train:b"));
  EXPECT_TRUE(world.task("eval:a").has_blocked());
  world.finish("w", train);
  const auto evaluate = world.run();
  EXPECT_THAT(members_of(evaluate), ElementsAre("eval:a", "eval:b"));
  world.finish("w", evaluate);
  EXPECT_THAT(world.tick(), IsEmpty());
  EXPECT_NE(world.state.sweeps().at("s").ended(), 0);
  EXPECT_EQ(outcome_of(world.state, world.state.sweeps().at("s"),
                       world.state.sweeps().at("s").subjects(0))
                .state,
            "done");
}

TEST_F(Deciding, ABaselineIsScoredWithoutTraining) {
  world.hear("", sweep_of({"-pca"}));
  world.join("w");
  EXPECT_THAT(members_of(world.run()), ElementsAre("eval:-pca"));
}

TEST_F(Deciding, AnEvaluationIsToldWhatTrainingMade) {
  world.hear("", sweep_of({"a"}));
  world.join("w");
  world.finish("w", world.run());
  const auto evaluate = world.run();
  ASSERT_EQ(evaluate.members_size(), 1);
  const auto& member = evaluate.members(0);
  EXPECT_EQ(parse_json(member.spec()).value(),
            (Json{{"subject", "trial"}, {"trained", {{"tokens", 1000}}}}));
  ASSERT_EQ(member.inputs_size(), 1);
  EXPECT_EQ(member.inputs(0).sha256(), "digest of train:a");
}

TEST_F(Deciding, WhatDivergedIsNeitherTriedAgainNorScored) {
  world.hear("", sweep_of({"a", "b"}));
  world.join("w");
  const auto run = world.run();
  EXPECT_EQ(world.say("w", World::result(run, run.members(0), protocol::OUTCOME_DIVERGED,
                                         "step 7: the loss is not finite")),
            "committed");
  world.done("w", run, 1);
  world.beat("w", 1);
  EXPECT_THAT(members_of(world.run()), ElementsAre("eval:b"));
  EXPECT_TRUE(world.task("eval:a").has_skipped());
  const auto outcome = outcome_of(world.state, world.state.sweeps().at("s"),
                                  world.state.sweeps().at("s").subjects(0));
  EXPECT_EQ(outcome.state, "diverged");
  EXPECT_THAT(outcome.reason, HasSubstr("step 7"));
}

TEST_F(Deciding, WhatCannotSucceedFailsWithItsReasonAndTheOthersFinish) {
  world.hear("", sweep_of({"a", "b"}));
  world.join("w");
  const auto run = world.run();
  world.say("w", World::result(run, run.members(0), protocol::OUTCOME_FAILED, "no such hook"));
  world.done("w", run, 1);
  world.beat("w", 1);
  world.finish("w", world.run());
  world.tick();
  EXPECT_NE(world.state.sweeps().at("s").ended(), 0);
  const auto outcome = outcome_of(world.state, world.state.sweeps().at("s"),
                                  world.state.sweeps().at("s").subjects(0));
  EXPECT_EQ(outcome.state, "failed");
  EXPECT_EQ(outcome.reason, "no such hook");
}

TEST_F(Deciding, AFailedEvaluationFailsTheRow) {
  world.hear("", sweep_of({"a"}));
  world.join("w");
  world.finish("w", world.run());
  const auto evaluate = world.run();
  world.say("w", World::result(evaluate, evaluate.members(0), protocol::OUTCOME_FAILED, "why"));
  EXPECT_EQ(outcome_of(world.state, world.state.sweeps().at("s"),
                       world.state.sweeps().at("s").subjects(0))
                .reason,
            "evaluation: why");
}

// ---- submitting ---------------------------------------------------------------------------------

TEST_F(Deciding, SubmittingAgainIsTheSameSweep) {
  world.hear("", sweep_of({"a"}));
  world.join("w");
  world.finish("w", world.run());
  world.finish("w", world.run());
  world.tick();
  const double ended = world.state.sweeps().at("s").ended();
  EXPECT_NE(ended, 0);
  world.hear("", sweep_of({"a"}));
  EXPECT_EQ(world.state.sweeps().at("s").ended(), ended);
  world.beat("w", 1);
  EXPECT_THAT(world.tick(), IsEmpty());
}

TEST_F(Deciding, AChangedSweepDoesOnlyWhatIsNew) {
  world.hear("", sweep_of({"a", "b"}));
  world.join("w");
  world.finish("w", world.run());
  world.finish("w", world.run());
  world.tick();
  world.hear("", sweep_of({"b", "c"}));
  EXPECT_EQ(world.state.sweeps().at("s").ended(), 0);
  EXPECT_THAT(members_of(world.run()), ElementsAre("train:c"));
}

TEST_F(Deciding, TwoSweepsShareATrial) {
  world.hear("", sweep_of({"a"}, "one"));
  world.hear("", sweep_of({"a", "b"}, "two"));
  world.join("w");
  const auto run = world.run();
  EXPECT_THAT(members_of(run), ElementsAre("train:a", "train:b"));
  world.finish("w", run);
  world.finish("w", world.run());
  world.tick();
  EXPECT_NE(world.state.sweeps().at("one").ended(), 0);
  EXPECT_NE(world.state.sweeps().at("two").ended(), 0);
}

TEST_F(Deciding, ASweepOfAnEarlierProcessWaitsUntilItIsSubmittedAgain) {
  world.hear("", sweep_of({"a"}, "one"));
  world.hear("", ProcessBegins{});
  world.hear("", sweep_of({"b"}, "two"));
  world.join("w");
  const auto run = world.run();
  EXPECT_THAT(members_of(run), ElementsAre("train:b"));
  world.finish("w", run);
  world.finish("w", world.run());
  EXPECT_THAT(world.tick(), IsEmpty());
  world.hear("", sweep_of({"a"}, "one"));
  EXPECT_THAT(members_of(world.run()), ElementsAre("train:a"));
}

TEST_F(Deciding, WhatLostItsArtifactsIsTrainedAgainAndScoredOnlyIfItWasNot) {
  world.hear("", sweep_of({"a", "b"}));
  world.join("w");
  world.finish("w", world.run());
  const auto evaluate = world.run();
  world.done("w", evaluate, 0);
  Submission again = sweep_of({"a", "b"});
  again.lost = {"train:a", "train:b"};
  world.hear("", again);
  world.die("w", evaluate, false);
  EXPECT_TRUE(world.task("eval:a").has_succeeded());
  EXPECT_TRUE(world.task("eval:b").has_blocked());
  const auto train = world.run();
  EXPECT_THAT(members_of(train), ElementsAre("train:a", "train:b"));
  EXPECT_EQ(train.members(0).fence(), 2u) << "fences never begin again";
  world.finish("w", train);
  EXPECT_THAT(members_of(world.run()), ElementsAre("eval:b"));
}

TEST_F(Deciding, WhatAReplacedSweepRunsAndNobodyWantsIsCancelled) {
  world.hear("", sweep_of({"a", "b"}));
  world.join("w");
  const auto run = world.run();
  const auto replies = world.hear("", sweep_of({"b"}));
  ASSERT_THAT(replies, SizeIs(1));
  const auto& control = std::get<protocol::Control>(replies[0].body);
  EXPECT_EQ(control.task(), "train:a");
  EXPECT_EQ(control.verb(), "cancel");
  protocol::ControlDone answer;
  answer.set_run_id(run.run_id());
  answer.set_task("train:a");
  answer.set_fence(1);
  answer.set_outcome("cancelled");
  world.hear("w", answer);
  world.done("w", run, 1);
  world.beat("w", 1);
  EXPECT_THAT(members_of(world.run()), ElementsAre("eval:b"));
}

// ---- fences -------------------------------------------------------------------------------------

TEST_F(Deciding, AResultIsCommittedOnceAndThenADuplicate) {
  world.hear("", sweep_of({"a"}));
  world.join("w");
  const auto run = world.run();
  EXPECT_EQ(world.done("w", run, 0), "committed");
  const auto events = world.log.size();
  EXPECT_EQ(world.done("w", run, 0), "duplicate");
  EXPECT_EQ(world.log.size(), events);
  auto other = World::result(run, run.members(0), protocol::OUTCOME_DONE);
  other.set_summary(R"({"tokens":1})");
  EXPECT_EQ(world.say("w", other), "invalid");
}

TEST_F(Deciding, AResultOfAnOlderLeaseIsStale) {
  world.hear("", sweep_of({"a"}));
  world.join("w");
  const auto first = world.run();
  world.die("w", first);
  const auto second = world.run(1h);
  EXPECT_EQ(second.members(0).fence(), 2u);
  EXPECT_EQ(world.done("w", first, 0), "stale");
  EXPECT_EQ(world.done("w", second, 0), "committed");
}

TEST_F(Deciding, AResultOfALeaseThatNobodyGaveIsInvalid) {
  world.hear("", sweep_of({"a"}));
  world.join("w");
  auto result = World::result(world.run(), protocol::Member(), protocol::OUTCOME_DONE);
  result.set_task("train:a");
  result.set_fence(99);
  EXPECT_EQ(world.say("w", result), "invalid");
}

TEST_F(Deciding, ALateResultIsTakenWhileNobodyElseHasTheTask) {
  world.hear("", sweep_of({"a"}));
  world.join("w");
  const auto run = world.run();
  world.now += kLostAfter + 1s;
  world.hear("", Tick{.may_place = false});
  EXPECT_TRUE(world.task("train:a").has_ready());
  EXPECT_EQ(world.done("w", run, 0), "committed");
  EXPECT_TRUE(world.task("train:a").has_succeeded());
}

TEST_F(Deciding, AWorkerThatGoesOnWithAnOlderLeaseIsToldToStop) {
  world.hear("", sweep_of({"a"}));
  world.join("w");
  const auto run = world.run();
  world.join("v");
  world.now += kLostAfter - 5s;
  world.beat("v", 1);
  const auto again = [&] {
    world.tick(6s);       // w is lost
    return world.tick();  // v gets its task
  }();
  ASSERT_THAT(again, SizeIs(1));
  EXPECT_EQ(again[0].first, "v");
  protocol::Progress progress;
  progress.set_run_id(run.run_id());
  progress.add_members()->set_task("train:a");
  progress.mutable_members(0)->set_fence(1);
  const auto replies = world.hear("w", progress);
  ASSERT_THAT(replies, SizeIs(1));
  EXPECT_EQ(std::get<protocol::Control>(replies[0].body).verb(), "cancel");
}

TEST_F(Deciding, AResultWithoutItsArtifactsIsNoResult) {
  world.hear("", sweep_of({"a"}));
  world.join("w");
  const auto run = world.run();
  EXPECT_EQ(world.say("w", World::result(run, run.members(0), protocol::OUTCOME_DONE), false),
            "invalid");
  world.beat("w", 1);
  EXPECT_THAT(members_of(world.run(1h)), ElementsAre("train:a"));
}

TEST_F(Deciding, ArtifactsThatTravelledAndAreNotThereAreAskedForAgain) {
  world.hear("", sweep_of({"a"}));
  world.join("w");
  const auto run = world.run();
  auto result = World::result(run, run.members(0), protocol::OUTCOME_DONE);
  result.set_travelled(true);
  EXPECT_EQ(world.say("w", result, false), "missing");
  EXPECT_TRUE(is_leased(world.task("train:a"))) << "nothing has changed";
  EXPECT_EQ(world.say("w", result), "committed");
  EXPECT_EQ(world.say("w", result, false), "duplicate");
}

// ---- deaths -------------------------------------------------------------------------------------

TEST_F(Deciding, ARunThatDiesTwiceIsHalvedUntilOneIsAloneAndGivenUpAfterThree) {
  world.hear("", sweep_of(ids(4)));
  world.join("w");
  // t02 kills whoever trains it.
  int deaths = 0;
  std::vector<std::size_t> sizes;
  while (!world.task("train:t02").has_failed() && deaths < 20) {
    const auto run = world.run(1h);
    const auto members = members_of(run);
    if (run.members(0).kind() == protocol::TASK_KIND_TRAIN &&
        std::ranges::count(members, "train:t02") == 1) {
      sizes.push_back(members.size());
      ++deaths;
      world.die("w", run);
    } else {
      world.finish("w", run);
    }
  }
  EXPECT_THAT(sizes, ElementsAre(4, 4, 2, 2, 1, 1, 1));
  EXPECT_EQ(world.task("train:t02").failed().reason(),
            "its executor died 3 times; last: signal 11");
  for (const char* other : {"train:t00", "train:t01", "train:t03"})
    while (!world.task(other).has_succeeded()) world.finish("w", world.run(1h));
}

TEST_F(Deciding, ADeathAfterACheckpointDoesNotCount) {
  world.hear("", sweep_of({"a"}));
  world.join("w");
  for (std::uint64_t i = 0; i < 10; ++i) {
    const auto run = world.run(1h);
    if (i > 0) {
      EXPECT_EQ(run.members(0).resume().step(), i);
    }
    world.checkpoint("w", run, 0, i + 1);
    world.die("w", run);
  }
  EXPECT_FALSE(is_finished(world.task("train:a")));
}

TEST_F(Deciding, ADeathCountsIfTheLastCheckpointIsFromBeforeTheDeathBefore) {
  world.hear("", sweep_of({"a"}));
  world.join("w");
  const auto first = world.run();
  world.checkpoint("w", first, 0, 1);
  world.die("w", first);
  for (int i = 0; i < 3; ++i) {
    EXPECT_FALSE(is_finished(world.task("train:a"))) << i;
    world.die("w", world.run(1h));
  }
  EXPECT_TRUE(world.task("train:a").has_failed());
}

TEST_F(Deciding, ACheckpointOfAnyMemberIsProgressOfTheRun) {
  world.hear("", sweep_of({"a", "b"}));
  world.join("w");
  for (std::uint64_t i = 0; i < 5; ++i) {
    const auto run = world.run(1h);
    EXPECT_EQ(run.members_size(), 2);
    world.checkpoint("w", run, 1, i + 1);
    world.die("w", run);
  }
}

TEST_F(Deciding, ADeathTogetherWithOthersDoesNotCount) {
  world.hear("", sweep_of({"a"}));
  world.join("w");
  for (int i = 0; i < 10; ++i) world.die("w", world.run(1h), false);
  EXPECT_FALSE(is_finished(world.task("train:a")));
}

TEST_F(Deciding, ADeathCountsOnceForARunOfSeveral) {
  world.hear("", sweep_of(ids(4)));
  world.join("w");
  world.die("w", world.run());
  EXPECT_THAT(world.tick(), IsEmpty()) << "not at once";
  EXPECT_EQ(world.run(1h).members_size(), 4) << "four words about one death";
}

TEST_F(Deciding, HalvesStayApartWhateverEndsThem) {
  world.hear("", sweep_of(ids(4)));
  world.join("w");
  world.die("w", world.run());
  world.die("w", world.run(1h));
  for (int i = 0; i < 3; ++i) {
    const auto run = world.run(1h);
    EXPECT_EQ(run.members_size(), 2);
    world.die("w", run, false);
  }
}

TEST_F(Deciding, DeathsAreRememberedOverARestart) {
  world.hear("", sweep_of({"a"}));
  for (int i = 0; i < 3; ++i) {
    world.join("w");
    world.die("w", world.run(1h));
    world.hear("", ProcessBegins{});
    world.hear("", sweep_of({"a"}));
    if (i < 2) {
      EXPECT_FALSE(is_finished(world.task("train:a")));
    }
  }
  // The submission after the third death tries it anew.
  EXPECT_TRUE(world.task("train:a").has_ready());
  const auto given_up = std::ranges::count_if(world.log, [](const journal::Event& event) {
    return event.has_run_lost() && event.run_lost().quarantined();
  });
  EXPECT_EQ(given_up, 1);
}

TEST_F(Deciding, ARestartOfTheSchedulerIsNobodysDeathAndGoesOnFromTheCheckpoint) {
  world.hear("", sweep_of({"a"}));
  for (int i = 0; i < 10; ++i) {
    world.join("w");
    const auto run = world.run(1h);
    if (i == 0) world.checkpoint("w", run, 0, 5);
    EXPECT_EQ(run.members(0).resume().step(), i == 0 ? 0u : 5u);
    world.hear("", ProcessBegins{});
    world.hear("", sweep_of({"a"}));
  }
  EXPECT_TRUE(world.task("train:a").has_ready());
}

// ---- memory, disk, passing trouble --------------------------------------------------------------

TEST_F(Deciding, OutOfMemoryHalvesTheCohortAndIsTriedThreeTimesAlone) {
  world.hear("", sweep_of({"a", "b", "c", "d"}));
  world.join("w");
  std::vector<int> sizes;
  for (int i = 0; i < 40 && !world.task("train:a").has_failed(); ++i) {
    const auto run = world.run(1h);
    if (run.members(0).task() == "train:a") sizes.push_back(run.members_size());
    for (const auto& member : run.members()) {
      auto retry = World::result(run, member, protocol::OUTCOME_RETRY, "12 GiB");
      retry.set_out_of_memory(true);
      EXPECT_EQ(world.say("w", retry), "committed");
    }
    world.beat("w", 1);
  }
  EXPECT_THAT(sizes, ElementsAre(4, 2, 1, 1, 1));
  EXPECT_THAT(world.task("train:a").failed().reason(), HasSubstr("12 GiB"));
  EXPECT_TRUE(world.task("train:a").failed().passing());
}

TEST_F(Deciding, AFullDiskHaltsEverythingAndCostsNobodyATry) {
  world.hear("", sweep_of({"a"}));
  world.join("w");
  const auto run = world.run();
  world.say("w", World::result(run, run.members(0), protocol::OUTCOME_RETRY, "disk full: /x"));
  ASSERT_TRUE(world.halt);
  EXPECT_EQ(world.halt->code, ErrorCode::kResourceExhausted);
  EXPECT_TRUE(world.task("train:a").has_ready());
  EXPECT_EQ(world.task("train:a").retries(), 0u);
}

TEST_F(Deciding, PassingTroubleIsTriedAgainLaterAndNotForEver) {
  world.hear("", sweep_of({"a"}));
  world.join("w");
  int tries = 0;
  for (; tries < 100 && !world.task("train:a").has_failed(); ++tries) {
    const auto run = world.run(1h);
    world.say("w", World::result(run, run.members(0), protocol::OUTCOME_RETRY, "busy"));
    world.beat("w", 1);
    if (!world.task("train:a").has_failed()) {
      EXPECT_THAT(world.tick(), IsEmpty()) << "not at once";
    }
  }
  EXPECT_EQ(tries, static_cast<int>(kMostRetries) + 1);
  EXPECT_THAT(world.task("train:a").failed().reason(), HasSubstr("busy"));
  world.hear("", sweep_of({"a"}));
  EXPECT_THAT(members_of(world.run(1h)), ElementsAre("train:a")) << "somebody asked again";
}

TEST_F(Deciding, ARefusedRunIsOfferedAgainAndTheAttemptDoesNotCount) {
  world.hear("", sweep_of({"a"}));
  world.join("w");
  const auto offered = world.tick();
  ASSERT_THAT(offered, SizeIs(1));
  protocol::AssignReply no;
  no.set_run_id(offered[0].second.run_id());
  no.set_reason("no room");
  world.hear("w", no);
  EXPECT_THAT(world.tick(), IsEmpty());
  const auto again = world.run(1s);
  EXPECT_EQ(again.members(0).attempt(), 1u);
  EXPECT_EQ(again.members(0).fence(), 2u);
}

}  // namespace
}  // namespace saesweep::scheduler
