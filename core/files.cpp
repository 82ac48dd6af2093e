#include "core/files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <fstream>
#include <system_error>

namespace saesweep {
namespace {

class FileDescriptor {
 public:
  explicit FileDescriptor(int value) : value_(value) {}
  ~FileDescriptor() {
    if (value_ >= 0) ::close(value_);
  }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  int get() const { return value_; }

 private:
  int value_;
};

}  // namespace

Error system_error(int error_number, std::string_view what) {
  ErrorCode code = ErrorCode::kUnavailable;
  if (error_number == ENOENT || error_number == ENOTDIR) code = ErrorCode::kNotFound;
  if (error_number == ENOSPC || error_number == EDQUOT || error_number == EFBIG ||
      error_number == ENOMEM)
    code = ErrorCode::kResourceExhausted;
  return {code, fmt::format("{}: {}", what, std::generic_category().message(error_number))};
}

Result<std::string> read_file(const std::filesystem::path& path, std::uint64_t max_bytes) {
  // Without O_NONBLOCK, opening a pipe waits for a writer that may never come.
  const FileDescriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (file.get() < 0) return fail(system_error(errno, fmt::format("open {}", path.string())));
  struct stat info {};
  if (::fstat(file.get(), &info) != 0)
    return fail(system_error(errno, fmt::format("stat {}", path.string())));
  if (!S_ISREG(info.st_mode))
    return fail(ErrorCode::kInvalidArgument, "{} is not a file", path.string());
  if (static_cast<std::uint64_t>(info.st_size) > max_bytes)
    return fail(ErrorCode::kInvalidArgument, "{} has {} bytes, more than {}", path.string(),
                info.st_size, max_bytes);
  std::string bytes(static_cast<std::size_t>(info.st_size), '\0');
  std::size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t got = ::read(file.get(), bytes.data() + done, bytes.size() - done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail(system_error(errno, fmt::format("read {}", path.string())));
    if (got == 0) break;
    done += static_cast<std::size_t>(got);
  }
  bytes.resize(done);
  return bytes;
}

Result<void> write_file_atomically(const std::filesystem::path& path, std::string_view bytes) {
  return write_file_atomically(path, std::as_bytes(std::span(bytes)));
}

Result<void> write_file_atomically(const std::filesystem::path& path,
                                   std::span<const std::byte> bytes) {
  static std::atomic<unsigned> counter{0};
  const std::filesystem::path temporary =
      path.string() + fmt::format(".tmp{}-{}", ::getpid(), counter.fetch_add(1));
  const auto give_up = [&](const char* act) {
    const Error error = system_error(errno, fmt::format("{} {}", act, temporary.string()));
    ::unlink(temporary.c_str());
    return fail(error);
  };
  {
    const FileDescriptor file(
        ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
    if (file.get() < 0) return give_up("create");
    std::size_t done = 0;
    while (done < bytes.size()) {
      const ssize_t put = ::write(file.get(), bytes.data() + done, bytes.size() - done);
      if (put < 0 && errno == EINTR) continue;
      if (put < 0) return give_up("write");
      done += static_cast<std::size_t>(put);
    }
    if (::fsync(file.get()) != 0) return give_up("sync");
  }
  if (::rename(temporary.c_str(), path.c_str()) != 0) return give_up("rename");
  return sync_directory(path.has_parent_path() ? path.parent_path() : ".");
}

Result<void> sync_directory(const std::filesystem::path& directory) {
  const FileDescriptor file(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (file.get() < 0 || ::fsync(file.get()) != 0)
    return fail(system_error(errno, fmt::format("sync {}", directory.string())));
  return {};
}

Result<void> make_directories(const std::filesystem::path& directory) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error)
    return fail(
        system_error(error.value(), fmt::format("create directory {}", directory.string())));
  return {};
}

Result<std::filesystem::path> make_private_directory(const std::filesystem::path& parent,
                                                     std::string_view prefix) {
  std::string name = (parent / (std::string(prefix) + "XXXXXX")).string();
  if (::mkdtemp(name.data()) == nullptr)
    return fail(system_error(errno, fmt::format("create a directory in {}", parent.string())));
  return std::filesystem::path(name);
}

}  // namespace saesweep
