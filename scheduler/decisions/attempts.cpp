#include "scheduler/decisions/attempts.h"

namespace saesweep::scheduler {
namespace {

constexpr std::size_t kMostReason = 1024;

}  // namespace

std::string_view to_string(journal::Ending ending) {
  switch (ending) {
    case journal::ENDING_DONE:
      return "done";
    case journal::ENDING_DIVERGED:
      return "diverged";
    case journal::ENDING_FAILED:
      return "failed";
    case journal::ENDING_CRASHED:
      return "crash";
    case journal::ENDING_LOST:
      return "lost";
    case journal::ENDING_PREEMPTED:
      return "preempted";
    case journal::ENDING_OUT_OF_MEMORY:
      return "out_of_memory";
    case journal::ENDING_REFUSED:
      return "refused";
    case journal::ENDING_PAUSED:
      return "paused";
    case journal::ENDING_CANCELLED:
      return "cancelled";
    case journal::ENDING_DRAINED:
      return "drained";
    case journal::ENDING_STOPPED:
      return "stopped";
    case journal::ENDING_TROUBLE:
      return "trouble";
    case journal::ENDING_INTERRUPTED:
      return "interrupted";
    case journal::ENDING_DEADLY:
      return "deadly";
    case journal::ENDING_AT_RUNG:
      return "at_rung";
    default:
      return "running";
  }
}

void begin_attempt(journal::Task& task, const journal::Run& run, double time) {
  auto& attempts = *task.mutable_attempts();
  if (attempts.size() >= kMostAttemptsKept)
    attempts.DeleteSubrange(0, attempts.size() - kMostAttemptsKept + 1);
  journal::Attempt& attempt = *attempts.Add();
  attempt.set_fence(task.fence());
  attempt.set_run(run.id());
  attempt.set_worker(run.worker_name());
  attempt.set_host(run.worker_host());
  attempt.set_began(time);
}

void end_attempt(journal::Task& task, journal::Ending ending, const std::string& reason,
                 double time) {
  if (task.attempts_size() == 0) return;
  journal::Attempt& attempt = *task.mutable_attempts(task.attempts_size() - 1);
  if (attempt.ending() != journal::ENDING_UNSPECIFIED) return;
  attempt.set_ending(ending);
  attempt.set_ended(time);
  attempt.set_reason(reason.substr(0, kMostReason));
}

void continue_attempt(journal::Task& task) {
  if (task.attempts_size() == 0) return;
  journal::Attempt& attempt = *task.mutable_attempts(task.attempts_size() - 1);
  attempt.clear_ending();
  attempt.clear_ended();
  attempt.clear_reason();
}

}  // namespace saesweep::scheduler
