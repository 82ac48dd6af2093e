// Sweeps with early stopping: trials pause at rungs, the best go on, the others stop. Every
// decision is made once more from the reports (World does, after each step).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/philox.h"
#include "tests/scheduler/decisions/decisions_words.h"

namespace saesweep::scheduler {
namespace {

using namespace std::chrono_literals;
using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;
using testing::UnorderedElementsAre;

constexpr const char* kCore = R"({"kind":"core","tokens":10})";

// Rungs at 100 and 300 of 1000 tokens, steps of 10.
Submission contest_of(const std::vector<std::string>& ids, const std::string& name = "s",
                      std::uint32_t eta = 3) {
  Submission submission = sweep_of(ids, name);
  auto& settings = *submission.sweep.mutable_early_stopping();
  settings.set_rule("asha");
  settings.set_promotes(true);
  settings.add_rungs(100);
  settings.add_rungs(300);
  settings.set_eta(eta);
  settings.set_min_reports(eta);
  settings.set_brackets(1);
  auto& metric = *settings.add_metrics();
  metric.set_name("core.q");
  metric.set_maximize(true);
  metric.set_evaluation(kCore);
  for (auto& subject : *submission.sweep.mutable_subjects()) subject.set_batch(10);
  return submission;
}

// It is trained as far as it was told, and worth so much there.
protocol::TaskResult report_of(const protocol::Run& run, const protocol::Member& member,
                               double value) {
  auto made = World::result(run, member, protocol::OUTCOME_AT_RUNG);
  made.mutable_checkpoint()->set_path(fmt::format("f{}/step-1", member.fence()));
  made.mutable_checkpoint()->set_tokens(member.until_tokens());
  const Json scores{{"core.q", {{"value", value}, {"n", 10}, {"version", 1}}}};
  Json evaluations = Json::array();
  const Json asked = parse_json(member.rung_evaluations()).value();
  for (const Json& each : asked)
    evaluations.push_back({{"evaluation", each}, {"scores", scores}, {"heldout", true}});
  made.set_summary(
      canonical_json({{"tokens", member.until_tokens()}, {"evaluations", evaluations}}));
  return made;
}

struct Contests : testing::Test {
  World world;

