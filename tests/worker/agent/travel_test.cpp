// An agent that does not see the scheduler's store: what it makes travels, and what it needs.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <functional>
#include <mutex>
#include <optional>
#include <string>

#include "core/digest.h"
#include "core/files.h"
#include "scheduler/protocol/data_port.h"
#include "scheduler/service/object_server.h"
#include "storage/object_store.h"
#include "tests/worker/agent/agent_words.h"

namespace saesweep::agent {
namespace {

namespace fs = std::filesystem;
using protocol::DataReply;
using protocol::DataRequest;
using testing::HasSubstr;

const std::string kTrial = "trials/0123456789ab";

class TravelTest : public AgentTest {
 protected:
  TravelTest() {
    options_.outlives_scheduler = true;
    options_.data_patience = {.again = 50ms, .give_up = 300ms};
    store_directory_ = (folder_.path() / "elsewhere").string();
    store_token_ = "token";
    data_endpoint_ = "ipc://" + (folder_.path() / "data").string();
    serve_data();
    on_checkpoint_ = [this](const protocol::Checkpointed& heard) {
      EXPECT_TRUE(heard.travelled());
      EXPECT_TRUE(there_.contains(heard.checkpoint().path())) << "said before it was there";
      ++checkpoint_count_;
    };
    verdict_of_ = [this](const protocol::TaskResult& result) {
      for (const auto& artifact : result.artifacts())
        if (!there_.contains("artifacts/" + artifact.sha256())) return "missing";
      return "committed";
    };
  }

