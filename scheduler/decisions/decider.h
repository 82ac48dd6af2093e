// The judgement on each kind of message. Private to this folder: others call decide().
#pragma once

#include <string>
#include <utility>

#include "scheduler/decisions/decide.h"

namespace saesweep::scheduler {

class Decider {
 public:
  Decider(const SweepState& state, std::string peer, TimePoint now)
      : state_(state), peer_(std::move(peer)), now_(now) {}

  Decision take() { return std::move(decision_); }

  // Process, sweeps, time (decide.cpp).
  void hear(const ProcessBegins&);
  void hear(Submission&& submission);
  void hear(const StopAsked&);
  void hear(const Tick& tick);
  // What workers say of runs (decide.cpp).
  void hear(const protocol::AssignReply& answer);
  void hear(const protocol::Started& started);
  void hear(const protocol::Progress& progress);
  void hear(const protocol::Checkpointed& heard);
  void hear(const ResultHeard& heard);
  void hear(const protocol::ControlDone& done);
  // Who comes, lives, goes (workers.cpp).
  void hear(const protocol::Hello& hello);
  void hear(const protocol::Heartbeat& beat);
  void hear(const protocol::Resync& resync);
  void hear(const protocol::Bye& bye);
  // People (commands.cpp).
  void hear(const SweepCommand& command);
  void hear(const SweepPriority& command);
  void hear(const WorkerCommand& command);
  void hear(const WishGranted& wish);

 private:
  using Task = journal::Task;
  using Leases = std::map<std::pair<std::string, std::uint64_t>, std::uint64_t>;  // -> run

  journal::Event& event() { return decision_.events.emplace_back(); }
  template <class Body>
  void reply(Body body) {
    decision_.replies.push_back({peer_, std::move(body)});
  }
  // False for a peer that never said HELLO.
  bool note_life(std::int64_t free_slots = -1);
  // The run, if it is leased to whom we hear.
  const journal::Run* own_run(std::uint64_t id) const;
  void start(const journal::Run& run);
  void control(const std::string& worker, std::uint64_t run, const char* verb,
               const Task* task = nullptr);
  // To whom it is leased.
  void control(const Task& task, const char* verb);
  void cancel_lease(std::uint64_t run, const std::string& task, std::uint64_t fence);
  // Of the sweep that this one replaces: what runs and nobody wants any more.
  void cancel_unwanted(const journal::Sweep& sweep);

  journal::TaskReturned& returned(const Task& task, const std::string& reason,
                                  journal::Ending ending);
  void give_up(const std::string& task, std::string reason, journal::Ending ending);
  void retry(const Task& task, const std::string& reason);
  void lose_runs_of(const std::string& worker, const std::string& reason, journal::Ending ending);
  void lose(const journal::Run& run, bool died_alone, const std::string& reason,
            journal::Ending ending);
  void out_of_memory(const Task& task, const std::string& reason);
  // Early stopping (contests.cpp).
  // True if somebody may go on, or nobody will: what follows is for the next look.
  bool settle_contests();
  const char* judge_report(const ResultHeard& heard, const Task& task);
  void promote(const journal::Sweep& sweep, const Contest::Step& step);
  void stop(const journal::Sweep& sweep, TrialIndex row, std::string reason);

  // The verdict; events for what follows.
  const char* judge(const ResultHeard& heard);

  bool runs_otherwise(const Worker& worker, const protocol::Heartbeat& beat) const;
  void forget(const std::string& session);
  void adopt_or_cancel(const Leases& running);
  void miss(const Worker& worker, const Leases& told);

  // Null, and an answer that says so, if there is none.
  const journal::Sweep* find_sweep(const std::string& name);
  bool choose(const journal::Sweep& sweep, const SweepCommand& command, std::set<int>& chosen);
  void cancel(const journal::Sweep& sweep, const SweepCommand& command,
              const std::set<int>& chosen);
  void pause(const journal::Sweep& sweep, const SweepCommand& command, const std::set<int>& chosen);
  void resume(const journal::Sweep& sweep, const SweepCommand& command,
              const std::set<int>& chosen);
  void try_again(const journal::Sweep& sweep, const SweepCommand& command,
                 const std::set<int>& chosen);
  void refuse(ErrorCode code, std::string why);

  const SweepState& state_;
  const std::string peer_;
  const TimePoint now_;
  Decision decision_;
};

}  // namespace saesweep::scheduler
