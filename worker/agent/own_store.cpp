#include "worker/agent/own_store.h"

#include <algorithm>
#include <array>
#include <system_error>
#include <utility>
#include <vector>

#include "core/files.h"
#include "core/log.h"

namespace saesweep::agent {
namespace {

namespace fs = std::filesystem;

constexpr const char* kServedBy = "served-by";
constexpr std::uint64_t kMostTokenBytes = 4096;

std::uint64_t bytes_below(const fs::path& path) {
  std::error_code ignored;
  if (fs::is_regular_file(path, ignored)) return fs::file_size(path, ignored);
  std::uint64_t sum = 0;
  for (fs::recursive_directory_iterator at(path, ignored), end; at != end; at.increment(ignored)) {
    if (ignored) break;
    if (at->is_regular_file(ignored)) sum += at->file_size(ignored);
  }
  return sum;
}

void remove_whole(const fs::path& path) {
  std::error_code problem;
  fs::remove_all(path, problem);
  if (problem) log::warn("store.not_removed path={} problem={}", path.string(), problem.message());
}

}  // namespace

Result<OwnStore> OwnStore::open(const fs::path& state_directory, const std::string& token) {
  SAE_TRY_VOID(make_directories(state_directory));
  const auto before = read_file(state_directory / kServedBy, kMostTokenBytes);
  if (!before && before.error().code != ErrorCode::kNotFound) return fail(before.error());
  if (!before || *before != token) {
    for (const char* folder : {"trials", "files", "incoming"})
      remove_whole(state_directory / folder);
    SAE_TRY_VOID(write_file_atomically(state_directory / kServedBy, std::string_view(token)));
  }
  remove_whole(state_directory / "outgoing");
  SAE_TRY(storage::ObjectStore objects, storage::ObjectStore::open(state_directory));
  SAE_TRY(storage::ObjectStore outgoing, storage::ObjectStore::open(state_directory / "outgoing"));
  return OwnStore(state_directory, std::move(objects), std::move(outgoing));
}

Result<void> OwnStore::hold(const std::string& checkpoint) const {
  if (!storage::is_object_name(checkpoint))
    return fail(ErrorCode::kInvalidArgument, "'{}' names no checkpoint", checkpoint);
  if (!objects_.contains(checkpoint)) return fail(ErrorCode::kNotFound, "no {}", checkpoint);
  const fs::path to = outgoing_.root() / checkpoint;
  SAE_TRY_VOID(make_directories(to));
  std::error_code problem;
  for (const auto& entry : fs::directory_iterator(root_ / checkpoint, problem)) {
    if (!entry.is_regular_file()) continue;
    fs::create_hard_link(entry.path(), to / entry.path().filename(), problem);
    if (problem && problem != std::errc::file_exists)
      return fail(system_error(problem.value(), fmt::format("link {}", entry.path().string())));
    problem.clear();
  }
  if (problem) return fail(system_error(problem.value(), fmt::format("read {}", checkpoint)));
  return {};
}

void OwnStore::let_go(const std::string& checkpoint) const {
  if (!storage::is_object_name(checkpoint)) return;
  const fs::path held = outgoing_.root() / checkpoint;
  remove_whole(held);
  // The folders of its fence and its trial, once they are empty.
  std::error_code ignored;
  if (fs::remove(held.parent_path(), ignored))
    fs::remove(held.parent_path().parent_path(), ignored);
}

void OwnStore::trim(const std::set<std::string>& in_use, std::uint64_t most_bytes) const {
  struct Found {
    fs::file_time_type used;
    std::uint64_t bytes;
    fs::path path;
  };
  for (const char* folder : {"trials", "artifacts", "files"}) {
    std::vector<Found> idle;
    std::uint64_t sum = 0;
    std::error_code ignored;
    for (const auto& entry : fs::directory_iterator(root_ / folder, ignored)) {
      const std::string name = entry.path().filename();
      if (name.starts_with('.') || in_use.contains(fmt::format("{}/{}", folder, name))) continue;
      idle.push_back({entry.last_write_time(ignored), bytes_below(entry.path()), entry.path()});
      sum += idle.back().bytes;
    }
    std::ranges::sort(idle, {}, &Found::used);
    for (const Found& one : idle) {
      if (sum <= most_bytes) break;
      remove_whole(one.path);
      sum -= one.bytes;
    }
  }
}

}  // namespace saesweep::agent
