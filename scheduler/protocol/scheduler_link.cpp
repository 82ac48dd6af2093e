// The scheduler's end of the link: a ROUTER, sessions and what each of them may say.
#include <google/protobuf/message_lite.h>

#include <algorithm>
#include <deque>
#include <map>
#include <set>
#include <zmq.hpp>

#include "core/clock.h"
#include "core/log.h"
#include "scheduler/protocol/conversation.h"
#include "scheduler/protocol/link.h"
#include "scheduler/protocol/link_socket.h"
#include "scheduler/protocol/monitor.h"

namespace saesweep::protocol {
namespace {

constexpr int kStrikes = 3;
// Strikes of peers that never said a message: forgotten when there are too many.
constexpr std::size_t kMaxStrangers = 4096;
// Messages of one poll: a flood must not keep the caller from its other duties.
constexpr int kMostAtOnce = 4096;

TimePoint now() { return SystemClock().now(); }

}  // namespace

struct SchedulerLink::State {
  explicit State(int io_threads) : context(io_threads) {}

  struct Waiting {
    MessageType type;
    std::string body;
  };
  struct Peer {
    ReliablePeer reliable;
    std::string route;                  // routing id of its newest connection
    std::set<std::string> former = {};  // of connections before, whose frames may still come
    Identity identity = {};
    std::uint64_t generation = 0;  // of the keys when the identity was authorised
    int strikes = 0;
    std::deque<Waiting> waiting = {};  // for credit
    std::size_t waiting_bytes = 0;
  };
  using Peers = std::map<std::string, Peer>;  // by session

  void say(const Peer& peer, const OutgoingFrame& frame) { send_frame(socket, &peer.route, frame); }

  void say_what_waits(Peer& peer) {
    while (!peer.waiting.empty()) {
      const std::size_t bytes = peer.waiting.front().body.size();
      // A copy: there may be no credit for it yet.
      const auto frame =
          peer.reliable.reliable(peer.waiting.front().type, peer.waiting.front().body, now());
      if (!frame) return;
      peer.waiting_bytes -= bytes;
      peer.waiting.pop_front();
      say(peer, *frame);
    }
  }

  // ---- what comes in --------------------------------------------------------------------------

  void hear(std::vector<zmq::message_t>& frames, std::vector<HeardMessage>& heard) {
    const std::string route = frames[0].to_string();
    const std::string session = session_of(route);
    auto found = peers.find(session);
    int& strikes = found != peers.end() ? found->second.strikes : strikes_of_stranger(route);
    if (strikes >= kStrikes) {
      ++dropped;
      return;
    }
    const auto strike = [&](std::string_view why) {
      ++dropped;
      ++strikes;
      if (const auto times = garbage.let_through(now()))
        log::warn("link.garbage times={} error={}", *times, why);
    };
    if (frames.size() != 3) return strike("wrong number of frames");
    const auto header = decode_header(bytes_of(frames[1]), bytes_of(frames[2]));
    if (!header) return strike(header.error().message);
    Identity identity = identity_of(frames[1]);  // ZeroMQ does not always name it on the first
    if (!is_authorized(found == peers.end() ? nullptr : &found->second, identity)) {
      // Not its fault: it was let in, and its key was revoked since.
      ++dropped;
      return;
    }
    if (!may_send(identity.role, header->type))
      return strike(fmt::format("{}:{} may not send {}", to_string(identity.role), identity.name,
                                to_string(header->type)));
    if (found == peers.end()) {
      strangers.erase(route);
      found = peers.emplace(session, new_peer(route, std::move(identity))).first;
    }
    Peer& peer = found->second;
    const bool is_moved = route != peer.route && !peer.former.contains(route);
    if (is_moved) move(peer, route);
    if (standing_of(header->session, session_number(session), own) == Standing::kOld) {
      // It has not heard us yet: its numbers are another's, but HELLO may be what it says.
      if ((header->flags & kReliable) != 0) return;
    } else if (!peer.reliable.accept(*header, now())) {
      return;
    }
    // ZeroMQ connects again under the same routing id.
    if ((header->flags & kNewConnection) != 0 && !is_moved && route == peer.route) repeat(peer);
    if (header->type == MessageType::kAcknowledge) return;
    heard.push_back(
        {session, header->type, frames[2].to_string(), peer.identity.role, peer.identity.name});
    if (header->type == MessageType::kHello) heard.back().address = peer_address(frames[1]);
  }

