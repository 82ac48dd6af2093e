// The store of an agent that does not see the scheduler's: its state directory, laid out as
// storage/object_store.h says. All of it is in the scheduler's store too, or on its way there, so
// it is bounded and may be lost.
//
//   STATE/trials, artifacts, incoming  as in the scheduler's store
//   STATE/files                        copies of what sweeps name and this machine does not have
//   STATE/outgoing/trials/...          checkpoints on their way, linked: executors remove old ones
//   STATE/served-by                    the token of the scheduler that these belong to
#pragma once

#include <cstdint>
#include <filesystem>
#include <set>
#include <string>

#include "core/result.h"
#include "storage/object_store.h"

namespace saesweep::agent {

class OwnStore {
 public:
  // What another scheduler's work left is removed: its fences mean something else.
  // Errors: kUnavailable, kResourceExhausted.
  static Result<OwnStore> open(const std::filesystem::path& state_directory,
                               const std::string& token);

  storage::ObjectStore& objects() { return objects_; }
  const storage::ObjectStore& objects() const { return objects_; }
  const storage::ObjectStore& outgoing() const { return outgoing_; }

  // A checkpoint stays readable in outgoing() until it is let go.
  // Errors: kNotFound; kInvalidArgument if it names none; kResourceExhausted; kUnavailable.
  Result<void> hold(const std::string& checkpoint) const;
  void let_go(const std::string& checkpoint) const;

  // Removes what was used longest ago: whole trials ("trials/<id>"), artifacts, copies, each until
  // `most_bytes` are left. What `in_use` names stays.
  void trim(const std::set<std::string>& in_use, std::uint64_t most_bytes) const;

 private:
  OwnStore(std::filesystem::path root, storage::ObjectStore objects, storage::ObjectStore outgoing)
      : root_(std::move(root)), objects_(std::move(objects)), outgoing_(std::move(outgoing)) {}
  std::filesystem::path root_;
  storage::ObjectStore objects_, outgoing_;
};

}  // namespace saesweep::agent
