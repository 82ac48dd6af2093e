#include "scheduler/decisions/placement.h"

#include <algorithm>
#include <map>
#include <set>

namespace saesweep::scheduler {
namespace {

struct Waiting {
  std::vector<std::vector<const journal::Task*>> groups;  // that have run before, whole
  // Not grouped yet, by what may run together; in the order in which they are wanted.
  std::vector<std::vector<const journal::Task*>> trains, evaluations;
};

Waiting collect(const SweepState& state) {
  Waiting waiting;
  std::map<std::uint64_t, std::vector<const journal::Task*>> groups;
  std::map<std::string, std::size_t> trains, evaluations;
  for (const journal::Task* task : state.wanted()) {
    if (task->phase() != journal::READY) continue;
    if (task->group() != 0 && state.group(task->group()) != nullptr) {
      groups[task->group()].push_back(task);
      continue;
    }
    const bool evaluates = task->kind() == protocol::TASK_KIND_EVALUATE;
    auto& index = evaluates ? evaluations : trains;
    auto& list = evaluates ? waiting.evaluations : waiting.trains;
    const auto [at, is_new] = index.emplace(task->cohort(), list.size());
    if (is_new) list.emplace_back();
    list[at->second].push_back(task);
  }
  for (auto& [id, tasks] : groups) {
    // While a member still runs, the others wait for it.
    const bool busy = std::any_of(state.runs.begin(), state.runs.end(),
                                  [id = id](const auto& run) { return run.second.group == id; });
    if (!busy) waiting.groups.push_back(std::move(tasks));
  }
  return waiting;
}

}  // namespace

void place(const SweepState& state, Decision& decision) {
  struct Place {
    const Worker* worker;
    std::uint64_t memory;  // of a slot; 0: unknown
  };
  std::vector<Place> free;
  for (const auto& [peer, worker] : state.workers)
    for (std::uint32_t i = 0; i < state.free_slots(worker); ++i)
      free.push_back({&worker, worker.memory_bytes / std::max<std::uint32_t>(1, worker.slots)});
  if (free.empty()) return;
  Waiting waiting = collect(state);
  std::uint64_t run_id = std::max<std::uint64_t>(1, state.meta().next_run());
  std::uint64_t new_group = std::max<std::uint64_t>(1, state.meta().next_group());

  const auto grant = [&](const Place& place, std::uint64_t group,
                         const std::vector<const journal::Task*>& tasks) {
    auto& granted = *decision.events.emplace_back().mutable_granted();
    granted.set_run_id(run_id);
    granted.set_group(group);
    granted.set_worker(place.worker->peer);
    protocol::Assign assign;
    auto& run = *assign.add_runs();
    run.set_run_id(run_id++);
    for (const journal::Task* task : tasks) {
      granted.add_tasks(task->id());
      auto& member = *run.add_members();
      member.set_task(task->id());
      member.set_fence(task->fence() + 1);
      member.set_attempt(task->attempts() + 1);
      member.set_kind(task->kind());
      member.set_spec(task->spec());
      if (task->has_checkpoint()) *member.mutable_resume() = task->checkpoint();
      member.set_trial_directory(task->trial_directory());
      if (const auto* input = state.task(task->needs())) {
        *member.mutable_inputs() = input->artifacts();
        // What training said is part of what is scored.
        auto spec = parse_json(member.spec());
        auto trained = parse_json(input->summary());
        if (spec && trained) {
          (*spec)["trained"] = *trained;
          member.set_spec(canonical_json(*spec));
        }
      }
    }
    decision.replies.push_back({place.worker->peer, protocol::MessageType::kAssign, assign});
  };

  std::size_t next = 0;
  for (const auto& tasks : waiting.groups) {
    if (next == free.size()) return;
    grant(free[next++], tasks.front()->group(), tasks);
  }
  const auto share_out = [&](std::vector<std::vector<const journal::Task*>>& cohorts,
                             std::size_t most) {
    for (auto& cohort : cohorts) {
      std::size_t begin = 0;
      while (begin < cohort.size() && next < free.size()) {
        // Even parts over what is free, as much of each as fits.
        const std::size_t left = cohort.size() - begin;
        const std::size_t part =
            std::min(most, (left + free.size() - next - 1) / (free.size() - next));
        std::vector<const journal::Task*> members;
        std::uint64_t memory = 0;
        while (begin < cohort.size() && members.size() < part) {
          memory += cohort[begin]->memory_bytes();
          if (!members.empty() && free[next].memory > 0 && memory > free[next].memory) break;
          members.push_back(cohort[begin++]);
        }
        grant(free[next++], new_group++, members);
      }
    }
  };
  share_out(waiting.trains, kMaxTrainMembers);
  share_out(waiting.evaluations, kMaxEvaluateMembers);
}

}  // namespace saesweep::scheduler
