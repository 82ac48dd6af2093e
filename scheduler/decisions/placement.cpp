// Which tasks are leased to whom: cohorts that share a stream, cut over the slots that are free.
#include <algorithm>

#include "core/check.h"
#include "core/json.h"
#include "scheduler/decisions/decide.h"

namespace saesweep::scheduler {
namespace {

using journal::Task;

class Placer {
 public:
  Placer(const SweepState& state, TimePoint now, Decision& decision)
      : state_(state), now_(now), decision_(decision), next_run_(state.meta().last_run() + 1) {}

  void place() {
    find_free_slots();
    if (free_.empty()) return;
    for (const auto& [id, run] : state_.runs())
      if (run.worker().empty() && !free_.empty()) place_again(run);
    // Training first: what is trained can be scored while the rest still trains.
    for (const auto kind :
         {protocol::TASK_KIND_TRAIN, protocol::TASK_KIND_TRAIN_LM, protocol::TASK_KIND_EVALUATE})
      place_kind(kind);
  }

 private:
  struct FreeSlot {
    std::string worker;
    std::uint64_t memory_bytes;  // 0: unknown
  };

  // A worker says how many slots are free; runs that are on their way to it are taken off.
  void find_free_slots() {
    for (const auto& [session, worker] : state_.workers()) {
      if (worker.lost || now_ - worker.heard >= kSuspectAfter) continue;
      std::uint32_t leased = 0, on_their_way = 0;
      for (const auto& [id, run] : state_.runs()) {
        if (run.worker() != session) continue;
        ++leased;
        if (state_.find_task(run.tasks(0))->has_assigned()) ++on_their_way;
      }
      const auto left = [](std::uint32_t all, std::uint32_t taken) {
        return all > taken ? all - taken : 0;
      };
      const std::uint32_t free =
          std::min(left(worker.slots, leased), left(worker.said_free, on_their_way));
      for (std::uint32_t i = 0; i < free; ++i)
        free_.push_back({session, worker.memory_bytes / worker.slots});
    }
    std::ranges::reverse(free_);  // taken from the back: the first worker first
  }

  void place_again(const journal::Run& run) {
    std::vector<const Task*> members;
    for (const std::string& id : run.tasks()) {
      const Task* task = state_.find_task(id);
      if (state_.active_sweep_of(id) == nullptr) continue;
      if (!is_due(*task, now_)) return;
      members.push_back(task);
    }
    if (!members.empty()) grant(members, run.id());
  }

  void place_kind(protocol::TaskKind kind) {
    std::vector<std::vector<const Task*>> groups;
    for (const auto& [key, tasks] : state_.ready()) {
      if (key.kind != kind) continue;
      std::vector<const Task*> due;
      for (const auto& [order, id] : tasks)
        if (const Task* task = state_.find_task(id); is_due(*task, now_)) due.push_back(task);
      if (!due.empty()) groups.push_back(std::move(due));
    }
    std::ranges::sort(groups, {}, [](const auto& group) { return group[0]->order(); });
    for (std::size_t i = 0; i < groups.size() && !free_.empty(); ++i)
      place_group(kind, groups[i], groups.size() - i);
  }

  // Several groups share the free slots between them.
  void place_group(protocol::TaskKind kind, const std::vector<const Task*>& tasks,
                   std::size_t groups) {
    const std::size_t most = kind == protocol::TASK_KIND_TRAIN      ? kMostTrainTasks
                             : kind == protocol::TASK_KIND_EVALUATE ? kMostEvaluateTasks
                                                                    : 1;
    std::size_t slots = std::max<std::size_t>(1, free_.size() / groups);
    std::size_t begin = 0;
    while (begin < tasks.size() && slots > 0 && !free_.empty()) {
      const std::size_t left = tasks.size() - begin;
      std::size_t limit = std::min(most, (left + slots - 1) / slots);
      std::uint64_t memory = free_.back().memory_bytes;
      if (memory == 0) memory = state_.active_sweep_of(tasks[begin]->spec().id())->memory_bytes();
      std::vector<const Task*> members;
      std::uint64_t used = 0;
      while (begin < tasks.size() && members.size() < limit) {
        const Task& task = *tasks[begin];
        const std::size_t own = task.most_in_run() == 0 ? limit : task.most_in_run();
        const bool fits =
            memory == 0 || used + task.spec().memory_bytes() <= memory || members.empty();
        if (members.size() >= own || !fits) break;
        limit = std::min(limit, own);
        used += task.spec().memory_bytes();
        members.push_back(&task);
        ++begin;
      }
      grant(members, 0);
      --slots;
    }
  }

  void grant(const std::vector<const Task*>& members, std::uint64_t instead_of) {
    const FreeSlot slot = free_.back();
    free_.pop_back();
    const journal::Sweep& sweep = *state_.active_sweep_of(members[0]->spec().id());
    auto& granted = *decision_.events.emplace_back().mutable_run_granted();
    granted.set_run(next_run_);
    granted.set_worker(slot.worker);
    granted.set_instead_of(instead_of);
    protocol::Assign assign;
    protocol::Run& run = *assign.add_runs();
    run.set_run_id(next_run_++);
    run.set_checkpoint_every_s(sweep.checkpoint_every_s());
    run.set_lease_ms(static_cast<std::uint64_t>(std::chrono::milliseconds(kLease).count()));
    run.set_memory_bytes(slot.memory_bytes);
    run.set_cache_bytes(sweep.cache_bytes());
    for (const Task* task : members) {
      auto& one = *granted.add_grants();
      one.set_task(task->spec().id());
      one.set_fence(task->fence() + 1);
      *run.add_members() = to_member(*task);
    }
    decision_.replies.push_back({slot.worker, std::move(assign)});
  }

  protocol::Member to_member(const Task& task) const {
    protocol::Member member;
    member.set_task(task.spec().id());
    member.set_fence(task.fence() + 1);
    member.set_attempt(task.attempt() + 1);
    member.set_kind(task.spec().kind());
    member.set_spec(task.spec().spec());
    member.set_trial_directory(task.spec().directory());
    if (task.has_checkpoint()) *member.mutable_resume() = task.checkpoint();
    if (task.spec().kind() == protocol::TASK_KIND_EVALUATE) add_inputs(task, member);
    return member;
  }

  // An evaluation is told what training said, and where the dictionary is.
  void add_inputs(const Task& task, protocol::Member& member) const {
    auto spec = parse_json(task.spec().spec());
    SAE_CHECK(spec && spec->is_object(), "{}: its spec is no object", task.spec().id());
    (*spec)["trained"] = Json::object();
    if (!task.spec().needs().empty()) {
      const protocol::TaskResult& result = state_.find_task(task.spec().needs())->result();
      if (auto summary = parse_json(result.summary())) (*spec)["trained"] = std::move(*summary);
      for (const auto& artifact : result.artifacts())
        if (artifact.name() == "sae.safetensors" || artifact.name() == "config.json")
          *member.add_inputs() = artifact;
    }
    member.set_spec(canonical_json(*spec));
  }

  const SweepState& state_;
  const TimePoint now_;
  Decision& decision_;
  std::uint64_t next_run_;
  std::vector<FreeSlot> free_;
};

}  // namespace

void place(const SweepState& state, TimePoint now, Decision& decision) {
  Placer(state, now, decision).place();
}

}  // namespace saesweep::scheduler
