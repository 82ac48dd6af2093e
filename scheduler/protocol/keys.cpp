#include "scheduler/protocol/keys.h"

#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>
#include <zmq.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <ctime>
#include <map>
#include <utility>
#include <vector>

#include "core/check.h"

namespace saesweep::protocol {
namespace {

constexpr std::string_view kZ85 =
    "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#";
constexpr std::size_t kMaxNameBytes = 128;
constexpr std::size_t kMaxHostBytes = 253;

void encode_z85(std::span<const std::uint8_t> bytes, char* out) {
  for (std::size_t i = 0; i < bytes.size(); i += 4) {
    std::uint32_t value = 0;
    for (std::size_t j = 0; j < 4; ++j) value = (value << 8) | bytes[i + j];
    for (std::size_t j = 5; j-- > 0; value /= 85) out[j] = kZ85[value % 85];
    out += 5;
  }
}

bool decode_z85(std::string_view text, std::span<std::uint8_t> out) {
  if (text.size() != kKeyCharacters || out.size() != kKeyBytes) return false;
  for (std::size_t i = 0; i < text.size() / 5; ++i) {
    std::uint64_t value = 0;
    for (const char c : text.substr(5 * i, 5)) {
      const std::size_t digit = kZ85.find(c);
      if (digit == std::string_view::npos) return false;
      value = 85 * value + digit;
    }
    if (value > 0xffffffff) return false;
    for (std::size_t j = 4; j-- > 0; value >>= 8)
      out[4 * i + j] = static_cast<std::uint8_t>(value & 0xff);
  }
  return true;
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }

bool is_host(std::string_view text) {
  return !text.empty() && text.size() <= kMaxHostBytes && std::ranges::all_of(text, [](char c) {
    return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '.' ||
           c == '-' || c == '_' || c == ':';
  });
}

std::optional<int> parse_number(std::string_view digits) {
  int value = 0;
  if (digits.empty() || digits.size() > 6 || !std::ranges::all_of(digits, is_digit))
    return std::nullopt;
  std::from_chars(digits.data(), digits.data() + digits.size(), value);
  return value;
}

// The lines of a file. Values are views into its text, which may be secret: no message shows one.
class Lines {
 public:
  static Result<Lines> parse(std::string_view text, std::span<const std::string_view> known) {
    if (text.size() > kMaxKeyFileBytes)
      return fail(ErrorCode::kInvalidArgument, "{} bytes; at most {} would be right", text.size(),
                  kMaxKeyFileBytes);
    Lines lines;
    for (int number = 1; !text.empty(); ++number) {
      const std::size_t end = std::min(text.find('\n'), text.size());
      std::string_view line = text.substr(0, end);
      text.remove_prefix(std::min(end + 1, text.size()));
      if (line.ends_with('\r')) line.remove_suffix(1);
      if (line.empty() || line.front() == '#') continue;
      const std::size_t sign = line.find('=');
      const auto name = std::ranges::find(known, line.substr(0, sign));
      if (sign == std::string_view::npos || name == known.end())
        return fail(ErrorCode::kInvalidArgument, "line {}: one of {} would be right", number,
                    fmt::format("{}=", fmt::join(known.begin(), known.end(), "=, ")));
      if (!lines.values_.emplace(*name, line.substr(sign + 1)).second)
        return fail(ErrorCode::kInvalidArgument, "line {}: {}= stands here twice", number, *name);
    }
    return lines;
  }

