// Files named by what is in them: STATE/artifacts/<sha256>. One is whole or absent, never changes,
// and putting it again does nothing.
//
// Any number of processes may put at once. Temporary files are named `.new-*`; those that a crash
// leaves are removed when the directory is opened again and they are a day old.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string_view>

#include "core/digest.h"
#include "core/result.h"

namespace saesweep::storage {

class Artifacts {
 public:
  // Errors: kUnavailable or kResourceExhausted if the directory cannot be made.
  static Result<Artifacts> open(const std::filesystem::path& directory);

  // Both return once the artifact is durable.
  // Errors: kResourceExhausted on a full disk; kUnavailable; kNotFound if `file` is not there.
  Result<Sha256> put(std::span<const std::byte> bytes);
  // Takes the file away from where it was: by renaming on the same file system, else by copying.
  Result<Sha256> move_in(const std::filesystem::path& file);

  std::filesystem::path path_of(const Sha256& digest) const;
  bool contains(const Sha256& digest) const;
  // Reads it all. Errors: kNotFound; kCorrupted if it is not what its name says; kUnavailable.
  Result<void> verify(const Sha256& digest) const;

 private:
  explicit Artifacts(std::filesystem::path directory) : directory_(std::move(directory)) {}
  // Renames a synced temporary file to its name.
  Result<void> keep(const std::filesystem::path& temporary, const Sha256& digest);

  std::filesystem::path directory_;
};

// A digest from its 64 lower-case hex digits. Errors: kInvalidArgument.
Result<Sha256> parse_sha256(std::string_view hex);

}  // namespace saesweep::storage
