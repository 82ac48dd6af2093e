#include "tests/sim/monitor.h"

#include <fmt/format.h>

#include "core/digest.h"
#include "scheduler/decisions/recount.h"
#include "scheduler/protocol/reliable.h"

namespace saesweep::sim {
namespace {

using journal::Task;
using scheduler::SweepState;

constexpr std::uint64_t kLookAtAllEvery = 64;  // events; it costs as much as all tasks

// The transitions of a task that there are (an event may make several).
bool may_follow(Task::PhaseCase from, Task::PhaseCase to) {
  if (from == to) return true;
  switch (from) {
    case Task::PHASE_NOT_SET:
      return to == Task::kBlocked || to == Task::kReady || to == Task::kSkipped;
    case Task::kBlocked:
      return to == Task::kReady || to == Task::kSkipped || to == Task::kCancelled;
    case Task::kReady:
    case Task::kBackoff:
      return to != Task::kSkipped;  // late results, adoption, lost inputs, cancel
    case Task::kAssigned:
    case Task::kRunning:
      return to != Task::kSkipped;
    case Task::kSucceeded:
    case Task::kDiverged:
      return to == Task::kReady || to == Task::kBlocked;
    case Task::kFailed:
    case Task::kCancelled:
    case Task::kStopped:
    case Task::kSkipped:
      return to == Task::kReady || to == Task::kBlocked || to == Task::kSkipped;
  }
  return false;
}

}  // namespace

void Monitor::restarted(const SweepState& state) {
  // What was not durable never happened.
  phases_.clear();
  for (const auto& [id, entry] : state.tasks()) {
    const journal::Task& task = entry.task;
    phases_[id] = task.phase_case();
    if (task.fence() < fences_[id])
      violated(fmt::format("{} has fence {} after {}", id, task.fence(), fences_[id]));
  }
}

// Whoever goes on or stops does so by the reports that there are, whatever crashed in between.
void Monitor::decided(const SweepState& before, const journal::Event& event) {
  if (auto broken = scheduler::broken_decision(before, event); !broken.empty()) violated(broken);
}

void Monitor::applied(const SweepState& state, const journal::Event& event,
                      const scheduler::Changes& changes) {
  for (const auto* named : changes.tasks) check_transition(named->second.task);
  if (event.has_process_started()) {
    if (event.process_started().epoch() < epoch_)
      violated(fmt::format("epoch {} after {}", event.process_started().epoch(), epoch_));
    epoch_ = event.process_started().epoch();
  }
  for (const auto& [session, worker] : state.workers()) {
    if (worker.memory_bytes == 0 || worker.runs.size() < 2) continue;
    std::uint64_t promised = 0;
    for (const std::uint64_t id : worker.runs) promised += state.find_run(id)->memory_bytes();
    if (promised > worker.memory_bytes && event.has_run_granted())
      violated(
          fmt::format("{} bytes promised of {} at {}", promised, worker.memory_bytes, worker.name));
  }
  if (++applied_ % kLookAtAllEvery != 0 && !event.has_run_adopted() && !event.has_sweep_changed() &&
      !event.has_process_started())
    return;
  if (auto broken = state.broken_invariant(); !broken.empty())
    violated(fmt::format("{} (after {})", broken, event.ShortDebugString()));
}

void Monitor::check_transition(const Task& task) {
  auto& phase = phases_[task.spec().id()];
  if (!may_follow(phase, task.phase_case()))
    violated(fmt::format("{} went from phase {} to {}", task.spec().id(), static_cast<int>(phase),
                         static_cast<int>(task.phase_case())));
  phase = task.phase_case();
}

void Monitor::committed(const std::vector<journal::Event>& events) {
  for (const journal::Event& event : events) {
    const std::string bytes = event.SerializeAsString();
    hash_ = xxh3_64(std::as_bytes(std::span(bytes)), hash_);
    ++events_;
    if (event.has_run_granted())
      for (const auto& grant : event.run_granted().grants()) {
        if (grant.fence() <= fences_[grant.task()])
          violated(fmt::format("{}: fence {} was granted after {}", grant.task(), grant.fence(),
                               fences_[grant.task()]));
        fences_[grant.task()] = grant.fence();
      }
    if (event.has_task_finished()) {
      const std::string& task = event.task_finished().result().task();
      if (++finished_[task] > 1) violated(task + " has two results");
    }
    if (event.has_tasks_again())
      for (const auto& task : event.tasks_again().tasks()) finished_[task] = 0;
    if (event.has_sweep_submitted())
      for (const auto& task : event.sweep_submitted().again()) finished_[task] = 0;
  }
}

void Monitor::acknowledged(const Disk& disk, const protocol::ResultAck& ack) {
  if (ack.verdict() == "invalid") violated(ack.task() + ": an invalid result");
  if (ack.verdict() != "committed" && ack.verdict() != "duplicate") return;
  const auto task = disk.task(ack.task());
  if (!task) return violated(ack.task() + " was acknowledged and is not on disk");
  const bool is_report = task->reported_fence() == ack.fence();
  if (ack.verdict() == "duplicate" && !task->has_result() && !is_report)
    violated(ack.task() + ": a duplicate of a result that is not on disk");
}

void Monitor::began(const std::string& session, const std::string& task, std::uint64_t fence) {
  const auto [holder, is_first] = holders_.try_emplace({task, fence}, session);
  if (!is_first) violated(fmt::format("fence {} of {} began twice", fence, task));
}

void Monitor::queued(std::size_t unacknowledged) {
  if (unacknowledged > protocol::ReliablePeer::kMaxUnacked)
    violated(fmt::format("{} messages are not acknowledged", unacknowledged));
}

}  // namespace saesweep::sim
