// Results that the scheduler has not acknowledged, on disk: STATE/outbox/<digest>.result, one for
// each task and fence. A result outlives the agent that heard it: the next one says it again.
//
// A file is the SHA-256 of the rest (32 bytes), then a serialized TaskResult.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "core/result.h"
#include "scheduler/protocol/messages.pb.h"

namespace saesweep::agent {

class ResultFiles {
 public:
  // Errors: kUnavailable, kResourceExhausted.
  static Result<ResultFiles> open(const std::filesystem::path& directory);

  // Durable when it returns. Errors: kResourceExhausted on a full disk; kUnavailable.
  Result<void> keep(const protocol::TaskResult& result) const;
  void forget(const std::string& task, std::uint64_t fence) const;
  // What an agent before left. A file that is not what was written is removed.
  std::vector<protocol::TaskResult> all() const;

 private:
  explicit ResultFiles(std::filesystem::path directory) : directory_(std::move(directory)) {}
  std::filesystem::path path_of(const std::string& task, std::uint64_t fence) const;
  std::filesystem::path directory_;
};

}  // namespace saesweep::agent
