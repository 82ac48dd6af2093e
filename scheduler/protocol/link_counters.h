// Plain counters of a link since it was made; whoever runs it publishes them.
#pragma once

#include <cstdint>

namespace saesweep::protocol {

struct LinkCounters {
  // Of its connections.
  std::uint64_t accepted = 0;
  std::uint64_t handshake_succeeded = 0;
  std::uint64_t handshake_failed_auth = 0;       // the key is not authorised
  std::uint64_t handshake_failed_no_detail = 0;  // closed at the handshake: another server key, too
  std::uint64_t handshake_failed_protocol = 0;   // garbage
  std::uint64_t disconnected = 0;
  std::uint64_t connect_retried = 0;
  std::uint64_t bind_failed = 0;
  // Of its messages.
  std::uint64_t dropped = 0;        // that were no messages, or none that their sender may send
  std::uint64_t retransmitted = 0;  // sent again
};

}  // namespace saesweep::protocol
