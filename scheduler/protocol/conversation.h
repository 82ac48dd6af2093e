// Which incarnation of the scheduler a frame is about. Sequence numbers and acknowledgements mean
// something between one agent process and one scheduler process only; a restarted scheduler counts
// from 1 again, and frames of both times may meet on the wire.
//
// A scheduler's session is random for each process. A worker's header carries the low half of its
// own id plus the session of the scheduler that its numbers are about (0 before it has heard one),
// so that both sides can tell.
#pragma once

#include <cstdint>
#include <set>

namespace saesweep::protocol {

enum class Standing {
  kCurrent,
  kNew,  // of a scheduler not heard before: from here on all is numbered anew
  kOld,  // of one that is gone: its numbers mean nothing any more
};

class WorkerConversation {
 public:
  explicit WorkerConversation(std::uint64_t own) : own_(own) {}
  // For our headers.
  std::uint64_t session() const { return own_ + scheduler_; }
  // False for a session that was never heard, once one was: only WELCOME introduces a scheduler. A
  // header has no checksum of its own, and a damaged one must not end the conversation.
  bool knows(std::uint64_t session) const {
    return scheduler_ == 0 || session == scheduler_ || former_.contains(session);
  }
  Standing hear(std::uint64_t session) {
    if (session == scheduler_) return Standing::kCurrent;
    if (former_.contains(session)) return Standing::kOld;
    const bool is_first = scheduler_ == 0;
    if (!is_first) former_.insert(scheduler_);
    scheduler_ = session;
    return is_first ? Standing::kCurrent : Standing::kNew;
  }

 private:
  std::uint64_t own_;
  std::uint64_t scheduler_ = 0;
  std::set<std::uint64_t> former_;
};

// What a worker's header is about, for the scheduler of session `own`. A worker that has heard
// nobody yet has acknowledged nothing and begins at 1: it is current.
inline Standing standing_of(std::uint64_t session, std::uint64_t worker, std::uint64_t own) {
  const std::uint64_t about = session - worker;
  return about == own || about == 0 ? Standing::kCurrent : Standing::kOld;
}

}  // namespace saesweep::protocol
