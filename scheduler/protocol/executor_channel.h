// The socket between an agent and one executor: messages of messages.proto's Envelope, each behind
// its length (u32 little-endian; the highest bit says that a descriptor rides along, SCM_RIGHTS),
// over a Unix stream socket that the executor inherits. The end of the file is the other's death.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>

#include "core/result.h"
#include "scheduler/protocol/messages.pb.h"

namespace saesweep::protocol {

class ExecutorChannel {
 public:
  static constexpr std::uint32_t kMaxMessageBytes = 64u << 20;

  // Two connected sockets, close-on-exec. Errors: kResourceExhausted.
  static Result<std::pair<int, int>> make_pair();

  explicit ExecutorChannel(int socket);  // owns it from here on
  ExecutorChannel(ExecutorChannel&&) noexcept;
  ExecutorChannel& operator=(ExecutorChannel&&) noexcept;
  ~ExecutorChannel();

  int socket() const;  // to poll for reading

  // The whole message, waiting at most `kSendPatience` for the other side to read. Any thread.
  // Errors: kUnavailable if the other side is gone or does not read.
  static constexpr std::chrono::seconds kSendPatience{20};
  Result<void> send(const Envelope& envelope, int descriptor = -1);

  struct Heard {
    Envelope envelope;
    int descriptor = -1;  // the receiver's to close; close-on-exec
  };
  // Nothing if no whole message came within `patience`. One thread.
  // Errors: kUnavailable if the other side is gone; kCorrupted for bytes that are no message.
  Result<std::optional<Heard>> receive(std::chrono::milliseconds patience);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace saesweep::protocol
