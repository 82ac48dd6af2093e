#include "storage/rocksdb_wall.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdio>
#include <string>

#include "core/log.h"

namespace saesweep::storage {
namespace {

bool mentions(const rocksdb::Status& status, std::string_view words) {
  return status.ToString().find(words) != std::string::npos;
}

// The process that holds `lock_file`, or 0. Never called when it is this process: closing any
// descriptor of a file drops all POSIX locks that the process has on it.
pid_t holder_of(const std::filesystem::path& lock_file) {
  const int file = ::open(lock_file.c_str(), O_RDWR | O_CLOEXEC);
  if (file < 0) return 0;
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  const bool held = ::fcntl(file, F_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
  ::close(file);
  return held ? lock.l_pid : 0;
}

class LinesOfOurs final : public rocksdb::Logger {
 public:
  LinesOfOurs() : Logger(rocksdb::InfoLogLevel::WARN_LEVEL) {}
  using Logger::Logv;
  void Logv(const char* format, va_list values) override {
    Logv(rocksdb::InfoLogLevel::INFO_LEVEL, format, values);
  }
  // What it warns of (an open that failed, writes that wait) our own lines say, if it matters.
  void Logv(rocksdb::InfoLogLevel level, const char* format, va_list values) override {
    const auto ours =
        level >= rocksdb::InfoLogLevel::ERROR_LEVEL ? log::Level::kWarn : log::Level::kDebug;
    if (!log::enabled(ours)) return;
    char line[1024];
    std::vsnprintf(line, sizeof line, format, values);
    std::string_view text = line;
    while (text.ends_with('\n')) text.remove_suffix(1);
    log::write(ours, fmt::format("rocksdb {}", text));
  }
};

}  // namespace

std::shared_ptr<rocksdb::Logger> make_logger() { return std::make_shared<LinesOfOurs>(); }

Error to_error(const rocksdb::Status& status, std::string_view what) {
  ErrorCode code = ErrorCode::kUnavailable;
  if (status.IsNotFound()) code = ErrorCode::kNotFound;
  if (status.IsCorruption()) code = ErrorCode::kCorrupted;
  if (status.IsInvalidArgument() || status.IsNotSupported()) code = ErrorCode::kInvalidArgument;
  // RocksDB knows ENOSPC; a quota it reports as any other I/O error.
  if (status.IsNoSpace() || status.IsMemoryLimit() || mentions(status, "No space left") ||
      mentions(status, "Disk quota exceeded")) {
    code = ErrorCode::kResourceExhausted;
  }
  return {code, fmt::format("{}: {}", what, status.ToString())};
}

bool is_lock_held(const rocksdb::Status& status) {
  return status.IsIOError() &&
         (mentions(status, "While lock file") || mentions(status, "lock hold by current process"));
}

Error open_error(const rocksdb::Status& status, const std::filesystem::path& directory,
                 std::string_view what) {
  if (!is_lock_held(status)) {
    return to_error(status, fmt::format("open the {} {}", what, directory.string()));
  }
  std::string holder = "this process";
  if (!mentions(status, "lock hold by current process")) {
    const pid_t pid = holder_of(directory / "LOCK");
    holder = pid > 0 ? fmt::format("process {}", pid) : "another process";
  }
  return {ErrorCode::kUnavailable,
          fmt::format("the {} {} is held by {} (its LOCK file)", what, directory.string(), holder)};
}

}  // namespace saesweep::storage
