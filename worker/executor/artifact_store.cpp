#include "worker/executor/artifact_store.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "core/digest.h"
#include "core/files.h"

namespace saesweep::worker {
namespace {

Result<void> write_synced(const std::filesystem::path& path, std::string_view bytes) {
  const int file = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (file < 0) return fail(system_error(errno, fmt::format("create {}", path.string())));
  int problem = 0;
  while (problem == 0 && !bytes.empty()) {
    const ssize_t put = ::write(file, bytes.data(), bytes.size());
    if (put >= 0)
      bytes.remove_prefix(static_cast<std::size_t>(put));
    else if (errno != EINTR)
      problem = errno;
  }
  if (problem == 0 && ::fsync(file) != 0) problem = errno;
  ::close(file);
  if (problem != 0) return fail(system_error(problem, fmt::format("write {}", path.string())));
  return {};
}

}  // namespace

Result<protocol::Artifact> ArtifactStore::put(std::string name, std::string_view bytes) const {
  SAE_TRY_VOID(make_directories(directory_));
  protocol::Artifact artifact;
  artifact.set_name(std::move(name));
  artifact.set_sha256(sha256(bytes).hex());
  artifact.set_bytes(bytes.size());
  const auto path = directory_ / artifact.sha256();
  std::error_code ignored;
  if (std::filesystem::is_regular_file(path, ignored) &&
      std::filesystem::file_size(path, ignored) == bytes.size())
    return artifact;
  const auto temporary =
      directory_ / fmt::format(".new-{}-{}", ::getpid(), artifact.sha256().substr(0, 12));
  auto written = write_synced(temporary, bytes);
  if (written && ::rename(temporary.c_str(), path.c_str()) != 0)
    written = fail(system_error(errno, fmt::format("name {}", path.string())));
  if (written) written = sync_directory(directory_);
  if (!written) {
    ::unlink(temporary.c_str());
    return fail(std::move(written.error()));
  }
  return artifact;
}

Result<std::filesystem::path> ArtifactStore::find(const protocol::Artifact& artifact) const {
  const std::string& name = artifact.sha256();
  if (name.size() != 64 || !std::ranges::all_of(name, [](char c) {
        return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
      }))
    return fail(ErrorCode::kInvalidArgument, "{}: '{}' is no SHA-256", artifact.name(), name);
  auto path = directory_ / name;
  SAE_TRY(const Sha256 actual, sha256_file(path));
  if (actual.hex() != name)
    return fail(ErrorCode::kCorrupted, "the artifact {} ({}) holds other bytes", path.string(),
                artifact.name());
  return path;
}

}  // namespace saesweep::worker
