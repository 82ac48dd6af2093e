// Where the checkpoints of one task lie: STATE/<trial directory>/f<fence>/step-<n>/. The fence in
// the path keeps a holder of an older lease from overwriting anything.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <vector>

#include "core/result.h"
#include "scheduler/protocol/messages.pb.h"

namespace saesweep::worker {

class CheckpointFolder {
 public:
  CheckpointFolder(std::filesystem::path state, const protocol::Member& member);

  // Where to go on from, best first: what the scheduler names, then whatever else this task has,
  // newest first. Empty if the scheduler names nothing.
  std::vector<std::filesystem::path> to_restore() const;

  // Lets `save` write the directory of this step and returns once that is durable. Of this lease
  // the last two are kept; once there are two, those of older leases go. Errors: those of `save`;
  // kResourceExhausted, kUnavailable.
  using Save = std::function<Result<void>(const std::filesystem::path& directory)>;
  Result<protocol::CheckpointRef> write(std::uint64_t step, std::uint64_t tokens, const Save& save);

  // A place for temporary files of this lease, made if need be.
  Result<std::filesystem::path> scratch() const;

  // The step last written or gone on from: nothing is new until the task is past it.
  std::uint64_t last_step() const { return last_step_; }
  void went_on_from(std::uint64_t step) { last_step_ = step; }

 private:
  void remove_old() const;
  std::filesystem::path state_, task_;          // task_ is relative to state_
  std::filesystem::path lease_;                 // relative to state_
  std::filesystem::path resume_;                // relative to state_; empty: none
  std::vector<std::filesystem::path> written_;  // of this lease, oldest first
  std::uint64_t last_step_ = 0;
};

}  // namespace saesweep::worker
