#include "storage/artifacts.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <utility>
#include <vector>

#include "core/files.h"
#include "core/log.h"

namespace saesweep::storage {
namespace {

constexpr std::string_view kTemporary = ".new-";
constexpr std::size_t kCopyBytes = std::size_t{1} << 20;

class File {
 public:
  File(const std::filesystem::path& path, int flags)
      : path_(path), file_(::open(path.c_str(), flags | O_CLOEXEC, 0644)) {}
  ~File() {
    if (file_ >= 0) ::close(file_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  bool is_open() const { return file_ >= 0; }
  tl::unexpected<Error> error(std::string_view act) const {
    return fail(system_error(errno, fmt::format("{} {}", act, path_.string())));
  }
  Result<void> write(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const ssize_t done = ::write(file_, bytes.data(), bytes.size());
      if (done < 0 && errno == EINTR) continue;
      if (done < 0) return error("write");
      bytes = bytes.subspan(static_cast<std::size_t>(done));
    }
    return {};
  }
  // The bytes read, less than asked only at the end.
  Result<std::size_t> read(std::span<std::byte> bytes) {
    std::size_t done = 0;
    while (done < bytes.size()) {
      const ssize_t got = ::read(file_, bytes.data() + done, bytes.size() - done);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return error("read");
      if (got == 0) break;
      done += static_cast<std::size_t>(got);
    }
    return done;
  }
  Result<void> sync() {
    if (::fsync(file_) != 0) return error("sync");
    return {};
  }

 private:
  const std::filesystem::path& path_;
  const int file_;
};

std::filesystem::path temporary_name(const std::filesystem::path& directory) {
  static std::atomic<unsigned> counter{0};
  return directory / fmt::format("{}{}-{}", kTemporary, ::getpid(), counter.fetch_add(1));
}

// Reads `from` to its end: its digest, and, if `to` is given, a copy.
Result<Sha256> read_through(File& from, File* to) {
  std::vector<std::byte> buffer(kCopyBytes);
  Sha256Stream stream;
  for (;;) {
    SAE_TRY(const std::size_t got, from.read(buffer));
    const std::span<const std::byte> bytes = std::span(buffer).first(got);
    stream.update(bytes);
    if (to != nullptr) SAE_TRY_VOID(to->write(bytes));
    if (got < buffer.size()) return stream.finish();
  }
}

}  // namespace

Result<Artifacts> Artifacts::open(const std::filesystem::path& directory) {
  SAE_TRY_VOID(make_directories(directory));
  std::error_code ignored;
  const auto yesterday = std::filesystem::file_time_type::clock::now() - std::chrono::hours(24);
  for (const auto& entry : std::filesystem::directory_iterator(directory, ignored)) {
    if (entry.path().filename().string().starts_with(kTemporary) &&
        entry.last_write_time(ignored) < yesterday) {
      log::info("artifacts.abandoned path={}", entry.path().string());
      std::filesystem::remove(entry.path(), ignored);
    }
  }
  return Artifacts(directory);
}

Result<Sha256> Artifacts::put(std::span<const std::byte> bytes) {
  const Sha256 digest = sha256(bytes);
  if (contains(digest)) return digest;
  const auto temporary = temporary_name(directory_);
  const auto write = [&]() -> Result<void> {
    File file(temporary, O_WRONLY | O_CREAT | O_EXCL);
    if (!file.is_open()) return file.error("create");
    SAE_TRY_VOID(file.write(bytes));
    return file.sync();
  };
  auto written = write();
  if (written) written = keep(temporary, digest);
  if (!written) {
    ::unlink(temporary.c_str());
    return fail(std::move(written.error()));
  }
  return digest;
}

Result<Sha256> Artifacts::move_in(const std::filesystem::path& file) {
  // The file is renamed first: whoever still has its old name could change what was hashed.
  const auto temporary = temporary_name(directory_);
  const bool renamed = ::rename(file.c_str(), temporary.c_str()) == 0;
  if (!renamed && errno != EXDEV) {
    return fail(system_error(errno, fmt::format("move {}", file.string())));
  }
  const auto read = [&]() -> Result<Sha256> {
    File from(renamed ? temporary : file, O_RDONLY);
    if (!from.is_open()) return from.error("open");
    if (renamed) {
      SAE_TRY_VOID(from.sync());
      return read_through(from, nullptr);
    }
    File to(temporary, O_WRONLY | O_CREAT | O_EXCL);
    if (!to.is_open()) return to.error("create");
    SAE_TRY(const Sha256 digest, read_through(from, &to));
    SAE_TRY_VOID(to.sync());
    return digest;
  };
  auto digest = read();
  if (digest && !contains(*digest)) {
    if (auto kept = keep(temporary, *digest); !kept) digest = fail(std::move(kept.error()));
  }
  if (digest) {
    ::unlink(temporary.c_str());  // there already if `contains`
    if (!renamed) ::unlink(file.c_str());
  } else if (renamed) {
    ::rename(temporary.c_str(), file.c_str());  // give it back
  } else {
    ::unlink(temporary.c_str());
  }
  return digest;
}

Result<void> Artifacts::keep(const std::filesystem::path& temporary, const Sha256& digest) {
  if (::rename(temporary.c_str(), path_of(digest).c_str()) != 0) {
    return fail(system_error(errno, fmt::format("name {}", path_of(digest).string())));
  }
  return sync_directory(directory_);
}

std::filesystem::path Artifacts::path_of(const Sha256& digest) const {
  return directory_ / digest.hex();
}

bool Artifacts::contains(const Sha256& digest) const {
  std::error_code ignored;
  return std::filesystem::is_regular_file(path_of(digest), ignored);
}

Result<void> Artifacts::verify(const Sha256& digest) const {
  SAE_TRY(const Sha256 actual, sha256_file(path_of(digest)));
  if (actual != digest) {
    return fail(ErrorCode::kCorrupted, "the artifact {} holds other bytes (their digest is {})",
                digest.hex(), actual.hex());
  }
  return {};
}

Result<Sha256> parse_sha256(std::string_view hex) {
  Sha256 digest;
  const auto digit = [](char c) {
    if (c >= '0' && c <= '9') return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
  };
  bool whole = hex.size() == 2 * digest.bytes.size();
  for (std::size_t i = 0; whole && i < digest.bytes.size(); ++i) {
    const int high = digit(hex[2 * i]), low = digit(hex[2 * i + 1]);
    whole = high >= 0 && low >= 0;
    digest.bytes[i] = static_cast<std::uint8_t>(high << 4 | low);
  }
  if (!whole) return fail(ErrorCode::kInvalidArgument, "'{}' is no SHA-256", hex);
  return digest;
}

}  // namespace saesweep::storage
