#include "storage/object_store.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <utility>

#include "core/files.h"
#include "core/log.h"
#include "storage/artifacts.h"

namespace saesweep::storage {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kArtifacts = "artifacts/", kTrials = "trials/", kFiles = "files/";
constexpr const char* kIncoming = "incoming";
constexpr const char* kContent = "content";
constexpr std::uint64_t kMostBytes = std::uint64_t{1} << 40;  // of one file
constexpr std::size_t kIdDigits = 12, kDigestDigits = 64, kMostDigits = 19;

bool is_hex(std::string_view text, std::size_t length) {
  return text.size() == length && std::ranges::all_of(text, [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
         });
}

// "f12" or "step-12" without a leading zero, so that one number has one name.
bool is_numbered(std::string_view text, std::string_view prefix) {
  if (!text.starts_with(prefix)) return false;
  text.remove_prefix(prefix.size());
  return !text.empty() && text.size() <= kMostDigits && (text == "0" || text[0] != '0') &&
         std::ranges::all_of(text, [](char c) { return c >= '0' && c <= '9'; });
}

bool is_artifact(std::string_view name) { return name.starts_with(kArtifacts); }

bool is_word(std::string_view text, std::size_t longest, bool dots) {
  return !text.empty() && text.size() <= longest && text[0] != '.' &&
         std::ranges::all_of(text, [&](char c) {
           return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                  c == '-' || c == '_' || (dots && c == '.');
         });
}

Result<void> check_names(const std::string* name, const std::string* upload,
                         const std::string* file) {
  if (name != nullptr && !is_object_name(*name))
    return fail(ErrorCode::kInvalidArgument, "'{}' names no object", *name);
  if (upload != nullptr && !is_upload_name(*upload))
    return fail(ErrorCode::kInvalidArgument, "'{}' names no upload", *upload);
  if (file != nullptr && !is_object_file_name(*file))
    return fail(ErrorCode::kInvalidArgument, "'{}' names no file of an object", *file);
  return {};
}

class Descriptor {
 public:
  Descriptor(const fs::path& path, int flags) : file_(::open(path.c_str(), flags, 0644)) {}
  ~Descriptor() {
    if (file_ >= 0) ::close(file_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return file_; }

 private:
  int file_;
};

Result<void> sync_file(const fs::path& path) {
  const Descriptor file(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
  if (file.get() < 0 || ::fsync(file.get()) != 0)
    return fail(system_error(errno, fmt::format("sync {}", path.string())));
  return {};
}

Result<ObjectFile> describe(const fs::path& path, std::string name) {
  std::error_code problem;
  const std::uint64_t bytes = fs::file_size(path, problem);
  if (problem) return fail(system_error(problem.value(), fmt::format("stat {}", path.string())));
  SAE_TRY(const Sha256 digest, sha256_file(path));
  return ObjectFile{std::move(name), bytes, digest};
}

}  // namespace

bool is_object_name(std::string_view name) {
  if (is_artifact(name)) return is_hex(name.substr(kArtifacts.size()), kDigestDigits);
  if (name.starts_with(kFiles)) return is_hex(name.substr(kFiles.size()), kDigestDigits);
  if (!name.starts_with(kTrials)) return false;
  name.remove_prefix(kTrials.size());
  if (name.size() < kIdDigits + 1 || !is_hex(name.substr(0, kIdDigits), kIdDigits) ||
      name[kIdDigits] != '/')
    return false;
  name.remove_prefix(kIdDigits + 1);
  const std::size_t slash = name.find('/');
  return slash != std::string_view::npos && is_numbered(name.substr(0, slash), "f") &&
         is_numbered(name.substr(slash + 1), "step-");
}
bool is_upload_name(std::string_view name) { return is_word(name, 64, false); }
bool is_object_file_name(std::string_view name) { return is_word(name, 128, true); }

Result<ObjectStore> ObjectStore::open(const fs::path& root) {
  for (const char* folder : {"artifacts", "trials", kIncoming})
    SAE_TRY_VOID(make_directories(root / folder));
  std::error_code ignored;
  const auto yesterday = fs::file_time_type::clock::now() - std::chrono::hours(24);
  std::vector<fs::path> old;
  for (const auto& entry : fs::directory_iterator(root / kIncoming, ignored))
    if (entry.last_write_time(ignored) < yesterday) old.push_back(entry.path());
  for (const fs::path& path : old) {
    log::info("objects.abandoned path={}", path.string());
    fs::remove_all(path, ignored);
  }
  return ObjectStore(root);
}

fs::path ObjectStore::file_path(const std::string& name, const std::string& file) const {
  return is_artifact(name) ? root_ / name : root_ / name / file;
}

bool ObjectStore::contains(const std::string& name) const {
  std::error_code ignored;
  if (!is_object_name(name)) return false;
  return is_artifact(name) ? fs::is_regular_file(root_ / name, ignored)
                           : fs::is_directory(root_ / name, ignored);
}

Result<std::vector<ObjectFile>> ObjectStore::list(const std::string& name) const {
  SAE_TRY_VOID(check_names(&name, nullptr, nullptr));
  if (!contains(name)) return fail(ErrorCode::kNotFound, "no object {}", name);
  std::vector<ObjectFile> files;
  if (is_artifact(name)) {
    SAE_TRY(files.emplace_back(), describe(root_ / name, kContent));
    if (files[0].digest.hex() != name.substr(kArtifacts.size()))
      return fail(ErrorCode::kCorrupted, "{} holds other bytes", name);
    return files;
  }
  std::error_code problem;
  for (const auto& entry : fs::directory_iterator(root_ / name, problem)) {
    const std::string file = entry.path().filename();
    if (!entry.is_regular_file() || !is_object_file_name(file)) continue;
    SAE_TRY(files.emplace_back(), describe(entry.path(), file));
  }
  if (problem) return fail(system_error(problem.value(), fmt::format("read {}", name)));
  std::ranges::sort(files, {}, &ObjectFile::name);
  return files;
}

Result<std::string> ObjectStore::read(const std::string& name, const std::string& file,
                                      std::uint64_t offset, std::uint64_t bytes) const {
  SAE_TRY_VOID(check_names(&name, nullptr, &file));
  const fs::path path = file_path(name, file);
  const Descriptor source(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
  if (source.get() < 0) return fail(system_error(errno, fmt::format("open {}", path.string())));
  if (offset > kMostBytes)
    return fail(ErrorCode::kInvalidArgument, "offset {} is past any file", offset);
  std::string found(bytes, '\0');
  std::size_t done = 0;
  while (done < found.size()) {
    const ssize_t got = ::pread(source.get(), found.data() + done, found.size() - done,
                                static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail(system_error(errno, fmt::format("read {}", path.string())));
    if (got == 0) break;
    done += static_cast<std::size_t>(got);
  }
  found.resize(done);
  return found;
}

Result<void> ObjectStore::write(const std::string& upload, const std::string& file,
                                std::uint64_t offset, std::span<const std::byte> bytes) {
  SAE_TRY_VOID(check_names(nullptr, &upload, &file));
  if (offset > kMostBytes || bytes.size() > kMostBytes - offset)
    return fail(ErrorCode::kInvalidArgument, "{} bytes at {} are past the largest file",
                bytes.size(), offset);
  const fs::path folder = root_ / kIncoming / upload;
  SAE_TRY_VOID(make_directories(folder));
  const fs::path path = folder / file;
  const Descriptor part(path, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW);
  if (part.get() < 0) return fail(system_error(errno, fmt::format("create {}", path.string())));
  while (!bytes.empty()) {
    const ssize_t put =
        ::pwrite(part.get(), bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return fail(system_error(errno, fmt::format("write {}", path.string())));
    bytes = bytes.subspan(static_cast<std::size_t>(put));
    offset += static_cast<std::uint64_t>(put);
  }
  return {};
}

Result<void> ObjectStore::keep(const std::string& upload, const std::string& name,
                               const std::vector<ObjectFile>& files) {
  SAE_TRY_VOID(check_names(&name, &upload, nullptr));
  const fs::path folder = root_ / kIncoming / upload;
  if (files.empty() || files.size() > kMostFiles)
    return fail(ErrorCode::kInvalidArgument, "{}: {} files; 1 to {} would be right", name,
                files.size(), kMostFiles);
  if (contains(name)) {  // what was kept first stays
    drop(upload);
    return {};
  }
  if (is_artifact(name) && (files.size() != 1 || files[0].name != kContent ||
                            files[0].digest.hex() != name.substr(kArtifacts.size())))
    return fail(ErrorCode::kInvalidArgument, "{}: one file '{}' of that digest would be right",
                name, kContent);
  for (const ObjectFile& file : files) {
    SAE_TRY_VOID(check_names(nullptr, nullptr, &file.name));
    SAE_TRY(const ObjectFile arrived, describe(folder / file.name, file.name));
    if (arrived == file) continue;
    drop(upload);
    return fail(ErrorCode::kCorrupted, "{}: {} arrived as {} bytes of digest {}, not {} of {}",
                name, file.name, arrived.bytes, arrived.digest.short_hex(), file.bytes,
                file.digest.short_hex());
  }
  // Nothing but what was named.
  std::error_code ignored;
  std::vector<fs::path> others;
  for (const auto& entry : fs::directory_iterator(folder, ignored))
    if (std::ranges::none_of(
            files, [&](const ObjectFile& file) { return file.name == entry.path().filename(); }))
      others.push_back(entry.path());
  for (const fs::path& other : others) fs::remove_all(other, ignored);
  for (const ObjectFile& file : files) SAE_TRY_VOID(sync_file(folder / file.name));
  SAE_TRY_VOID(sync_directory(folder));

  const fs::path target = root_ / name;
  SAE_TRY_VOID(make_directories(target.parent_path()));
  const fs::path source = is_artifact(name) ? folder / kContent : folder;
  // A rename onto a folder that came meanwhile fails, which is as good.
  if (::rename(source.c_str(), target.c_str()) != 0 && !contains(name))
    return fail(system_error(errno, fmt::format("name {}", target.string())));
  drop(upload);
  return sync_directory(target.parent_path());
}

void ObjectStore::drop(const std::string& upload) {
  std::error_code ignored;
  if (is_upload_name(upload)) fs::remove_all(root_ / kIncoming / upload, ignored);
}

}  // namespace saesweep::storage