  int& strikes_of_stranger(const std::string& route) {
    if (strangers.size() >= kMaxStrangers && !strangers.contains(route)) strangers.clear();
    return strangers[route];
  }

  // With keys: the sender is the one that its session began with, and its key still opens.
  bool is_authorized(Peer* peer, const Identity& identity) const {
    if (!doorkeeper) return true;
    if (peer == nullptr) return doorkeeper->is_authorized(identity);
    if (identity.key != peer->identity.key || identity.role != peer->identity.role) return false;
    const std::uint64_t generation = doorkeeper->generation();
    if (generation == peer->generation) return true;
    if (!doorkeeper->is_authorized(identity)) return false;
    peer->generation = generation;
    return true;
  }

  Peer new_peer(const std::string& route, Identity identity) const {
    Peer peer{.reliable = ReliablePeer(own, {kSchedulerCredit, kWorkerCredit}),
              .route = route,
              .identity = std::move(identity)};
    peer.reliable.set_credit(credit);
    return peer;
  }

  // The peer speaks over another connection: what was under way on the old one is lost.
  void move(Peer& peer, const std::string& route) {
    if (peer.former.size() >= kMaxStrangers) peer.former.clear();
    peer.former.insert(std::exchange(peer.route, route));
    repeat(peer);
  }

  void repeat(Peer& peer) {
    for (const OutgoingFrame& frame : peer.reliable.resend(now())) say(peer, frame);
  }

