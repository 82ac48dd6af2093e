#include "scheduler/protocol/reliable.h"

#include <algorithm>

namespace saesweep::protocol {
namespace {

constexpr Duration kShortestWait = std::chrono::seconds(2);
constexpr Duration kLongestWait = std::chrono::seconds(30);

}  // namespace

Header ReliablePeer::header(MessageType type, std::uint8_t flags, std::uint64_t seq) {
  Header header;
  header.type = type;
  header.flags = flags;
  header.session = session_;
  header.seq = seq;
  header.ack = said_ = confirmed_;
  header.credit = credit_;
  edge_ = std::max(edge_, confirmed_ + credit_);
  return header;
}

Result<OutgoingFrame> ReliablePeer::reliable(MessageType type, std::string body, TimePoint now) {
  if (body.size() > kMaxBodyBytes)
    return fail(ErrorCode::kInvalidArgument, "a {} of {} bytes; at most {} travel", to_string(type),
                body.size(), kMaxBodyBytes);
  if (next_seq_ > peer_edge_)
    return fail(ErrorCode::kResourceExhausted, "the peer takes no more than {} messages now",
                unacked_.size());
  if (unacked_.size() >= kMaxUnacked || unacked_bytes_ + body.size() > kMaxUnackedBytes)
    return fail(ErrorCode::kResourceExhausted, "{} messages of {} bytes are not acknowledged yet",
                unacked_.size(), unacked_bytes_);
  OutgoingFrame frame{header(type, kReliable, next_seq_++), std::move(body)};
  unacked_bytes_ += frame.body.size();
  unacked_.push_back({frame, now});
  return frame;
}

OutgoingFrame ReliablePeer::unreliable(MessageType type, std::string body) {
  return {header(type, 0, 0), std::move(body)};
}

Duration ReliablePeer::patience() const {
  return std::clamp(4 * round_trip_.value_or(Duration::zero()), kShortestWait, kLongestWait);
}

void ReliablePeer::acknowledge(std::uint64_t seq, TimePoint now) {
  if (seq <= peer_acked_ || seq >= next_seq_) return;  // old news, or of another session
  peer_acked_ = seq;
  wait_ = Duration::zero();  // it hears us
  while (!unacked_.empty() && unacked_.front().frame.header.seq <= seq) {
    const Unacked& heard = unacked_.front();
    // The answer to a repeated message may be one to its first copy (Karn's rule); the smoothing is
    // that of RFC 6298.
    if (!heard.is_repeated && heard.frame.header.seq == seq) {
      const Duration sample = now - heard.sent;
      round_trip_ = round_trip_ ? (7 * *round_trip_ + sample) / 8 : sample;
    }
    unacked_bytes_ -= heard.frame.body.size();
    unacked_.pop_front();
  }
}

bool ReliablePeer::accept(const Header& heard, TimePoint now) {
  // Frames of an older connection may come late: their credit is spent.
  if (heard.ack >= peer_acked_ && heard.ack < next_seq_) {
    acknowledge(heard.ack, now);
    peer_edge_ = heard.ack + heard.credit;
  }
  if ((heard.flags & kReliable) == 0) return true;
  if (heard.seq != received_ + 1 || heard.seq > edge_) return false;
  received_ = heard.seq;
  return true;
}

bool ReliablePeer::owes_acknowledgement() const {
  const std::uint64_t unsaid = confirmed_ - said_;
  // Either a quarter of the credit is used up, or the peer has come near the last edge it knows.
  return unsaid > 0 &&
         (unsaid >= std::max<std::uint64_t>(1, credit_ / 4) || (received_ >= edge_ && credit_ > 0));
}

void ReliablePeer::begin_anew(std::uint64_t session) {
  session_ = session;
  received_ = confirmed_ = said_ = 0;
  edge_ = credit_;
  next_seq_ = 1;
  peer_acked_ = 0;
  peer_edge_ = first_peer_edge_;
  wait_ = Duration::zero();
  for (Unacked& waiting : unacked_) {
    waiting.is_repeated = true;  // no sample of a round trip
    waiting.frame.header = header(waiting.frame.header.type, kReliable, next_seq_++);
  }
}

std::vector<OutgoingFrame> ReliablePeer::repeat(TimePoint now) {
  std::vector<OutgoingFrame> frames;
  frames.reserve(unacked_.size());
  for (Unacked& waiting : unacked_) {
    waiting.sent = now;
    waiting.is_repeated = true;
    Header& old = waiting.frame.header;
    old = header(old.type, kReliable | kRetransmission, old.seq);
    frames.push_back(waiting.frame);
  }
  retransmitted_ += frames.size();
  return frames;
}

std::vector<OutgoingFrame> ReliablePeer::due(TimePoint now) {
  if (unacked_.empty()) return {};
  const Duration wait = wait_ == Duration::zero() ? patience() : wait_;
  if (now - unacked_.front().sent < wait) return {};
  wait_ = std::min(kLongestWait, 2 * wait);
  // The oldest is overdue: what came after it may have been dropped behind the gap.
  return repeat(now);
}

std::vector<OutgoingFrame> ReliablePeer::resend_after(std::uint64_t seq, TimePoint now) {
  acknowledge(seq, now);
  return repeat(now);
}

}  // namespace saesweep::protocol
