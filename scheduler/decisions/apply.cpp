// What each event does to the objects: the only code that changes them.
#include <algorithm>

#include "core/check.h"
#include "scheduler/decisions/sweep_state.h"

namespace saesweep::scheduler {

using journal::Task;

class Applier {
 public:
  Applier(SweepState& state, Changes& changes) : state_(state), changes_(changes) {}

  void apply(const journal::Event& event) {
    using journal::Event;
    if (event.sequence() != 0) {
      state_.meta_.set_last_event(event.sequence());
      changes_.meta = true;
    }
    switch (event.what_case()) {
      case Event::kProcessStarted:
        return started(event.process_started());
      case Event::kSweepSubmitted:
        return submitted(event.sweep_submitted(), event.time());
      case Event::kSweepEnded:
        return ended(event.sweep_ended(), event.time());
      case Event::kRunGranted:
        return granted(event.run_granted());
      case Event::kRunStarted:
        return run_started(event.run_started());
      case Event::kRunRefused:
        return refused(event.run_refused());
      case Event::kRunLost:
        return lost(event.run_lost());
      case Event::kTaskCheckpointed:
        return checkpointed(event.task_checkpointed());
      case Event::kTaskFinished:
        return finished(event.task_finished().result());
      case Event::kTaskGivenUp:
        return given_up(event.task_given_up());
      case Event::kTaskReturned:
        return returned(event.task_returned());
      case Event::kWorkerJoined:
        return joined(event.worker_joined());
      case Event::kWorkerHeard:
        return heard(event.worker_heard());
      case Event::kWorkerLost:
        state_.workers_.at(event.worker_lost().worker()).lost = true;
        return;
      case Event::kWorkerLeft:
        state_.workers_.erase(event.worker_left().worker());
        return;
      case Event::kClockStalled:
        for (auto& [session, worker] : state_.workers_)
          worker.heard += std::chrono::duration_cast<Duration>(
              std::chrono::nanoseconds(event.clock_stalled().by_ns()));
        return;
      case Event::WHAT_NOT_SET:
        SAE_CHECK(false, "event {} says nothing", event.sequence());
    }
  }

 private:
  Task& task_at(const std::string& id) {
    const auto found = state_.tasks_.find(id);
    SAE_CHECK(found != state_.tasks_.end(), "no task {}", id);
    changes_.tasks.insert(id);
    return found->second;
  }
  journal::Run& run_at(std::uint64_t id) {
    const auto found = state_.runs_.find(id);
    SAE_CHECK(found != state_.runs_.end(), "no run {}", id);
    changes_.runs.insert(id);
    return found->second;
  }
  journal::Run& new_run(std::uint64_t id) {
    SAE_CHECK(id > state_.meta_.last_run(), "run {} after {}", id, state_.meta_.last_run());
    state_.meta_.set_last_run(id);
    changes_.meta = true;
    changes_.runs.insert(id);
    journal::Run& run = state_.runs_[id];
    run.set_id(id);
    return run;
  }
  void erase_run(std::uint64_t id) {
    state_.runs_.erase(id);
    changes_.runs.insert(id);
  }
  void leave_run(Task& task) {
    if (task.run() == 0) return;
    journal::Run& run = run_at(task.run());
    auto& tasks = *run.mutable_tasks();
    tasks.erase(std::remove(tasks.begin(), tasks.end(), task.spec().id()), tasks.end());
    if (tasks.empty()) erase_run(task.run());
    task.set_run(0);
  }
  bool has_inputs(const Task& task) const {
    if (task.spec().needs().empty()) return true;
    const Task* needed = state_.find_task(task.spec().needs());
    return needed != nullptr && needed->has_succeeded();
  }
  void wait(Task& task, std::uint64_t until_ns) {
    if (!has_inputs(task)) {
      leave_run(task);
      begin(task);
    } else if (until_ns == 0)
      task.mutable_ready();
    else
      task.mutable_backoff()->set_until_ns(until_ns);
  }
  // Waiting again: as one run while deaths are counted, each for itself otherwise.
  void wait_again(journal::Run& run, std::uint64_t until_ns) {
    const bool together = run.deaths() > 0 || run.apart();
    run.clear_worker();
    const std::vector<std::string> tasks(run.tasks().begin(), run.tasks().end());
    if (!together)
      for (const std::string& name : tasks) leave_run(task_at(name));
    for (const std::string& name : tasks) {
      Task& task = task_at(name);
      wait(task, until_ns);
      state_.index(task);
    }
  }

  // By what it needs: blocked, ready or skipped.
  void begin(Task& task) {
    if (has_inputs(task))
      task.mutable_ready();
    else if (is_finished(state_.tasks_.at(task.spec().needs())))
      task.mutable_skipped();
    else
      task.mutable_blocked();
    state_.index(task);
  }
  // After `task` finished or begins once more.
  void tell_dependents(const Task& task) {
    const auto found = state_.dependents_.find(task.spec().id());
    if (found == state_.dependents_.end()) return;
    for (const std::string& id : found->second) {
      Task& dependent = task_at(id);
      if (is_leased(dependent)) continue;  // its inputs are looked at when it comes back
      if (is_finished(dependent) && !dependent.has_skipped()) continue;
      leave_run(dependent);
      begin(dependent);
      tell_dependents(dependent);
    }
  }

