// A scheduler without socket, clock and disk: what is said to it is decided and applied at once,
// and the rules are checked after every step.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <chrono>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "scheduler/decisions/decide.h"
#include "scheduler/decisions/recount.h"

namespace saesweep::scheduler {

inline journal::TaskSpec train_spec(const std::string& id, const std::string& group = "g",
                                    std::uint64_t memory_bytes = 100) {
  journal::TaskSpec spec;
  spec.set_id("train:" + id);
  spec.set_kind(protocol::TASK_KIND_TRAIN);
  spec.set_spec("{}");
  spec.set_group(group);
  spec.set_memory_bytes(memory_bytes);
  spec.set_directory("trials/" + id);
  spec.set_tokens(1000);
  return spec;
}

inline journal::TaskSpec evaluate_spec(const std::string& id, const std::string& needs,
                                       const std::string& group = "e") {
  journal::TaskSpec spec;
  spec.set_id("eval:" + id);
  spec.set_kind(protocol::TASK_KIND_EVALUATE);
  spec.set_spec(R"({"subject":"trial"})");
  spec.set_group(group);
  spec.set_needs(needs);
  return spec;
}

// A sweep of trials, each trained and scored once; an id that begins with '-' is a baseline, which
// is only scored.
inline Submission sweep_of(const std::vector<std::string>& ids, const std::string& name = "s",
                           const std::string& group = "g") {
  Submission submission;
  submission.sweep.set_name(name);
  submission.sweep.set_memory_bytes(1'000'000);
  submission.sweep.set_checkpoint_every_s(60);
  std::uint32_t number = 0;
  for (const std::string& id : ids) {
    auto& subject = *submission.sweep.add_subjects();
    subject.set_identity(id);
    subject.set_spec("{}");
    subject.set_baseline(id[0] == '-');
    if (!subject.baseline()) {
      subject.set_number(number++);
      subject.set_train_task("train:" + id);
      submission.tasks.push_back(train_spec(id, group));
    }
    subject.add_evaluate_tasks("eval:" + id);
    submission.tasks.push_back(evaluate_spec(id, subject.train_task()));
  }
  return submission;
}

inline std::vector<std::string> ids(int count, const std::string& prefix = "t") {
  std::vector<std::string> all;
  for (int i = 0; i < count; ++i) all.push_back(fmt::format("{}{:02}", prefix, i));
  return all;
}

class World {
 public:
  SweepState state;
  std::vector<journal::Event> log;
  TimePoint now{std::chrono::hours(1)};
  std::optional<Error> halt;
  std::optional<Answer> answer;  // to the last that was heard

  World() { hear("", ProcessBegins{}); }

  // Decides, applies, checks. The replies to everybody.
  std::vector<Reply> hear(const std::string& peer, Heard heard) {
    Decision decision = decide(state, {peer, std::move(heard)}, now);
    for (journal::Event& event : decision.events) {
      if (!is_passing(event)) {
        event.set_sequence(state.meta().last_event() + 1);
        event.set_time(1000.0 + static_cast<double>(log.size()));
        log.push_back(event);
      }
      EXPECT_EQ(broken_decision(state, event), "");
      state.apply(event);
      EXPECT_EQ(state.broken_invariant(), "") << event.ShortDebugString();
    }
    if (decision.halt) halt = decision.halt;
    answer = std::move(decision.answer);
    return std::move(decision.replies);
  }

  void join(const std::string& worker, std::uint32_t slots = 1, std::uint64_t memory_bytes = 0,
            std::uint32_t gpus = 0, std::uint64_t gpu_memory_bytes = 0) {
    protocol::Hello hello;
    hello.set_gpus(gpus);
    hello.set_gpu_memory_bytes(gpu_memory_bytes);
    hello.set_worker_name(worker);
    hello.set_slots(slots);
    hello.set_memory_bytes(memory_bytes);
    hear(worker, hello);
  }
  void beat(const std::string& worker, std::uint32_t free_slots) {
    protocol::Heartbeat heartbeat;
    heartbeat.set_free_slots(free_slots);
    hear(worker, heartbeat);
  }

  // The runs that a tick hands out, by worker.
  std::vector<std::pair<std::string, protocol::Run>> tick(Duration later = {}) {
    now += later;
    std::vector<std::pair<std::string, protocol::Run>> runs;
    for (const Reply& reply : hear("", Tick{}))
      if (const auto* assign = std::get_if<protocol::Assign>(&reply.body))
        for (const auto& run : assign->runs()) runs.emplace_back(reply.peer, run);
    return runs;
  }
  // Time passes, and every worker lives.
  void wait(Duration time) {
    now += time;
    for (const auto& [session, worker] : std::map(state.workers()))
      if (!worker.lost) hear(session, protocol::Started());
  }
  // The one run that is handed out, after a while, and accepted.
  protocol::Run run(Duration later = {}) {
    if (later > Duration::zero()) wait(later);
    const auto runs = tick();
    EXPECT_EQ(runs.size(), 1u);
    if (runs.size() != 1) return {};
    accept(runs[0].first, runs[0].second);
    return runs[0].second;
  }
  void accept(const std::string& worker, const protocol::Run& run) {
    protocol::AssignReply reply;
    reply.set_run_id(run.run_id());
    reply.set_accepted(true);
    hear(worker, reply);
  }

