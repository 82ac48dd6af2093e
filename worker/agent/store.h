// The scheduler's store, where checkpoints, artifacts and the logs of runs go, as this machine sees
// it: the same folder, or one on a file system that both share; or out of sight, and then objects
// travel over the data port.
#pragma once

#include <filesystem>
#include <string>

#include "core/result.h"
#include "scheduler/protocol/messages.pb.h"

namespace saesweep::agent {

struct StoreInUse {
  bool is_known = false;            // a scheduler has welcomed us
  std::filesystem::path directory;  // empty: our own state directory
  std::string token;                // of the scheduler's; empty: it names none
  bool travels = false;             // its objects do
  std::string data_endpoint;        // then
};

// The store that a scheduler names in its WELCOME. `before` is the one in use; `found_at` is the
// endpoint over which the scheduler was reached.
// Errors: kInvalidArgument if it is out of sight and there is no data port, or if it is another one
// than before.
Result<StoreInUse> find_store(const protocol::Welcome& welcome, const StoreInUse& before,
                              const std::string& found_at);

}  // namespace saesweep::agent
