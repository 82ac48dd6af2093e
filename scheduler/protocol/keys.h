// Keys of the control plane: CURVE key pairs (Curve25519), what they may do, and the texts of the
// files they live in. Pure but for the making of a pair; scheduler/protocol/key_files.h reads and
// writes the files.
//
// Every file is lines of `name=value`, ASCII; empty lines and lines that begin with '#' are
// skipped, a name may stand once, an unknown name is an error. Keys are Z85, 40 characters for 32
// bytes (rfc.zeromq.org/spec/32), as ZeroMQ's own tools print them.
//
//   NAME.key          public=, secret=
//   NAME.pub          public=; server.pub also host=, worker_port=, client_port=
//   authorized/*.pub  public=, role=worker|client|admin, optionally expires=
//   NAME.access       access=1, name=, role=, host=, worker_port= (role worker) or client_port=
//                     (client, admin), server= (its public key), public=, secret=
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "core/result.h"

namespace saesweep::protocol {

inline constexpr std::size_t kKeyBytes = 32;
inline constexpr std::size_t kKeyCharacters = 40;
inline constexpr std::size_t kMaxKeyFileBytes = 4096;
inline constexpr std::uint16_t kDefaultWorkerPort = 7077;
inline constexpr std::uint16_t kDefaultClientPort = 7078;

using PublicKey = std::array<std::uint8_t, kKeyBytes>;

// Bytes nobody else should see: on pages of their own that core dumps leave out, zeroed when they
// are given back. Never copied.
class SecretBytes {
 public:
  SecretBytes() = default;
  explicit SecretBytes(std::size_t size);
  SecretBytes(SecretBytes&& other) noexcept;
  SecretBytes& operator=(SecretBytes&& other) noexcept;
  ~SecretBytes();
  std::span<std::uint8_t> bytes() { return {data_, size_}; }
  std::span<const std::uint8_t> bytes() const { return {data_, size_}; }
  std::string_view text() const { return {reinterpret_cast<const char*>(data_), size_}; }
  // The tail is zeroed.
  void shrink(std::size_t size);

 private:
  std::uint8_t* data_ = nullptr;
  std::size_t size_ = 0, mapped_ = 0;
};

struct KeyPair {
  PublicKey public_key{};
  SecretBytes secret_key;  // kKeyBytes
};

// Errors: kInvalidArgument if this ZeroMQ was built without CURVE.
Result<KeyPair> make_key_pair();

// What a key may do, see may_send() in scheduler/protocol/security.h. kLocal is no key's: it is
// said of whoever came over a transport without keys, a socket file or plain loopback.
enum class Role : std::uint8_t { kLocal, kWorker, kClient, kAdmin };
std::string_view to_string(Role role);
// Errors: kInvalidArgument for anything but worker, client, admin.
Result<Role> parse_role(std::string_view text);

// At most 128 of A-Z a-z 0-9 . _ -, the first no dot.
bool is_name(std::string_view text);

// Seconds since 1970 of "2027-01-31" (its first second, UTC) or "2027-01-31T12:00:00Z".
// Errors: kInvalidArgument.
Result<std::int64_t> parse_expiry(std::string_view text);
std::string expiry_text(std::int64_t unix_seconds);  // 2027-01-31T12:00:00Z

std::string z85(std::span<const std::uint8_t, kKeyBytes> key);
// Errors: kInvalidArgument for anything but kKeyCharacters of the alphabet that say 32 bytes. The
// message does not repeat the text: it may be a secret.
Result<PublicKey> parse_public_key(std::string_view text);

// Takes as long for a key that differs in its first byte as for one that differs nowhere.
bool equal_in_constant_time(const PublicKey& a, const PublicKey& b);

struct Address {
  std::string host = "127.0.0.1";
  std::uint16_t worker_port = kDefaultWorkerPort;
  std::uint16_t client_port = kDefaultClientPort;
};

struct AuthorizedKey {
  std::string name;  // of the file
  PublicKey public_key{};
  Role role = Role::kWorker;
  std::optional<std::int64_t> expires;  // seconds since 1970; not valid from then on
};

// What one worker or client needs to find its scheduler and to prove who it is.
struct Access {
  std::string name;
  Role role = Role::kWorker;
  std::string host;
  std::uint16_t port = 0;  // of the plane its role speaks on
  PublicKey server{};
  KeyPair keys;
  std::string endpoint() const;  // tcp://host:port
};

struct ServerFile {
  PublicKey public_key{};
  Address address;
};

// Errors of all: kInvalidArgument with the line and what would be right, never with a value.
Result<KeyPair> parse_key_pair(std::string_view text);
Result<ServerFile> parse_server_file(std::string_view text);
Result<AuthorizedKey> parse_authorized(std::string_view text, std::string_view name);
Result<Access> parse_access(std::string_view text);

SecretBytes key_pair_text(const KeyPair& keys);
std::string public_key_text(const PublicKey& key);
std::string server_file_text(const ServerFile& file);
std::string authorized_text(const AuthorizedKey& key);
SecretBytes access_text(const Access& access);

}  // namespace saesweep::protocol
