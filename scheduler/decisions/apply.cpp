// Runs, tasks and workers: what their events do.
#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "scheduler/decisions/applier.h"
#include "scheduler/decisions/attempts.h"

namespace saesweep::scheduler {
namespace {

constexpr double kMemoryRaise = 1.3;  // of the estimate, after an allocation failed

}  // namespace

void Applier::apply(journal::Event& event) {
  using journal::Event;
  time_ = event.time();
  if (event.sequence() != 0) {
    state_.meta_.set_last_event(event.sequence());
    changes_.meta = true;
  }
  switch (event.what_case()) {
    case Event::kProcessStarted:
      return started(event.process_started());
    case Event::kSweepSubmitted:
      return submitted(*event.mutable_sweep_submitted());
    case Event::kSweepEnded:
      return sweep_ended(event.sweep_ended());
    case Event::kSweepChanged:
      return sweep_changed(event.sweep_changed());
    case Event::kTasksCancelled:
      return cancelled(event.tasks_cancelled());
    case Event::kTasksAgain:
      return again(event.tasks_again());
    case Event::kRunGranted:
      return granted(event.run_granted());
    case Event::kRunStarted:
      return run_started(event.run_started());
    case Event::kRunRefused:
      return refused(event.run_refused());
    case Event::kRunLost:
      return lost(event.run_lost());
    case Event::kRunAdopted:
      return adopted(event.run_adopted());
    case Event::kTaskCheckpointed:
      return checkpointed(event.task_checkpointed());
    case Event::kTaskFinished:
      return finished(event.task_finished().result());
    case Event::kTaskReported:
      return reported(event.task_reported());
    case Event::kTrialPromoted:
      return promoted(event.trial_promoted());
    case Event::kTrialStopped:
      return trial_stopped(event.trial_stopped());
    case Event::kTaskStopped:
      return stopped(event.task_stopped());
    case Event::kTaskGivenUp:
      return fail(task_at(event.task_given_up().task()), event.task_given_up().reason(),
                  event.task_given_up().ending());
    case Event::kTaskReturned:
      return returned(event.task_returned());
    case Event::kWishGranted:
      return wish_granted(event.wish_granted());
    case Event::kWorkerDrained:
      return drained(event.worker_drained());
    case Event::kWorkerJoined:
      return joined(event.worker_joined());
    case Event::kWorkerHeard:
      return heard(event.worker_heard());
    case Event::kWorkerNoted:
      return noted(event.worker_noted());
    case Event::kWorkerResynced:
      state_.workers_.at(event.worker_resynced().worker()).resyncing = false;
      state_.workers_.at(event.worker_resynced().worker()).mismatches = 0;
      return;
    case Event::kWorkerLost: {
      Worker& worker = state_.workers_.at(event.worker_lost().worker());
      worker.lost = true;
      worker.awaited = false;
      return;
    }
    case Event::kWorkerLeft:
      state_.workers_.erase(event.worker_left().worker());
      return;
    case Event::kClockStalled:
      for (auto& [session, worker] : state_.workers_)
        worker.heard += std::chrono::duration_cast<Duration>(
            std::chrono::nanoseconds(event.clock_stalled().by_ns()));
      return;
    case Event::kTimePassed:
      return time_passed(event.time_passed());
    case Event::kPassedOver:
      state_.passed_over_.try_emplace(event.passed_over().task(),
                                      from_ns(event.passed_over().now_ns()));
      return;
    case Event::WHAT_NOT_SET:
      SAE_CHECK(false, "event {} says nothing", event.sequence());
  }
}

journal::Task& Applier::task_at(const std::string& id) {
  const auto found = state_.tasks_.find(id);
  SAE_CHECK(found != nullptr, "no task {}", id);
  changes_.tasks.insert(found);
  return found->second.task;
}

journal::Run& Applier::run_at(std::uint64_t id) {
  const auto found = state_.runs_.find(id);
  SAE_CHECK(found != state_.runs_.end(), "no run {}", id);
  changes_.runs.insert(id);
  return found->second;
}

journal::Run& Applier::new_run(std::uint64_t id) {
  SAE_CHECK(id > state_.meta_.last_run(), "run {} after {}", id, state_.meta_.last_run());
  state_.meta_.set_last_run(id);
  changes_.meta = true;
  changes_.runs.insert(id);
  journal::Run& run = state_.runs_[id];
  run.set_id(id);
  return run;
}

void Applier::erase_run(std::uint64_t id) {
  state_.unfile_run(id, state_.runs_.at(id).worker());
  state_.runs_.erase(id);
  changes_.runs.insert(id);
}

void Applier::leave_run(Task& task) {
  if (task.run() == 0) return;
  journal::Run& run = run_at(task.run());
  auto& tasks = *run.mutable_tasks();
  tasks.erase(std::remove(tasks.begin(), tasks.end(), task.spec().id()), tasks.end());
  if (tasks.empty()) erase_run(task.run());
  task.set_run(0);
}

bool Applier::has_inputs(const Task& task) const {
  if (task.spec().needs().empty()) return true;
  const Task* needed = state_.find_task(task.spec().needs());
  return needed != nullptr && needed->has_succeeded();
}

void Applier::wait(Task& task, std::uint64_t until_ns) {
  if (!has_inputs(task)) {
    leave_run(task);
    begin(task);
  } else if (until_ns == 0) {
    task.mutable_ready();
  } else {
    task.mutable_backoff()->set_until_ns(until_ns);
  }
}

void Applier::wait_again(journal::Run& run, std::uint64_t until_ns) {
  const bool together = run.deaths() > 0 || run.apart();
  state_.unfile_run(run.id(), run.worker());
  run.clear_worker();
  state_.file(run);
  const std::vector<std::string> tasks(run.tasks().begin(), run.tasks().end());
  if (!together)
    for (const std::string& name : tasks) leave_run(task_at(name));
  for (const std::string& name : tasks) {
    Task& task = task_at(name);
    wait(task, until_ns);
    state_.file(task);
  }
}

void Applier::end_attempts(const journal::Run& run, journal::Ending ending,
                           const std::string& reason) {
  for (const std::string& id : run.tasks()) end_attempt(task_at(id), ending, reason, time_);
}

void Applier::begin(Task& task) {
  enter_phase(task);
  state_.file(task);
}

void Applier::enter_phase(Task& task) const {
  if (has_inputs(task))
    task.mutable_ready();
  else if (is_finished(state_.tasks_.at(task.spec().needs()).task))
    task.mutable_skipped();
  else
    task.mutable_blocked();
}

void Applier::begin_again(Task& task) {
  // What succeeded has no checkpoints any more.
  if (task.has_succeeded())
    task.clear_checkpoint();
  else
    task.set_fence(task.fence() + 1);  // what is still said of the lease before is stale
  task.clear_result();
  task.set_retries(0);
  task.set_out_of_memory_alone(0);
  begin(task);
  count_anew(task);
  tell_dependents(task);
  reopen_sweeps_of(task.spec().id());
}

void Applier::tell_dependents(const Task& task) {
  const std::set<std::string> dependents = state_.tasks_.at(task.spec().id()).filed.dependents;
  for (const std::string& id : dependents) {
    Task& dependent = task_at(id);
    if (is_leased(dependent)) continue;  // its inputs are looked at when it comes back
    if (is_finished(dependent) && !dependent.has_skipped()) continue;
    leave_run(dependent);
    begin(dependent);
    tell_dependents(dependent);
    reopen_sweeps_of(id);
  }
}

// ---- runs ---------------------------------------------------------------------------------------

void Applier::granted(const journal::RunGranted& event) {
  journal::Run old;
  if (event.instead_of() != 0) {
    old = run_at(event.instead_of());
    for (const std::string& id : old.tasks()) {
      task_at(id).set_run(0);
      state_.file(task_at(id));
    }
    erase_run(event.instead_of());
  }
  journal::Run& run = new_run(event.run());
  run.set_worker(event.worker());
  run.set_worker_name(event.worker_name());
  run.set_worker_host(event.worker_host());
  run.set_memory_bytes(event.memory_bytes());
  run.set_granted_ns(event.now_ns());
  run.set_deaths(old.deaths());
  run.set_apart(old.apart());
  run.set_members(static_cast<std::uint32_t>(event.grants_size()));
  for (const journal::Grant& grant : event.grants()) {
    Task& task = task_at(grant.task());
    SAE_CHECK(grant.fence() > task.fence(), "{}: fence {} after {}", grant.task(), grant.fence(),
              task.fence());
    task.set_fence(grant.fence());
    task.set_attempt(task.attempt() + 1);
    task.set_run(event.run());
    task.mutable_assigned();
    begin_attempt(task, run, time_);
    state_.file(task);
    run.add_tasks(grant.task());
  }
  state_.file(run);
}

void Applier::run_started(const journal::RunStarted& event) {
  const journal::Run& run = run_at(event.run());
  for (const std::string& id : run.tasks()) {
    Task& task = task_at(id);
    task.mutable_running();
    state_.file_begun(state_.tasks_.at(id));
  }
  const auto worker = state_.workers_.find(run.worker());
  if (worker != state_.workers_.end() && worker->second.said_free > 0) --worker->second.said_free;
}

void Applier::refused(const journal::RunRefused& event) {
  journal::Run& run = run_at(event.run());
  for (const std::string& id : run.tasks()) {
    Task& task = task_at(id);
    task.set_attempt(task.attempt() - 1);
    if (event.counts()) task.set_retries(task.retries() + 1);
  }
  end_attempts(run, journal::ENDING_REFUSED, event.reason());
  wait_again(run, event.until_ns());
}

void Applier::lost(const journal::RunLost& event) {
  journal::Run& run = run_at(event.run());
  run.set_checkpointed(false);
  if (event.counted()) run.set_deaths(run.deaths() + 1);
  if (event.quarantined()) {
    const std::vector<std::string> tasks(run.tasks().begin(), run.tasks().end());
    for (const std::string& id : tasks) fail(task_at(id), event.reason(), journal::ENDING_DEADLY);
    return;
  }
  end_attempts(run, event.ending(), event.reason());
  if (event.second_half() == 0) return wait_again(run, event.until_ns());
  // Halves begin to count anew, and stay apart.
  state_.unfile_run(run.id(), run.worker());
  journal::Run& second = new_run(event.second_half());
  const int half = (run.tasks_size() + 1) / 2;
  for (int i = half; i < run.tasks_size(); ++i) second.add_tasks(run.tasks(i));
  run.mutable_tasks()->DeleteSubrange(half, run.tasks_size() - half);
  for (journal::Run* part : {&run, &second}) {
    part->clear_worker();
    part->set_deaths(0);
    part->set_apart(true);
    state_.file(*part);
    for (const std::string& id : part->tasks()) task_at(id).set_run(part->id());
  }
  for (const std::uint64_t part : {event.run(), event.second_half()}) {
    const std::vector<std::string> tasks(run_at(part).tasks().begin(), run_at(part).tasks().end());
    for (const std::string& id : tasks) {
      wait(task_at(id), event.until_ns());
      state_.file(task_at(id));
    }
  }
}

void Applier::adopted(const journal::RunAdopted& event) {
  const std::set<std::string> wanted(event.tasks().begin(), event.tasks().end());
  if (const auto known = state_.runs_.find(event.run()); known != state_.runs_.end()) {
    // It waits as one after a death; who is not adopted waits by itself.
    const std::vector<std::string> tasks(known->second.tasks().begin(),
                                         known->second.tasks().end());
    for (const std::string& id : tasks) {
      if (wanted.contains(id)) continue;
      leave_run(task_at(id));
      state_.file(task_at(id));
    }
  }
  changes_.runs.insert(event.run());
  journal::Run& run = state_.runs_[event.run()];
  run.set_id(event.run());
  run.set_worker(event.worker());
  run.set_worker_name(event.worker_name());
  run.set_worker_host(event.worker_host());
  run.set_granted_ns(event.now_ns());
  run.set_members(std::max(run.members(), static_cast<std::uint32_t>(event.tasks_size())));
  run.clear_tasks();
  RunMemory memory;
  for (const std::string& id : event.tasks()) {
    Task& task = task_at(id);
    task.set_run(event.run());
    task.mutable_running();
    continue_attempt(task);
    memory = with_member(memory, task);
    run.add_tasks(id);
    state_.file(task);
  }
  run.set_memory_bytes(memory.bytes());
  state_.file(run);
}

// ---- tasks --------------------------------------------------------------------------------------

void Applier::fail(Task& task, const std::string& reason, journal::Ending ending) {
  end_attempt(task, ending, reason, time_);
  leave_run(task);
  auto& failed = *task.mutable_failed();
  failed.set_reason(reason);
  failed.set_passing(true);
  end_standings(task);
  state_.file(task);
  tell_dependents(task);
}

void Applier::checkpointed(const journal::TaskCheckpointed& event) {
  Task& task = task_at(event.task());
  *task.mutable_checkpoint() = event.checkpoint();
  task.set_retries(0);
  if (task.run() != 0) run_at(task.run()).set_checkpointed(true);
}

void Applier::finished(const protocol::TaskResult& result) {
  Task& task = task_at(result.task());
  journal::Ending ending = journal::ENDING_FAILED;
  if (result.outcome() == protocol::OUTCOME_DONE) ending = journal::ENDING_DONE;
  if (result.outcome() == protocol::OUTCOME_DIVERGED) ending = journal::ENDING_DIVERGED;
  continue_attempt(task);  // it may have been taken for lost
  end_attempt(task, ending, result.reason(), time_);
  leave_run(task);
  task.clear_checkpoint();
  *task.mutable_result() = result;
  if (ending == journal::ENDING_DONE)
    task.mutable_succeeded();
  else if (ending == journal::ENDING_DIVERGED)
    task.mutable_diverged()->set_reason(result.reason());
  else
    task.mutable_failed()->set_reason(result.reason());
  if (ending == journal::ENDING_DIVERGED) report_divergence(task);
  end_standings(task);
  state_.file(task);
  tell_dependents(task);
}

void Applier::stopped(const journal::TaskStopped& event) {
  Task& task = task_at(event.task());
  end_attempt(task, journal::ENDING_STOPPED, event.reason(), time_);
  leave_run(task);
  task.clear_checkpoint();
  task.mutable_stopped()->set_reason(event.reason());
  end_standings(task);
  state_.file(task);
  tell_dependents(task);
}

void Applier::returned(const journal::TaskReturned& event) {
  Task& task = task_at(event.task());
  end_attempt(task, event.ending(), event.reason(), time_);
  leave_run(task);
  if (event.retry()) task.set_retries(task.retries() + 1);
  if (event.most_in_run() != 0) task.set_most_in_run(event.most_in_run());
  if (event.out_of_memory_alone()) task.set_out_of_memory_alone(task.out_of_memory_alone() + 1);
  if (event.ending() == journal::ENDING_OUT_OF_MEMORY)
    task.set_raised_memory_bytes(static_cast<std::uint64_t>(
        std::llround(kMemoryRaise * static_cast<double>(memory_of(task)))));
  wait(task, event.until_ns());
  state_.file(task);
}

// ---- workers ------------------------------------------------------------------------------------

void Applier::joined(const journal::WorkerJoined& event) {
  Worker& worker = state_.workers_[event.worker()];
  worker.name = event.name();
  worker.host = event.host();
  worker.slots = event.slots();
  worker.gpus = event.gpus();
  worker.gpu_memory_bytes = event.gpu_memory_bytes();
  worker.memory_bytes = event.memory_bytes();
  worker.chunks_endpoint = event.chunks_endpoint();
  worker.chunks_key = event.chunks_key();
  worker.said_free = event.slots();
  worker.heard = from_ns(event.now_ns());
  worker.lost = false;
  worker.awaited = false;
  worker.resyncing = event.resync();
}

void Applier::heard(const journal::WorkerHeard& event) {
  Worker& worker = state_.workers_.at(event.worker());
  worker.heard = from_ns(event.now_ns());
  worker.lost = false;
  if (event.free_slots() >= 0) worker.said_free = static_cast<std::uint32_t>(event.free_slots());
}

void Applier::noted(const journal::WorkerNoted& event) {
  Worker& worker = state_.workers_.at(event.worker());
  worker.mismatches = event.mismatch() ? worker.mismatches + 1 : 0;
  if (!event.has_streams()) return;
  worker.streams.clear();
  for (const auto& held : event.streams()) worker.streams[held.stream()] = held.bytes();
}

void Applier::drained(const journal::WorkerDrained& event) {
  auto& draining = *state_.meta_.mutable_draining();
  draining.erase(std::remove(draining.begin(), draining.end(), event.worker()), draining.end());
  if (event.draining()) state_.meta_.add_draining(event.worker());
  changes_.meta = true;
}

void SweepState::apply(journal::Event event, Changes* changes) {
  Changes ignored;
  Applier(*this, changes == nullptr ? ignored : *changes).apply(event);
}

}  // namespace saesweep::scheduler
