// A plan without files, and an agent that does what a test says.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "core/thread.h"
#include "scheduler/protocol/link.h"
#include "scheduler/protocol/messages.pb.h"
#include "scheduler/service/scheduler_service.h"
#include "storage/artifacts.h"
#include "sweeps/sweep_plan.h"

namespace saesweep::scheduler {

inline sweeps::SweepPlan plan_of(const std::vector<std::uint64_t>& ks,
                                 const std::string& name = "widths") {
  sweeps::SweepPlan plan;
  plan.name = name;
  plan.effective_yaml = "name: " + name + "\n";
  sweeps::StreamSpec stream;
  stream.model = sweeps::ModelSpec{.name = "m", .path = "/m", .digest = std::string(64, 'a')};
  stream.data.source = "othello";
  stream.data.games = 1000;
  stream.hook = "blocks.1.hook_resid_post";
  stream.tokens = 1000;
  plan.streams.push_back({.spec = stream, .d_in = 8});
  for (const std::uint64_t k : ks) {
    sweeps::TrialSpec spec{.stream = stream, .training = {}};
    spec.training.recipe = "saebench-v1";
    spec.training.d_sae = 64;
    spec.training.k = k;
    spec.training.tokens = 1000;
    spec.training.batch = 10;
    spec.training.lr = 1e-3;
    plan.trials.push_back({.number = static_cast<std::uint32_t>(plan.trials.size()),
                           .spec = spec,
                           .identity = spec.identity()});
  }
  sweeps::BaselineSpec pca{.name = "pca", .hook = stream.hook, .stream = stream, .training = {}};
  plan.baselines.push_back({.spec = pca, .identity = pca.identity()});
  plan.evaluations = {{.kind = "board", .tokens = 0, .games = 100},
                      {.kind = "core", .tokens = 100, .games = 0}};
  plan.checkpoint_every_s = 0.5;
  return plan;
}

class FakeAgent {
 public:
  // What becomes of a member of a run. The default trains, checkpoints and scores.
  using Behaviour = std::function<void(FakeAgent&, const protocol::Run&, const protocol::Member&)>;

  FakeAgent(std::string endpoint, std::filesystem::path state, Behaviour behaviour = {},
            std::uint32_t slots = 1)
      : state_(std::move(state)),
        artifacts_(storage::Artifacts::open(state_ / "artifacts").value()),
        behaviour_(behaviour ? std::move(behaviour) : Behaviour(&FakeAgent::succeed)),
        slots_(slots),
        thread_(run_thread("agent",
                           [this, endpoint](std::stop_token stop) { serve(endpoint, stop); })) {}

  // The service is over: one that it never heard is not told so.
  void join() {
    thread_.request_stop();
    thread_.join();
  }
  std::uint64_t runs() const { return runs_; }
  std::uint64_t trained() const { return trained_; }
  std::uint64_t scored() const { return scored_; }
  std::uint64_t pauses() const { return pauses_; }

