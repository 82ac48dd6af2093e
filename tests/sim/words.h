// Small words that the simulated processes share.
#pragma once

#include <cstdint>
#include <string>

#include "scheduler/protocol/reliable.h"

namespace saesweep::sim {

// Of a session id, as the link does it.
inline std::uint64_t low_half(const std::string& id) {
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < 8 && i < id.size(); ++i)
    value |= std::uint64_t{static_cast<unsigned char>(id[i])} << (8 * i);
  return value;
}

// The simulated scheduler has no queue in front of a worker's credit, as the link has.
inline constexpr protocol::ReliablePeer::Credit kUnlimited{
    .ours = protocol::ReliablePeer::kMaxUnacked, .peers = protocol::ReliablePeer::kMaxUnacked};

}  // namespace saesweep::sim
