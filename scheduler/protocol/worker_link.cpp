// The worker's end of the link: a DEALER, and a new connection whenever the old one is of no use.
#include <google/protobuf/message_lite.h>

#include <algorithm>
#include <map>
#include <zmq.hpp>

#include "core/clock.h"
#include "core/log.h"
#include "scheduler/protocol/conversation.h"
#include "scheduler/protocol/link.h"
#include "scheduler/protocol/link_socket.h"
#include "scheduler/protocol/monitor.h"

namespace saesweep::protocol {
namespace {

using namespace std::chrono_literals;

constexpr int kRefusals = 3;
// Before we connect anew where ZeroMQ does not: doubled up to WorkerPatience::longest_pause, from
// the start again after a handshake.
constexpr Duration kShortestPause = 200ms;
// For a connection that is about to take messages: nothing tells when it does.
constexpr std::chrono::milliseconds kShortestWait = 1ms;

TimePoint now() { return SystemClock().now(); }

}  // namespace

struct WorkerLink::State {
  State(std::string to, ClientSecurity with, WorkerPatience how_long)
      : endpoint(std::move(to)), security(std::move(with)), patience(how_long) {}

  // A connection of its own: socket and monitor. The old one, if any, is closed.
  Result<void> open() {
    try {
      monitor.reset();
      socket.reset();
      socket.emplace(context, zmq::socket_type::dealer);
      set_common_options(*socket);
      set_client_options(*socket);
      socket->set(zmq::sockopt::reconnect_ivl_max,
                  static_cast<int>(patience.longest_pause.count()));
      socket->set(zmq::sockopt::handshake_ivl, static_cast<int>(patience.handshake.count()));
      socket->set(zmq::sockopt::routing_id, new_routing_id(session));
      SAE_TRY_VOID(secure_client_socket(*socket, endpoint, security));
      SAE_TRY(SocketMonitor watching,
              SocketMonitor::watch(context, *socket, fmt::format("worker.{}", ++opened)));
      monitor.emplace(std::move(watching));
      socket->connect(endpoint);
    } catch (const zmq::error_t& error) {
      return fail(ErrorCode::kInvalidArgument, "cannot connect to {}: {}", endpoint, error.what());
    }
    is_connected = is_fresh = false;
    is_retrying = true;
    return {};
  }

  void open_again(const char* why) {
    log::info("link.connect_anew endpoint={} why={}", endpoint, why);
    add(earlier, monitor->counters());
    if (const auto reopened = open(); !reopened)
      log::error("link.connect_anew error={}", reopened.error().message);
    pause = std::min<Duration>(patience.longest_pause, 2 * pause);
    down_since = now();
  }

  static void add(LinkCounters& sum, const LinkCounters& more) {
    sum.accepted += more.accepted;
    sum.handshake_succeeded += more.handshake_succeeded;
    sum.handshake_failed_auth += more.handshake_failed_auth;
    sum.handshake_failed_no_detail += more.handshake_failed_no_detail;
    sum.handshake_failed_protocol += more.handshake_failed_protocol;
    sum.disconnected += more.disconnected;
    sum.connect_retried += more.connect_retried;
    sum.bind_failed += more.bind_failed;
  }

  // What became of the connection; a new one where ZeroMQ will not make one.
  void look_after_connection() {
    for (const SocketEvent event : monitor->read()) hear(event);
    if (is_connected && is_fresh) greet();
    const TimePoint moment = now();
    if (!is_connected && !is_retrying && moment - down_since >= pause)
      open_again("it ended for good");
    else if (is_connected && unanswered_since && moment - *unanswered_since >= silence) {
      silence = std::min(patience.longest_silence, 2 * silence);
      open_again("nobody answers");
    }
  }

  void hear(SocketEvent event) {
    switch (event) {
      case SocketEvent::kConnecting:
        is_retrying = true;
        break;
      case SocketEvent::kHandshakeSucceeded:
        is_connected = is_fresh = true;
        refusals = 0;
        pause = kShortestPause;
        unanswered_since.reset();
        break;
      case SocketEvent::kRefused:
        ++refusals;
        go_down();
        break;
      case SocketEvent::kHandshakeFailed:
      case SocketEvent::kDisconnected:
        go_down();
        break;
      case SocketEvent::kAccepted:
      case SocketEvent::kOther:
        break;
    }
  }

