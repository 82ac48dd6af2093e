#include "scheduler/protocol/link.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/message_lite.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <random>
#include <zmq.hpp>

#include "core/clock.h"
#include "core/log.h"
#include "scheduler/protocol/conversation.h"
#include "scheduler/protocol/reliable.h"

namespace saesweep::protocol {
namespace {

constexpr int kRecursionLimit = 16;
constexpr int kStrikes = 3;

TimePoint now() { return SystemClock().now(); }

void set_common_options(zmq::socket_t& socket) {
  socket.set(zmq::sockopt::sndhwm, 4096);
  socket.set(zmq::sockopt::rcvhwm, 4096);
  socket.set(zmq::sockopt::linger, 0);
  socket.set(zmq::sockopt::maxmsgsize, static_cast<std::int64_t>(kMaxBodyBytes));
  socket.set(zmq::sockopt::ipv6, true);
  socket.set(zmq::sockopt::heartbeat_ivl, 5'000);
  socket.set(zmq::sockopt::heartbeat_timeout, 15'000);
  socket.set(zmq::sockopt::heartbeat_ttl, 20'000);
}

std::span<const std::byte> bytes_of(const zmq::message_t& message) {
  return {static_cast<const std::byte*>(message.data()), message.size()};
}

// The two frames of a message, after a routing id if there is one. False if they cannot go now.
bool send_frame(zmq::socket_t& socket, const std::string* peer, const OutgoingFrame& frame) {
  const auto header = encode_header(frame.header, std::as_bytes(std::span(frame.body)));
  try {
    using zmq::send_flags;
    if (peer != nullptr &&
        !socket.send(zmq::buffer(*peer), send_flags::sndmore | send_flags::dontwait))
      return false;
    const auto flags =
        peer == nullptr ? send_flags::sndmore | send_flags::dontwait : send_flags::sndmore;
    // After the first frame was taken the rest is taken too.
    if (!socket.send(zmq::buffer(header), flags)) return false;
    return socket.send(zmq::buffer(frame.body), send_flags::none).has_value();
  } catch (const zmq::error_t& error) {
    log::debug("link.send error={}", error.what());
    return false;
  }
}

// All frames of one message; nothing if none is there.
std::vector<zmq::message_t> receive_frames(zmq::socket_t& socket) {
  std::vector<zmq::message_t> frames;
  try {
    do {
      zmq::message_t frame;
      if (!socket.recv(frame, zmq::recv_flags::dontwait)) return {};
      frames.push_back(std::move(frame));
    } while (frames.back().more());
  } catch (const zmq::error_t& error) {
    log::debug("link.receive error={}", error.what());
    return {};
  }
  return frames;
}

// A session's id is random and never reused; one that begins with a zero byte is reserved.
std::string new_session_id() {
  std::random_device random;
  std::string id;
  while (id.size() < 16) {
    const auto bits = random();
    for (unsigned shift = 0; shift < 32 && id.size() < 16; shift += 8)
      id.push_back(static_cast<char>((bits >> shift) & 0xff));
  }
  if (id[0] == '\0') id[0] = '\1';
  return id;
}

std::uint64_t low_half(const std::string& id) {
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < 8; ++i)
    value |= std::uint64_t{static_cast<unsigned char>(id[i])} << (8 * i);
  return value;
}

}  // namespace

bool parse_body(const std::string& body, google::protobuf::MessageLite& message) {
  google::protobuf::io::CodedInputStream input(reinterpret_cast<const std::uint8_t*>(body.data()),
                                               static_cast<int>(body.size()));
  input.SetRecursionLimit(kRecursionLimit);
  return body.size() <= kMaxBodyBytes && message.ParseFromCodedStream(&input) &&
         input.ConsumedEntireMessage();
}

// ---- worker -------------------------------------------------------------------------------------

struct WorkerLink::State {
  State()
      : socket(context, zmq::socket_type::dealer),
        id(new_session_id()),
        conversation(low_half(id)),
        peer(low_half(id)) {}
  zmq::context_t context;
  zmq::socket_t socket;
  std::string id;
  WorkerConversation conversation;
  ReliablePeer peer;

  // False for a frame of a scheduler that is gone.
  bool belongs(const Header& header) {
    const Standing standing = conversation.hear(header.session);
    if (standing == Standing::kNew)
      peer.begin_anew(conversation.session());
    else
      peer.set_session(conversation.session());
    return standing != Standing::kOld;
  }
};

WorkerLink::WorkerLink(std::unique_ptr<State> state) : state_(std::move(state)) {}
WorkerLink::WorkerLink(WorkerLink&&) noexcept = default;
WorkerLink& WorkerLink::operator=(WorkerLink&&) noexcept = default;
WorkerLink::~WorkerLink() {
  if (!state_) return;
  // BYE, the last word, should leave.
  state_->socket.set(zmq::sockopt::linger, 2'000);
}

Result<WorkerLink> WorkerLink::connect(const std::string& endpoint,
                                       const ClientSecurity& security) {
  try {
    auto state = std::make_unique<State>();
    set_common_options(state->socket);
    SAE_TRY_VOID(secure_client_socket(state->socket, endpoint, security));
    state->socket.set(zmq::sockopt::routing_id, state->id);
    state->socket.set(zmq::sockopt::reconnect_ivl, 200);
    state->socket.set(zmq::sockopt::reconnect_ivl_max, 30'000);
    state->socket.connect(endpoint);
    return WorkerLink(std::move(state));
  } catch (const zmq::error_t& error) {
    return fail(ErrorCode::kInvalidArgument, "cannot connect to {}: {}", endpoint, error.what());
  }
}

Result<void> WorkerLink::send(MessageType type, const google::protobuf::MessageLite& body,
                              bool reliable) {
  if (!reliable) {
    send_frame(state_->socket, nullptr, state_->peer.unreliable(type, body.SerializeAsString()));
    return {};
  }
  SAE_TRY(const OutgoingFrame frame, state_->peer.reliable(type, body.SerializeAsString(), now()));
  send_frame(state_->socket, nullptr, frame);  // else it is sent again
  return {};
}

void WorkerLink::resend_after(std::uint64_t seq) {
  for (const OutgoingFrame& frame : state_->peer.resend_after(seq, now()))
    send_frame(state_->socket, nullptr, frame);
}

std::uint64_t WorkerLink::last_received() const { return state_->peer.last_received(); }
std::size_t WorkerLink::unacknowledged() const { return state_->peer.unacknowledged(); }

WorkerLink::Polled WorkerLink::poll(std::chrono::milliseconds timeout,
                                    std::span<const int> others) {
  Polled polled;
  std::vector<zmq::pollitem_t> items{{state_->socket.handle(), 0, ZMQ_POLLIN, 0}};
  for (const int descriptor : others) items.push_back({nullptr, descriptor, ZMQ_POLLIN, 0});
  try {
    zmq::poll(items, timeout);
  } catch (const zmq::error_t& error) {
    log::debug("link.poll error={}", error.what());  // a signal
  }
  for (std::size_t i = 0; i < others.size(); ++i)
    if ((items[i + 1].revents & (ZMQ_POLLIN | ZMQ_POLLERR)) != 0)
      polled.readable.push_back(others[i]);
  while (true) {
    const auto frames = receive_frames(state_->socket);
    if (frames.empty()) break;
    if (frames.size() != 2) {
      log::warn("link.garbage frames={}", frames.size());
      continue;
    }
    const auto header = decode_header(bytes_of(frames[0]), bytes_of(frames[1]));
    if (!header) {
      log::warn("link.garbage error={}", header.error().message);
      continue;
    }
    if (!state_->belongs(*header) || !state_->peer.accept(*header)) continue;
    state_->peer.confirm();
    polled.heard.push_back({"", header->type, frames[1].to_string()});
  }
  for (const OutgoingFrame& frame : state_->peer.due(now()))
    send_frame(state_->socket, nullptr, frame);
  return polled;
}

// ---- scheduler ----------------------------------------------------------------------------------

struct SchedulerLink::State {
  State() : socket(context, zmq::socket_type::router), session(low_half(new_session_id())) {}
  zmq::context_t context;
  std::unique_ptr<Authenticator> doorkeeper;  // null: everybody comes in
  zmq::socket_t socket;
  std::uint64_t session;  // of this incarnation
  struct Peer {
    ReliablePeer reliable;
    int strikes = 0;
  };
  std::map<std::string, Peer> peers;
  std::uint64_t dropped = 0;
};

SchedulerLink::SchedulerLink(std::unique_ptr<State> state) : state_(std::move(state)) {}
SchedulerLink::SchedulerLink(SchedulerLink&&) noexcept = default;
SchedulerLink& SchedulerLink::operator=(SchedulerLink&&) noexcept = default;
SchedulerLink::~SchedulerLink() {
  if (state_) state_->socket.set(zmq::sockopt::linger, 500);
}

Result<SchedulerLink> SchedulerLink::bind(const std::string& endpoint,
                                          const ServerSecurity& security) {
  try {
    auto state = std::make_unique<State>();
    set_common_options(state->socket);
    SAE_TRY(state->doorkeeper, Authenticator::start(state->context, security));
    SAE_TRY_VOID(secure_server_socket(state->socket, endpoint, security, state->doorkeeper.get()));
    state->socket.set(zmq::sockopt::router_mandatory, true);
    state->socket.set(zmq::sockopt::backlog, 1024);
    state->socket.bind(endpoint);
    return SchedulerLink(std::move(state));
  } catch (const zmq::error_t& error) {
    return fail(error.num() == EADDRINUSE ? ErrorCode::kUnavailable : ErrorCode::kInvalidArgument,
                "cannot listen on {}: {}", endpoint, error.what());
  }
}

std::string SchedulerLink::endpoint() const {
  return state_->socket.get(zmq::sockopt::last_endpoint);
}

Result<void> SchedulerLink::send(const std::string& peer, MessageType type,
                                 const google::protobuf::MessageLite& body, bool reliable) {
  const auto found = state_->peers.find(peer);
  if (found == state_->peers.end()) return fail(ErrorCode::kNotFound, "no such peer");
  ReliablePeer& session = found->second.reliable;
  if (!reliable) {
    send_frame(state_->socket, &peer, session.unreliable(type, body.SerializeAsString()));
    return {};
  }
  SAE_TRY(const OutgoingFrame frame, session.reliable(type, body.SerializeAsString(), now()));
  send_frame(state_->socket, &peer, frame);
  return {};
}

void SchedulerLink::resend_after(const std::string& peer, std::uint64_t seq) {
  const auto found = state_->peers.find(peer);
  if (found == state_->peers.end()) return;
  for (const OutgoingFrame& frame : found->second.reliable.resend_after(seq, now()))
    send_frame(state_->socket, &peer, frame);
}

std::uint64_t SchedulerLink::last_received(const std::string& peer) const {
  const auto found = state_->peers.find(peer);
  return found == state_->peers.end() ? 0 : found->second.reliable.last_received();
}

void SchedulerLink::confirm() {
  for (auto& [id, peer] : state_->peers) peer.reliable.confirm();
}

void SchedulerLink::forget(const std::string& peer) { state_->peers.erase(peer); }
std::uint64_t SchedulerLink::dropped() const { return state_->dropped; }

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
  while (true) {
    const auto frames = receive_frames(state_->socket);
    if (frames.empty()) break;
    const std::string id = frames[0].to_string();
    const auto known = state_->peers.find(id);
    const auto strike = [&](std::string_view why) {
      ++state_->dropped;
      log::warn("link.garbage error={}", why);
      if (known != state_->peers.end()) ++known->second.strikes;
    };
    if (known != state_->peers.end() && known->second.strikes >= kStrikes) {
      ++state_->dropped;
      continue;
    }
    if (frames.size() != 3) {
      strike("wrong number of frames");
      continue;
    }
    const auto header = decode_header(bytes_of(frames[1]), bytes_of(frames[2]));
    if (!header) {
      strike(header.error().message);
      continue;
    }
    if (const Identity sender = identity_of(frames[1]); !may_send(sender.role, header->type)) {
      strike(fmt::format("{} from {} ({})", to_string(header->type), sender.name,
                         to_string(sender.role)));
      continue;
    }
    auto peer = known;
    if (peer == state_->peers.end())
      peer =
          state_->peers.emplace(id, State::Peer{.reliable = ReliablePeer(state_->session)}).first;
    const std::uint64_t worker = low_half(id + std::string(8, '\0'));
    if (standing_of(header->session, worker, state_->session) == Standing::kOld) {
      // It has not heard us yet: its numbers are another's, but HELLO may be what it says.
      if ((header->flags & kReliable) != 0) continue;
    } else if (!peer->second.reliable.accept(*header)) {
      continue;
    }
    heard.push_back({id, header->type, frames[2].to_string()});
  }
  for (auto& [id, peer] : state_->peers)
    for (const OutgoingFrame& frame : peer.reliable.due(now()))
      send_frame(state_->socket, &id, frame);
  return heard;
}

}  // namespace saesweep::protocol
