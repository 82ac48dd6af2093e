// What happens to the connections of a socket of ours, as counters: ZeroMQ itself tells nobody.
//
// DISCONNECTED is a hint, never a reason to declare a worker lost. Handshakes that fail are logged
// at most once a minute, the rest is counted.
#pragma once

#include <cstdint>
#include <string>
#include <vector>
#include <zmq.hpp>

#include "core/result.h"
#include "scheduler/protocol/link_counters.h"
#include "scheduler/protocol/seldom.h"

namespace saesweep::protocol {

enum class SocketEvent : std::uint8_t {
  kConnecting,  // ZeroMQ is on it: connecting, or waiting to try again
  kAccepted,
  kHandshakeSucceeded,
  kRefused,          // the other side knows our key and does not want it
  kHandshakeFailed,  // it closed at the handshake, or what it said is no handshake
  kDisconnected,
  kOther,
};

class SocketMonitor {
 public:
  // In the socket's thread, before it binds or connects. `context` is the socket's.
  // Errors: kUnavailable if there are too many sockets.
  static Result<SocketMonitor> watch(zmq::context_t& context, zmq::socket_t& socket,
                                     const std::string& name);

  zmq::socket_t& socket() { return socket_; }  // to poll
  // What happened since, counted.
  std::vector<SocketEvent> read();
  const LinkCounters& counters() const { return counters_; }
  // Why it could not bind, 0 if it could. (The event of it spoils errno in ZeroMQ 4.3.4.)
  int bind_error() const { return bind_error_; }

 private:
  explicit SocketMonitor(zmq::socket_t socket, std::string name)
      : socket_(std::move(socket)), name_(std::move(name)) {}
  SocketEvent count(std::uint16_t event, std::uint32_t value);
  void log_failure(const char* why);

  zmq::socket_t socket_;
  std::string name_;
  LinkCounters counters_;
  int bind_error_ = 0;
  Seldom failures_;
};

}  // namespace saesweep::protocol