  void serve_data() {
    server_.reset();
    server_.emplace(std::move(
        protocol::DataServer::start(data_endpoint_, {}, [this](const DataRequest& request) {
          return answer(request);
        }).value()));
  }
  // In the server's thread.
  DataReply answer(const DataRequest& request) {
    const std::lock_guard lock(mutex_);
    if (disturb_)
      if (auto other = disturb_(request)) return *other;
    return scheduler::answer_data_request(there_, request, &files_);
  }
  void disturb(std::function<std::optional<DataReply>(const DataRequest&)> how) {
    const std::lock_guard lock(mutex_);
    disturb_ = std::move(how);
  }
  static protocol::Run trial(std::uint64_t id, const Json& spec, std::uint64_t fence = 1) {
    protocol::Run made = run(id, spec, {"train:a"}, fence);
    made.mutable_members(0)->set_trial_directory(kTrial);
    return made;
  }
  static std::string text_of(const fs::path& file) {
    std::ifstream in(file, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }

  scheduler::SweepFiles files_;
  storage::ObjectStore there_ = storage::ObjectStore::open(folder_.path() / "there").value();
  std::mutex mutex_;
  std::function<std::optional<DataReply>(const DataRequest&)> disturb_;  // under mutex_
  std::optional<protocol::DataServer> server_;
  int checkpoint_count_ = 0;
};

TEST_F(TravelTest, WhatARunMakesIsThereBeforeItIsSaid) {
  start_agent();
  assign(trial(1, {{"do", "train"}, {"checkpoints", 2}, {"text", "an SAE"}}));
  const auto& done = result("train:a");
  EXPECT_TRUE(done.travelled());
  EXPECT_EQ(text_of(there_.root() / "artifacts" / sha256("an SAE").hex()), "an SAE");
  wait_until([&] { return beat_.running() == 0 && beat_.free_slots() == 1; });
  EXPECT_EQ(result_count_, 1);
}

TEST_F(TravelTest, ARunGoesOnFromACheckpointThatAnotherAgentMade) {
  const std::string path = kTrial + "/f1/step-7";
  fs::create_directories(there_.root() / path);
  std::ofstream(there_.root() / path / "state.txt") << "so far";
  const std::string input = sha256("input").hex();
  std::ofstream(there_.root() / "artifacts" / input) << "input";
  start_agent();
  protocol::Run wanted = trial(1, {{"do", "train"}, {"checkpoints", 1}}, 2);
  wanted.mutable_members(0)->mutable_resume()->set_path(path);
  wanted.mutable_members(0)->mutable_resume()->set_step(7);
  wanted.mutable_members(0)->add_inputs()->set_sha256(input);
  assign(wanted);
  const Json found = Json::parse(result("train:a").summary());
  EXPECT_EQ(found["resumed"], "so far");
  EXPECT_EQ(found["inputs"][0], "input");
}

TEST_F(TravelTest, WhatIsNotOverThereIsLeftOut) {
  start_agent();
  protocol::Run wanted = trial(1, {{"do", "train"}}, 2);
  wanted.mutable_members(0)->mutable_resume()->set_path(kTrial + "/f1/step-7");
  wanted.mutable_members(0)->add_inputs()->set_sha256(sha256("nothing").hex());
  assign(wanted);
  EXPECT_EQ(Json::parse(result("train:a").summary())["resumed"], "");
}

// The model lies on the scheduler's machine alone: where its path was, the spec names a copy.
TEST_F(TravelTest, FilesThatTheSweepNamesComeAlong) {
  options_.data_patience = {.again = 10s, .give_up = 20s};  // nothing is asked twice
  const fs::path model = folder_.path() / "model";
  fs::create_directories(model);
  std::ofstream(model / "config.json") << "{}";
  journal::TaskSpec planned;
  planned.set_spec(canonical_json({{"model", {{"path", model.string()}}}}));
  files_.add(planned);
  std::atomic<bool> is_moved = false;
  disturb([&](const DataRequest& request) -> std::optional<DataReply> {
    // Out of the agent's sight, and back while the scheduler reads.
    if (!is_moved) return std::nullopt;
    fs::rename(folder_.path() / "gone", model);
    DataReply reply = scheduler::answer_data_request(there_, request, &files_);
    fs::rename(model, folder_.path() / "gone");
    return reply;
  });
  fs::rename(model, folder_.path() / "gone");
  is_moved = true;
  start_agent();
  assign(trial(1, {{"do", "train"}, {"model", {{"path", model.string()}}}}));
  const Json seen = Json::parse(result("train:a").summary())["spec"];
  const fs::path copy = seen["model"]["path"].get<std::string>();
  EXPECT_NE(copy, model);
  EXPECT_EQ(text_of(copy / "config.json"), "{}");
}

TEST_F(TravelTest, AFileThatIsNowhereIsNamed) {
  start_agent();
  assign(trial(1, {{"do", "train"}, {"model", {{"path", "/nowhere/model"}}}}));
  EXPECT_EQ(result("train:a").outcome(), protocol::OUTCOME_RETRY);
  EXPECT_THAT(results_["train:a"].reason(), HasSubstr("/nowhere/model"));
  wait_until([&] { return beat_.free_slots() == 1; });
}

TEST_F(TravelTest, WhatExecutorsPrintIsReadOverThere) {
  start_agent();
  assign(trial(1, {{"do", "train"}, {"say", "step 1\n"}}));
  result("train:a");
  wait_until([&] { return text_of(there_.root() / "logs" / "run-1.log") == "step 1\n"; });
  wait_until([&] { return !fs::exists(options_.state_directory / "logs" / "run-1.log"); });
}

// The disk over there is full: nothing fails, the words wait, and other runs pass by.
TEST_F(TravelTest, AFullDiskOverThereIsWaitedForAndHoldsNobodyUp) {
  options_.slots = 2;
  std::atomic<int> refused = 0;
  disturb([&](const DataRequest& request) -> std::optional<DataReply> {
    if (!request.has_write()) return std::nullopt;
    ++refused;
    DataReply full;
    full.set_status(protocol::DATA_STATUS_FULL);
    full.set_problem("no space left");
    return full;
  });
  start_agent();
  assign(trial(1, {{"do", "train"}, {"checkpoints", 1}, {"text", "an SAE"}}));
  assign(run(2, {{"do", "finish"}}));
  summary_of(2);
  wait_until([&] { return refused >= 2; });
  wait_until([&] { return beat_.running() == 1; });
  EXPECT_EQ(beat_.free_slots(), 2u) << "its executor is not held up";
  EXPECT_FALSE(results_.contains("train:a"));
  disturb({});
  EXPECT_EQ(result("train:a").outcome(), protocol::OUTCOME_DONE);
}

TEST_F(TravelTest, OfCheckpointsThatWaitTheNewestIsSent) {
  std::atomic<bool> is_open = false;
  disturb([&](const DataRequest&) -> std::optional<DataReply> {
    if (is_open) return std::nullopt;
    DataReply later;
    later.set_status(protocol::DATA_STATUS_UNAVAILABLE);
    return later;
  });
  start_agent();
  const fs::path until = folder_.path() / "end";
  assign(trial(1, {{"do", "train"}, {"checkpoints", 20}, {"until", until.string()}}));
  const fs::path held = options_.state_directory / "outgoing" / kTrial / "f1";
  wait_until([&] { return fs::exists(held / "step-20"); });
  // Older ones are let go, but for one that is on its way.
  wait_until([&] { return std::distance(fs::directory_iterator(held), {}) <= 2; });
  is_open = true;
  wait_until([&] { return checkpoints_["train:a"].checkpoint().step() == 20; });
  EXPECT_LE(checkpoint_count_, 2);
  std::ofstream(until) << "now";
  result("train:a");
  EXPECT_FALSE(fs::exists(options_.state_directory / "outgoing" / kTrial));
}

TEST_F(TravelTest, APieceThatIsDamagedOnTheWayIsSentAgain) {
  std::atomic<int> damaged = 0;
  disturb([&](const DataRequest& request) -> std::optional<DataReply> {
    if (!request.has_write() || damaged++ > 0) return std::nullopt;
    DataRequest other = request;
    other.mutable_write()->mutable_data()->front() ^= 1;
    return scheduler::answer_data_request(there_, other);
  });
  start_agent();
  assign(trial(1, {{"do", "train"}, {"text", "an SAE"}}));
  result("train:a");
  EXPECT_EQ(text_of(there_.root() / "artifacts" / sha256("an SAE").hex()), "an SAE");
  EXPECT_GE(damaged, 2);
}

TEST_F(TravelTest, AnotherPortIsAnnouncedAnew) {
  server_.reset();
  start_agent();
  assign(trial(1, {{"do", "train"}, {"text", "an SAE"}}));
  wait_until([&] { return beat_.running() == 1; });
  data_endpoint_ = "ipc://" + (folder_.path() / "data-2").string();
  serve_data();
  welcome();
  EXPECT_EQ(result("train:a").outcome(), protocol::OUTCOME_DONE);
}

TEST_F(TravelTest, WhatTheStoreHasLostIsSentOnceMore) {
  std::atomic<int> asked = 0;
  verdict_of_ = [&](const protocol::TaskResult& said) -> std::string {
    const std::string name = "artifacts/" + said.artifacts(0).sha256();
    if (++asked == 1) {
      fs::remove(there_.root() / name);
      return "missing";
    }
    return there_.contains(name) ? "committed" : "missing";
  };
  start_agent();
  assign(trial(1, {{"do", "train"}, {"text", "an SAE"}}));
  wait_until([&] { return result_count_ == 2; });
  EXPECT_TRUE(there_.contains("artifacts/" + sha256("an SAE").hex()));
}

TEST_F(TravelTest, AResultOutlivesItsAgentAndIsSaidUntilItIsAnswered) {
  server_.reset();  // nothing can be handed over
  options_.stop_patience = 50ms;
  start_agent();
  assign(trial(1, {{"do", "train"}, {"text", "an SAE"}}, 3));
  wait_until([&] { return beat_.running() == 1 && beat_.free_slots() == 1; });
  stop_agent();
  EXPECT_FALSE(results_.contains("train:a"));

  has_ended_ = false;
  bye_ = false;
  peer_.clear();
  serve_data();
  start_agent();
  EXPECT_EQ(result("train:a").fence(), 3u);
  EXPECT_TRUE(there_.contains("artifacts/" + sha256("an SAE").hex()));
  const fs::path outbox = options_.state_directory / "outbox";
  wait_until([&] { return fs::is_empty(outbox); });
}

TEST_F(TravelTest, ALeaseThatIsLostIsHandedOverNoMore) {
  server_.reset();
  start_agent();
  assign(trial(1, {{"do", "train"}, {"text", "an SAE"}}));
  wait_until([&] { return beat_.running() == 1 && beat_.free_slots() == 1; });
  protocol::Control cancel;
  cancel.set_run_id(1);
  cancel.set_task("train:a");
  cancel.set_fence(1);
  cancel.set_verb("cancel");
  send(MessageType::kControl, cancel);
  wait_until([&] { return control_.contains("train:a") && beat_.running() == 0; });
  EXPECT_TRUE(fs::is_empty(options_.state_directory / "outbox"));
  serve_data();
  stop_agent();
  EXPECT_FALSE(results_.contains("train:a"));
}

TEST_F(TravelTest, ARunThatStillFetchesIsGivenBackWhenItIsPaused) {
  server_.reset();
  start_agent();
  protocol::Run wanted = trial(1, {{"do", "train"}}, 2);
  wanted.mutable_members(0)->mutable_resume()->set_path(kTrial + "/f1/step-7");
  assign(wanted);
  wait_until([&] { return beat_.running() == 1; });
  EXPECT_FALSE(started_.contains(1));
  control(1, "pause");
  EXPECT_EQ(result("train:a").outcome(), protocol::OUTCOME_LOST);
  EXPECT_FALSE(results_["train:a"].executor_died_alone());
  wait_until([&] { return beat_.free_slots() == 1; });
}

TEST_F(TravelTest, AnotherSchedulersCheckpointsAreRemoved) {
  const fs::path old = options_.state_directory / kTrial / "f9/step-1";
  fs::create_directories(old);
  std::ofstream(options_.state_directory / "served-by") << "another";
  start_agent();
  wait_until([&] { return beat_.free_slots() == 1; });
  EXPECT_FALSE(fs::exists(old));
}

TEST_F(TravelTest, WithoutADataPortItSaysWhatWouldBeRight) {
  data_endpoint_.clear();
  start_agent();
  wait_until([&] { return has_ended_.load(); });
  ASSERT_FALSE(ended_);
  EXPECT_THAT(ended_.error().message, HasSubstr("--data-listen"));
  is_mute_ = true;
}

}  // namespace
}  // namespace saesweep::agent
