// Files of this machine that sweeps name (models, activations, SAEs to begin with), for workers
// that have no such path. An object of the data port for each path:
//
//   files/<64 hex digits>   SHA-256 of the absolute path; the safetensors and JSON files directly
//   in
//                           a folder, or the one file that the path is
//
// Only paths that a sweep names are served: a worker's key opens nothing else here. What is read is
// checked at the other end against the digest that the sweep was planned with.
//
// add() from any thread, the rest from one.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/result.h"
#include "scheduler/decisions/journal.pb.h"
#include "storage/object_store.h"

namespace saesweep::scheduler {

class SweepFiles {
 public:
  // The paths that a task's spec names.
  void add(const journal::TaskSpec& task);

  // Errors of both: kNotFound for what no sweep names or what is not here; kInvalidArgument for
  // more files than travel; kUnavailable.
  Result<std::vector<storage::ObjectFile>> list(const std::string& object);
  Result<std::string> read(const std::string& object, const std::string& file, std::uint64_t offset,
                           std::uint64_t bytes) const;

 private:
  struct Known {
    std::uintmax_t bytes = 0;
    std::filesystem::file_time_type changed;
    Sha256 digest;
  };
  Result<std::filesystem::path> path_of(const std::string& object) const;
  Result<storage::ObjectFile> describe(const std::filesystem::path& file);

  mutable std::mutex mutex_;
  std::map<std::string, std::filesystem::path> paths_;  // by object; under mutex_
  std::set<std::string> groups_;                        // looked at; under mutex_
  std::map<std::filesystem::path, Known> digests_;
};

}  // namespace saesweep::scheduler
