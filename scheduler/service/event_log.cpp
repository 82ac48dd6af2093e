#include "scheduler/service/event_log.h"

#include "core/log.h"

namespace saesweep::scheduler {

void log_event(const journal::Event& event) {
  if (event.has_run_granted())
    log::info("run.granted run={} tasks={}", event.run_granted().run(),
              event.run_granted().grants_size());
  else if (event.has_run_lost())
    log::warn("run.lost run={} counted={} reason={}", event.run_lost().run(),
              event.run_lost().counted(), event.run_lost().reason());
  else if (event.has_run_refused())
    log::info("run.refused run={} reason={}", event.run_refused().run(),
              event.run_refused().reason());
  else if (event.has_task_returned() && event.task_returned().retry())
    log::warn("task.retry task={} reason={}", event.task_returned().task(),
              event.task_returned().reason());
  else if (event.has_task_given_up())
    log::error("task.given_up task={} reason={}", event.task_given_up().task(),
               event.task_given_up().reason());
  else if (event.has_trial_promoted())
    log::info("trial.promoted task={} sweep={} reason={}", event.trial_promoted().task(),
              event.trial_promoted().sweep(), event.trial_promoted().reason());
  else if (event.has_trial_stopped())
    log::info("trial.stopped task={} sweep={} reason={}", event.trial_stopped().task(),
              event.trial_stopped().sweep(), event.trial_stopped().reason());
  else if (event.has_worker_lost())
    log::warn("worker.lost");
}

}  // namespace saesweep::scheduler
