// A bad week in a second: workers that die, fall silent, repeat themselves and speak of old leases,
// a scheduler that is killed now and then. Every trial finishes exactly once.
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "core/philox.h"
#include "tests/scheduler/decisions/decisions_words.h"

namespace saesweep::scheduler {
namespace {

using namespace std::chrono_literals;

class Week : public testing::TestWithParam<int> {
 protected:
  struct Job {
    protocol::Run run;
    std::set<std::string> open;
  };
  struct Agent {
    std::uint32_t slots = 1;
    std::map<std::uint64_t, Job> jobs;
    bool silent = false;
  };

  World world;
  Rng rng{static_cast<std::uint64_t>(GetParam()), "test.week"};
  std::map<std::string, Agent> agents;
  std::vector<std::pair<std::string, protocol::TaskResult>> said;  // to be repeated
  std::set<std::string> poison;                                    // kills its executor
  int next_agent = 0;

  bool chance(std::uint32_t one_in) { return rng.below(one_in) == 0; }

  void add_agent() {
    const std::string name = fmt::format("w{}", next_agent++);
    agents[name].slots = 1 + rng.below(3);
    world.join(name, agents[name].slots, 1000);
  }
  void beat(const std::string& name) {
    const Agent& agent = agents.at(name);
    world.beat(name, agent.slots - static_cast<std::uint32_t>(agent.jobs.size()));
  }
  void take(const std::vector<Reply>& replies) {
    for (const Reply& reply : replies) {
      const auto found = agents.find(reply.peer);
      if (found == agents.end()) continue;
      Agent& agent = found->second;
      if (const auto* control = std::get_if<protocol::Control>(&reply.body)) {
        const auto job = agent.jobs.find(control->run_id());
        if (job == agent.jobs.end()) continue;
        job->second.open.erase(control->task());
        if (job->second.open.empty()) agent.jobs.erase(job);
        continue;
      }
      const auto* assign = std::get_if<protocol::Assign>(&reply.body);
      if (assign == nullptr) continue;
      for (const auto& run : assign->runs()) {
        protocol::AssignReply answer;
        answer.set_run_id(run.run_id());
        answer.set_accepted(agent.jobs.size() < agent.slots && !chance(20));
        answer.set_reason("no room");
        if (answer.accepted()) {
          const auto members = members_of(run);
          agent.jobs[run.run_id()] = {run, {members.begin(), members.end()}};
        }
        world.hear(reply.peer, answer);
      }
    }
  }
  const protocol::Member& member_of(const protocol::Run& run, const std::string& task) {
    for (const auto& member : run.members())
      if (member.task() == task) return member;
    std::abort();
  }
  void say(const std::string& agent, const protocol::TaskResult& result) {
    said.emplace_back(agent, result);
    world.hear(agent, ResultHeard{result, !chance(50)});
  }
  void die(const std::string& name, const Job& job, bool alone) {
    for (const std::string& task : job.open) {
      auto lost = World::result(job.run, member_of(job.run, task), protocol::OUTCOME_LOST, "died");
      lost.set_executor_died_alone(alone);
      say(name, lost);
    }
  }
  void work(const std::string& name, std::uint64_t id) {
    Agent& agent = agents.at(name);
    Job& job = agent.jobs.at(id);
    for (const std::string& task : job.open)
      if (poison.contains(task)) {
        const Job dead = job;
        agent.jobs.erase(id);
        return die(name, dead, true);
      }
    if (chance(12)) {
      const Job dead = job;
      agent.jobs.erase(id);
      return die(name, dead, chance(4));
    }
    const std::string task = *job.open.begin();
    const protocol::Member& member = member_of(job.run, task);
    if (chance(3)) {
      protocol::Checkpointed checkpointed;
      checkpointed.set_run_id(id);
      checkpointed.set_task(task);
      checkpointed.set_fence(member.fence());
      checkpointed.mutable_checkpoint()->set_step(member.resume().step() + 1);
      world.hear(name, checkpointed);
      return;
    }
    auto outcome = protocol::OUTCOME_DONE;
    if (chance(20)) outcome = protocol::OUTCOME_RETRY;
    if (chance(60)) outcome = protocol::OUTCOME_DIVERGED;
    auto result = World::result(job.run, member, outcome, "because");
    result.set_out_of_memory(outcome == protocol::OUTCOME_RETRY && chance(4));
    job.open.erase(task);
    if (job.open.empty()) agent.jobs.erase(id);
    say(name, result);
    if (chance(3)) beat(name);
  }
  void step(const std::vector<std::string>& trials) {
    world.now += std::chrono::milliseconds(rng.below(3000));
    if (agents.size() < 3 && chance(10)) add_agent();
    if (chance(300)) {  // the scheduler is killed, and its agents with it
      SweepState stored;
      stored.load(world.state.meta());
      for (const auto& [name, sweep] : world.state.sweeps()) stored.load(sweep);
      for (const auto& [id, task] : world.state.tasks()) stored.load(task);
      for (const auto& [id, run] : world.state.runs()) stored.load(run);
      stored.settle_indexes();
      world.state = std::move(stored);
      agents.clear();
      world.hear("", ProcessBegins{});
      world.hear("", sweep_of(trials));
      return;
    }
    std::vector<std::string> names;
    for (const auto& [name, agent] : agents) names.push_back(name);
    for (const std::string& name : names) {
      Agent& agent = agents.at(name);
      if (chance(100)) agent.silent = !agent.silent;
      if (agent.silent) {
        if (chance(20)) agent.silent = false;
        continue;
      }
      beat(name);
      std::vector<std::uint64_t> jobs;
      for (const auto& [id, job] : agent.jobs) jobs.push_back(id);
      for (const std::uint64_t id : jobs)
        if (agent.jobs.contains(id)) work(name, id);
    }
    if (!said.empty() && chance(5)) {
      const auto& [name, old] = said[rng.below(static_cast<std::uint32_t>(said.size()))];
      world.hear(name, ResultHeard{old, true});
    }
    take(world.hear("", Tick{}));
  }
};

TEST_P(Week, EndsWithEachTrialFinishedOnce) {
  const auto trials = ids(8 + static_cast<int>(rng.below(12)));
  if (chance(2)) poison.insert("train:" + trials[rng.below(8)]);
  world.hear("", sweep_of(trials));
  int steps = 0;
  while (world.state.sweeps().at("s").ended() == 0 && steps++ < 20'000) {
    step(trials);
    if (HasFailure()) return;
  }
  ASSERT_NE(world.state.sweeps().at("s").ended(), 0) << "it never ended";

  std::map<std::string, int> finished;
  for (const journal::Event& event : world.log)
    if (event.has_task_finished()) ++finished[event.task_finished().result().task()];
  for (const auto& [task, times] : finished) EXPECT_EQ(times, 1) << task;
  for (const auto& [id, task] : world.state.tasks()) {
    EXPECT_TRUE(is_finished(task)) << id;
    if (poison.contains(id)) {
      EXPECT_TRUE(task.has_failed()) << id;
    }
    if (task.has_failed()) {
      EXPECT_NE(task.failed().reason(), "") << id;
    }
    if (task.has_succeeded()) {
      EXPECT_EQ(finished[id], 1) << id;
    }
  }
  EXPECT_TRUE(world.state.runs().empty());

  // The state is the fold of its log.
  const SweepState folded = replay(world.log);
  EXPECT_EQ(folded.meta().SerializeAsString(), world.state.meta().SerializeAsString());
  ASSERT_EQ(folded.tasks().size(), world.state.tasks().size());
  for (const auto& [id, task] : world.state.tasks())
    EXPECT_EQ(folded.tasks().at(id).SerializeAsString(), task.SerializeAsString()) << id;
  EXPECT_TRUE(folded.runs().empty());
}

INSTANTIATE_TEST_SUITE_P(Seeds, Week, testing::Range(0, 60));

}  // namespace
}  // namespace saesweep::scheduler
