#include "tests/sim/scheduler_node.h"

#include <fmt/format.h>

#include "core/check.h"
#include "scheduler/protocol/conversation.h"
#include "tests/sim/words.h"

namespace saesweep::sim {

using namespace std::chrono_literals;
using namespace scheduler;
using protocol::MessageType;

namespace {

constexpr Duration kLongestPoll = 500ms;
constexpr Duration kStall = 1s;

template <class Body>
Body parse(const protocol::OutgoingFrame& frame) {
  Body body;
  SAE_CHECK(body.ParseFromString(frame.body), "a body of {} bytes", frame.body.size());
  return body;
}

}  // namespace

void SchedulerNode::start() {
  alive_ = true;
  ++life_;
  state_ = disk_.load();
  monitor_.restarted(state_);
  // Another machine, another monotonic clock.
  clock_ = LocalClock::draw(rng_, timeline_.now(), faults_.drift);
  session_ = rng_.next_u64() | 1;
  last_look_ = clock();
  next_turn_ = {};
  paused_until_ = {};
  hear("", ProcessBegins{.adopt = true});
  if (alive_) turn_at(timeline_.now());
}

void SchedulerNode::crash() {
  alive_ = false;
  ++life_;
  pending_.clear();
  changes_ = {};
  replies_.clear();
  answers_.clear();
  finished_.clear();
  peers_.clear();
  inbox_.clear();
  commands_.clear();
}

void SchedulerNode::turn_at(TimePoint when) {
  when = std::max(when, paused_until_);
  if (next_turn_ > timeline_.now() && next_turn_ <= when) return;
  next_turn_ = when;
  timeline_.at(when, [this, life = life_, when] {
    if (!alive_ || life != life_ || next_turn_ != when) return;
    if (timeline_.now() < paused_until_) return turn_at(paused_until_);
    turn();
  });
}

void SchedulerNode::hear_frame(const std::string& session, const protocol::OutgoingFrame& frame) {
  if (!alive_) return;
  inbox_.emplace_back(session, frame);
  turn_at(timeline_.now() + 1ms);
}

void SchedulerNode::command(Heard heard, std::function<void(const Answer*)> done) {
  if (!alive_) return;
  commands_.push_back({std::move(heard), std::move(done)});
  turn_at(timeline_.now() + 1ms);
}

std::optional<Answer> SchedulerNode::hear(const std::string& peer, Heard heard) {
  Decision decision = decide(state_, {peer, std::move(heard)}, clock());
  for (journal::Event& event : decision.events) {
    if (event.has_task_finished()) finished_.push_back(event.task_finished().result().task());
    if (event.has_tasks_cancelled())
      for (const auto& task : event.tasks_cancelled().tasks()) finished_.push_back(task);
    if (event.has_trial_stopped()) finished_.push_back(event.trial_stopped().task());
    if (!is_passing(event)) {
      event.set_sequence(state_.meta().last_event() + 1);
      event.set_time(wall_time());
    }
    Changes changes;
    monitor_.decided(state_, event);
    state_.apply(event, &changes);
    monitor_.applied(state_, event, changes);
    if (is_passing(event)) continue;
    changes_.meta |= changes.meta;
    changes_.sweeps.merge(changes.sweeps);
    changes_.tasks.merge(changes.tasks);
    changes_.runs.merge(changes.runs);
    pending_.push_back(std::move(event));
  }
  for (Reply& reply : decision.replies) replies_.push_back(std::move(reply));
  return std::move(decision.answer);
}

void SchedulerNode::turn() {
  const auto inbox = std::exchange(inbox_, {});
  for (const auto& [session, frame] : inbox) {
    auto peer = peers_.try_emplace(session, session_, kUnlimited).first;
    const auto standing = protocol::standing_of(frame.header.session, low_half(session), session_);
    if (standing == protocol::Standing::kOld) {
      if ((frame.header.flags & protocol::kReliable) != 0) continue;
    } else if (!peer->second.accept(frame.header, clock())) {
      continue;
    }
    hear_message(session, frame);
  }
  const auto commands = std::exchange(commands_, {});
  for (const Command& command : commands)
    answers_.push_back({hear("", command.heard), command.done});
  const Duration late = clock() - last_look_ - kLongestPoll;
  last_look_ = clock();
  hear("", Tick{.stalled = late > kStall ? late : Duration::zero(), .may_place = !disk_.full});
  if (!commit()) return;
  for (auto& [session, peer] : peers_)
    for (const protocol::OutgoingFrame& frame : peer.due(clock()))
      network_.send_down(session, frame);
  turn_at(timeline_.now() + kLongestPoll);
}

void SchedulerNode::hear_message(const std::string& session, const protocol::OutgoingFrame& frame) {
  switch (frame.header.type) {
    case MessageType::kHello: {
      const auto hello = parse<protocol::Hello>(frame);
      const bool is_known = state_.workers().contains(session);
      hear(session, hello);
      if (is_known && hello.known_epoch() == state_.meta().epoch())
        for (const auto& again :
             peers_.at(session).resend_after(hello.last_seq_received(), clock()))
          network_.send_down(session, again);
      return;
    }
    case MessageType::kHeartbeat:
      hear(session, parse<protocol::Heartbeat>(frame));
      return;
    case MessageType::kAssignReply:
      hear(session, parse<protocol::AssignReply>(frame));
      return;
    case MessageType::kStarted:
      hear(session, parse<protocol::Started>(frame));
      return;
    case MessageType::kProgress:
      hear(session, parse<protocol::Progress>(frame));
      return;
    case MessageType::kCheckpointed:
      hear(session, parse<protocol::Checkpointed>(frame));
      return;
    case MessageType::kResult: {
      ResultHeard heard{.result = parse<protocol::TaskResult>(frame)};
      if (heard.result.outcome() == protocol::OUTCOME_AT_RUNG)
        heard.artifacts_are_there = files.contains(heard.result.checkpoint().path());
      hear(session, std::move(heard));
      return;
    }
    case MessageType::kControlDone:
      hear(session, parse<protocol::ControlDone>(frame));
      return;
    case MessageType::kResync:
      hear(session, parse<protocol::Resync>(frame));
      return;
    case MessageType::kBye:
      hear(session, parse<protocol::Bye>(frame));
      peers_.erase(session);
      return;
    default:
      SAE_CHECK(false, "a worker does not say {}", to_string(frame.header.type));
  }
}

// False: it died on the way.
bool SchedulerNode::commit() {
  const bool dies =
      !faults_.is_over && !pending_.empty() && rng_.uniform() < faults_.crash_at_commit;
  // Before the batch, in the middle of it (torn, which is the same), or after it.
  const bool is_written = !dies || rng_.below(2) == 0;
  if (is_written && !pending_.empty()) {
    if (!disk_.commit(state_, pending_, changes_)) {
      // Only what asks for checkpoints may leave; the rest waits for room.
      return true;
    }
    monitor_.committed(pending_);
    pending_.clear();
    changes_ = {};
  }
  if (dies) {
    crash();
    timeline_.after(std::chrono::milliseconds(rng_.below(20'000)), [this, life = life_] {
      if (!alive_ && life == life_) start();
    });
    return false;
  }
  for (auto& [session, peer] : peers_) peer.confirm();
  for (const Reply& reply : replies_) send(reply);
  replies_.clear();
  for (const Answered& answered : answers_)
    if (answered.done) answered.done(answered.answer ? &*answered.answer : nullptr);
  answers_.clear();
  for (const std::string& task : std::exchange(finished_, {})) forget_checkpoints(task);
  return true;
}

void SchedulerNode::send(const Reply& reply) {
  const auto found = peers_.find(reply.peer);
  if (found == peers_.end()) return;
  protocol::ReliablePeer& peer = found->second;
  const auto send_as = [&](MessageType type, const auto& body, bool reliable) {
    if (!reliable)
      return network_.send_down(reply.peer, peer.unreliable(type, body.SerializeAsString()));
    if (auto frame = peer.reliable(type, body.SerializeAsString(), clock()))
      network_.send_down(reply.peer, *frame);
    monitor_.queued(peer.unacknowledged());
  };
  std::visit(
      [&](const auto& body) {
        using Body = std::decay_t<decltype(body)>;
        if constexpr (std::is_same_v<Body, protocol::Welcome>) {
          protocol::Welcome welcome = body;
          welcome.set_last_seq_received(peer.last_received());
          send_as(MessageType::kWelcome, welcome, false);
        } else if constexpr (std::is_same_v<Body, protocol::Reject>) {
          send_as(MessageType::kReject, body, false);
        } else if constexpr (std::is_same_v<Body, protocol::HeartbeatAck>) {
          send_as(MessageType::kHeartbeatAck, body, false);
        } else if constexpr (std::is_same_v<Body, protocol::Assign>) {
          for (const auto& run : body.runs())
            for (const auto& member : run.members())
              if (member.has_resume() && !files.contains(member.resume().path()))
                monitor_.violated(fmt::format("{} is to go on from {}, which is not there",
                                              member.task(), member.resume().path()));
          send_as(MessageType::kAssign, body, true);
        } else if constexpr (std::is_same_v<Body, protocol::ResultAck>) {
          monitor_.acknowledged(disk_, body);
          send_as(MessageType::kResultAck, body, true);
        } else {
          send_as(MessageType::kControl, body, true);
        }
      },
      reply.body);
}

// As the service does: what is finished for good goes on from nowhere.
void SchedulerNode::forget_checkpoints(const std::string& id) {
  const journal::Task& task = *state_.find_task(id);
  if (!is_finished(task) || (task.has_failed() && task.failed().passing())) return;
  if (task.spec().directory().empty()) return;
  const std::string prefix = task.spec().directory() + "/";
  auto it = files.lower_bound(prefix);
  while (it != files.end() && it->starts_with(prefix)) it = files.erase(it);
}

}  // namespace saesweep::sim