  void go_down() {
    // ZeroMQ says at once if it is going to try again.
    is_connected = is_fresh = is_retrying = false;
    down_since = now();
  }

  // Tells the scheduler where we are now, then repeats what may not have arrived. ZeroMQ tells of a
  // handshake a moment before it takes messages: then the next poll does it.
  void greet() {
    OutgoingFrame here = peer.unreliable(MessageType::kAcknowledge, {});
    here.header.flags |= kNewConnection;
    if (!send_frame(*socket, nullptr, here)) return;
    is_fresh = false;
    was_connected_anew = true;
    for (const auto& [type, frame] : early) send_frame(*socket, nullptr, frame);
    early.clear();
    for (const OutgoingFrame& frame : peer.resend(now())) send_frame(*socket, nullptr, frame);
  }

  // False if it could not go.
  bool say(const OutgoingFrame& frame) {
    if (!is_connected || is_fresh) look_after_connection();
    if (!is_connected || is_fresh || !send_frame(*socket, nullptr, frame)) return false;
    if (!unanswered_since) unanswered_since = now();
    return true;
  }

  void hear_frames(Polled& polled) {
    while (true) {
      const auto frames = receive_frames(*socket);
      if (frames.empty()) return;
      if (frames.size() != 2) {
        drop("wrong number of frames");
        continue;
      }
      const auto header = decode_header(bytes_of(frames[0]), bytes_of(frames[1]));
      if (!header) {
        drop(header.error().message);
        continue;
      }
      unanswered_since.reset();
      silence = patience.silence;
      if (!belongs(*header) || !peer.accept(*header, now())) continue;
      peer.confirm();
      if (header->type == MessageType::kAcknowledge) continue;
      polled.heard.push_back({"", header->type, frames[1].to_string()});
    }
  }

  // False for a frame of a scheduler that is gone.
  bool belongs(const Header& header) {
    if (!conversation.knows(header.session) && header.type != MessageType::kWelcome) return false;
    const Standing standing = conversation.hear(header.session);
    if (standing == Standing::kNew)
      peer.begin_anew(conversation.session());
    else
      peer.set_session(conversation.session());
    return standing != Standing::kOld;
  }

  void drop(std::string_view why) {
    ++dropped;
    if (const auto times = garbage.let_through(now()))
      log::warn("link.garbage times={} error={}", *times, why);
  }

  const std::string endpoint;
  const ClientSecurity security;
  const WorkerPatience patience;
  zmq::context_t context;
  std::optional<zmq::socket_t> socket;
  std::optional<SocketMonitor> monitor;
  std::uint64_t opened = 0;
  std::string session = new_session();
  WorkerConversation conversation{session_number(session)};
  ReliablePeer peer{session_number(session), {kWorkerCredit, kSchedulerCredit}};
  std::map<MessageType, OutgoingFrame> early;  // unreliable ones, said while nobody could hear

  bool is_connected = false;
  bool is_fresh = false;    // the connection, and nothing was said over it yet
  bool is_retrying = true;  // ZeroMQ is
  bool was_connected_anew = false;
  int refusals = 0;
  bool is_refusal_said = false;
  TimePoint down_since = now();
  Duration pause = kShortestPause;
  std::optional<TimePoint> unanswered_since;
  std::chrono::milliseconds silence = patience.silence;

