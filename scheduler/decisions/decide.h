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
#include "scheduler/decisions/journal.pb.h"
#include "scheduler/decisions/sweep_state.h"
#include "scheduler/protocol/messages.pb.h"

namespace saesweep::scheduler {

inline constexpr std::chrono::seconds kLease{60};
inline constexpr std::chrono::seconds kHeartbeat{1};
inline constexpr std::chrono::seconds kSuspectAfter{10};  // of silence: no new work
inline constexpr std::chrono::seconds kLostAfter{30};     // of silence: its runs go to others
inline constexpr std::uint32_t kMostTrainTasks = 64;      // of a run
inline constexpr std::uint32_t kMostEvaluateTasks = 16;
inline constexpr std::uint32_t kDeathsBeforeSplit = 2;  // of a run of several tasks
inline constexpr std::uint32_t kDeathsOfOne = 3;        // of a task by itself: given up
inline constexpr std::uint32_t kMostOutOfMemory = 3;    // of a task by itself
inline constexpr std::uint32_t kMostRetries = 10;       // without a checkpoint in between

// What happened.
struct ProcessBegins {};
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
using Heard =
    std::variant<ProcessBegins, Submission, Tick, StopAsked, ResultHeard, protocol::Hello,
                 protocol::Heartbeat, protocol::AssignReply, protocol::Started, protocol::Progress,
                 protocol::Checkpointed, protocol::ControlDone, protocol::Bye>;
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

struct Decision {
  std::vector<journal::Event> events;  // without sequence and time
  std::vector<Reply> replies;
  std::optional<Error> halt;  // nothing can go on: a full disk
};

Decision decide(const SweepState& state, const Message& message, TimePoint now);

// Which runs go to whom now. Part of deciding on a tick.
void place(const SweepState& state, TimePoint now, Decision& decision);

// One row of a sweep: what became of it, as far as it is known.
struct SubjectOutcome {
  std::string state;  // done | diverged | failed | unfinished
  std::string reason;
};
SubjectOutcome outcome_of(const SweepState& state, const journal::Subject& subject);

}  // namespace saesweep::scheduler
