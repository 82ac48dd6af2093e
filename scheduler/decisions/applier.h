// What each event does to the objects: the only code that changes them. Private to this folder.
#pragma once

#include <string>

#include "scheduler/decisions/sweep_state.h"

namespace saesweep::scheduler {

class Applier {
 public:
  Applier(SweepState& state, Changes& changes) : state_(state), changes_(changes) {}

  void apply(journal::Event& event);  // takes from it what is large

 private:
  using Task = journal::Task;

  Task& task_at(const std::string& id);
  journal::Run& run_at(std::uint64_t id);
  journal::Sweep& sweep_at(const std::string& name);
  journal::Run& new_run(std::uint64_t id);
  void erase_run(std::uint64_t id);
  void leave_run(Task& task);
  bool has_inputs(const Task& task) const;
  void wait(Task& task, std::uint64_t until_ns);
  // Waiting again: as one run while deaths are counted, each for itself otherwise.
  void wait_again(journal::Run& run, std::uint64_t until_ns);
  void end_attempts(const journal::Run& run, journal::Ending ending, const std::string& reason);
  // By what it needs: blocked, ready or skipped.
  void enter_phase(Task& task) const;
  void begin(Task& task);  // that, and files it
  // Once more, as if it had never been tried.
  void begin_again(Task& task);
  // After `task` finished or begins once more.
  void tell_dependents(const Task& task);
  void reopen_sweeps_of(const std::string& task);
  void fail(Task& task, const std::string& reason, journal::Ending ending);
  void enter(const journal::Sweep& sweep);

  // Early stopping (apply_contests.cpp).
  void reported(const journal::TaskReported& event);
  void promoted(const journal::TrialPromoted& event);
  void trial_stopped(const journal::TrialStopped& event);
  // What reports of a trial that is over are worth to the contests that it takes part in.
  void end_standings(Task& task);
  void report_divergence(Task& task);
  // The trials of a sweep as it was submitted now stand where they stood before, if the rules are
  // the same.
  void take_part(const journal::Sweep& old, const journal::Sweep& sweep);
  void count_anew(const std::string& name);
  void count_anew(const Task& task);
  void file_row(const Task& task, const std::string& name);

  // Process and sweeps (apply_sweeps.cpp).
  void started(const journal::ProcessStarted& event);
  void submitted(journal::SweepSubmitted& event);
  void sweep_changed(const journal::SweepChanged& event);
  void sweep_ended(const journal::SweepEnded& event);
  void again(const journal::TasksAgain& event);
  void cancelled(const journal::TasksCancelled& event);
  void time_passed(const journal::TimePassed& event);
  void wish_granted(const journal::GrantedWish& event);

  // Runs and tasks.
  void granted(const journal::RunGranted& event);
  void run_started(const journal::RunStarted& event);
  void refused(const journal::RunRefused& event);
  void lost(const journal::RunLost& event);
  void adopted(const journal::RunAdopted& event);
  void checkpointed(const journal::TaskCheckpointed& event);
  void finished(const protocol::TaskResult& result);
  void stopped(const journal::TaskStopped& event);
  void returned(const journal::TaskReturned& event);

  // Workers.
  void joined(const journal::WorkerJoined& event);
  void heard(const journal::WorkerHeard& event);
  void noted(const journal::WorkerNoted& event);
  void drained(const journal::WorkerDrained& event);

  SweepState& state_;
  Changes& changes_;
  double time_ = 0;  // of the event, Unix seconds
};

}  // namespace saesweep::scheduler
