// What ZeroMQ does not promise: that a message which was accepted arrives, once and in order. One
// object for each peer and session; no socket and no clock.
//
// Reliable messages carry 1, 2, 3, ...; the peer's highest contiguous number rides back on every
// header. What is not acknowledged is sent again after max(2 s, 4 smoothed round trips), then twice
// that, up to 30 s, and at once when a peer says what it received last.
//
// Credit: every header says how many reliable messages its sender takes beyond `ack`. What is past
// that edge is not sent, and not taken from a peer that sends it all the same. An edge that was
// granted is kept: a smaller credit slows a peer down, it takes nothing back.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
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

  // What both sides take before the first header says so.
  struct Credit {
    std::uint32_t ours = kCredit;  // from the peer
    std::uint32_t peers = kCredit;
  };

  explicit ReliablePeer(std::uint64_t session) : ReliablePeer(session, Credit{}) {}
  ReliablePeer(std::uint64_t session, Credit credit)
      : session_(session),
        credit_(credit.ours),
        edge_(credit.ours),
        first_peer_edge_(credit.peers),
        peer_edge_(credit.peers) {}

  // Errors: kResourceExhausted without credit, or while too much is unacknowledged;
  // kInvalidArgument for a body of more than kMaxBodyBytes, which never travels.
  Result<OutgoingFrame> reliable(MessageType type, std::string body, TimePoint now);
  OutgoingFrame unreliable(MessageType type, std::string body);

  // True if the message is to be delivered: the next in order, or an unreliable one. A repeated one
  // is not, nor one after a gap or beyond our credit, which will be sent again.
  bool accept(const Header& heard, TimePoint now);
  // From here on headers acknowledge what was accepted: what it said is durable now.
  void confirm() { confirmed_ = received_; }
  // How many messages we take beyond what is confirmed, from the next header on.
  void set_credit(std::uint32_t credit) { credit_ = credit; }
  // So much is confirmed and not yet said that the peer may be waiting for it.
  bool owes_acknowledgement() const;

  // What should be sent again now.
  std::vector<OutgoingFrame> due(TimePoint now);
  // The peer says that it received everything up to `seq`: the rest is sent again.
  std::vector<OutgoingFrame> resend_after(std::uint64_t seq, TimePoint now);
  // The same with what it acknowledged.
  std::vector<OutgoingFrame> resend(TimePoint now) { return resend_after(peer_acked_, now); }

  // The peer is another process now, which counts from 1: what it has not acknowledged is numbered
  // anew, and is sent when it is due. Our headers carry `session` from here on.
  void begin_anew(std::uint64_t session);
  void set_session(std::uint64_t session) { session_ = session; }

  std::uint64_t last_received() const { return received_; }
  std::uint64_t last_confirmed() const { return confirmed_; }
  std::size_t unacknowledged() const { return unacked_.size(); }
  std::size_t unacknowledged_bytes() const { return unacked_bytes_; }
  std::uint64_t retransmitted() const { return retransmitted_; }
  Duration patience() const;  // before the first repetition

 private:
  struct Unacked {
    OutgoingFrame frame;
    TimePoint sent;
    bool is_repeated = false;
  };
  Header header(MessageType type, std::uint8_t flags, std::uint64_t seq);
  void acknowledge(std::uint64_t seq, TimePoint now);
  std::vector<OutgoingFrame> repeat(TimePoint now);

  std::uint64_t session_;
  // Towards us.
  std::uint64_t received_ = 0;
  std::uint64_t confirmed_ = 0;  // of these, what is acknowledged
  std::uint64_t said_ = 0;       // of these, what a header has said
  std::uint32_t credit_;
  std::uint64_t edge_;  // the highest seq we ever said we take
  // Towards the peer.
  std::uint64_t next_seq_ = 1;
  std::uint64_t peer_acked_ = 0;
  std::uint64_t first_peer_edge_;
  std::uint64_t peer_edge_;  // the highest seq it takes now
  std::deque<Unacked> unacked_;
  std::size_t unacked_bytes_ = 0;
  std::uint64_t retransmitted_ = 0;
  std::optional<Duration> round_trip_;  // smoothed
  Duration wait_{};                     // once the oldest was repeated: until the next time
};

}  // namespace saesweep::protocol
