#include "worker/agent/agent.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "core/json.h"
#include "scheduler/protocol/link.h"
#include "scheduler/protocol/messages.pb.h"
#include "tests/worker/agent/agent_words.h"

namespace saesweep::agent {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

TEST_F(AgentTest, IntroducesItselfAndSaysGoodbye) {
  options_.name = "left";
  options_.slots = 3;
  options_.memory_bytes = 12345;
  start_agent();
  EXPECT_EQ(hello_.worker_name(), "left");
  EXPECT_EQ(hello_.build(), "test");
  EXPECT_EQ(hello_.slots(), 3U);
  EXPECT_EQ(hello_.memory_bytes(), 12345U);
  wait_until([&] { return beat_.free_slots() == 3; });
  stop_agent();
  EXPECT_TRUE(ended_);
  EXPECT_TRUE(bye_);
}

TEST_F(AgentTest, AnAssignmentBecomesAResult) {
  options_.slots = 2;
  options_.threads = 7;
  start_agent();
  assign(run(1, {{"do", "finish"}, {"tokens", 4096}}, {"train:a", "train:b"}));
  EXPECT_EQ(result("train:a").outcome(), protocol::OUTCOME_DONE);
  EXPECT_EQ(result("train:b").fence(), 1U);
  EXPECT_TRUE(reply_to(1).accepted());
  const Json me = Json::parse(results_["train:a"].summary());
  EXPECT_EQ(started_[1].pid(), me["pid"]);
  EXPECT_EQ(started_[1].slot(), me["slot"]);
  EXPECT_EQ(me["threads"], 3) << "7 threads for 2 slots";
  wait_until([&] { return beat_.counters().tokens_trained() == 4096; });
  wait_until([&] { return beat_.free_slots() == 2 && beat_.running() == 0; });
  EXPECT_EQ(beat_.counters().executor_restarts(), 0U);
}

TEST_F(AgentTest, AnExecutorStaysWarmBetweenRuns) {
  start_agent();
  assign(run(1, {{"do", "finish"}}));
  const Json first = summary_of(1);
  assign(run(2, {{"do", "finish"}}));
  const Json second = summary_of(2);
  EXPECT_EQ(first["pid"], second["pid"]);
  EXPECT_EQ(second["runs"], 2);
}

TEST_F(AgentTest, ACrashIsToldForEveryMemberAndTheNextRunGetsANewExecutor) {
  start_agent();
  assign(run(1, {{"do", "signal"}, {"number", SIGABRT}, {"say", "what(): no such hook\n"}},
             {"train:a", "train:b"}));
  for (const char* task : {"train:a", "train:b"}) {
    const auto& lost = result(task);
    EXPECT_EQ(lost.outcome(), protocol::OUTCOME_LOST);
    EXPECT_EQ(lost.run_id(), 1U);
    EXPECT_EQ(lost.fence(), 1U);
    EXPECT_TRUE(lost.executor_died_alone());
    EXPECT_FALSE(lost.out_of_memory());
    EXPECT_EQ(lost.reason(),
              "its executor died: killed by SIGABRT; last words: what(): no such hook");
  }
  assign(run(2, {{"do", "finish"}}, {"train:a", "train:b"}, /*fence=*/2));
  wait_until([&] { return results_["train:b"].fence() == 2; });
  EXPECT_EQ(results_["train:b"].outcome(), protocol::OUTCOME_DONE);
  EXPECT_NE(started_[1].pid(), started_[2].pid());
  wait_until([&] { return beat_.counters().executor_restarts() == 1; });
}

TEST_F(AgentTest, OnlyWhatHadNoAnswerIsLost) {
  start_agent();
  assign(run(1, {{"do", "half"}}, {"train:a", "train:b"}));
  EXPECT_EQ(result("train:b").outcome(), protocol::OUTCOME_LOST);
  EXPECT_EQ(result("train:a").outcome(), protocol::OUTCOME_DONE);
  EXPECT_EQ(result_count_, 2);
}

TEST_F(AgentTest, AKillFromOutsideDoesNotCountAgainstTheRun) {
  start_agent();
  assign(run(1, {{"do", "wait"}}));
  wait_until([&] { return started_.contains(1); });
  ASSERT_EQ(::kill(static_cast<pid_t>(started_[1].pid()), SIGKILL), 0);
  EXPECT_EQ(result_of(1).outcome(), protocol::OUTCOME_LOST);
  EXPECT_FALSE(result_of(1).executor_died_alone());
}

TEST_F(AgentTest, AnExitInTheMiddleOfARunCounts) {
  start_agent();
  assign(run(1, {{"do", "exit"}, {"code", 0}}));
  EXPECT_EQ(result_of(1).outcome(), protocol::OUTCOME_LOST);
  EXPECT_TRUE(result_of(1).executor_died_alone());
  EXPECT_THAT(result_of(1).reason(), HasSubstr("exit code 0"));
}

TEST_F(AgentTest, BytesThatAreNoMessageEndTheExecutor) {
  start_agent();
  assign(run(1, {{"do", "garbage"}}));
  EXPECT_EQ(result_of(1).outcome(), protocol::OUTCOME_LOST);
  EXPECT_THAT(result_of(1).reason(), HasSubstr("no message"));
}

TEST_F(AgentTest, AnExecutorThatHangsIsKilledAndItCounts) {
  options_.executor_patience = 50ms;
  start_agent();
  assign(run(1, {{"do", "deaf"}}));
  EXPECT_EQ(result_of(1).outcome(), protocol::OUTCOME_LOST);
  EXPECT_TRUE(result_of(1).executor_died_alone());
  EXPECT_THAT(result_of(1).reason(), HasSubstr("said nothing for"));
}

TEST_F(AgentTest, AMemberForgottenByItsExecutorIsLost) {
  start_agent();
  assign(run(1, {{"do", "forget"}}, {"train:a", "train:b"}));
  EXPECT_EQ(result("train:a").outcome(), protocol::OUTCOME_DONE);
  EXPECT_EQ(result("train:b").outcome(), protocol::OUTCOME_LOST);
  wait_until([&] { return beat_.free_slots() == 1; });
}

TEST_F(AgentTest, WithoutAFreeSlotItRefuses) {
  start_agent();
  assign(run(1, {{"do", "wait"}}));
  assign(run(2, {{"do", "finish"}}));
  EXPECT_FALSE(reply_to(2).accepted());
  EXPECT_EQ(reply_to(2).reason(), "no free slot");
  EXPECT_TRUE(reply_to(1).accepted());
  wait_until([&] { return beat_.free_slots() == 0; });
  control(1, "cancel");
  wait_until([&] { return control_["train:1"] == "cancelled"; });
}

TEST_F(AgentTest, OnlyAHigherFenceGetsATaskAgain) {
  start_agent();
  assign(run(1, {{"do", "finish"}}, {"train:a"}, 5));
  EXPECT_EQ(result("train:a").outcome(), protocol::OUTCOME_DONE);
  for (const std::uint64_t fence : {4, 5})
    assign(run(fence, {{"do", "finish"}}, {"train:a"}, fence));
  for (const std::uint64_t fence : {4, 5}) {
    EXPECT_FALSE(reply_to(fence).accepted());
    EXPECT_EQ(reply_to(fence).reason(), "stale fence");
  }
  assign(run(6, {{"do", "finish"}}, {"train:a"}, 6));
  EXPECT_TRUE(reply_to(6).accepted());
}

TEST_F(AgentTest, AnAssignmentSaidTwiceIsOne) {
  start_agent();
  assign(run(1, {{"do", "wait"}}));
  assign(run(1, {{"do", "wait"}}));
  assign(run(2, {{"do", "wait"}}));  // answered last
  EXPECT_FALSE(reply_to(2).accepted());
  EXPECT_TRUE(reply_to(1).accepted());
  EXPECT_EQ(std::count(order_.begin(), order_.end(), MessageType::kAssignReply), 3);
  EXPECT_EQ(std::count(order_.begin(), order_.end(), MessageType::kStarted), 1);
}

TEST_F(AgentTest, ARunThatIsAnsweredMakesRoomBeforeItHasEnded) {
  start_agent();
  const auto until = folder_.path() / "end";
  assign(run(1, {{"do", "linger"}, {"until", until.string()}}));
  summary_of(1);
  assign(run(2, {{"do", "finish"}}));
  EXPECT_TRUE(reply_to(2).accepted()) << reply_to(2).reason();
  assign(run(3, {{"do", "finish"}}));
  EXPECT_FALSE(reply_to(3).accepted()) << "one may wait, not two";
  EXPECT_FALSE(started_.contains(2));
  std::ofstream(until) << "now";
  EXPECT_EQ(summary_of(2)["runs"], 2);
}

TEST_F(AgentTest, ARunThatWaitedSurvivesTheDeathOfTheExecutor) {
  start_agent();
  assign(run(1, {{"do", "linger"}, {"until", (folder_.path() / "never").string()}}));
  summary_of(1);
  assign(run(2, {{"do", "finish"}}));
  EXPECT_TRUE(reply_to(2).accepted());
  ASSERT_EQ(::kill(static_cast<pid_t>(started_[1].pid()), SIGSEGV), 0);
  EXPECT_EQ(summary_of(2)["runs"], 1);
  EXPECT_EQ(result_count_, 2) << "the first run had its answer";
}

TEST_F(AgentTest, ControlReachesItsRunOnly) {
  options_.slots = 2;
  start_agent();
  assign(run(1, {{"do", "wait"}}));
  assign(run(2, {{"do", "wait"}}));
  wait_until([&] { return started_.size() == 2; });
  control(2, "pause");
  wait_until([&] { return control_["train:2"] == "paused"; });
  EXPECT_EQ(checkpoints_["train:2"].checkpoint().step(), 42U);
  EXPECT_FALSE(checkpoints_.contains("train:1"));
  wait_until([&] { return beat_.free_slots() == 1; });
  control(77, "pause");
  wait_until([&] { return control_[""] == "not running"; });
}

TEST_F(AgentTest, OfProgressTheNewestArrivesAndNobodyWaits) {
  start_agent();
  constexpr std::uint64_t kMany = 20'000;
  assign(run(1, {{"do", "chatter"}, {"messages", kMany}}));
  summary_of(1);
  ASSERT_FALSE(progress_.empty());
  EXPECT_EQ(progress_.back().done(), kMany);
  EXPECT_LT(progress_.size(), kMany / 10);
  EXPECT_TRUE(std::is_sorted(progress_.begin(), progress_.end(),
                             [](const auto& a, const auto& b) { return a.done() < b.done(); }));
}

TEST_F(AgentTest, StoppingPausesWhatRuns) {
  options_.slots = 2;
  start_agent();
  assign(run(1, {{"do", "wait"}}, {"train:a", "train:b"}));
  assign(run(2, {{"do", "wait"}}, {"train:c"}));
  wait_until([&] { return started_.size() == 2; });
  stop_agent();
  EXPECT_TRUE(ended_);
  for (const char* task : {"train:a", "train:b", "train:c"}) {
    EXPECT_EQ(control_[task], "paused") << task;
    EXPECT_EQ(checkpoints_[task].reason(), "pause") << task;
  }
  EXPECT_TRUE(results_.empty());
  EXPECT_EQ(order_.back(), MessageType::kBye);
  for (const auto& [id, started] : started_)
    EXPECT_EQ(::kill(static_cast<pid_t>(started.pid()), 0), -1) << "an executor lives on";
}

TEST_F(AgentTest, WhatDoesNotPauseInTimeIsLostWithoutBlame) {
  options_.stop_patience = 50ms;
  start_agent();
  assign(run(1, {{"do", "deaf"}}));
  wait_until([&] { return started_.contains(1); });
  stop_agent();
  EXPECT_EQ(result_of(1).outcome(), protocol::OUTCOME_LOST);
  EXPECT_FALSE(result_of(1).executor_died_alone());
  EXPECT_TRUE(bye_);
}

TEST_F(AgentTest, ADeathWhileStoppingIsNobodysFault) {
  start_agent();
  assign(run(1, {{"do", "deaf"}}));
  wait_until([&] { return started_.contains(1); });
  agent_.request_stop();
  ASSERT_EQ(::kill(static_cast<pid_t>(started_[1].pid()), SIGSEGV), 0);
  EXPECT_EQ(result_of(1).outcome(), protocol::OUTCOME_LOST);
  EXPECT_FALSE(result_of(1).executor_died_alone());
}

TEST_F(AgentTest, TheSchedulersGoodbyeEndsIt) {
  start_agent();
  assign(run(1, {{"do", "wait"}}));
  wait_until([&] { return started_.contains(1); });
  send(MessageType::kBye, protocol::Bye(), false);
  wait_until([&] { return has_ended_.load(); });
  EXPECT_TRUE(ended_);
  wait_until([&] { return control_["train:1"] == "paused"; });
  is_mute_ = true;
}

TEST_F(AgentTest, ARefusalIsAnError) {
  rejects_ = true;
  start_agent();
  wait_until([&] { return has_ended_.load(); });
  ASSERT_FALSE(ended_);
  EXPECT_EQ(ended_.error().code, ErrorCode::kUnavailable);
  EXPECT_THAT(ended_.error().message, HasSubstr("no room for you"));
  is_mute_ = true;
}

TEST_F(AgentTest, ASchedulerThatVanishesEndsItAfterItsExecutorsPaused) {
  options_.scheduler_patience = 100ms;
  start_agent();
  assign(run(1, {{"do", "wait"}}));
  wait_until([&] { return started_.contains(1); });
  is_mute_ = true;
  wait_until([&] { return has_ended_.load(); });
  ASSERT_FALSE(ended_);
  EXPECT_EQ(ended_.error().code, ErrorCode::kUnavailable);
  EXPECT_THAT(ended_.error().message, HasSubstr("nothing heard from the scheduler"));
  EXPECT_EQ(::kill(static_cast<pid_t>(started_[1].pid()), 0), -1);
}

TEST_F(AgentTest, AnotherSchedulerHearsTheResultsThatNobodyAcknowledged) {
  acknowledges_ = false;
  start_agent();
  assign(run(1, {{"do", "finish"}}));
  summary_of(1);
  EXPECT_EQ(result_count_, 1);
  welcome();  // the same one again
  epoch_ = 2;
  acknowledges_ = true;
  welcome();
  wait_until([&] { return result_count_ == 2; });
  epoch_ = 3;
  welcome();
  assign(run(2, {{"do", "finish"}}));
  summary_of(2);
  EXPECT_EQ(result_count_, 3) << "acknowledged results are not said again";
}

TEST_F(AgentTest, ASchedulerThatBeganAnewIsToldWhatRunsAndItGoesOn) {
  options_.reconnect_spread = 0ms;
  start_agent();
  assign(run(1, {{"do", "wait"}}, {"train:1"}, 5));
  wait_until([&] { return started_.contains(1); });
  const int before = resync_count_;
  link_.reset();  // it dies, and another one listens at the same place
  link_.emplace(protocol::SchedulerLink::bind(options_.endpoint).value());
  epoch_ = 2;
  order_.clear();
  // It learns from the epoch of an answer that this one does not know it.
  wait_until([&] {
    protocol::HeartbeatAck ack;
    ack.set_epoch(epoch_);
    if (!order_.empty() && order_.back() == MessageType::kHeartbeat)
      send(MessageType::kHeartbeatAck, ack, false);
    return resync_count_ > before && resync_.epoch() == 2;
  });
  ASSERT_EQ(resync_.running_size(), 1);
  EXPECT_EQ(resync_.running(0).run_id(), 1u);
  EXPECT_EQ(resync_.running(0).task(), "train:1");
  EXPECT_EQ(resync_.running(0).fence(), 5u);
  EXPECT_EQ(resync_.finished_size(), 0);
  // Words are numbered anew, both ways.
  protocol::Control pause;
  pause.set_run_id(1);
  pause.set_verb("pause");
  send(MessageType::kControl, pause);
  wait_until([&] { return control_.contains("train:1"); });
  EXPECT_EQ(control_["train:1"], "paused");
}

TEST_F(AgentTest, TwoExecutorsHarvestEachChunkOnce) {
  options_.slots = 2;
  start_agent();
  constexpr std::uint64_t kChunks = 60;
  assign(run(1, {{"do", "chunks"}, {"count", kChunks}}));
  assign(run(2, {{"do", "chunks"}, {"count", kChunks}}));
  const Json first = summary_of(1), second = summary_of(2);
  EXPECT_EQ(first["wrong"], 0);
  EXPECT_EQ(second["wrong"], 0);
  EXPECT_EQ(first["harvested"].get<std::uint64_t>() + second["harvested"].get<std::uint64_t>(),
            kChunks);
  wait_until([&] { return beat_.counters().cache_hits() == kChunks; });
  EXPECT_EQ(beat_.counters().cache_misses(), kChunks);
  EXPECT_GT(beat_.counters().cache_bytes(), 0U);
}

TEST_F(AgentTest, WithoutACacheEverybodyHarvests) {
  std::filesystem::create_directories(options_.state_directory);
  std::ofstream(options_.state_directory / "cache") << "a file where the folder should be";
  start_agent();
  assign(run(1, {{"do", "chunks"}, {"count", 5}}));
  const Json summary = summary_of(1);
  EXPECT_EQ(summary["harvested"], 5);
  EXPECT_EQ(summary["wrong"], 0);
}

TEST_F(AgentTest, WhatAnExecutorHeldIsFreedByItsDeath) {
  options_.slots = 2;
  start_agent();
  assign(run(1, {{"do", "chunks"}, {"count", 3}, {"tokens", 1}}));
  summary_of(1);
  ASSERT_EQ(::kill(static_cast<pid_t>(started_[1].pid()), SIGKILL), 0);
  wait_until([&] { return ::kill(static_cast<pid_t>(started_[1].pid()), 0) != 0; });
  EXPECT_EQ(errno, ESRCH) << "a zombie is left";
  assign(run(2, {{"do", "chunks"}, {"count", 4}}));
  EXPECT_EQ(summary_of(2)["harvested"], 1) << "the cache outlives executors";
}

TEST_F(AgentTest, LeavesNoProcessAndNoDescriptorBehind) {
  const auto open_descriptors = [] {
    int count = 0;
    for (int i = 0; i < 1024; ++i) count += ::fcntl(i, F_GETFD) >= 0 ? 1 : 0;
    return count;
  };
  // A sanitizer starts a program of its own, to name what it reports.
  const auto children = [] {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
      std::string name, line;
      long parent = 0;
      std::ifstream status(entry.path() / "status");
      while (std::getline(status, line)) {
        if (line.starts_with("Name:\t")) name = line.substr(6);
        if (line.starts_with("PPid:\t")) parent = std::stol(line.substr(6));
      }
      if (parent == ::getpid() && name != "llvm-symbolizer") names.push_back(name);
    }
    return names;
  };
  options_.slots = 2;
  const int before = open_descriptors();
  start_agent();
  const int idle = open_descriptors();
  for (std::uint64_t i = 1; i <= 10; ++i) {
    assign(run(i, {{"do", "signal"}}));
    EXPECT_EQ(result_of(i).outcome(), protocol::OUTCOME_LOST);
  }
  EXPECT_LE(open_descriptors(), idle + 1) << "the log of the cache may be opened late";
  stop_agent();
  EXPECT_THAT(children(), IsEmpty());
  EXPECT_LE(open_descriptors(), before + 1) << "the accepted end of the agent's socket closes late";
}

TEST_F(AgentTest, AProgramThatIsNotThereIsSaidAtOnce) {
  options_.task_program = folder_.path() / "nothing";
  const auto agent = Agent::create(options_);
  ASSERT_FALSE(agent);
  EXPECT_EQ(agent.error().code, ErrorCode::kNotFound);
}

TEST_F(AgentTest, AnExecutorThatCannotBeStartedIsARefusalThatSaysWhy) {
  options_.task_program = folder_.path() / "task";
  std::ofstream(options_.task_program) << "no program";
  start_agent();
  assign(run(1, {{"do", "finish"}}));
  EXPECT_FALSE(reply_to(1).accepted());
  EXPECT_THAT(reply_to(1).reason(), HasSubstr(options_.task_program.string()));
}

}  // namespace
}  // namespace saesweep::agent
