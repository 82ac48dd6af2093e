// Results as files named by what is in them: STATE/artifacts/<sha256>, whole or absent, never
// changed; putting one again does nothing. The scheduler names them in its journal only once they
// are here. Temporary files are named `.new-*`; whoever opens the directory later removes old ones.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include "core/result.h"
#include "scheduler/protocol/messages.pb.h"

namespace saesweep::worker {

class ArtifactStore {
 public:
  explicit ArtifactStore(const std::filesystem::path& state) : directory_(state / "artifacts") {}

  // Returns once it is durable. Errors: kResourceExhausted on a full disk; kUnavailable.
  Result<protocol::Artifact> put(std::string name, std::string_view bytes) const;
  // The path of a file whose bytes are what its name says.
  // Errors: kNotFound; kCorrupted; kInvalidArgument if the digest is none.
  Result<std::filesystem::path> find(const protocol::Artifact& artifact) const;

 private:
  std::filesystem::path directory_;
};

}  // namespace saesweep::worker
