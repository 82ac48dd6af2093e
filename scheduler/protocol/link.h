// The sockets between scheduler and agents: ROUTER and DEALER, frames and the reliable layer.
//
// A socket is made, used and closed in one thread. Nothing here blocks beyond the timeout given:
// sends never wait, what cannot be sent now is sent again if it is reliable and lost if it is not.
// Bytes that are no message are counted and dropped; a peer that sends three is no longer heard.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/result.h"
#include "scheduler/protocol/frame.h"
#include "scheduler/protocol/security.h"

namespace google::protobuf {
class MessageLite;
}

namespace saesweep::protocol {

struct HeardMessage {
  std::string peer;  // routing id; empty on the worker's side
  MessageType type = MessageType::kHello;
  std::string body;
};

// Parses a body with the limits that outside bytes get. False: these bytes are no such message.
bool parse_body(const std::string& body, google::protobuf::MessageLite& message);

class WorkerLink {
 public:
  // Connecting ends in the background; messages sent before are kept.
  // Errors: kInvalidArgument for an endpoint that is none or that needs keys.
  static Result<WorkerLink> connect(const std::string& endpoint,
                                    const ClientSecurity& security = {});
  WorkerLink(WorkerLink&&) noexcept;
  WorkerLink& operator=(WorkerLink&&) noexcept;
  ~WorkerLink();

  // Errors: kResourceExhausted while too many reliable messages wait for an acknowledgement.
  Result<void> send(MessageType type, const google::protobuf::MessageLite& body, bool reliable);
  // The scheduler said (WELCOME) what it received last: the rest is sent again.
  void resend_after(std::uint64_t seq);
  std::uint64_t last_received() const;  // for HELLO
  std::size_t unacknowledged() const;

  struct Polled {
    std::vector<HeardMessage> heard;
    std::vector<int> readable;  // of `others`
  };
  // Waits until something is heard, one of `others` (descriptors) can be read, or the timeout.
  Polled poll(std::chrono::milliseconds timeout, std::span<const int> others = {});

 private:
  struct State;
  explicit WorkerLink(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

class SchedulerLink {
 public:
  // Errors: kUnavailable if the endpoint is taken; kInvalidArgument if it is none, or needs keys.
  static Result<SchedulerLink> bind(const std::string& endpoint,
                                    const ServerSecurity& security = {});
  std::string endpoint() const;  // with the port that was given for port 0
  SchedulerLink(SchedulerLink&&) noexcept;
  SchedulerLink& operator=(SchedulerLink&&) noexcept;
  ~SchedulerLink();

  // Errors: kNotFound for a peer that was never heard; kResourceExhausted as above.
  Result<void> send(const std::string& peer, MessageType type,
                    const google::protobuf::MessageLite& body, bool reliable);
  void resend_after(const std::string& peer, std::uint64_t seq);
  std::uint64_t last_received(const std::string& peer) const;
  // What was heard so far is durable: only now is it acknowledged.
  void confirm();
  void forget(const std::string& peer);

  // Waits until something is heard here or at one of `others`, ZeroMQ sockets of the same thread,
  // or the timeout.
  std::vector<HeardMessage> poll(std::chrono::milliseconds timeout,
                                 std::span<void* const> others = {});
  std::uint64_t dropped() const;  // messages that were no messages

 private:
  struct State;
  explicit SchedulerLink(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace saesweep::protocol
