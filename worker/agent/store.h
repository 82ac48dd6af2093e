// The scheduler's store, where checkpoints, artifacts and the logs of runs go, as this machine sees
// it: the same folder, or one on a file system that both share.
#pragma once

#include <filesystem>

#include "core/result.h"
#include "scheduler/protocol/messages.pb.h"

namespace saesweep::agent {

// The store that a scheduler names in its WELCOME; empty if it names none and shares our state.
// `before` is the one in use, empty at first.
// Errors: kInvalidArgument if it is no folder of this machine, or another one than before.
Result<std::filesystem::path> find_store(const protocol::Welcome& welcome,
                                         const std::filesystem::path& before);

}  // namespace saesweep::agent
