#include "worker/agent/result_files.h"

#include <fmt/format.h>

#include <algorithm>
#include <system_error>

#include "core/digest.h"
#include "core/files.h"
#include "core/log.h"
#include "scheduler/protocol/link.h"

namespace saesweep::agent {
namespace {

namespace fs = std::filesystem;

constexpr const char* kEnding = ".result";
constexpr std::uint64_t kMostBytes = std::uint64_t{64} << 20;

std::string digest_of(std::string_view text) {
  const Sha256 digest = sha256(text);
  return {reinterpret_cast<const char*>(digest.bytes.data()), digest.bytes.size()};
}

}  // namespace

Result<ResultFiles> ResultFiles::open(const fs::path& directory) {
  SAE_TRY_VOID(make_directories(directory));
  return ResultFiles(directory);
}

fs::path ResultFiles::path_of(const std::string& task, std::uint64_t fence) const {
  return directory_ / (sha256(fmt::format("{} {}", task, fence)).hex() + kEnding);
}

Result<void> ResultFiles::keep(const protocol::TaskResult& result) const {
  const std::string body = result.SerializeAsString();
  return write_file_atomically(path_of(result.task(), result.fence()),
                               std::string_view(digest_of(body) + body));
}

void ResultFiles::forget(const std::string& task, std::uint64_t fence) const {
  std::error_code problem;
  fs::remove(path_of(task, fence), problem);
  if (problem) log::warn("outbox.not_removed task={} problem={}", task, problem.message());
}

std::vector<protocol::TaskResult> ResultFiles::all() const {
  std::vector<fs::path> paths;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(directory_, ignored))
    if (entry.path().extension() == kEnding) paths.push_back(entry.path());
  std::ranges::sort(paths);
  std::vector<protocol::TaskResult> found;
  for (const fs::path& path : paths) {
    const auto text = read_file(path, kMostBytes);
    constexpr std::size_t kDigest = sizeof(Sha256::bytes);
    protocol::TaskResult result;
    if (text && text->size() >= kDigest &&
        digest_of(std::string_view(*text).substr(kDigest)) == text->substr(0, kDigest) &&
        protocol::parse_body(text->substr(kDigest), result)) {
      found.push_back(std::move(result));
      continue;
    }
    log::warn("outbox.unreadable path={}", path.string());
    fs::remove(path, ignored);
  }
  return found;
}

}  // namespace saesweep::agent
