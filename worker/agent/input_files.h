// Files that the specs of a run name by their path (models, activations, SAEs to begin with) and
// that this machine does not have: copies of the scheduler's stand in for them.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "scheduler/protocol/messages.pb.h"

namespace saesweep::agent {

// As objects of the data port, see scheduler/protocol/sweep_paths.h; each once.
std::vector<std::string> files_to_copy(const protocol::Run& run);

// Lets the specs name copies, as far as there are any below `root`. What is neither here nor there
// is given back.
std::vector<std::string> use_copies(protocol::Run& run, const std::filesystem::path& root);

}  // namespace saesweep::agent
