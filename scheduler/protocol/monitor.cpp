#include "scheduler/protocol/monitor.h"

#include <cstring>

#include "core/clock.h"
#include "core/log.h"

namespace saesweep::protocol {
namespace {

constexpr int kEvents = ZMQ_EVENT_CONNECTED | ZMQ_EVENT_CONNECT_DELAYED |
                        ZMQ_EVENT_CONNECT_RETRIED | ZMQ_EVENT_BIND_FAILED | ZMQ_EVENT_ACCEPTED |
                        ZMQ_EVENT_DISCONNECTED | ZMQ_EVENT_HANDSHAKE_SUCCEEDED |
                        ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL | ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL |
                        ZMQ_EVENT_HANDSHAKE_FAILED_AUTH;

}  // namespace

Result<SocketMonitor> SocketMonitor::watch(zmq::context_t& context, zmq::socket_t& socket,
                                           const std::string& name) {
  const std::string endpoint = fmt::format("inproc://monitor.{}", name);
  try {
    if (::zmq_socket_monitor(socket.handle(), endpoint.c_str(), kEvents) != 0) throw zmq::error_t();
    zmq::socket_t events(context, zmq::socket_type::pair);
    events.set(zmq::sockopt::linger, 0);
    events.connect(endpoint);
    return SocketMonitor(std::move(events), name);
  } catch (const zmq::error_t& error) {
    return fail(ErrorCode::kUnavailable, "cannot watch {}: {}", name, error.what());
  }
}

std::vector<SocketEvent> SocketMonitor::read() {
  std::vector<SocketEvent> events;
  try {
    while (true) {
      // Two frames: event and value, 16 and 32 bits in this machine's order; then the endpoint.
      zmq::message_t event, endpoint;
      if (!socket_.recv(event, zmq::recv_flags::dontwait)) break;
      while (event.more() && socket_.recv(endpoint, zmq::recv_flags::dontwait) && endpoint.more())
        continue;
      std::uint16_t number = 0;
      std::uint32_t value = 0;
      if (event.size() != sizeof number + sizeof value) continue;
      std::memcpy(&number, event.data(), sizeof number);
      std::memcpy(&value, static_cast<const char*>(event.data()) + sizeof number, sizeof value);
      events.push_back(count(number, value));
    }
  } catch (const zmq::error_t& error) {
    log::debug("link.monitor error={}", error.what());
  }
  return events;
}

SocketEvent SocketMonitor::count(std::uint16_t event, std::uint32_t value) {
  switch (event) {
    case ZMQ_EVENT_CONNECTED:
    case ZMQ_EVENT_CONNECT_DELAYED:
      return SocketEvent::kConnecting;
    case ZMQ_EVENT_CONNECT_RETRIED:
      ++counters_.connect_retried;
      return SocketEvent::kConnecting;
    case ZMQ_EVENT_BIND_FAILED:
      ++counters_.bind_failed;
      bind_error_ = static_cast<int>(value);
      return SocketEvent::kOther;
    case ZMQ_EVENT_ACCEPTED:
      ++counters_.accepted;
      return SocketEvent::kAccepted;
    case ZMQ_EVENT_DISCONNECTED:
      ++counters_.disconnected;
      return SocketEvent::kDisconnected;
    case ZMQ_EVENT_HANDSHAKE_SUCCEEDED:
      ++counters_.handshake_succeeded;
      return SocketEvent::kHandshakeSucceeded;
    case ZMQ_EVENT_HANDSHAKE_FAILED_AUTH:
      ++counters_.handshake_failed_auth;
      log_failure("key not authorised");
      return SocketEvent::kRefused;
    case ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL:
      ++counters_.handshake_failed_no_detail;
      log_failure("closed at the handshake; is it the key of this server?");
      return SocketEvent::kHandshakeFailed;
    case ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL:
      ++counters_.handshake_failed_protocol;
      log_failure("no handshake of this protocol");
      return SocketEvent::kHandshakeFailed;
    default:
      return SocketEvent::kOther;
  }
}

void SocketMonitor::log_failure(const char* why) {
  if (const auto times = failures_.let_through(SystemClock().now()))
    log::warn("link.handshake_failed socket={} times={} why={}", name_, *times, why);
}

}  // namespace saesweep::protocol
