#include "scheduler/protocol/reliable.h"

#include <algorithm>

namespace saesweep::protocol {
namespace {

constexpr Duration kLongestWait = std::chrono::seconds(30);

}  // namespace

Header ReliablePeer::header(MessageType type, std::uint8_t flags, std::uint64_t seq) const {
  Header header;
  header.type = type;
  header.flags = flags;
  header.session = session_;
  header.seq = seq;
  header.ack = confirmed_;
  header.credit = kCredit;
  return header;
}

Result<OutgoingFrame> ReliablePeer::reliable(MessageType type, std::string body, TimePoint now) {
  if (unacked_.size() >= std::min<std::size_t>(kMaxUnacked, peer_credit_) ||
      unacked_bytes_ + body.size() > kMaxUnackedBytes)
    return fail(ErrorCode::kResourceExhausted, "{} messages of {} bytes are not acknowledged yet",
                unacked_.size(), unacked_bytes_);
  OutgoingFrame frame{header(type, kReliable, next_seq_++), std::move(body)};
  unacked_bytes_ += frame.body.size();
  unacked_.push_back({frame, now, patience_});
  return frame;
}

OutgoingFrame ReliablePeer::unreliable(MessageType type, std::string body) const {
  return {header(type, 0, 0), std::move(body)};
}

void ReliablePeer::acknowledge(std::uint64_t seq) {
  while (!unacked_.empty() && unacked_.front().frame.header.seq <= seq) {
    unacked_bytes_ -= unacked_.front().frame.body.size();
    unacked_.pop_front();
  }
}

bool ReliablePeer::accept(const Header& heard) {
  acknowledge(heard.ack);
  peer_credit_ = heard.credit;
  if ((heard.flags & kReliable) == 0) return true;
  if (heard.seq != received_ + 1) return false;
  received_ = heard.seq;
  return true;
}

void ReliablePeer::begin_anew(std::uint64_t session) {
  session_ = session;
  received_ = confirmed_ = 0;
  peer_credit_ = kCredit;
  next_seq_ = 1;
  for (Unacked& waiting : unacked_) {
    waiting.frame.header.seq = next_seq_++;
    waiting.frame.header.session = session_;
    waiting.frame.header.ack = 0;
    waiting.wait = patience_;
  }
}

std::vector<OutgoingFrame> ReliablePeer::due(TimePoint now) {
  std::vector<OutgoingFrame> frames;
  if (unacked_.empty() || now - unacked_.front().sent < unacked_.front().wait) return frames;
  // The oldest is overdue: what came after it may have been dropped behind the gap.
  for (Unacked& waiting : unacked_) {
    waiting.sent = now;
    waiting.wait = std::min(kLongestWait, 2 * waiting.wait);
    waiting.frame.header.flags |= kRetransmission;
    waiting.frame.header.session = session_;
    waiting.frame.header.ack = confirmed_;
    frames.push_back(waiting.frame);
  }
  return frames;
}

std::vector<OutgoingFrame> ReliablePeer::resend_after(std::uint64_t seq, TimePoint now) {
  acknowledge(seq);
  std::vector<OutgoingFrame> frames;
  for (Unacked& waiting : unacked_) {
    waiting.sent = now;
    waiting.frame.header.flags |= kRetransmission;
    waiting.frame.header.session = session_;
    waiting.frame.header.ack = confirmed_;
    frames.push_back(waiting.frame);
  }
  return frames;
}

}  // namespace saesweep::protocol
