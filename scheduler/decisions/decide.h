// The scheduler's judgement: what follows from what was heard. No socket, clock, thread, disk or
// lock; a test can put it through a bad week in a millisecond.
//
// Whoever calls makes the events durable, applies them, and only then sends the replies.
#pragma once

#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "core/clock.h"
#include "core/json.h"
#include "core/result.h"
#include "scheduler/decisions/state.h"
#include "scheduler/protocol/frame.h"

namespace saesweep::scheduler {

struct Recovered {};  // the journal was opened: nobody holds a lease any more
struct Submission {
  journal::Sweep sweep;
  std::vector<journal::Task> tasks;
};
struct WorkerLost {  // an agent said BYE or was not heard of for too long
  std::string peer;
};
struct AssignAnswer {
  std::string peer;
  protocol::AssignReply reply;
};
struct RunStarted {
  protocol::Started started;
};
struct CheckpointHeard {
  protocol::Checkpointed checkpointed;
};
struct ResultHeard {
  std::string peer;
  protocol::TaskResult result;
  bool artifacts_there = true;  // of a result that names some
};
struct ControlAnswer {
  protocol::ControlDone done;
};
struct PlaceWork {};  // give what is ready to who is free

using Message = std::variant<Recovered, Submission, WorkerLost, AssignAnswer, RunStarted,
                             CheckpointHeard, ResultHeard, ControlAnswer, PlaceWork>;

struct Reply {
  std::string peer;
  protocol::MessageType type = protocol::MessageType::kResultAck;
  std::variant<protocol::ResultAck, protocol::Assign, protocol::Control> body;
};

struct Decision {
  std::vector<journal::Event> events;
  std::vector<Reply> replies;
  std::optional<Error> stop;  // nothing can go on: pause what runs and say why
};

Decision decide(const SweepState& state, const Message& heard, TimePoint now);

// How many members a run may have.
inline constexpr std::size_t kMaxTrainMembers = 64;
inline constexpr std::size_t kMaxEvaluateMembers = 16;
// Deaths of a run that count: then a run of several is split, and a task alone is given up.
inline constexpr std::uint32_t kDeathsToSplit = 2;
inline constexpr std::uint32_t kDeathsToGiveUp = 3;
inline constexpr std::uint32_t kRetriesAlone = 3;

}  // namespace saesweep::scheduler
