// Who may speak to us over TCP: CURVE on both planes, ZAP as its doorkeeper, and what each role may
// say. ZeroMQ alone lets any client key in and says nothing about who sent a message.
//
//   server    doorkeeper = Authenticator::start(context, security)
//             secure_server_socket(socket, endpoint, security, doorkeeper.get())
//             socket.bind(endpoint)
//             identity_of(a frame of a message, behind the routing id)
//   client    secure_client_socket(socket, endpoint, security)
//             socket.connect(endpoint)
//
// TCP without keys is refused, unless `insecure_loopback` is set and the address is 127.0.0.1 or
// ::1. ipc:// and inproc:// need none: a socket file is protected by its directory's mode.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"
#include "scheduler/protocol/frame.h"
#include "scheduler/protocol/keys.h"

namespace zmq {
class context_t;
class message_t;
class socket_t;
}  // namespace zmq

namespace saesweep::protocol {

inline constexpr std::string_view kZapDomain = "saesweep";

class Authenticator;

// Keys that a server lets in and that stand in no file: another program tells them. Thread-safe.
class KeyRing {
 public:
  void set(std::vector<AuthorizedKey> keys);  // instead of those before
  std::vector<AuthorizedKey> keys() const;

 private:
  mutable std::mutex mutex_;
  std::vector<AuthorizedKey> keys_;  // under mutex_
};

struct ServerSecurity {
  std::shared_ptr<const KeyPair> keys = {};  // none: clear text
  std::filesystem::path directory = {};      // of `saesweep keys init`: whose authorized/ is asked
  bool insecure_loopback = false;
  std::shared_ptr<const KeyRing> ring = {};  // asked instead of the directory
};

struct ClientSecurity {
  std::shared_ptr<const KeyPair> keys = {};  // none: clear text
  PublicKey server{};
  bool insecure_loopback = false;
};
ClientSecurity client_security(Access access);

// True if `endpoint` is tcp:// with CURVE to come. Errors: kInvalidArgument for clear text where
// none is allowed, and for an endpoint that is none.
Result<bool> is_encrypted(const std::string& endpoint, bool has_keys, bool insecure_loopback);

// Sets keys and domain; call before bind or connect, with the same endpoint. `doorkeeper` is the
// one of the socket's context; it may be absent where security has no keys. Errors:
// kInvalidArgument as is_encrypted().
Result<void> secure_server_socket(zmq::socket_t& socket, const std::string& endpoint,
                                  const ServerSecurity& security, const Authenticator* doorkeeper);
Result<void> secure_client_socket(zmq::socket_t& socket, const std::string& endpoint,
                                  const ClientSecurity& security);

// Sender of a message, as the doorkeeper knew it. Role::kLocal and no name where there is none.
struct Identity {
  Role role = Role::kLocal;
  std::string name;
  std::string key;  // Z85
};
// `frame` came over the wire: not the routing id, which a ROUTER puts in front.
Identity identity_of(const zmq::message_t& frame);

// The address from which it came, as an endpoint names a host; empty where there is none.
std::string peer_address(const zmq::message_t& frame);

// Which role may send which type to a scheduler. What the scheduler itself says, nobody may.
bool may_send(Role role, MessageType type);

// The thread that answers ZAP (rfc.zeromq.org/spec/27) for all sockets of one context: one at
// inproc://zeromq.zap.01. Lets a key in that stands in directory/authorized, or in the ring if
// there is one, and has not expired; the directory is read again when it changes, at the latest
// after a second, and on request, the ring whenever somebody knocks. Refusals are logged at most
// once a minute for an address, the rest are counted.
class Authenticator {
 public:
  // Nothing to do without keys: gives back none. `context` outlives it.
  // Errors: kInvalidArgument and kUnavailable as read_authorized(); kUnavailable if the context has
  // a doorkeeper already.
  static Result<std::unique_ptr<Authenticator>> start(zmq::context_t& context,
                                                      const ServerSecurity& security);
  ~Authenticator();
  Authenticator(const Authenticator&) = delete;
  Authenticator& operator=(const Authenticator&) = delete;

  // All of these from any thread.
  void reload();
  // Rises whenever a key was added, revoked or expired; ask again then whether a peer may go on.
  std::uint64_t generation() const;
  bool is_authorized(const Identity& identity) const;
  std::uint64_t accepted() const;
  std::uint64_t refused() const;

 private:
  struct State;
  explicit Authenticator(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace saesweep::protocol