  static protocol::TaskResult result(const protocol::Run& run, const protocol::Member& member,
                                     protocol::Outcome outcome, const std::string& reason = "") {
    protocol::TaskResult result;
    result.set_run_id(run.run_id());
    result.set_task(member.task());
    result.set_fence(member.fence());
    result.set_outcome(outcome);
    result.set_reason(reason);
    if (outcome == protocol::OUTCOME_DONE) {
      result.set_summary(R"({"tokens":1000})");
      auto& artifact = *result.add_artifacts();
      artifact.set_name("sae.safetensors");
      artifact.set_sha256("digest of " + member.task());
    }
    return result;
  }
  // The verdict on a result.
  std::string say(const std::string& worker, protocol::TaskResult result,
                  bool artifacts_are_there = true) {
    const auto replies = hear(worker, ResultHeard{std::move(result), artifacts_are_there});
    EXPECT_EQ(replies.size(), 1u);
    const auto* ack =
        replies.empty() ? nullptr : std::get_if<protocol::ResultAck>(&replies.back().body);
    return ack == nullptr ? "no answer" : ack->verdict();
  }
  std::string done(const std::string& worker, const protocol::Run& run, int member) {
    return say(worker, result(run, run.members(member), protocol::OUTCOME_DONE));
  }
  void finish(const std::string& worker, const protocol::Run& run) {
    for (int i = 0; i < run.members_size(); ++i) EXPECT_EQ(done(worker, run, i), "committed");
    beat(worker, state.workers().at(worker).slots);
  }
  void die(const std::string& worker, const protocol::Run& run, bool alone = true) {
    for (const auto& member : run.members()) {
      if (!is_leased(task(member.task()))) continue;
      auto lost = result(run, member, protocol::OUTCOME_LOST, "signal 11");
      lost.set_executor_died_alone(alone);
      say(worker, lost);
    }
    beat(worker, state.workers().at(worker).slots);
  }
  void checkpoint(const std::string& worker, const protocol::Run& run, int member,
                  std::uint64_t step) {
    protocol::Checkpointed heard;
    heard.set_run_id(run.run_id());
    heard.set_task(run.members(member).task());
    heard.set_fence(run.members(member).fence());
    heard.mutable_checkpoint()->set_path(fmt::format("step-{}", step));
    heard.mutable_checkpoint()->set_step(step);
    hear(worker, heard);
  }

  // The whole of a person's word, answered.
  Json command(const std::string& verb, const std::string& sweep = "s",
               std::vector<std::string> trials = {}) {
    replies = hear("", SweepCommand{sweep, verb, std::move(trials)});
    EXPECT_TRUE(answer.has_value());
    if (!answer) return {};
    EXPECT_FALSE(answer->error) << answer->error->message;
    return answer->details;
  }
  std::vector<Reply> replies;                                          // to the last command
  std::vector<std::pair<std::string, std::string>> controls() const {  // verb, task
    std::vector<std::pair<std::string, std::string>> all;
    for (const Reply& reply : replies)
      if (const auto* control = std::get_if<protocol::Control>(&reply.body))
        all.emplace_back(control->verb(), control->task());
    return all;
  }
  void controlled(const std::string& worker, const protocol::Run& run, int member,
                  const std::string& outcome) {
    protocol::ControlDone done;
    done.set_run_id(run.run_id());
    done.set_task(run.members(member).task());
    done.set_fence(run.members(member).fence());
    done.set_outcome(outcome);
    hear(worker, done);
  }
  // The scheduler dies and comes back with what the journal has, `adopt`ing what runs.
  void restart() {
    SweepState stored;
    stored.load(state.meta());
    for (const auto& [name, sweep] : state.sweeps()) stored.load(sweep);
    for (const auto& [id, entry] : state.tasks()) stored.load(entry.task);
    for (const auto& [id, run] : state.runs()) stored.load(run);
    stored.settle_indexes();
    state = std::move(stored);
    hear("", ProcessBegins{.adopt = true});
  }
  std::string outcome(int row, const std::string& sweep = "s") const {
    return outcome_of(state, state.sweeps().at(sweep), state.sweeps().at(sweep).subjects(row))
        .state;
  }
  std::vector<std::string> codes(const std::string& task) const {
    std::vector<std::string> all;
    const Json explained = explain(state, task, now);
    for (const Json& reason : explained["reasons"]) all.push_back(reason["code"]);
    return all;
  }

  const journal::Task& task(const std::string& id) const { return *state.find_task(id); }
};

inline std::vector<std::string> members_of(const protocol::Run& run) {
  std::vector<std::string> tasks;
  for (const auto& member : run.members()) tasks.push_back(member.task());
  return tasks;
}

}  // namespace saesweep::scheduler
