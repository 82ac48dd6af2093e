#include "scheduler/protocol/key_files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "core/files.h"

namespace saesweep::protocol {
namespace {

namespace fs = std::filesystem;

constexpr mode_t kGroupAndOthers = S_IRWXG | S_IRWXO;
constexpr mode_t kWritableByOthers = S_IWGRP | S_IWOTH;

class Descriptor {
 public:
  explicit Descriptor(int value) : value_(value) {}
  ~Descriptor() {
    if (value_ >= 0) ::close(value_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return value_; }

 private:
  int value_;
};

Error named(Error error, const fs::path& path) {
  error.message = fmt::format("{}: {}", path.string(), error.message);
  return error;
}

// Errors of opening without following a link.
Error open_error(int error_number, const fs::path& path) {
  if (error_number == ELOOP)
    return {ErrorCode::kInvalidArgument,
            fmt::format("{} is a symbolic link; the file itself would be right", path.string())};
  return system_error(error_number, fmt::format("open {}", path.string()));
}

Result<void> check_owner_and_mode(const struct stat& info, mode_t forbidden, const fs::path& path) {
  if (info.st_uid != ::geteuid())
    return fail(ErrorCode::kInvalidArgument, "{} belongs to user {}; {} would be right",
                path.string(), info.st_uid, ::geteuid());
  if ((info.st_mode & forbidden) != 0)
    return fail(ErrorCode::kInvalidArgument,
                "{} has mode {:04o} and others can get at it; chmod {:o} {} makes it right",
                path.string(), info.st_mode & 07777, S_ISDIR(info.st_mode) ? 0700 : 0600,
                path.string());
  return {};
}

// Opened, then judged: nobody can exchange it in between.
Result<SecretBytes> read_own_file(const fs::path& path, mode_t forbidden) {
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  if (file.get() < 0) return fail(open_error(errno, path));
  struct stat info {};
  if (::fstat(file.get(), &info) != 0)
    return fail(system_error(errno, fmt::format("stat {}", path.string())));
  if (!S_ISREG(info.st_mode))
    return fail(ErrorCode::kInvalidArgument, "{} is not a file", path.string());
  SAE_TRY_VOID(check_owner_and_mode(info, forbidden, path));
  SecretBytes bytes(kMaxKeyFileBytes + 1);
  std::size_t done = 0;
  while (done < bytes.bytes().size()) {
    const ssize_t got =
        ::read(file.get(), bytes.bytes().data() + done, bytes.bytes().size() - done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail(system_error(errno, fmt::format("read {}", path.string())));
    if (got == 0) break;
    done += static_cast<std::size_t>(got);
  }
  bytes.shrink(done);  // a byte too many is refused by the parser
  return bytes;
}

// A new file of mode 0600: under another name until it is whole and durable.
Result<void> write_own_file(const fs::path& path, std::string_view text) {
  const fs::path temporary = path.string() + ".new";
  ::unlink(temporary.c_str());
  const auto give_up = [&](const char* act) {
    const Error error = system_error(errno, fmt::format("{} {}", act, temporary.string()));
    ::unlink(temporary.c_str());
    return fail(error);
  };
  {
    const Descriptor file(
        ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (file.get() < 0) return give_up("create");
    std::size_t done = 0;
    while (done < text.size()) {
      const ssize_t put = ::write(file.get(), text.data() + done, text.size() - done);
      if (put < 0 && errno == EINTR) continue;
      if (put < 0) return give_up("write");
      done += static_cast<std::size_t>(put);
    }
    if (::fsync(file.get()) != 0) return give_up("sync");
  }
  // A link, not a rename: it never replaces a key that is there.
  if (::link(temporary.c_str(), path.c_str()) != 0) return give_up("link");
  ::unlink(temporary.c_str());
  return sync_directory(path.parent_path());
}

Result<void> make_own_directory(const fs::path& directory) {
  if (::mkdir(directory.c_str(), 0700) != 0 && errno != EEXIST)
    return fail(system_error(errno, fmt::format("make {}", directory.string())));
  return check_private_directory(directory);
}

fs::path file_of(const fs::path& directory, std::string_view name, std::string_view ending) {
  return directory / fmt::format("{}.{}", name, ending);
}

Result<KeyPair> write_key_pair(const fs::path& directory, const std::string& name) {
  SAE_TRY(KeyPair keys, make_key_pair());
  SAE_TRY_VOID(write_own_file(file_of(directory, name, "key"), key_pair_text(keys).text()));
  return keys;
}

Result<ServerFile> read_server_file(const fs::path& directory) {
  const fs::path path = directory / "server.pub";
  SAE_TRY(const SecretBytes text, read_own_file(path, kWritableByOthers));
  auto file = parse_server_file(text.text());
  if (!file) return fail(named(file.error(), path));
  return *file;
}

// The authorization comes last: until then the key opens nothing.
Result<fs::path> write_peer(const fs::path& directory, const NewKey& key,
                            const ServerFile& server) {
  SAE_TRY(KeyPair keys, write_key_pair(directory, key.name));
  const PublicKey public_key = keys.public_key;
  SAE_TRY_VOID(write_own_file(file_of(directory, key.name, "pub"), public_key_text(public_key)));
  Access access;
  access.name = key.name;
  access.role = key.role;
  access.host = server.address.host;
  access.port = key.role == Role::kWorker ? server.address.worker_port : server.address.client_port;
  access.server = server.public_key;
  access.keys = std::move(keys);
  const fs::path bundle = file_of(directory, key.name, "access");
  SAE_TRY_VOID(write_own_file(bundle, access_text(access).text()));
  SAE_TRY_VOID(write_own_file(file_of(directory / "authorized", key.name, "pub"),
                              authorized_text({key.name, public_key, key.role, key.expires})));
  return bundle;
}

}  // namespace

Result<SecretBytes> read_secret_file(const fs::path& path) {
  return read_own_file(path, kGroupAndOthers);
}

Result<void> check_private_directory(const fs::path& directory) {
  const Descriptor opened(
      ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW));
  if (opened.get() < 0) {
    // O_DIRECTORY with O_NOFOLLOW says ENOTDIR of a link.
    struct stat link {};
    const int problem = errno;
    if (::lstat(directory.c_str(), &link) == 0 && S_ISLNK(link.st_mode))
      return fail(open_error(ELOOP, directory));
    return fail(open_error(problem, directory));
  }
  struct stat info {};
  if (::fstat(opened.get(), &info) != 0)
    return fail(system_error(errno, fmt::format("stat {}", directory.string())));
  return check_owner_and_mode(info, kGroupAndOthers, directory);
}

Result<void> init_key_directory(const fs::path& directory, const Address& address) {
  // What cannot be read again is not written.
  if (const auto readable = parse_server_file(server_file_text({{}, address})); !readable)
    return fail(ErrorCode::kInvalidArgument, "the address {}:{} (clients: {}): {}", address.host,
                address.worker_port, address.client_port, readable.error().message);
  SAE_TRY_VOID(make_own_directory(directory));
  std::error_code problem;
  const bool is_empty = fs::is_empty(directory, problem);
  if (problem)
    return fail(system_error(problem.value(), fmt::format("list {}", directory.string())));
  if (!is_empty)
    return fail(ErrorCode::kInvalidArgument,
                "{} is not empty; keys are never overwritten, a new directory would be right",
                directory.string());
  SAE_TRY_VOID(make_own_directory(directory / "authorized"));
  SAE_TRY(const KeyPair server, write_key_pair(directory, "server"));
  const ServerFile file{server.public_key, address};
  SAE_TRY_VOID(write_own_file(directory / "server.pub", server_file_text(file)));
  for (const Role role : {Role::kWorker, Role::kClient})
    SAE_TRY_VOID(write_peer(directory, {std::string(to_string(role)), role, {}}, file));
  return {};
}

Result<fs::path> add_key(const fs::path& directory, const NewKey& key) {
  if (!is_name(key.name) || key.name == "server")
    return fail(ErrorCode::kInvalidArgument,
                "'{}' is no name for a key; up to 128 of A-Z a-z 0-9 . _ - would be right, but not "
                "'server'",
                key.name);
  SAE_TRY_VOID(check_private_directory(directory));
  SAE_TRY_VOID(check_private_directory(directory / "authorized"));
  std::error_code ignored;
  for (const auto& path :
       {file_of(directory, key.name, "key"), file_of(directory, key.name, "pub"),
        file_of(directory, key.name, "access"), file_of(directory / "authorized", key.name, "pub")})
    if (fs::exists(fs::symlink_status(path, ignored)))
      return fail(ErrorCode::kInvalidArgument,
                  "{} is there already; another name, or saesweep keys revoke {} would be right",
                  path.string(), key.name);
  SAE_TRY(const ServerFile server, read_server_file(directory));
  return write_peer(directory, key, server);
}

Result<void> revoke_key(const fs::path& directory, const std::string& name) {
  if (!is_name(name) || name == "server")
    return fail(ErrorCode::kInvalidArgument, "'{}' is no name of a key that can be revoked", name);
  SAE_TRY_VOID(check_private_directory(directory));
  const fs::path authorized = directory / "authorized";
  SAE_TRY_VOID(check_private_directory(authorized));
  if (::unlink(file_of(authorized, name, "pub").c_str()) != 0) {
    const int problem = errno;
    if (problem == ENOENT)
      return fail(ErrorCode::kNotFound, "no key {} is authorized in {}; see saesweep keys list",
                  name, directory.string());
    return fail(system_error(problem, fmt::format("remove the key {}", name)));
  }
  SAE_TRY_VOID(sync_directory(authorized));
  for (const std::string_view ending : {"key", "access", "pub"}) {
    const fs::path path = file_of(directory, name, ending);
    if (::unlink(path.c_str()) != 0 && errno != ENOENT)
      return fail(system_error(errno, fmt::format("remove {}", path.string())));
  }
  return sync_directory(directory);
}

Result<std::vector<AuthorizedKey>> read_authorized(const fs::path& directory) {
  const fs::path authorized = directory / "authorized";
  SAE_TRY_VOID(check_private_directory(authorized));
  std::vector<AuthorizedKey> keys;
  std::error_code problem;
  for (fs::directory_iterator entry(authorized, problem), end; !problem && entry != end;
       entry.increment(problem)) {
    const fs::path& path = entry->path();
    if (path.extension() != ".pub") continue;
    const auto text = read_own_file(path, kWritableByOthers);
    if (!text && text.error().code == ErrorCode::kNotFound) continue;  // revoked just now
    if (!text) return fail(text.error());
    auto key = parse_authorized(text->text(), path.stem().string());
    if (!key) return fail(named(key.error(), path));
    keys.push_back(std::move(*key));
  }
  if (problem)
    return fail(system_error(problem.value(), fmt::format("list {}", authorized.string())));
  std::ranges::sort(keys, {}, &AuthorizedKey::name);
  return keys;
}

Result<ServerSecurity> read_server_security(const fs::path& directory) {
  SAE_TRY_VOID(check_private_directory(directory));
  const fs::path path = directory / "server.key";
  SAE_TRY(const SecretBytes text, read_secret_file(path));
  auto keys = parse_key_pair(text.text());
  if (!keys) return fail(named(keys.error(), path));
  SAE_TRY_VOID(read_authorized(directory));
  ServerSecurity security;
  security.keys = std::make_shared<const KeyPair>(std::move(*keys));
  security.directory = directory;
  return security;
}

Result<Access> read_access(const fs::path& file) {
  SAE_TRY(const SecretBytes text, read_secret_file(file));
  auto access = parse_access(text.text());
  if (!access) return fail(named(access.error(), file));
  return std::move(*access);
}

}  // namespace saesweep::protocol