  LinkCounters earlier;  // of connections that were closed
  std::uint64_t dropped = 0, retransmitted_before = 0;
  Seldom garbage;
};

WorkerLink::WorkerLink(std::unique_ptr<State> state) : state_(std::move(state)) {}
WorkerLink::WorkerLink(WorkerLink&&) noexcept = default;
WorkerLink& WorkerLink::operator=(WorkerLink&&) noexcept = default;
WorkerLink::~WorkerLink() {
  if (!state_) return;
  // BYE, the last word, should leave.
  if (state_->socket && state_->is_connected) state_->socket->set(zmq::sockopt::linger, 2'000);
}

Result<WorkerLink> WorkerLink::connect(const std::string& endpoint, const ClientSecurity& security,
                                       const WorkerPatience& patience) {
  auto state = std::make_unique<State>(endpoint, security, patience);
  SAE_TRY_VOID(state->open());
  return WorkerLink(std::move(state));
}

Result<void> WorkerLink::send(MessageType type, const google::protobuf::MessageLite& body,
                              bool reliable) {
  if (!reliable) {
    if (const std::size_t bytes = body.ByteSizeLong(); bytes > kMaxBodyBytes)
      return fail(ErrorCode::kInvalidArgument, "a {} of {} bytes; at most {} travel",
                  to_string(type), bytes, kMaxBodyBytes);
    OutgoingFrame frame = state_->peer.unreliable(type, body.SerializeAsString());
    if (!state_->say(frame) && (!state_->is_connected || state_->is_fresh))
      state_->early.insert_or_assign(type, std::move(frame));
    return {};
  }
  SAE_TRY(const OutgoingFrame frame, state_->peer.reliable(type, body.SerializeAsString(), now()));
  (void)state_->say(frame);  // else it is sent again
  return {};
}

void WorkerLink::resend_after(std::uint64_t seq) {
  for (const OutgoingFrame& frame : state_->peer.resend_after(seq, now())) (void)state_->say(frame);
}

void WorkerLink::start_over() {
  state_->retransmitted_before += state_->peer.retransmitted();
  state_->session = new_session();
  state_->conversation = WorkerConversation(session_number(state_->session));
  state_->peer = ReliablePeer(session_number(state_->session), {kWorkerCredit, kSchedulerCredit});
  state_->early.clear();
  state_->open_again("a new session");
}

std::uint64_t WorkerLink::last_received() const { return state_->peer.last_received(); }
std::size_t WorkerLink::unacknowledged() const { return state_->peer.unacknowledged(); }

LinkCounters WorkerLink::counters() const {
  LinkCounters sum = state_->earlier;
  State::add(sum, state_->monitor->counters());
  sum.dropped = state_->dropped;
  sum.retransmitted = state_->retransmitted_before + state_->peer.retransmitted();
  return sum;
}

WorkerLink::Polled WorkerLink::poll(std::chrono::milliseconds timeout,
                                    std::span<const int> others) {
  Polled polled;
  State& state = *state_;
  state.look_after_connection();
  if (state.is_fresh) timeout = std::min(timeout, kShortestWait);
  std::vector<zmq::pollitem_t> items{{state.socket->handle(), 0, ZMQ_POLLIN, 0},
                                     {state.monitor->socket().handle(), 0, ZMQ_POLLIN, 0}};
  for (const int descriptor : others) items.push_back({nullptr, descriptor, ZMQ_POLLIN, 0});
  try {
    zmq::poll(items, timeout);
  } catch (const zmq::error_t& error) {
    log::debug("link.poll error={}", error.what());  // a signal
  }
  for (std::size_t i = 0; i < others.size(); ++i)
    if ((items[i + 2].revents & (ZMQ_POLLIN | ZMQ_POLLERR)) != 0)
      polled.readable.push_back(others[i]);
  state.hear_frames(polled);
  state.look_after_connection();
  for (const OutgoingFrame& frame : state.peer.due(now())) (void)state.say(frame);
  if (state.is_connected && !state.is_fresh && state.peer.owes_acknowledgement())
    send_frame(*state.socket, nullptr, state.peer.unreliable(MessageType::kAcknowledge, {}));
  polled.is_connected_anew = std::exchange(state.was_connected_anew, false);
  if (state.refusals >= kRefusals && !std::exchange(state.is_refusal_said, true))
    polled.refused =
        Error{ErrorCode::kInvalidArgument,
              fmt::format("{} refused our key {} times; it is not authorised there, or no longer",
                          state.endpoint, state.refusals)};
  return polled;
}

}  // namespace saesweep::protocol