  // Each member of the run is worth what its number says, times ten at the end.
  static double value_of(const std::string& task) {
    return std::stod(task.substr(task.size() - 2));
  }
  void report_all(const std::string& worker, const protocol::Run& run) {
    for (const auto& member : run.members())
      EXPECT_EQ(world.say(worker, report_of(run, member, value_of(member.task()))), "committed");
    world.beat(worker, world.state.workers().at(worker).slots);
  }
  // The run that is handed out once everything that may be decided is.
  protocol::Run next_run() {
    for (int i = 0; i < 3; ++i) {
      const auto runs = world.tick();
      if (runs.empty()) continue;
      EXPECT_THAT(runs, SizeIs(1));
      world.accept(runs[0].first, runs[0].second);
      return runs[0].second;
    }
    return {};
  }
  std::string reason_of(int row) const {
    const auto& sweep = world.state.sweeps().at("s");
    return outcome_of(world.state, sweep, sweep.subjects(row)).reason;
  }
  std::vector<std::string> texts(const std::string& task) const {
    std::vector<std::string> all;
    const Json explained = explain(world.state, task, world.now);
    for (const Json& reason : explained["reasons"]) all.push_back(reason["text"]);
    return all;
  }
};

TEST_F(Contests, ALeaseGoesToTheNextRungInWholeSteps) {
  Submission submission = contest_of(ids(2));
  submission.sweep.mutable_early_stopping()->set_rungs(0, 109);
  world.hear("", submission);
  world.join("w");
  const auto run = next_run();
  ASSERT_EQ(run.members_size(), 2);
  EXPECT_EQ(run.members(0).until_tokens(), 100u);
  EXPECT_EQ(run.members(0).rung_evaluations(), fmt::format("[{}]", kCore));
  EXPECT_EQ(world.say("w", report_of(run, run.members(0), 1)), "committed");
  EXPECT_EQ(world.task("train:t00").checkpoint().tokens(), 100u);
  EXPECT_FALSE(is_leased(world.task("train:t00")));
  EXPECT_EQ(state_of(world.state, world.task("train:t00")), "paused");
  EXPECT_EQ(state_of(world.state, world.task("train:t01")), "running");
}

TEST_F(Contests, OneInEtaGoesOnAndOneReachesTheEnd) {
  world.hear("", contest_of(ids(9)));
  world.join("w");
  report_all("w", next_run());
  EXPECT_THAT(texts("train:t02"),
              ElementsAre("waits in sweep s: value 2, 7th of 9 at rung 1 (100 tokens); the best 3 "
                          "go on"));
  EXPECT_THAT(texts("train:t08"), ElementsAre(HasSubstr("goes on when a worker has room")));
  EXPECT_THAT(world.codes("train:t02"), ElementsAre("at_rung"));
  const auto second = next_run();
  EXPECT_THAT(members_of(second), UnorderedElementsAre("train:t06", "train:t07", "train:t08"));
  EXPECT_EQ(second.members(0).until_tokens(), 300u);
  EXPECT_EQ(second.members(0).resume().tokens(), 100u);
  report_all("w", second);
  const auto third = next_run();
  EXPECT_THAT(members_of(third), ElementsAre("train:t08"));
  EXPECT_EQ(third.members(0).until_tokens(), 0u) << "to its end";
  world.finish("w", third);
  const auto scoring = next_run();  // only what was trained to its end is scored
  EXPECT_THAT(members_of(scoring), ElementsAre("eval:t08"));
  EXPECT_EQ(world.outcome(8), "unfinished");
  world.finish("w", scoring);
  world.tick();
  EXPECT_EQ(world.outcome(8), "done");
  EXPECT_EQ(world.outcome(2), "stopped");
  EXPECT_EQ(reason_of(2), "value 2, 7th of 9 at rung 1 (100 tokens); not among those that go on");
  EXPECT_EQ(reason_of(7), "value 7, 2nd of 3 at rung 2 (300 tokens); not among those that go on");
  EXPECT_TRUE(world.task("train:t02").has_stopped());
  EXPECT_TRUE(world.task("eval:t02").has_skipped());
  EXPECT_NE(world.state.sweeps().at("s").ended(), 0);
}

TEST_F(Contests, ReportsAreCommittedOnceWhoeverRepeatsThem) {
  world.hear("", contest_of(ids(2)));
  world.join("w");
  const auto run = next_run();
  const auto report = report_of(run, run.members(0), 1);
  EXPECT_EQ(world.say("w", report), "committed");
  EXPECT_EQ(world.say("w", report), "duplicate");
  world.restart();
  EXPECT_EQ(world.say("w", report), "duplicate");
  EXPECT_EQ(world.task("train:t00").standings(0).reports_size(), 1);
}

TEST_F(Contests, AReportOfAnOlderLeaseIsStale) {
  world.hear("", contest_of(ids(1)));
  world.join("w");
  const auto old = next_run();
  world.die("w", old, false);
  world.now += 10s;
  world.beat("w", 1);
  const auto run = next_run();
  EXPECT_EQ(world.say("w", report_of(old, old.members(0), 1)), "stale");
  EXPECT_EQ(world.say("w", report_of(run, run.members(0), 1)), "committed");
}

TEST_F(Contests, AReportOfALeaseThatWasTakenForLostIsAdopted) {
  world.hear("", contest_of(ids(1)));
  world.join("w");
  const auto run = next_run();
  world.tick(kLostAfter + 1s);
  EXPECT_FALSE(is_leased(world.task("train:t00")));
  EXPECT_EQ(world.say("w", report_of(run, run.members(0), 1)), "committed");
  EXPECT_EQ(world.task("train:t00").standings(0).reports_size(), 1);
}

TEST_F(Contests, AReportWithoutItsCheckpointIsTriedAgain) {
  world.hear("", contest_of(ids(1)));
  world.join("w");
  const auto run = next_run();
  EXPECT_EQ(world.say("w", report_of(run, run.members(0), 1), false), "invalid");
  EXPECT_TRUE(world.task("train:t00").has_backoff());
  EXPECT_EQ(world.task("train:t00").standings(0).reports_size(), 0);
}

TEST_F(Contests, AReportWhoseCheckpointTravelledAndIsNotThereIsAskedForAgain) {
  world.hear("", contest_of(ids(1)));
  world.join("w");
  const auto run = next_run();
  auto report = report_of(run, run.members(0), 1);
  report.set_travelled(true);
  EXPECT_EQ(world.say("w", report, false), "missing");
  EXPECT_TRUE(is_leased(world.task("train:t00"))) << "nothing has changed";
  EXPECT_EQ(world.say("w", report), "committed");
  EXPECT_EQ(world.task("train:t00").standings(0).reports_size(), 1);
}

TEST_F(Contests, ARestartForgetsNothing) {
  world.hear("", contest_of(ids(9)));
  world.join("w");
  report_all("w", next_run());
  world.restart();
  world.join("w");
  world.hear("w", [&] {
    protocol::Resync told;
    told.set_epoch(world.state.meta().epoch());
    return told;
  }());
  const auto second = next_run();
  EXPECT_THAT(members_of(second), UnorderedElementsAre("train:t06", "train:t07", "train:t08"));
  world.restart();
  EXPECT_EQ(world.state.contest("s")->waiting().size(), 6u);
}

TEST_F(Contests, WhatDivergesRanksLastAtTheRungThatItDidNotReach) {
  world.hear("", contest_of(ids(3)));
  world.join("w");
  const auto run = next_run();
  EXPECT_EQ(world.say("w", World::result(run, run.members(2), protocol::OUTCOME_DIVERGED, "NaN")),
            "committed");
  world.say("w", report_of(run, run.members(0), 5));
  world.say("w", report_of(run, run.members(1), 4));
  world.beat("w", 1);
  EXPECT_THAT(members_of(next_run()), ElementsAre("train:t00")) << "the best one of three";
  EXPECT_EQ(world.outcome(2), "diverged");
}

TEST_F(Contests, ATrialThatAnotherSweepWantsIsTrainedToItsEnd) {
  world.hear("", contest_of(ids(3)));
  world.hear("", sweep_of({"t00"}, "whole"));
  world.join("w");
  const auto run = next_run();
  ASSERT_EQ(run.members_size(), 3);
  for (const auto& member : run.members())
    EXPECT_EQ(member.until_tokens(), member.task() == "train:t00" ? 0u : 100u) << member.task();
  for (const auto& member : run.members())
    world.say("w", member.until_tokens() == 0 ? World::result(run, member, protocol::OUTCOME_DONE)
                                              : report_of(run, member, value_of(member.task())));
  world.beat("w", 1);
  world.finish("w", next_run());
  world.tick();
  EXPECT_EQ(world.outcome(0), "done") << "it is the one that finished";
  EXPECT_EQ(world.outcome(1), "stopped");
}

TEST_F(Contests, WhatWaitsGoesOnWhenAnotherSweepWantsItWhole) {
  world.hear("", contest_of(ids(2)));
  world.join("w");
  report_all("w", next_run());
  world.hear("", sweep_of({"t00"}, "whole"));
  const auto run = next_run();
  EXPECT_THAT(members_of(run), Contains("train:t00"));
  EXPECT_EQ(run.members(0).resume().tokens(), 100u);
}

TEST_F(Contests, AStoppedTrialBeginsAgainForASweepThatWantsItWhole) {
  world.hear("", contest_of(ids(3)));
  world.join("w");
  report_all("w", next_run());
  report_all("w", next_run());
  world.finish("w", next_run());
  world.finish("w", next_run());
  world.tick();
  ASSERT_TRUE(world.task("train:t00").has_stopped());
  world.hear("", contest_of(ids(3)));
  EXPECT_TRUE(world.task("train:t00").has_stopped()) << "the same rules say the same";
  world.hear("", sweep_of({"t00"}, "whole"));
  EXPECT_TRUE(world.task("train:t00").has_ready());
  EXPECT_EQ(world.outcome(0, "s"), "stopped");
  EXPECT_EQ(world.outcome(0, "whole"), "unfinished");
  const auto run = next_run();
  EXPECT_EQ(run.members(0).until_tokens(), 0u);
  world.tick();
  ASSERT_NE(world.state.sweeps().at("s").ended(), 0);
  EXPECT_EQ(world.command("retry", "s", {"t00"})["trials"], 1);
  EXPECT_EQ(world.state.sweeps().at("s").ended(), 0) << "a person wants it there too";
}

TEST_F(Contests, APersonMayHaveAStoppedTrialTrainedToItsEnd) {
  world.hear("", contest_of(ids(3)));
  world.join("w");
  report_all("w", next_run());
  report_all("w", next_run());
  world.finish("w", next_run());
  world.finish("w", next_run());
  world.tick();
  EXPECT_EQ(world.command("retry", "s", {"t00"})["trials"], 1);
  const auto run = next_run();
  EXPECT_THAT(members_of(run), ElementsAre("train:t00"));
  EXPECT_EQ(run.members(0).until_tokens(), 0u);
  EXPECT_EQ(world.outcome(1), "stopped");
}

TEST_F(Contests, TheSameSweepOnceMoreGoesOnWhereItWas) {
  world.hear("", contest_of(ids(9)));
  world.join("w");
  report_all("w", next_run());
  world.hear("", contest_of(ids(10)));
  EXPECT_EQ(world.task("train:t00").standings_size(), 1);
  EXPECT_EQ(world.task("train:t00").standings(0).reports_size(), 1);
  const auto run = next_run();
  EXPECT_THAT(members_of(run),
              UnorderedElementsAre("train:t06", "train:t07", "train:t08", "train:t09"))
      << "those that may go on, and the new one";
}

TEST_F(Contests, OtherRulesBeginAnewFromWhatIsTrained) {
  world.hear("", contest_of(ids(2)));
  world.join("w");
  report_all("w", next_run());
  Submission other = contest_of(ids(2));
  other.sweep.mutable_early_stopping()->set_rungs(0, 50);
  other.sweep.mutable_early_stopping()->set_rungs(1, 200);
  world.hear("", other);
  EXPECT_EQ(world.task("train:t00").standings(0).reports_size(), 0);
  const auto run = next_run();
  EXPECT_EQ(run.members(0).until_tokens(), 200u) << "50 were passed without a report";
  EXPECT_EQ(run.members(0).resume().tokens(), 100u);
}

TEST_F(Contests, TwoSweepsWithRungsOfTheirOwnShareATrial) {
  world.hear("", contest_of(ids(2), "s"));
  Submission other = contest_of(ids(2), "o");
  other.sweep.mutable_early_stopping()->set_rungs(0, 50);
  other.sweep.mutable_early_stopping()->set_rungs(1, 100);
  world.hear("", other);
  world.join("w");
  const auto run = next_run();
  EXPECT_EQ(run.members(0).until_tokens(), 50u);
  report_all("w", run);
  const auto second = next_run();  // the other sweep's two wait; this one wants them at 100
  EXPECT_EQ(second.members(0).until_tokens(), 100u);
  report_all("w", second);
  EXPECT_EQ(world.task("train:t00").standings_size(), 2);
  EXPECT_EQ(world.state.contest("s")->waiting().size(), 2u);
}

TEST_F(Contests, TheStoppingFormDecidesAtOnce) {
  Submission submission = contest_of(ids(4), "s", 2);
  submission.sweep.mutable_early_stopping()->set_promotes(false);
  world.hear("", submission);
  world.join("w");
  const auto run = next_run();
  for (const int i : {3, 2, 0, 1})
    EXPECT_EQ(world.say("w", report_of(run, run.members(i), 1.0 * i)), "committed");
  EXPECT_TRUE(world.task("train:t03").has_ready());
  EXPECT_TRUE(world.task("train:t02").has_stopped()) << "second of two";
  EXPECT_TRUE(world.task("train:t01").has_stopped()) << "third of four";
  EXPECT_THAT(world.task("train:t00").stopped().reason(),
              HasSubstr("3rd of 3 at rung 1 (100 tokens): only the best one in 2 goes on"));
  world.beat("w", 1);
  const auto second = next_run();
  EXPECT_THAT(members_of(second), ElementsAre("train:t03"));
  EXPECT_EQ(second.members(0).until_tokens(), 300u);
}

TEST_F(Contests, ACurveRuleStopsWhoGetsNoBetter) {
  Submission submission = contest_of(ids(1));
  auto& settings = *submission.sweep.mutable_early_stopping();
  settings.set_rule("patience");
  settings.set_promotes(false);
  settings.set_patience(1);
  world.hear("", submission);
  world.join("w");
  auto run = next_run();
  EXPECT_EQ(world.say("w", report_of(run, run.members(0), 0.5)), "committed");
  world.beat("w", 1);
  run = next_run();
  EXPECT_EQ(world.say("w", report_of(run, run.members(0), 0.4)), "committed");
  EXPECT_TRUE(world.task("train:t00").has_stopped());
  world.tick();
  EXPECT_NE(world.state.sweeps().at("s").ended(), 0);
}

TEST_F(Contests, NobodyIsPromotedWhileTheSweepIsPaused) {
  world.hear("", contest_of(ids(3)));
  world.join("w");
  const auto run = next_run();
  world.command("pause");
  report_all("w", run);
  EXPECT_THAT(next_run().members(), IsEmpty());
  EXPECT_EQ(world.state.contest("s")->waiting().size(), 3u);
  world.command("resume");
  EXPECT_THAT(members_of(next_run()), ElementsAre("train:t02"));
}

TEST_F(Contests, ACancelledTrialLeavesItsPlace) {
  world.hear("", contest_of(ids(3)));
  world.join("w");
  report_all("w", next_run());
  world.command("cancel", "s", {"t02"});
  EXPECT_THAT(members_of(next_run()), ElementsAre("train:t01")) << "so that one reaches the end";
}

TEST_F(Contests, HyperbandRunsBracketsOfTheirOwn) {
  Submission submission = contest_of(ids(4), "s", 2);
  auto& settings = *submission.sweep.mutable_early_stopping();
  settings.set_rule("hyperband");
  settings.set_brackets(2);
  for (int i = 0; i < 4; ++i) submission.sweep.mutable_subjects(i)->set_bracket(i % 2);
  world.hear("", submission);
  world.join("w");
  const auto run = next_run();
  for (const auto& member : run.members())
    EXPECT_EQ(member.until_tokens(),
              value_of(member.task()) == 1 || value_of(member.task()) == 3 ? 300u : 100u);
  report_all("w", run);
  EXPECT_THAT(members_of(next_run()), UnorderedElementsAre("train:t02", "train:t03"));
}

// Whatever the order of reports, deaths and restarts: World makes every decision once more.
TEST_F(Contests, AnyOrderOfThingsDecidesAsTheReportsSay) {
  for (std::uint64_t seed = 0; seed < 40; ++seed) {
    SCOPED_TRACE(seed);
    World any;
    Rng rng(seed, "contests");
    Submission submission = contest_of(ids(12), "s", 2 + rng.below(2));
    submission.sweep.mutable_early_stopping()->set_promotes(seed % 3 != 0);
    any.hear("", submission);
    any.join("w", 3);
    for (int step = 0; step < 400 && any.state.sweeps().at("s").ended() == 0; ++step) {
      for (const auto& [worker, run] : any.tick(1s)) any.accept(worker, run);
      std::vector<protocol::Run> running;
      for (const auto& [id, run] : any.state.runs()) {
        if (run.worker().empty()) continue;
        const std::string task =
            run.tasks(static_cast<int>(rng.below(static_cast<std::uint32_t>(run.tasks_size()))));
        protocol::Run wire;
        wire.set_run_id(id);
        auto& member = *wire.add_members();
        member.set_task(task);
        member.set_fence(any.task(task).fence());
        const auto& standings = any.task(task).standings();
        if (!standings.empty() && standings[0].rung() < 2) {
          member.set_until_tokens(standings[0].rung() == 0 ? 100 : 300);
          member.set_rung_evaluations(fmt::format("[{}]", kCore));
        }
        running.push_back(wire);
      }
      if (running.empty()) continue;
      const auto& run = running[rng.below(static_cast<std::uint32_t>(running.size()))];
      const auto lot = rng.below(20);
      if (lot == 0)
        any.say("w", World::result(run, run.members(0), protocol::OUTCOME_DIVERGED, "NaN"));
      else if (lot < 3)
        any.die("w", run, false);
      else if (run.members(0).until_tokens() > 0)
        any.say("w", report_of(run, run.members(0), rng.below(6)));
      else
        any.say("w", World::result(run, run.members(0), protocol::OUTCOME_DONE));
      any.beat("w", 3);
    }
    EXPECT_NE(any.state.sweeps().at("s").ended(), 0);
    std::size_t done = 0;
    for (int row = 0; row < 12; ++row) done += any.outcome(row) == "done" ? 1 : 0;
    EXPECT_GE(done, seed % 3 == 0 ? 0u : 1u);
    EXPECT_EQ(replay(any.log).tasks().size(), any.state.tasks().size());
  }
}

}  // namespace
}  // namespace saesweep::scheduler
