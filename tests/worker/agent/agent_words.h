// A scheduler that does as a test says, and an agent in a thread.
#pragma once

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
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
#include "tests/support/temp_dir.h"
#include "worker/agent/agent.h"

namespace saesweep::agent {

using namespace std::chrono_literals;
using protocol::MessageType;

class AgentTest : public testing::Test {
 protected:
  AgentTest() {
    options_.endpoint = "ipc://" + (folder_.path() / "workers").string();
    options_.build = "test";
    options_.state_directory = folder_.path() / "state";
    options_.task_program = SAESWEEP_FAKE_TASK;
    link_.emplace(protocol::SchedulerLink::bind(options_.endpoint).value());
  }
  ~AgentTest() override {
    if (agent_.joinable()) stop_agent();
  }

  // Starts it and waits for its HELLO.
  void start_agent() {
    agent_ = std::jthread([this](const std::stop_token& stop) {
      {
        auto agent = Agent::create(options_);
        ended_ = agent ? agent->run(stop) : fail(agent.error());
      }
      has_ended_ = true;
    });
    wait_until([&] { return !peer_.empty(); });
  }
  void stop_agent() {
    agent_.request_stop();
    wait_until([&] { return has_ended_.load(); });
    agent_.join();
    wait_until([&] { return bye_ || is_mute_; });
  }

  // One turn of the scheduler: hears, and answers what always has an answer.
  void step() {
    const auto messages = link_->poll(10ms);
    link_->confirm();
    for (const auto& heard : messages) {
      if (is_mute_) continue;
      peer_ = heard.peer;
      order_.push_back(heard.type);
      switch (heard.type) {
        case MessageType::kHello:
          ASSERT_TRUE(protocol::parse_body(heard.body, hello_));
          if (rejects_) {
            protocol::Reject reject;
            reject.set_text("no room for you");
            send(MessageType::kReject, reject, false);
          } else {
            welcome();
          }
          break;
        case MessageType::kHeartbeat:
          ASSERT_TRUE(protocol::parse_body(heard.body, beat_));
          send(MessageType::kHeartbeatAck, protocol::HeartbeatAck(), false);
          break;
        case MessageType::kAssignReply: {
          protocol::AssignReply reply;
          ASSERT_TRUE(protocol::parse_body(heard.body, reply));
          replies_[reply.run_id()] = reply;
          break;
        }
        case MessageType::kStarted: {
          protocol::Started started;
          ASSERT_TRUE(protocol::parse_body(heard.body, started));
          started_[started.run_id()] = started;
          break;
        }
        case MessageType::kProgress: {
          protocol::Progress progress;
          ASSERT_TRUE(protocol::parse_body(heard.body, progress));
          progress_.push_back(progress);
          break;
        }
        case MessageType::kCheckpointed: {
          protocol::Checkpointed checkpointed;
          ASSERT_TRUE(protocol::parse_body(heard.body, checkpointed));
          checkpoints_[checkpointed.task()] = checkpointed;
          if (on_checkpoint_) on_checkpoint_(checkpointed);
          break;
        }
        case MessageType::kResult: {
          protocol::TaskResult result;
          ASSERT_TRUE(protocol::parse_body(heard.body, result));
          results_[result.task()] = result;
          ++result_count_;
          protocol::ResultAck ack;
          ack.set_task(result.task());
          ack.set_fence(result.fence());
          ack.set_verdict(verdict_of_ ? verdict_of_(result) : "committed");
          if (acknowledges_) send(MessageType::kResultAck, ack, true);
          break;
        }
        case MessageType::kControlDone: {
          protocol::ControlDone done;
          ASSERT_TRUE(protocol::parse_body(heard.body, done));
          control_[done.task()] = done.outcome();
          break;
        }
        case MessageType::kResync:
          ASSERT_TRUE(protocol::parse_body(heard.body, resync_));
          ++resync_count_;
          break;
        case MessageType::kBye:
          bye_ = true;
          break;
        default:
          ADD_FAILURE() << "an agent does not say " << protocol::to_string(heard.type);
      }
    }
  }
  void wait_until(const std::function<bool()>& condition) {
    const auto deadline = std::chrono::steady_clock::now() + 20s;
    while (!condition()) {
      step();
      if (HasFatalFailure()) return;
      if (std::chrono::steady_clock::now() > deadline)
        FAIL() << "waited in vain; the agent "
               << (has_ended_ ? (ended_ ? "ended" : ended_.error().message) : "runs");
    }
  }
  template <class Message>
  void send(MessageType type, const Message& message, bool reliable = true) {
    const auto sent = link_->send(peer_, type, message, reliable);
    EXPECT_TRUE(sent) << sent.error().message;
  }
  void welcome() {
    protocol::Welcome welcome;
    welcome.set_epoch(epoch_);
    welcome.set_heartbeat_ms(20);
    welcome.set_store_directory(store_directory_);
    welcome.set_store_token(store_token_);
    welcome.set_data_endpoint(data_endpoint_);
    send(MessageType::kWelcome, welcome, false);
  }

