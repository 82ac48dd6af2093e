// What ZeroMQ does not promise: that a message which was accepted arrives, once and in order. One
// object for each peer and session; no socket and no clock.
//
// Reliable messages carry 1, 2, 3, ...; the peer's highest contiguous number rides back on every
// header. What is not acknowledged is sent again, after `patience`, then twice that, up to 30 s,
// and at once when a peer says what it received last.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "core/clock.h"
#include "core/result.h"
#include "scheduler/protocol/frame.h"

namespace saesweep::protocol {

struct OutgoingFrame {
  Header header;
  std::string body;
};

class ReliablePeer {
 public:
  static constexpr std::size_t kMaxUnacked = 1024;
  static constexpr std::size_t kMaxUnackedBytes = std::size_t{16} << 20;
  static constexpr std::uint32_t kCredit = 256;

  explicit ReliablePeer(std::uint64_t session, Duration patience = std::chrono::seconds(2))
      : session_(session), patience_(patience) {}

  // Errors: kResourceExhausted while too much is unacknowledged.
  Result<OutgoingFrame> reliable(MessageType type, std::string body, TimePoint now);
  OutgoingFrame unreliable(MessageType type, std::string body) const;

  // True if the message is to be delivered: the next in order, or an unreliable one. A repeated one
  // is not, nor one after a gap, which will be sent again.
  bool accept(const Header& header);
  // From here on headers acknowledge what was accepted: what it said is durable now.
  void confirm() { confirmed_ = received_; }

  // What should be sent again now.
  std::vector<OutgoingFrame> due(TimePoint now);
  // The peer says that it received everything up to `seq`: the rest is sent again.
  std::vector<OutgoingFrame> resend_after(std::uint64_t seq, TimePoint now);

  // The peer is another process now, which counts from 1: what it has not acknowledged is numbered
  // anew, and is sent when it is due. Our headers carry `session` from here on.
  void begin_anew(std::uint64_t session);
  void set_session(std::uint64_t session) { session_ = session; }

  std::uint64_t last_received() const { return received_; }
  std::uint64_t last_confirmed() const { return confirmed_; }
  std::size_t unacknowledged() const { return unacked_.size(); }

 private:
  struct Unacked {
    OutgoingFrame frame;
    TimePoint sent;
    Duration wait;
  };
  Header header(MessageType type, std::uint8_t flags, std::uint64_t seq) const;
  void acknowledge(std::uint64_t seq);

  std::uint64_t session_;
  Duration patience_;
  std::uint64_t next_seq_ = 1;
  std::uint64_t received_ = 0;
  std::uint64_t confirmed_ = 0;  // of these, what is acknowledged
  std::uint32_t peer_credit_ = kCredit;
  std::deque<Unacked> unacked_;
  std::size_t unacked_bytes_ = 0;
};

}  // namespace saesweep::protocol
