// What the agent says to its scheduler. Reliable words wait here until the link takes them, results
// until the scheduler has said what became of them: another scheduler hears them again.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "scheduler/protocol/link.h"
#include "scheduler/protocol/messages.pb.h"

namespace saesweep::agent {

class Outbox {
 public:
  explicit Outbox(protocol::WorkerLink& link) : link_(link) {}

  // Arrives, once and in order.
  void say(protocol::MessageType type, const google::protobuf::MessageLite& message);
  // May be lost: a newer one follows.
  void mention(protocol::MessageType type, const google::protobuf::MessageLite& message);
  // One that is too large to travel arrives as a failure that says so.
  void say_result(protocol::TaskResult result);

  void acknowledge(const protocol::ResultAck& ack);
  // A result that was said and did not count. Nothing if it is not known.
  std::optional<protocol::TaskResult> take_back(const protocol::ResultAck& ack);
  void repeat_results();
  // Those that nobody has answered.
  const std::map<std::pair<std::string, std::uint64_t>, protocol::TaskResult>& unanswered() const {
    return results_;
  }
  // Gives the link what it takes now.
  void flush();
  // Everything has arrived.
  bool is_heard() const { return waiting_.empty() && link_.unacknowledged() == 0; }

 private:
  using Waiting = std::pair<protocol::MessageType, std::unique_ptr<google::protobuf::MessageLite>>;
  using Grant = std::pair<std::string, std::uint64_t>;  // task, fence
  protocol::WorkerLink& link_;
  std::deque<Waiting> waiting_;
  std::map<Grant, protocol::TaskResult> results_;  // until RESULT_ACK
};

}  // namespace saesweep::agent