  static protocol::Run run(std::uint64_t id, const Json& spec,
                           const std::vector<std::string>& tasks = {}, std::uint64_t fence = 1) {
    protocol::Run run;
    run.set_run_id(id);
    run.set_cache_bytes(1 << 20);
    for (const std::string& task :
         tasks.empty() ? std::vector{"train:" + std::to_string(id)} : tasks) {
      auto& member = *run.add_members();
      member.set_task(task);
      member.set_fence(fence);
      member.set_spec(spec.dump());
    }
    return run;
  }
  void assign(const protocol::Run& run) {
    protocol::Assign assign;
    *assign.add_runs() = run;
    send(MessageType::kAssign, assign);
  }
  void control(std::uint64_t run, const std::string& verb) {
    protocol::Control control;
    control.set_run_id(run);
    control.set_verb(verb);
    send(MessageType::kControl, control);
  }
  // The answer to a task; that of a run with one member by default.
  const protocol::TaskResult& result(const std::string& task) {
    wait_until([&] { return results_.contains(task); });
    return results_[task];
  }
  const protocol::TaskResult& result_of(std::uint64_t run) {
    return result("train:" + std::to_string(run));
  }
  Json summary_of(std::uint64_t run) {
    const auto& answer = result_of(run);
    EXPECT_EQ(answer.outcome(), protocol::OUTCOME_DONE) << answer.reason();
    return answer.summary().empty() ? Json::object() : Json::parse(answer.summary());
  }
  const protocol::AssignReply& reply_to(std::uint64_t run) {
    wait_until([&] { return replies_.contains(run); });
    return replies_[run];
  }

  test::TempDir folder_;
  AgentOptions options_;
  std::optional<protocol::SchedulerLink> link_;
  std::string peer_;
  std::uint64_t epoch_ = 1;
  protocol::Resync resync_;
  int resync_count_ = 0;
  bool is_mute_ = false, rejects_ = false, acknowledges_ = true;
  // What WELCOME says of the store.
  std::string store_directory_, store_token_, data_endpoint_;
  std::function<std::string(const protocol::TaskResult&)> verdict_of_;
  std::function<void(const protocol::Checkpointed&)> on_checkpoint_;

  // What the agent said.
  protocol::Hello hello_;
  protocol::Heartbeat beat_;
  std::vector<MessageType> order_;
  std::map<std::uint64_t, protocol::AssignReply> replies_;
  std::map<std::uint64_t, protocol::Started> started_;
  std::vector<protocol::Progress> progress_;
  std::map<std::string, protocol::Checkpointed> checkpoints_;
  std::map<std::string, protocol::TaskResult> results_;
  int result_count_ = 0;
  std::map<std::string, std::string> control_;
  bool bye_ = false;

  std::atomic<bool> has_ended_ = false;
  Result<void> ended_;  // of run(), when has_ended_
  std::jthread agent_;
};

}  // namespace saesweep::agent