  // ---- process and sweeps

  void started(const journal::ProcessStarted& event) {
    state_.meta_.set_epoch(event.epoch());
    changes_.meta = true;
    state_.workers_.clear();
    std::vector<std::uint64_t> leased;
    for (const auto& [id, run] : state_.runs_)
      if (!run.worker().empty()) leased.push_back(id);
    for (const std::uint64_t id : leased) wait_again(run_at(id), 0);
    for (auto& [name, sweep] : state_.sweeps_) {
      if (!sweep.active()) continue;
      sweep.set_active(false);
      changes_.sweeps.insert(name);
    }
    // A backoff is a moment of the clock of an incarnation before.
    for (auto& [id, task] : state_.tasks_) {
      if (task.has_backoff()) {
        task.mutable_ready();
        changes_.tasks.insert(id);
      }
      state_.index(task);
    }
  }

  void submitted(const journal::SweepSubmitted& event, double time) {
    state_.meta_.set_last_submission(state_.meta_.last_submission() + 1);
    changes_.meta = true;
    const std::string name = event.sweep().name();
    changes_.sweeps.insert(name);
    const auto before = state_.sweeps_.find(name);
    const bool is_known = before != state_.sweeps_.end();
    const std::vector<std::string> old_tasks =
        is_known ? tasks_of(before->second) : std::vector<std::string>();
    const double old_start = is_known ? before->second.started() : time;
    const double old_end = is_known ? before->second.ended() : 0;

    journal::Sweep& sweep = state_.sweeps_[name];
    sweep = event.sweep();
    sweep.set_started(old_start);
    sweep.set_submission(state_.meta_.last_submission());
    sweep.set_active(true);
    for (const std::string& id : old_tasks) state_.wanted_by_[id].erase(name);
    const std::vector<std::string> new_tasks = tasks_of(sweep);
    for (const std::string& id : new_tasks) state_.wanted_by_[id].insert(name);

    std::uint64_t order = state_.meta_.last_submission() << 32;
    for (const journal::TaskSpec& spec : event.tasks()) {
      Task& task = state_.tasks_[spec.id()];
      changes_.tasks.insert(spec.id());
      *task.mutable_spec() = spec;
      task.set_order(++order);
      if (!spec.needs().empty()) state_.dependents_[spec.needs()].insert(spec.id());
      begin(task);
    }
    for (const std::string& id : event.again()) {
      Task& task = task_at(id);
      // What succeeded has no checkpoints any more.
      if (task.has_succeeded()) task.clear_checkpoint();
      task.clear_result();
      task.set_retries(0);
      task.set_out_of_memory_alone(0);
      begin(task);
      tell_dependents(task);
    }
    for (const std::string& id : old_tasks)
      if (const Task* task = state_.find_task(id)) forget_if_unwanted(id, *task);
    for (const std::string& id : new_tasks) state_.index(state_.tasks_.at(id));
    const bool unchanged = old_tasks == new_tasks;
    const bool all_done = std::ranges::all_of(
        new_tasks, [&](const std::string& id) { return is_finished(state_.tasks_.at(id)); });
    sweep.set_ended(unchanged && all_done ? old_end : 0);
    // A task that is done once more is missing in other sweeps too.
    for (auto& [other, record] : state_.sweeps_) {
      if (record.ended() == 0) continue;
      const auto tasks = tasks_of(record);
      if (std::ranges::all_of(
              tasks, [&](const std::string& id) { return is_finished(state_.tasks_.at(id)); }))
        continue;
      record.set_ended(0);
      changes_.sweeps.insert(other);
    }
  }
  void forget_if_unwanted(const std::string& id, const Task& task) {
    const auto wanted = state_.wanted_by_.find(id);
    if (wanted != state_.wanted_by_.end() && wanted->second.empty())
      state_.wanted_by_.erase(wanted);
    state_.index(task);
  }

  void ended(const journal::SweepEnded& event, double time) {
    state_.sweeps_.at(event.sweep()).set_ended(time);
    changes_.sweeps.insert(event.sweep());
  }

  // ---- runs

  void granted(const journal::RunGranted& event) {
    journal::Run old;
    if (event.instead_of() != 0) {
      old = run_at(event.instead_of());
      for (const std::string& id : old.tasks()) {
        task_at(id).set_run(0);
        state_.index(task_at(id));
      }
      erase_run(event.instead_of());
    }
    journal::Run& run = new_run(event.run());
    run.set_worker(event.worker());
    run.set_deaths(old.deaths());
    run.set_apart(old.apart());
    run.set_members(static_cast<std::uint32_t>(event.grants_size()));
    for (const journal::Grant& grant : event.grants()) {
      Task& task = task_at(grant.task());
      SAE_CHECK(grant.fence() > task.fence(), "{}: fence {} after {}", grant.task(), grant.fence(),
                task.fence());
      state_.unindex(task);
      task.set_fence(grant.fence());
      task.set_attempt(task.attempt() + 1);
      task.set_run(event.run());
      task.mutable_assigned();
      run.add_tasks(grant.task());
    }
  }