  zmq::context_t context;
  std::unique_ptr<Authenticator> doorkeeper;  // none without keys
  zmq::socket_t socket{context, zmq::socket_type::router};
  std::optional<SocketMonitor> monitor;
  const std::uint64_t own = session_number(new_session());  // of this incarnation
  Peers peers;
  std::map<std::string, int> strangers;  // strikes by routing id
  std::uint32_t credit = kSchedulerCredit;
  std::uint64_t dropped = 0, retransmitted_before = 0;
  Seldom garbage;
};

SchedulerLink::SchedulerLink(std::unique_ptr<State> state) : state_(std::move(state)) {}
SchedulerLink::SchedulerLink(SchedulerLink&&) noexcept = default;
SchedulerLink& SchedulerLink::operator=(SchedulerLink&&) noexcept = default;
SchedulerLink::~SchedulerLink() {
  if (state_) state_->socket.set(zmq::sockopt::linger, 500);
}

Result<SchedulerLink> SchedulerLink::bind(const std::string& endpoint,
                                          const ServerSecurity& security, int io_threads) {
  auto state = std::make_unique<State>(io_threads);
  SAE_TRY(const bool encrypted,
          is_encrypted(endpoint, security.keys != nullptr, security.insecure_loopback));
  if (encrypted) {
    SAE_TRY(state->doorkeeper, Authenticator::start(state->context, security));
  }
  try {
    set_common_options(state->socket);
    set_server_options(state->socket);
    SAE_TRY_VOID(secure_server_socket(state->socket, endpoint, security, state->doorkeeper.get()));
    SAE_TRY(SocketMonitor watching,
            SocketMonitor::watch(state->context, state->socket, "scheduler"));
    state->monitor.emplace(std::move(watching));
    state->socket.bind(endpoint);
  } catch (const zmq::error_t& error) {
    if (state->monitor) state->monitor->read();
    const int problem = state->monitor && state->monitor->bind_error() != 0
                            ? state->monitor->bind_error()
                            : error.num();
    return fail(problem == EADDRINUSE ? ErrorCode::kUnavailable : ErrorCode::kInvalidArgument,
                "cannot listen on {}: {}", endpoint, zmq_strerror(problem));
  }
  return SchedulerLink(std::move(state));
}

std::string SchedulerLink::endpoint() const { return bound_endpoint(state_->socket); }

Result<void> SchedulerLink::send(const std::string& to, MessageType type,
                                 const google::protobuf::MessageLite& body, bool reliable) {
  const auto found = state_->peers.find(to);
  if (found == state_->peers.end()) return fail(ErrorCode::kNotFound, "no such peer");
  State::Peer& peer = found->second;
  const std::size_t bytes = body.ByteSizeLong();
  if (bytes > kMaxBodyBytes)
    return fail(ErrorCode::kInvalidArgument, "a {} of {} bytes; at most {} travel", to_string(type),
                bytes, kMaxBodyBytes);
  if (!reliable) {
    state_->say(peer, peer.reliable.unreliable(type, body.SerializeAsString()));
    return {};
  }
  if (peer.waiting.size() + peer.reliable.unacknowledged() >= ReliablePeer::kMaxUnacked ||
      peer.waiting_bytes + peer.reliable.unacknowledged_bytes() + bytes >
          ReliablePeer::kMaxUnackedBytes)
    return fail(ErrorCode::kResourceExhausted, "{} messages of {} bytes wait for {}",
                peer.waiting.size(), peer.waiting_bytes, peer.identity.name);
  peer.waiting_bytes += bytes;
  peer.waiting.push_back({type, body.SerializeAsString()});
  state_->say_what_waits(peer);
  return {};
}

void SchedulerLink::resend_after(const std::string& to, std::uint64_t seq) {
  const auto found = state_->peers.find(to);
  if (found == state_->peers.end()) return;
  State::Peer& peer = found->second;
  for (const OutgoingFrame& frame : peer.reliable.resend_after(seq, now()))
    state_->say(peer, frame);
  state_->say_what_waits(peer);
}

std::uint64_t SchedulerLink::last_received(const std::string& peer) const {
  const auto found = state_->peers.find(peer);
  return found == state_->peers.end() ? 0 : found->second.reliable.last_confirmed();
}

void SchedulerLink::confirm() {
  for (auto& [session, peer] : state_->peers) {
    peer.reliable.confirm();
    if (peer.reliable.owes_acknowledgement())
      state_->say(peer, peer.reliable.unreliable(MessageType::kAcknowledge, {}));
  }
}

void SchedulerLink::forget(const std::string& session) {
  const auto found = state_->peers.find(session);
  if (found == state_->peers.end()) return;
  state_->retransmitted_before += found->second.reliable.retransmitted();
  state_->peers.erase(found);
}

void SchedulerLink::set_credit(std::uint32_t credit) {
  state_->credit = std::min(credit, kSchedulerCredit);
  for (auto& [session, peer] : state_->peers) peer.reliable.set_credit(state_->credit);
}

void SchedulerLink::reload_keys() {
  if (state_->doorkeeper) state_->doorkeeper->reload();
}

std::uint64_t SchedulerLink::dropped() const { return state_->dropped; }

LinkCounters SchedulerLink::counters() const {
  LinkCounters sum = state_->monitor->counters();
  sum.dropped = state_->dropped;
  sum.retransmitted = state_->retransmitted_before;
  for (const auto& [session, peer] : state_->peers)
    sum.retransmitted += peer.reliable.retransmitted();
  return sum;
}

std::vector<HeardMessage> SchedulerLink::poll(std::chrono::milliseconds timeout,
                                              std::span<void* const> others) {
  std::vector<HeardMessage> heard;
  std::vector<zmq::pollitem_t> items{{state_->socket.handle(), 0, ZMQ_POLLIN, 0}};
  for (void* const other : others) items.push_back({other, 0, ZMQ_POLLIN, 0});
  try {
    zmq::poll(items, timeout);
  } catch (const zmq::error_t& error) {
    log::debug("link.poll error={}", error.what());  // a signal
  }
  for (int i = 0; i < kMostAtOnce; ++i) {
    auto frames = receive_frames(state_->socket);
    if (frames.empty()) break;
    state_->hear(frames, heard);
  }
  state_->monitor->read();
  const TimePoint moment = now();
  for (auto& [session, peer] : state_->peers) {
    for (const OutgoingFrame& frame : peer.reliable.due(moment)) state_->say(peer, frame);
    state_->say_what_waits(peer);
  }
  return heard;
}

}  // namespace saesweep::protocol
