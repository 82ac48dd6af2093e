#include "scheduler/service/sweep_files.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <system_error>

#include "core/files.h"
#include "core/json.h"
#include "scheduler/protocol/sweep_paths.h"

namespace saesweep::scheduler {

namespace fs = std::filesystem;

void SweepFiles::add(const journal::TaskSpec& task) {
  // Tasks of a group name the same model and data; what one begins with is its own.
  const bool begins_with_own = task.spec().find("\"init_path\":\"/") != std::string::npos;
  const std::lock_guard lock(mutex_);
  if (!groups_.insert(fmt::format("{} {}", static_cast<int>(task.kind()), task.group())).second &&
      !begins_with_own && !task.group().empty())
    return;
  const auto json = parse_json(task.spec());
  if (!json) return;
  for (const std::string& path : protocol::paths_of(*json))
    paths_[protocol::object_of_path(path)] = path;
}

Result<fs::path> SweepFiles::path_of(const std::string& object) const {
  const std::lock_guard lock(mutex_);
  const auto found = paths_.find(object);
  if (found == paths_.end()) return fail(ErrorCode::kNotFound, "no sweep names {}", object);
  return found->second;
}

Result<storage::ObjectFile> SweepFiles::describe(const fs::path& file) {
  std::error_code problem;
  const std::uintmax_t bytes = fs::file_size(file, problem);
  const auto changed = fs::last_write_time(file, problem);
  if (problem) return fail(system_error(problem.value(), fmt::format("stat {}", file.string())));
  const auto known = digests_.find(file);
  if (known == digests_.end() || known->second.bytes != bytes || known->second.changed != changed) {
    SAE_TRY(const Sha256 digest, sha256_file(file));
    digests_[file] = {bytes, changed, digest};
  }
  return storage::ObjectFile{file.filename(), bytes, digests_[file].digest};
}

Result<std::vector<storage::ObjectFile>> SweepFiles::list(const std::string& object) {
  SAE_TRY(const fs::path path, path_of(object));
  std::error_code problem;
  std::vector<fs::path> files;
  if (fs::is_regular_file(path, problem)) {
    files.push_back(path);
  } else {
    for (const auto& entry : fs::directory_iterator(path, problem)) {
      const std::string ending = entry.path().extension();
      if (entry.is_regular_file() && (ending == ".safetensors" || ending == ".json") &&
          storage::is_object_file_name(entry.path().filename().string()))
        files.push_back(entry.path());
    }
  }
  if (files.empty())
    return fail(ErrorCode::kNotFound, "{} holds no model, activations or SAE here", path.string());
  if (files.size() > storage::ObjectStore::kMostFiles)
    return fail(ErrorCode::kInvalidArgument, "{} holds {} files; at most {} travel", path.string(),
                files.size(), storage::ObjectStore::kMostFiles);
  std::ranges::sort(files);
  std::vector<storage::ObjectFile> described;
  for (const fs::path& file : files) {
    SAE_TRY(described.emplace_back(), describe(file));
  }
  return described;
}

Result<std::string> SweepFiles::read(const std::string& object, const std::string& file,
                                     std::uint64_t offset, std::uint64_t bytes) const {
  SAE_TRY(const fs::path path, path_of(object));
  std::error_code ignored;
  const bool is_file = fs::is_regular_file(path, ignored);
  if (!storage::is_object_file_name(file) || (is_file && path.filename() != file))
    return fail(ErrorCode::kNotFound, "{} has no file '{}'", object, file);
  const fs::path from = is_file ? path : path / file;
  std::ifstream in(from, std::ios::binary);
  in.seekg(static_cast<std::streamoff>(offset));
  std::string found(bytes, '\0');
  in.read(found.data(), static_cast<std::streamsize>(bytes));
  if (in.bad() || (!in && !in.eof()))
    return fail(ErrorCode::kUnavailable, "cannot read {}", from.string());
  found.resize(static_cast<std::size_t>(in.gcount()));
  return found;
}

}  // namespace saesweep::scheduler
