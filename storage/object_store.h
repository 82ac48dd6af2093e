// Results and checkpoints as objects with a name, for carrying them between machines: an artifact
// is one file, a checkpoint a folder of files, and so is a copy of what a sweep names. Below one
// root:
//
//   artifacts/<64 hex digits>             what its name says (SHA-256)
//   trials/<12 hex digits>/f<n>/step-<n>  files of a checkpoint
//   files/<64 hex digits>                 copies of files from elsewhere; digits of their path
//   incoming/<upload>/<file>              parts that arrived
//
// An object is whole or absent and never changes: parts gather under `incoming`, are checked
// against their digests, and are renamed into place. Keeping an object that is there does nothing.
// Every call may be repeated. Names come from other machines: what is no such name is refused.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/digest.h"
#include "core/result.h"

namespace saesweep::storage {

struct ObjectFile {
  std::string name;  // within a checkpoint; "content" of an artifact
  std::uint64_t bytes = 0;
  Sha256 digest;
  bool operator==(const ObjectFile&) const = default;
};

// artifacts/..., trials/... or files/... as above.
bool is_object_name(std::string_view name);
// 1 to 64 letters, digits, '-' or '_'; chosen by who uploads, unlike anybody else's.
bool is_upload_name(std::string_view name);
// 1 to 128 letters, digits, '.', '-' or '_', the first no dot.
bool is_object_file_name(std::string_view name);

class ObjectStore {
 public:
  static constexpr std::size_t kMostFiles = 256;  // of one object

  // Makes the folders; removes parts that nobody added to for a day.
  // Errors: kUnavailable, kResourceExhausted.
  static Result<ObjectStore> open(const std::filesystem::path& root);

  bool contains(const std::string& name) const;
  // The files of an object, by name. Reads every byte.
  // Errors: kNotFound; kInvalidArgument for what is no name; kCorrupted for an artifact that is not
  // what its name says; kUnavailable.
  Result<std::vector<ObjectFile>> list(const std::string& name) const;
  // Up to `bytes` bytes from `offset`; fewer only at the end of the file.
  // Errors: as list().
  Result<std::string> read(const std::string& name, const std::string& file, std::uint64_t offset,
                           std::uint64_t bytes) const;

  // Puts bytes at their place in a part, in any order.
  // Errors: kInvalidArgument; kResourceExhausted on a full disk; kUnavailable.
  Result<void> write(const std::string& upload, const std::string& file, std::uint64_t offset,
                     std::span<const std::byte> bytes);
  // Durable when it returns; the parts are gone then. Without parts it succeeds if the object is
  // there. Errors: kNotFound if a file is missing; kCorrupted if one is not what `files` says
  // (the parts are removed: send them again); as write().
  Result<void> keep(const std::string& upload, const std::string& name,
                    const std::vector<ObjectFile>& files);
  void drop(const std::string& upload);

  const std::filesystem::path& root() const { return root_; }

 private:
  explicit ObjectStore(std::filesystem::path root) : root_(std::move(root)) {}
  std::filesystem::path file_path(const std::string& name, const std::string& file) const;
  std::filesystem::path root_;
};

}  // namespace saesweep::storage
