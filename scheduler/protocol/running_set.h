// What a worker runs, in 64 bits: HEARTBEAT carries the XOR over its leases, and both sides know
// whether they mean the same ones.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "core/digest.h"

namespace saesweep::protocol {

inline std::uint64_t lease_hash(const std::string& task, std::uint64_t fence) {
  return xxh3_64(std::as_bytes(std::span(task)), fence);
}

}  // namespace saesweep::protocol