  std::optional<std::string_view> find(std::string_view name) const {
    const auto found = values_.find(name);
    if (found == values_.end()) return std::nullopt;
    return found->second;
  }
  Result<std::string_view> get(std::string_view name) const {
    if (const auto value = find(name)) return *value;
    return fail(ErrorCode::kInvalidArgument, "the line {}= is missing", name);
  }
  Result<PublicKey> public_key(std::string_view name) const {
    SAE_TRY(const std::string_view value, get(name));
    PublicKey key{};
    if (!decode_z85(value, key))
      return fail(ErrorCode::kInvalidArgument, "{}= is no key; {} characters of Z85 would be right",
                  name, kKeyCharacters);
    return key;
  }
  Result<KeyPair> key_pair() const {
    KeyPair keys{{}, SecretBytes(kKeyBytes)};
    SAE_TRY(keys.public_key, public_key("public"));
    SAE_TRY(const std::string_view secret, get("secret"));
    if (!decode_z85(secret, keys.secret_key.bytes()))
      return fail(ErrorCode::kInvalidArgument,
                  "secret= is no key; {} characters of Z85 would be right", kKeyCharacters);
    return keys;
  }
  Result<Role> role() const {
    SAE_TRY(const std::string_view value, get("role"));
    return parse_role(value);
  }
  Result<std::string> host() const {
    SAE_TRY(const std::string_view value, get("host"));
    if (!is_host(value))
      return fail(ErrorCode::kInvalidArgument, "host= is neither a host name nor an address");
    return std::string(value);
  }
  Result<std::uint16_t> port(std::string_view name) const {
    SAE_TRY(const std::string_view value, get(name));
    const auto number = parse_number(value);
    if (!number || *number < 1 || *number > 65'535)
      return fail(ErrorCode::kInvalidArgument, "{}= is no port; 1 to 65535 would be right", name);
    return static_cast<std::uint16_t>(*number);
  }

 private:
  std::map<std::string_view, std::string_view> values_;
};

// Writes into pages of its own from the beginning.
class SecretWriter {
 public:
  void text(std::string_view piece) {
    SAE_CHECK(size_ + piece.size() <= kMaxKeyFileBytes, "{} bytes", size_ + piece.size());
    std::memcpy(bytes_.bytes().data() + size_, piece.data(), piece.size());
    size_ += piece.size();
  }
  void secret(const SecretBytes& key) {
    SAE_CHECK(size_ + kKeyCharacters <= kMaxKeyFileBytes, "{} bytes", size_);
    encode_z85(key.bytes(), reinterpret_cast<char*>(bytes_.bytes().data() + size_));
    size_ += kKeyCharacters;
  }
  SecretBytes finish() {
    bytes_.shrink(size_);
    return std::move(bytes_);
  }