  void run_started(const journal::RunStarted& event) {
    const journal::Run& run = run_at(event.run());
    for (const std::string& id : run.tasks()) task_at(id).mutable_running();
    const auto worker = state_.workers_.find(run.worker());
    if (worker != state_.workers_.end() && worker->second.said_free > 0) --worker->second.said_free;
  }

  void refused(const journal::RunRefused& event) {
    journal::Run& run = run_at(event.run());
    for (const std::string& id : run.tasks()) {
      Task& task = task_at(id);
      task.set_attempt(task.attempt() - 1);
      if (event.counts()) task.set_retries(task.retries() + 1);
    }
    wait_again(run, event.until_ns());
  }

  void lost(const journal::RunLost& event) {
    journal::Run& run = run_at(event.run());
    run.set_checkpointed(false);
    if (event.counted()) run.set_deaths(run.deaths() + 1);
    if (event.quarantined()) {
      const std::vector<std::string> tasks(run.tasks().begin(), run.tasks().end());
      for (const std::string& id : tasks) fail(task_at(id), event.reason());
      return;
    }
    if (event.second_half() == 0) return wait_again(run, event.until_ns());
    // Halves begin to count anew, and stay apart.
    journal::Run& second = new_run(event.second_half());
    const int half = (run.tasks_size() + 1) / 2;
    for (int i = half; i < run.tasks_size(); ++i) second.add_tasks(run.tasks(i));
    run.mutable_tasks()->DeleteSubrange(half, run.tasks_size() - half);
    for (journal::Run* part : {&run, &second}) {
      part->clear_worker();
      part->set_deaths(0);
      part->set_apart(true);
      for (const std::string& id : part->tasks()) task_at(id).set_run(part->id());
    }
    for (const std::uint64_t part : {event.run(), event.second_half()}) {
      const std::vector<std::string> tasks(run_at(part).tasks().begin(),
                                           run_at(part).tasks().end());
      for (const std::string& id : tasks) {
        wait(task_at(id), event.until_ns());
        state_.index(task_at(id));
      }
    }
  }

  // ---- tasks

  void fail(Task& task, const std::string& reason) {
    leave_run(task);
    auto& failed = *task.mutable_failed();
    failed.set_reason(reason);
    failed.set_passing(true);
    state_.index(task);
    tell_dependents(task);
  }

  void checkpointed(const journal::TaskCheckpointed& event) {
    Task& task = task_at(event.task());
    *task.mutable_checkpoint() = event.checkpoint();
    task.set_retries(0);
    if (task.run() != 0) run_at(task.run()).set_checkpointed(true);
  }

  void finished(const protocol::TaskResult& result) {
    Task& task = task_at(result.task());
    leave_run(task);
    task.clear_checkpoint();
    *task.mutable_result() = result;
    if (result.outcome() == protocol::OUTCOME_DONE)
      task.mutable_succeeded();
    else if (result.outcome() == protocol::OUTCOME_DIVERGED)
      task.mutable_diverged()->set_reason(result.reason());
    else
      task.mutable_failed()->set_reason(result.reason());
    state_.index(task);
    tell_dependents(task);
  }

  void given_up(const journal::TaskGivenUp& event) { fail(task_at(event.task()), event.reason()); }

  void returned(const journal::TaskReturned& event) {
    Task& task = task_at(event.task());
    leave_run(task);
    if (event.retry()) task.set_retries(task.retries() + 1);
    if (event.most_in_run() != 0) task.set_most_in_run(event.most_in_run());
    if (event.out_of_memory_alone()) task.set_out_of_memory_alone(task.out_of_memory_alone() + 1);
    wait(task, event.until_ns());
    state_.index(task);
  }

  // ---- workers

  void joined(const journal::WorkerJoined& event) {
    Worker& worker = state_.workers_[event.worker()];
    worker.name = event.name();
    worker.slots = event.slots();
    worker.memory_bytes = event.memory_bytes();
    worker.said_free = event.slots();
    worker.heard = from_ns(event.now_ns());
    worker.lost = false;
  }

  void heard(const journal::WorkerHeard& event) {
    Worker& worker = state_.workers_.at(event.worker());
    worker.heard = from_ns(event.now_ns());
    worker.lost = false;
    if (event.free_slots() >= 0) worker.said_free = static_cast<std::uint32_t>(event.free_slots());
  }

  SweepState& state_;
  Changes& changes_;
};

void SweepState::apply(const journal::Event& event, Changes* changes) {
  Changes ignored;
  Applier(*this, changes == nullptr ? ignored : *changes).apply(event);
}

}  // namespace saesweep::scheduler
