// The scheduler's judgement: what follows from a message, a moment and the state. Changes nothing:
// the events that it returns are made durable, applied, and then the replies are sent.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "core/clock.h"
#include "core/error.h"
#include "core/json.h"
#include "scheduler/decisions/journal.pb.h"
#include "scheduler/decisions/sweep_state.h"
#include "scheduler/protocol/messages.pb.h"

namespace saesweep::scheduler {

inline constexpr std::chrono::seconds kLease{60};
inline constexpr std::chrono::seconds kHeartbeat{1};
inline constexpr std::chrono::seconds kSuspectAfter{10};      // of silence: no new work
inline constexpr std::chrono::seconds kLostAfter{30};         // of silence: its runs go to others
inline constexpr std::chrono::seconds kReadoption{120};       // after a restart: leases are held
inline constexpr std::chrono::seconds kForgottenAfter{3600};  // of silence: no longer shown
inline constexpr std::uint32_t kMostTrainTasks = 64;          // of a run
inline constexpr std::uint32_t kMostEvaluateTasks = 16;
inline constexpr std::uint32_t kDeathsBeforeSplit = 2;  // of a run of several tasks
inline constexpr std::uint32_t kDeathsOfOne = 3;        // of a task by itself: given up
inline constexpr std::uint32_t kMostOutOfMemory = 3;    // of a task by itself
inline constexpr std::uint32_t kMostRetries = 10;       // without a checkpoint in between
inline constexpr std::int32_t kMostPriority = 100;      // and least: -100
inline constexpr int kWishesKept = 256;                 // with their answers

// What happened.
struct ProcessBegins {
  // `serve`: sweeps stay active, and what ran is held for kReadoption until its workers come back.
  // `run`: nothing runs any more, its agent died with it; sweeps wait to be submitted again.
  bool adopt = false;
};
struct Submission {
  journal::Sweep sweep;
  std::vector<journal::TaskSpec> tasks;  // all of the sweep's; what is needed before who needs it
  std::set<std::string> lost;            // succeeded before, but their artifacts are gone
};
struct Tick {
  Duration stalled{};  // how late we were to look: nobody else's silence
  bool may_place = true;
};
struct StopAsked {};
struct ResultHeard {
  protocol::TaskResult result;
  bool artifacts_are_there = true;
};
// A person's words. They are answered: Decision::answer.
struct SweepCommand {
  std::string sweep;
  std::string verb;                 // cancel | pause | resume | retry
  std::vector<std::string> trials;  // identities, 64 hex digits; empty: all rows, baselines too
};
struct SweepPriority {
  std::string sweep;
  int priority = 0;   // -100..100
  double weight = 1;  // positive
};
struct WorkerCommand {
  std::string worker;  // name (of all that bear it), session, or session in hex
  std::string verb;    // drain | undrain
};
// A wish of theirs was granted, whatever it changed besides.
struct WishGranted {
  std::string key;
  Json answer;
};
using Heard =
    std::variant<ProcessBegins, Submission, WishGranted, Tick, StopAsked, ResultHeard, SweepCommand,
                 SweepPriority, WorkerCommand, protocol::Hello, protocol::Heartbeat,
                 protocol::AssignReply, protocol::Started, protocol::Progress,
                 protocol::Checkpointed, protocol::ControlDone, protocol::Resync, protocol::Bye>;
struct Message {
  std::string peer;  // session of a worker; empty for our own
  Heard heard;
};

struct Reply {
  std::string peer;
  std::variant<protocol::Welcome, protocol::Reject, protocol::HeartbeatAck, protocol::Assign,
               protocol::ResultAck, protocol::Control>
      body;
};

// To whoever gave a command.
struct Answer {
  std::optional<Error> error;     // kNotFound: no such sweep, trial or worker; kInvalidArgument
  Json details = Json::object();  // {"sweep","verb","trials": rows it concerned, ...}
};

struct Decision {
  std::vector<journal::Event> events;  // without sequence and time
  std::vector<Reply> replies;
  std::optional<Error> halt;  // nothing can go on: a full disk
  bool again = false;         // a tick: what was decided makes others ready; look once more
  std::optional<Answer> answer;
};

Decision decide(const SweepState& state, Message message, TimePoint now);

// Which runs go to whom now. Part of deciding on a tick.
void place(const SweepState& state, TimePoint now, Decision& decision);

// Why a task is where it is, from what placement itself goes by:
//   {"task", "state", "reasons": [{"code", "text", ...}], "sweeps": [...], "attempts": [...]}
// state: one of state_of(). Codes are a promise; text is for people. An unknown task: null.
//   assigned, running  on_worker | worker_awaited | pausing | draining
//   blocked            needs_input
//   waiting            backoff | at_rung | stopped | sweep_paused | trial_paused | sweep_inactive |
//   cancelled |
//                      unwanted | no_worker | workers_busy | workers_draining | workers_suspect |
//                      workers_lost | workers_resyncing | needs_memory | worker_reserved |
//                      behind_others | run_waits | next
//   finished           done | diverged | failed | deaths | skipped | cancelled | stopped
Json explain(const SweepState& state, const std::string& task, TimePoint now);
// blocked | ready | backoff | paused | assigned | running | succeeded | diverged | failed | skipped
// | cancelled | stopped
std::string_view state_of(const SweepState& state, const journal::Task& task);

// One row of a sweep: what became of it, as far as it is known.
struct SubjectOutcome {
  std::string state;  // done | diverged | failed | stopped | cancelled | unfinished
  std::string reason;
};
// Nothing: unfinished.
std::optional<SubjectOutcome> settled_outcome_of(const SweepState& state,
                                                 const journal::Sweep& sweep,
                                                 const journal::Subject& subject);
SubjectOutcome outcome_of(const SweepState& state, const journal::Sweep& sweep,
                          const journal::Subject& subject);

}  // namespace saesweep::scheduler