 private:
  SecretBytes bytes_{kMaxKeyFileBytes};
  std::size_t size_ = 0;
};

std::string_view port_name(Role role) {
  return role == Role::kWorker ? "worker_port" : "client_port";
}

}  // namespace

SecretBytes::SecretBytes(std::size_t size) : size_(size) {
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  mapped_ = (std::max<std::size_t>(size, 1) + page - 1) / page * page;
  void* pages =
      ::mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  SAE_CHECK(pages != MAP_FAILED, "no memory for {} bytes", mapped_);
  ::madvise(pages, mapped_, MADV_DONTDUMP);
  ::mlock(pages, mapped_);  // keeps it out of swap where the limit allows
  data_ = static_cast<std::uint8_t*>(pages);
}

SecretBytes::SecretBytes(SecretBytes&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      mapped_(std::exchange(other.mapped_, 0)) {}

SecretBytes& SecretBytes::operator=(SecretBytes&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(mapped_, other.mapped_);
  return *this;
}

SecretBytes::~SecretBytes() {
  if (data_ == nullptr) return;
  ::explicit_bzero(data_, mapped_);
  ::munmap(data_, mapped_);
}

void SecretBytes::shrink(std::size_t size) {
  SAE_CHECK(size <= size_, "{} bytes of {}", size, size_);
  ::explicit_bzero(data_ + size, size_ - size);
  size_ = size;
}

Result<KeyPair> make_key_pair() {
  if (::zmq_has("curve") == 0)
    return fail(ErrorCode::kInvalidArgument, "this ZeroMQ was built without CURVE");
  std::array<char, kKeyCharacters + 1> public_text{};
  SecretBytes secret_text(kKeyCharacters + 1);
  if (::zmq_curve_keypair(public_text.data(),
                          reinterpret_cast<char*>(secret_text.bytes().data())) != 0)
    return fail(ErrorCode::kInvalidArgument, "cannot make keys: {}", ::zmq_strerror(::zmq_errno()));
  KeyPair keys{{}, SecretBytes(kKeyBytes)};
  SAE_CHECK(decode_z85({public_text.data(), kKeyCharacters}, keys.public_key) &&
                decode_z85(secret_text.text().substr(0, kKeyCharacters), keys.secret_key.bytes()),
            "ZeroMQ made a key that is none");
  return keys;
}

std::string_view to_string(Role role) {
  switch (role) {
    case Role::kLocal:
      return "local";
    case Role::kWorker:
      return "worker";
    case Role::kClient:
      return "client";
    case Role::kAdmin:
      return "admin";
  }
  return "unknown";
}

Result<Role> parse_role(std::string_view text) {
  for (const Role role : {Role::kWorker, Role::kClient, Role::kAdmin})
    if (text == to_string(role)) return role;
  return fail(ErrorCode::kInvalidArgument, "no such role; worker, client or admin would be right");
}

bool is_name(std::string_view text) {
  return !text.empty() && text.size() <= kMaxNameBytes && text.front() != '.' &&
         text.front() != '-' && std::ranges::all_of(text, [](char c) {
           return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '.' ||
                  c == '_' || c == '-';
         });
}

Result<std::int64_t> parse_expiry(std::string_view text) {
  const auto wrong = [] {
    return fail(ErrorCode::kInvalidArgument,
                "no such time; 2027-01-31 or 2027-01-31T12:00:00Z would be right");
  };
  constexpr std::string_view kForm = "dddd-dd-ddTdd:dd:ddZ";
  constexpr std::size_t kDateCharacters = 10;
  if (text.size() != kDateCharacters && text.size() != kForm.size()) return wrong();
  for (std::size_t i = 0; i < text.size(); ++i)
    if (kForm[i] == 'd' ? !is_digit(text[i]) : text[i] != kForm[i]) return wrong();
  const auto number = [&](std::size_t at, std::size_t digits) {
    return text.size() > at ? *parse_number(text.substr(at, digits)) : 0;
  };
  std::tm utc{};
  utc.tm_year = number(0, 4) - 1900;
  utc.tm_mon = number(5, 2) - 1;
  utc.tm_mday = number(8, 2);
  utc.tm_hour = number(11, 2);
  utc.tm_min = number(14, 2);
  utc.tm_sec = number(17, 2);
  if (utc.tm_year < 70) return wrong();
  const std::int64_t seconds = ::timegm(&utc);
  // February 30 became March 2: a day that is none reads back as another.
  if (!expiry_text(seconds).starts_with(text)) return wrong();
  return seconds;
}

std::string expiry_text(std::int64_t unix_seconds) {
  const auto whole = static_cast<std::time_t>(unix_seconds);
  std::tm utc{};
  ::gmtime_r(&whole, &utc);
  return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z", utc.tm_year + 1900, utc.tm_mon + 1,
                     utc.tm_mday, utc.tm_hour, utc.tm_min, utc.tm_sec);
}

std::string z85(std::span<const std::uint8_t, kKeyBytes> key) {
  std::string text(kKeyCharacters, '\0');
  encode_z85(key, text.data());
  return text;
}

Result<PublicKey> parse_public_key(std::string_view text) {
  PublicKey key{};
  if (!decode_z85(text, key))
    return fail(ErrorCode::kInvalidArgument, "no key; {} characters of Z85 would be right",
                kKeyCharacters);
  return key;
}

bool equal_in_constant_time(const PublicKey& a, const PublicKey& b) {
  volatile std::uint8_t difference = 0;
  for (std::size_t i = 0; i < kKeyBytes; ++i)
    difference = static_cast<std::uint8_t>(difference | (a[i] ^ b[i]));
  return difference == 0;
}

std::string Access::endpoint() const {
  return host.find(':') == std::string::npos ? fmt::format("tcp://{}:{}", host, port)
                                             : fmt::format("tcp://[{}]:{}", host, port);
}

Result<KeyPair> parse_key_pair(std::string_view text) {
  constexpr std::array<std::string_view, 2> kKnown{"public", "secret"};
  SAE_TRY(const Lines lines, Lines::parse(text, kKnown));
  return lines.key_pair();
}

Result<ServerFile> parse_server_file(std::string_view text) {
  constexpr std::array<std::string_view, 4> kKnown{"public", "host", "worker_port", "client_port"};
  SAE_TRY(const Lines lines, Lines::parse(text, kKnown));
  ServerFile file;
  SAE_TRY(file.public_key, lines.public_key("public"));
  SAE_TRY(file.address.host, lines.host());
  SAE_TRY(file.address.worker_port, lines.port("worker_port"));
  SAE_TRY(file.address.client_port, lines.port("client_port"));
  return file;
}

Result<AuthorizedKey> parse_authorized(std::string_view text, std::string_view name) {
  constexpr std::array<std::string_view, 3> kKnown{"public", "role", "expires"};
  if (!is_name(name)) return fail(ErrorCode::kInvalidArgument, "a file whose name is none");
  SAE_TRY(const Lines lines, Lines::parse(text, kKnown));
  AuthorizedKey key;
  key.name = name;
  SAE_TRY(key.public_key, lines.public_key("public"));
  SAE_TRY(key.role, lines.role());
  if (const auto expires = lines.find("expires")) {
    SAE_TRY(key.expires, parse_expiry(*expires));
  }
  return key;
}

Result<Access> parse_access(std::string_view text) {
  constexpr std::array<std::string_view, 9> kKnown{
      "access", "name", "role", "host", "worker_port", "client_port", "server", "public", "secret"};
  SAE_TRY(const Lines lines, Lines::parse(text, kKnown));
  SAE_TRY(const std::string_view version, lines.get("access"));
  if (version != "1")
    return fail(ErrorCode::kInvalidArgument, "access= of another version; 1 is read here");
  Access access;
  SAE_TRY(const std::string_view name, lines.get("name"));
  if (!is_name(name)) return fail(ErrorCode::kInvalidArgument, "name= is none");
  access.name = name;
  SAE_TRY(access.role, lines.role());
  SAE_TRY(access.host, lines.host());
  SAE_TRY(access.port, lines.port(port_name(access.role)));
  SAE_TRY(access.server, lines.public_key("server"));
  SAE_TRY(access.keys, lines.key_pair());
  return access;
}

SecretBytes key_pair_text(const KeyPair& keys) {
  SecretWriter out;
  out.text("# A secret key of saesweep. Whoever reads it can pass for its owner.\npublic=");
  out.text(z85(keys.public_key));
  out.text("\nsecret=");
  out.secret(keys.secret_key);
  out.text("\n");
  return out.finish();
}

std::string public_key_text(const PublicKey& key) { return fmt::format("public={}\n", z85(key)); }

std::string server_file_text(const ServerFile& file) {
  return fmt::format("public={}\nhost={}\nworker_port={}\nclient_port={}\n", z85(file.public_key),
                     file.address.host, file.address.worker_port, file.address.client_port);
}

std::string authorized_text(const AuthorizedKey& key) {
  std::string text = fmt::format("public={}\nrole={}\n", z85(key.public_key), to_string(key.role));
  if (key.expires) text += fmt::format("expires={}\n", expiry_text(*key.expires));
  return text;
}

SecretBytes access_text(const Access& access) {
  SecretWriter out;
  out.text(fmt::format(
      "# Access to a saesweep scheduler, for one {}. Keep it to yourself: mode 0600.\n"
      "access=1\nname={}\nrole={}\nhost={}\n{}={}\nserver={}\npublic={}\nsecret=",
      to_string(access.role), access.name, to_string(access.role), access.host,
      port_name(access.role), access.port, z85(access.server), z85(access.keys.public_key)));
  out.secret(access.keys.secret_key);
  out.text("\n");
  return out.finish();
}

}  // namespace saesweep::protocol
