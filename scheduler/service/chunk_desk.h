// What the scheduler does for workers that fetch chunks from one another: gives each that it
// welcomes the key pair with which they ask, made anew for every incarnation, and completes the
// address that a worker names.
#pragma once

#include <optional>
#include <string>

#include "core/result.h"
#include "scheduler/decisions/sweep_state.h"
#include "scheduler/protocol/keys.h"
#include "scheduler/protocol/messages.pb.h"
#include "scheduler/protocol/security.h"

namespace saesweep::scheduler {

class ChunkDesk {
 public:
  // Without keys nothing is given out. Errors: as make_key_pair().
  static Result<ChunkDesk> open(const protocol::ServerSecurity& security);

  // The worker may have left again.
  void complete(protocol::Welcome& welcome, const SweepState& state,
                const std::string& worker) const;

 private:
  std::optional<protocol::KeyPair> keys_;
};

// A host "*" is the address from which HELLO came; the endpoint is cleared if nobody knows it, or
// if it is none that others should connect to.
void complete(protocol::Hello& hello, const std::string& address);

// ZeroMQ names an IPv4 address of a socket that takes both as one of IPv6; this is what people
// write.
std::string plain(std::string endpoint);

}  // namespace saesweep::scheduler