  // ---- for behaviours, in the agent's thread
  template <class Body>
  void say(protocol::MessageType type, const Body& body) {
    EXPECT_TRUE(link_->send(type, body, true));
  }
  protocol::Artifact keep(const std::string& name, const std::string& bytes) {
    const Sha256 digest = artifacts_.put(std::as_bytes(std::span(bytes))).value();
    protocol::Artifact artifact;
    artifact.set_name(name);
    artifact.set_sha256(digest.hex());
    artifact.set_bytes(bytes.size());
    return artifact;
  }
  static protocol::TaskResult result(const protocol::Run& run, const protocol::Member& member,
                                     protocol::Outcome outcome, const std::string& reason = "") {
    protocol::TaskResult result;
    result.set_run_id(run.run_id());
    result.set_task(member.task());
    result.set_fence(member.fence());
    result.set_outcome(outcome);
    result.set_reason(reason);
    return result;
  }
  void checkpoint(const protocol::Run& run, const protocol::Member& member, std::uint64_t step) {
    const std::string path =
        fmt::format("{}/f{}/step-{}", member.trial_directory(), member.fence(), step);
    std::filesystem::create_directories(state_ / path);
    protocol::Checkpointed checkpointed;
    checkpointed.set_run_id(run.run_id());
    checkpointed.set_task(member.task());
    checkpointed.set_fence(member.fence());
    checkpointed.mutable_checkpoint()->set_path(path);
    checkpointed.mutable_checkpoint()->set_step(step);
    checkpointed.mutable_checkpoint()->set_tokens(10 * step);
    say(protocol::MessageType::kCheckpointed, checkpointed);
  }
  void succeed(const protocol::Run& run, const protocol::Member& member) {
    auto done = result(run, member, protocol::OUTCOME_DONE);
    if (member.kind() == protocol::TASK_KIND_EVALUATE) {
      ++scored_;
      done.set_summary(R"({"scores":{}})");
      *done.add_artifacts() = keep("scores-details.json", member.task());
    } else if (member.kind() == protocol::TASK_KIND_TRAIN_LM) {
      done.set_summary(R"({"cross_entropy":1.5})");
      *done.add_artifacts() = keep("model.safetensors", "weights");
    } else {
      ++trained_;
      checkpoint(run, member, 50);
      done.set_summary(R"({"tokens":1000})");
      *done.add_artifacts() = keep("sae.safetensors", member.task());
      *done.add_artifacts() = keep("config.json", "{}");
    }
    say(protocol::MessageType::kResult, done);
  }

 private:
  void serve(const std::string& endpoint, const std::stop_token& stop) {
    using protocol::MessageType;
    protocol::WorkerLink link = protocol::WorkerLink::connect(endpoint).value();
    link_ = &link;
    protocol::Hello hello;
    hello.set_worker_name("fake");
    hello.set_slots(slots_);
    (void)link.send(MessageType::kHello, hello, false);
    while (!stop.stop_requested()) {
      for (const auto& heard : link.poll(std::chrono::milliseconds(10)).heard) {
        if (heard.type == MessageType::kBye) return;
        if (heard.type == MessageType::kAssign) {
          protocol::Assign assign;
          EXPECT_TRUE(protocol::parse_body(heard.body, assign));
          for (const auto& run : assign.runs()) take(run);
        }
        if (heard.type == MessageType::kControl) {
          protocol::Control control;
          EXPECT_TRUE(protocol::parse_body(heard.body, control));
          pause(control);
        }
      }
      protocol::Heartbeat beat;
      beat.set_free_slots(slots_ - static_cast<std::uint32_t>(held_.size()));
      beat.mutable_counters()->set_tokens_trained(1000 * trained_);
      (void)link.send(MessageType::kHeartbeat, beat, false);
    }
  }
  void take(const protocol::Run& run) {
    ++runs_;
    protocol::AssignReply reply;
    reply.set_run_id(run.run_id());
    reply.set_accepted(true);
    say(protocol::MessageType::kAssignReply, reply);
    for (const auto& member : run.members()) behaviour_(*this, run, member);
  }
  // Of runs that a behaviour holds on to.
  void pause(const protocol::Control& control) {
    const auto held = held_.find(control.run_id());
    if (held == held_.end()) return;
    for (const auto& member : held->second.members()) {
      ++pauses_;
      checkpoint(held->second, member, 70);
      protocol::ControlDone done;
      done.set_run_id(control.run_id());
      done.set_task(member.task());
      done.set_fence(member.fence());
      done.set_verb(control.verb());
      done.set_outcome("paused");
      say(protocol::MessageType::kControlDone, done);
    }
    held_.erase(held);
  }

 public:
  // For behaviours: the run goes on until somebody pauses it.
  void hold(const protocol::Run& run) { held_[run.run_id()] = run; }

 private:
  std::filesystem::path state_;
  storage::Artifacts artifacts_;
  Behaviour behaviour_;
  std::uint32_t slots_;
  std::map<std::uint64_t, protocol::Run> held_;
  std::atomic<std::uint64_t> runs_ = 0, trained_ = 0, scored_ = 0, pauses_ = 0;
  protocol::WorkerLink* link_ = nullptr;  // of its thread
  std::jthread thread_;                   // last: it uses all of the above
};

}  // namespace saesweep::scheduler
