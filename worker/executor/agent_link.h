// The executor's end of the socket to its agent. The main thread reads; the trial thread asks for
// chunks and waits for what the main thread hands over; both send.
#pragma once

#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <optional>
#include <utility>

#include "core/bounded_queue.h"
#include "core/result.h"
#include "scheduler/protocol/executor_channel.h"

namespace saesweep::worker {

// A descriptor that closes itself.
class ReceivedFd {
 public:
  ReceivedFd() = default;
  explicit ReceivedFd(int value) : value_(value) {}
  ReceivedFd(ReceivedFd&& other) noexcept : value_(std::exchange(other.value_, -1)) {}
  ReceivedFd& operator=(ReceivedFd&& other) noexcept {
    std::swap(value_, other.value_);
    return *this;
  }
  ~ReceivedFd() {
    if (value_ >= 0) ::close(value_);
  }
  int get() const { return value_; }

 private:
  int value_ = -1;
};

class AgentLink {
 public:
  explicit AgentLink(protocol::ExecutorChannel channel) : channel_(std::move(channel)) {}

  // Any thread. Without an agent nothing that we do has a use: if it cannot be sent, the socket is
  // shut, and the main thread reads the end.
  void send(const protocol::Envelope& envelope);

  // Main thread. Errors: kUnavailable at the end; kCorrupted.
  Result<std::optional<protocol::ExecutorChannel::Heard>> receive(
      std::chrono::milliseconds patience) {
    return channel_.receive(patience);
  }
  // Main thread: what answers the trial thread's questions.
  void hand_over(protocol::ChunkOpened opened, ReceivedFd memory);
  void hand_over(protocol::ChunkReply reply);
  // The trial thread's waits end with kUnavailable from here on.
  void close();

  struct OpenedChunks {
    protocol::ChunkOpened message;
    ReceivedFd memory;
  };
  // Trial thread. Errors: kUnavailable if the agent does not answer within kAnswerPatience.
  static constexpr std::chrono::seconds kAnswerPatience{120};
  Result<OpenedChunks> open_chunks(const protocol::ChunkOpen& request);
  Result<protocol::ChunkReply> ask(const protocol::ChunkRequest& request);

 private:
  protocol::ExecutorChannel channel_;
  // The trial thread asks one thing at a time: more waits here only after it gave up on an answer.
  BoundedQueue<OpenedChunks> opened_{4};
  BoundedQueue<protocol::ChunkReply> replies_{4};
};

}  // namespace saesweep::worker
