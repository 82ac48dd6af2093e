// The sockets between scheduler and agents: ROUTER and DEALER, frames and the reliable layer.
//
// A socket is made, used and closed in one thread. Nothing here blocks beyond the timeout given:
// sends never wait, what cannot be sent now is sent again if it is reliable and lost if it is not.
// Bytes that are no message, and messages that their sender may not send, are counted and dropped;
// a peer that sends three is no longer heard.
//
// A worker's session outlives its connections. Its routing id is [session 8][connection 8]: the
// scheduler knows a peer by the first half, and a new connection is never taken for a copy of one
// that hangs half-open. ZeroMQ's own reconnecting ends for good after some errors (a refused key, a
// damaged message) and does not notice a peer that is deaf; the worker's side then connects anew.
//
// TCP is encrypted, see scheduler/protocol/security.h.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/result.h"
#include "scheduler/protocol/frame.h"
#include "scheduler/protocol/link_counters.h"
#include "scheduler/protocol/security.h"

namespace google::protobuf {
class MessageLite;
}

namespace saesweep::protocol {

// How many reliable messages each side takes that are not confirmed yet.
inline constexpr std::uint32_t kSchedulerCredit = 256;  // from a worker
inline constexpr std::uint32_t kWorkerCredit = 64;      // from the scheduler

struct HeardMessage {
  std::string peer;  // the session; empty on the worker's side
  MessageType type = MessageType::kHello;
  std::string body;
  Role role = Role::kLocal;  // of the sender's key; kLocal without keys
  std::string name = {};     // of the sender's key
  std::string address = {};  // HELLO: of the sender's machine, as an endpoint names it
};

// Parses a body with the limits that outside bytes get. False: these bytes are no such message.
bool parse_body(const std::string& body, google::protobuf::MessageLite& message);

// When a worker gives a connection up. (ZeroMQ's own times are in link.cpp.)
struct WorkerPatience {
  // Over which we speak and nobody answers; doubled up to the longest until somebody does. A
  // scheduler answers every heartbeat.
  std::chrono::milliseconds silence{10'000};
  std::chrono::milliseconds longest_silence{40'000};
  std::chrono::milliseconds handshake{10'000};
  // Between two attempts to connect.
  std::chrono::milliseconds longest_pause{30'000};
};

class WorkerLink {
 public:
  // Connecting ends in the background, in poll(); messages sent before are kept, of the unreliable
  // ones the newest of each type.
  // Errors: kInvalidArgument for an endpoint that is none or that needs keys.
  static Result<WorkerLink> connect(const std::string& endpoint,
                                    const ClientSecurity& security = {},
                                    const WorkerPatience& patience = {});
  WorkerLink(WorkerLink&&) noexcept;
  WorkerLink& operator=(WorkerLink&&) noexcept;
  ~WorkerLink();

  // Errors: kResourceExhausted while too many reliable messages wait for an acknowledgement;
  // kInvalidArgument for a body that is too long to travel.
  Result<void> send(MessageType type, const google::protobuf::MessageLite& body, bool reliable);
  // The scheduler said (WELCOME) what it received last: the rest is sent again.
  void resend_after(std::uint64_t seq);
  // The scheduler does not know this session (WELCOME without resume): a new one begins. What was
  // not acknowledged is dropped; say HELLO and repeat it.
  void start_over();
  std::uint64_t last_received() const;  // for HELLO
  std::size_t unacknowledged() const;

  struct Polled {
    std::vector<HeardMessage> heard;
    std::vector<int> readable;       // of `others`
    bool is_connected_anew = false;  // since the last poll, for the first time or again
    // kInvalidArgument: the scheduler refused our key three times in a row. It is said once.
    std::optional<Error> refused;
  };
  // Waits until something is heard, one of `others` (descriptors) can be read, or the timeout.
  Polled poll(std::chrono::milliseconds timeout, std::span<const int> others = {});
  LinkCounters counters() const;

 private:
  struct State;
  explicit WorkerLink(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

class SchedulerLink {
 public:
  // `io_threads`: 1 up to 256 peers, 2 beyond; encryption is done there.
  // Errors: kUnavailable if the endpoint is taken; kInvalidArgument if it is none, or needs keys.
  static Result<SchedulerLink> bind(const std::string& endpoint,
                                    const ServerSecurity& security = {}, int io_threads = 1);
  SchedulerLink(SchedulerLink&&) noexcept;
  SchedulerLink& operator=(SchedulerLink&&) noexcept;
  ~SchedulerLink();

  // Where it listens, with the port that was found for tcp://HOST:*.
  std::string endpoint() const;

  // A reliable message waits here while the peer takes no more.
  // Errors: kNotFound for a peer that was never heard; kResourceExhausted if too much waits;
  // kInvalidArgument for a body that is too long to travel.
  Result<void> send(const std::string& to, MessageType type,
                    const google::protobuf::MessageLite& body, bool reliable);
  void resend_after(const std::string& to, std::uint64_t seq);
  // What was heard from the peer and confirmed.
  std::uint64_t last_received(const std::string& peer) const;
  // What was heard so far is durable: only now is it acknowledged.
  void confirm();
  void forget(const std::string& session);
  // How many reliable messages each peer may have under way (at most kSchedulerCredit): fewer when
  // there is too much to do, none when there is far too much.
  void set_credit(std::uint32_t credit);
  // Looks at the authorised keys again, now.
  void reload_keys();

  // Waits until something is heard here or at one of `others`, ZeroMQ sockets of the same thread,
  // or the timeout.
  std::vector<HeardMessage> poll(std::chrono::milliseconds timeout,
                                 std::span<void* const> others = {});
  std::uint64_t dropped() const;  // see LinkCounters
  LinkCounters counters() const;

 private:
  struct State;
  explicit SchedulerLink(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace saesweep::protocol
