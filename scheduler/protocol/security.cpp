#include "scheduler/protocol/security.h"

#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <future>
#include <map>
#include <mutex>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>
#include <zmq.hpp>

#include "core/check.h"
#include "core/clock.h"
#include "core/files.h"
#include "core/log.h"
#include "core/thread.h"
#include "scheduler/protocol/key_files.h"
#include "scheduler/protocol/seldom.h"

namespace saesweep::protocol {
namespace {

using namespace std::chrono_literals;

constexpr const char* kZapEndpoint = "inproc://zeromq.zap.01";
constexpr std::string_view kUserId = "User-Id";
constexpr std::string_view kKeyProperty = "X-Saesweep-Key";
constexpr auto kLookAgain = 1s;
constexpr std::size_t kMaxAddressesRemembered = 1024;

std::int64_t unix_seconds() {
  return std::chrono::duration_cast<std::chrono::seconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

// "127.0.0.1" of tcp://127.0.0.1:7077, "::1" of tcp://[::1]:7077.
std::string_view host_of(std::string_view endpoint) {
  endpoint.remove_prefix(std::string_view("tcp://").size());
  endpoint = endpoint.substr(0, endpoint.rfind(':'));
  if (endpoint.starts_with('[') && endpoint.ends_with(']'))
    endpoint = endpoint.substr(1, endpoint.size() - 2);
  return endpoint;
}

zmq::const_buffer buffer_of(std::span<const std::uint8_t> bytes) {
  return zmq::buffer(bytes.data(), bytes.size());
}

std::string text_property(const zmq::message_t& frame, std::string_view name) {
  // cppzmq's gets() throws where a property is absent, which is normal here.
  const char* value = ::zmq_msg_gets(const_cast<zmq::message_t&>(frame).handle(), name.data());
  return value == nullptr ? std::string() : std::string(value);
}

// A ZAP metadata property: name and value with their lengths in front, big-endian.
void append_property(std::string& out, std::string_view name, std::string_view value) {
  out.push_back(static_cast<char>(name.size()));
  out.append(name);
  for (unsigned shift = 32; shift > 0;) {
    shift -= 8;
    out.push_back(static_cast<char>((value.size() >> shift) & 0xff));
  }
  out.append(value);
}

}  // namespace

void KeyRing::set(std::vector<AuthorizedKey> keys) {
  const std::lock_guard lock(mutex_);
  keys_ = std::move(keys);
}

std::vector<AuthorizedKey> KeyRing::keys() const {
  const std::lock_guard lock(mutex_);
  return keys_;
}

ClientSecurity client_security(Access access) {
  ClientSecurity security;
  security.keys = std::make_shared<const KeyPair>(std::move(access.keys));
  security.server = access.server;
  return security;
}

Result<bool> is_encrypted(const std::string& endpoint, bool has_keys, bool insecure_loopback) {
  if (endpoint.starts_with("ipc://") || endpoint.starts_with("inproc://")) return false;
  if (!endpoint.starts_with("tcp://"))
    return fail(ErrorCode::kInvalidArgument, "{}: tcp://HOST:PORT or ipc://PATH would be right",
                endpoint);
  if (has_keys) return true;
  const std::string_view host = host_of(endpoint);
  if (!insecure_loopback)
    return fail(
        ErrorCode::kInvalidArgument,
        "{} without keys would be readable by everyone on the way; saesweep keys init makes "
        "some, --insecure-loopback goes without on 127.0.0.1 and ::1",
        endpoint);
  if (host != "127.0.0.1" && host != "::1")
    return fail(
        ErrorCode::kInvalidArgument,
        "{}: --insecure-loopback is for 127.0.0.1 and ::1; other addresses need keys, which "
        "saesweep keys init makes",
        endpoint);
  return false;
}

Result<void> secure_server_socket(zmq::socket_t& socket, const std::string& endpoint,
                                  const ServerSecurity& security, const Authenticator* doorkeeper) {
  SAE_TRY(const bool encrypted,
          is_encrypted(endpoint, security.keys != nullptr, security.insecure_loopback));
  if (!encrypted) return {};
  // ZeroMQ lets every key in where nobody answers ZAP.
  SAE_CHECK(doorkeeper != nullptr, "{} without a doorkeeper", endpoint);
  try {
    socket.set(zmq::sockopt::curve_server, true);
    socket.set(zmq::sockopt::curve_secretkey, buffer_of(security.keys->secret_key.bytes()));
    socket.set(zmq::sockopt::zap_domain, std::string(kZapDomain));
  } catch (const zmq::error_t& error) {
    return fail(ErrorCode::kInvalidArgument, "CURVE on {}: {}", endpoint, error.what());
  }
  return {};
}

Result<void> secure_client_socket(zmq::socket_t& socket, const std::string& endpoint,
                                  const ClientSecurity& security) {
  SAE_TRY(const bool encrypted,
          is_encrypted(endpoint, security.keys != nullptr, security.insecure_loopback));
  if (!encrypted) return {};
  try {
    socket.set(zmq::sockopt::curve_serverkey, buffer_of(security.server));
    socket.set(zmq::sockopt::curve_publickey, buffer_of(security.keys->public_key));
    socket.set(zmq::sockopt::curve_secretkey, buffer_of(security.keys->secret_key.bytes()));
    socket.set(zmq::sockopt::zap_domain, std::string(kZapDomain));
  } catch (const zmq::error_t& error) {
    return fail(ErrorCode::kInvalidArgument, "CURVE on {}: {}", endpoint, error.what());
  }
  return {};
}

Identity identity_of(const zmq::message_t& frame) {
  const std::string user = text_property(frame, kUserId);
  const std::size_t colon = user.find(':');
  Identity identity;
  if (colon == std::string::npos) return identity;
  const auto role = parse_role(std::string_view(user).substr(0, colon));
  if (!role) return identity;
  identity.role = *role;
  identity.name = user.substr(colon + 1);
  identity.key = text_property(frame, kKeyProperty);
  return identity;
}

bool may_send(Role role, MessageType type) {
  switch (type) {
    case MessageType::kWelcome:
    case MessageType::kReject:
    case MessageType::kHeartbeatAck:
    case MessageType::kAssign:
    case MessageType::kResultAck:
    case MessageType::kControl:
    case MessageType::kQueryReply:
    case MessageType::kDataReply:
      return false;
    case MessageType::kHello:
    case MessageType::kHeartbeat:
    case MessageType::kAssignReply:
    case MessageType::kStarted:
    case MessageType::kProgress:
    case MessageType::kCheckpointed:
    case MessageType::kResult:
    case MessageType::kControlDone:
    case MessageType::kResync:
    case MessageType::kDataRequest:
      return role == Role::kWorker || role == Role::kLocal;
    case MessageType::kQuery:
      return role == Role::kClient || role == Role::kAdmin || role == Role::kLocal;
    case MessageType::kBye:
    case MessageType::kAcknowledge:
      return true;
  }
  return false;
}

std::string peer_address(const zmq::message_t& frame) {
  std::string address = text_property(frame, "Peer-Address");
  constexpr std::string_view kMapped = "::ffff:";  // of a socket that takes IPv4 and IPv6
  if (address.starts_with(kMapped) && address.find('.') != std::string::npos)
    address.erase(0, kMapped.size());
  return address.find(':') == std::string::npos ? address : "[" + address + "]";
}

// ---- the doorkeeper -----------------------------------------------------------------------------

struct Authenticator::State {
  explicit State(const ServerSecurity& security)
      : directory(security.directory),
        told(security.ring),
        wake(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {}
  ~State() {
    if (thread.joinable()) {
      thread.request_stop();
      ring();
      thread.join();
    }
    if (wake >= 0) ::close(wake);
  }
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  void ring() const {
    const std::uint64_t one = 1;
    if (::write(wake, &one, sizeof one) < 0) return;  // it is readable already
  }

  // ---- the set of keys ------------------------------------------------------------------------

  // The directory's time of change. One that is younger than the clock's grain may hide a second
  // change: it is read again.
  struct Stamp {
    std::int64_t ns = -1;
    bool is_settled = false;
  };
  Stamp look() const {
    struct stat info {};
    if (::stat((directory / "authorized").c_str(), &info) != 0) return {};
    const std::int64_t ns = info.st_mtim.tv_sec * 1'000'000'000 + info.st_mtim.tv_nsec;
    return {ns, unix_seconds() - info.st_mtim.tv_sec > 1};
  }

  void replace(std::vector<AuthorizedKey> keys) {
    const std::int64_t now = unix_seconds();
    std::erase_if(keys, [&](const auto& key) { return key.expires && *key.expires <= now; });
    const auto is_same = [](const AuthorizedKey& a, const AuthorizedKey& b) {
      return a.name == b.name && a.role == b.role && a.public_key == b.public_key;
    };
    const std::lock_guard lock(mutex);
    if (std::ranges::equal(authorized, keys, is_same)) return;
    authorized = std::move(keys);
    generation.fetch_add(1);
  }

  // A directory that became wrong lets nobody in any more: who loosened its mode may have added a
  // key, and a file that cannot be read may have been a revocation.
  void read() {
    stamp = look();
    auto keys = read_authorized(directory);
    if (!keys && unreadable.let_through(SystemClock().now()))
      log::error("keys.unreadable error={}", keys.error().message);
    all = keys ? std::move(*keys) : std::vector<AuthorizedKey>();
    replace(all);
  }

  void refresh() {
    if (told)
      replace(told->keys());
    else if (asked.exchange(false) || !stamp.is_settled || look().ns != stamp.ns)
      read();
    else
      replace(all);  // without those that expired since
  }

  std::optional<AuthorizedKey> find(const PublicKey& key) {
    const std::lock_guard lock(mutex);
    std::optional<AuthorizedKey> found;
    for (const AuthorizedKey& candidate : authorized)
      if (equal_in_constant_time(candidate.public_key, key)) found = candidate;
    return found;
  }

  // ---- answers --------------------------------------------------------------------------------

  void answer(zmq::socket_t& socket, const std::vector<zmq::message_t>& request) {
    constexpr std::size_t kFrames = 7;  // version, id, domain, address, identity, mechanism, key
    std::optional<AuthorizedKey> key;
    const auto text = [&](std::size_t i) {
      return i < request.size() ? request[i].to_string_view() : std::string_view();
    };
    if (request.size() == kFrames && text(0) == "1.0" && text(2) == kZapDomain &&
        text(5) == "CURVE" && text(6).size() == kKeyBytes) {
      PublicKey asked_for{};
      std::copy_n(text(6).begin(), kKeyBytes, asked_for.begin());
      refresh();
      key = find(asked_for);
    }
    std::string metadata, user;
    if (key) {
      accepted.fetch_add(1);
      user = fmt::format("{}:{}", to_string(key->role), key->name);
      append_property(metadata, kKeyProperty, z85(key->public_key));
    } else {
      refused.fetch_add(1);
      log_refusal(std::string(text(3)));
    }
    const std::array<std::string_view, 6> reply{
        "1.0", text(1), key ? "200" : "400", key ? "" : "not authorised", user, metadata};
    for (std::size_t i = 0; i < reply.size(); ++i)
      socket.send(zmq::buffer(reply[i]),
                  i + 1 < reply.size() ? zmq::send_flags::sndmore : zmq::send_flags::none);
  }

  void log_refusal(const std::string& address) {
    if (refusals.size() >= kMaxAddressesRemembered && !refusals.contains(address)) refusals.clear();
    if (const auto times = refusals[address].let_through(SystemClock().now()))
      log::warn("keys.refused address={} times={}", address, *times);
  }

  void serve(zmq::context_t& context, const std::stop_token& stop, std::promise<int> bound) {
    zmq::socket_t socket(context, zmq::socket_type::rep);
    try {
      socket.set(zmq::sockopt::linger, 0);
      socket.bind(kZapEndpoint);
    } catch (const zmq::error_t& error) {
      return bound.set_value(error.num());
    }
    bound.set_value(0);
    while (!stop.stop_requested()) {
      try {
        hear(socket);
      } catch (const zmq::error_t& error) {
        if (error.num() == ETERM) return;
        if (error.num() != EINTR) log::error("keys.doorkeeper error={}", error.what());
      }
    }
  }

  void hear(zmq::socket_t& socket) {
    std::array<zmq::pollitem_t, 2> items{
        {{socket.handle(), 0, ZMQ_POLLIN, 0}, {nullptr, wake, ZMQ_POLLIN, 0}}};
    zmq::poll(items.data(), items.size(), std::chrono::milliseconds(kLookAgain));
    std::uint64_t rung = 0;
    if (::read(wake, &rung, sizeof rung) < 0 && errno != EAGAIN)
      log::error("keys.doorkeeper error={}", std::generic_category().message(errno));
    refresh();
    while (true) {
      std::vector<zmq::message_t> request;
      do {
        zmq::message_t frame;
        if (!socket.recv(frame, zmq::recv_flags::dontwait)) return;
        request.push_back(std::move(frame));
      } while (request.back().more());
      answer(socket, request);
    }
  }

  const std::filesystem::path directory;
  const std::shared_ptr<const KeyRing> told;  // null: the directory counts
  const int wake;
  // Of the thread:
  Stamp stamp;
  std::vector<AuthorizedKey> all;
  std::map<std::string, Seldom> refusals;  // by address
  Seldom unreadable;
  std::mutex mutex;
  std::vector<AuthorizedKey> authorized;  // under mutex; none of them expired
  std::atomic<bool> asked = false;
  std::atomic<std::uint64_t> generation = 0, accepted = 0, refused = 0;
  std::jthread thread;  // last: it uses all of the above
};

Authenticator::Authenticator(std::unique_ptr<State> state) : state_(std::move(state)) {}
Authenticator::~Authenticator() = default;

Result<std::unique_ptr<Authenticator>> Authenticator::start(zmq::context_t& context,
                                                            const ServerSecurity& security) {
  if (!security.keys) return nullptr;
  auto state = std::make_unique<State>(security);
  if (state->wake < 0) return fail(system_error(errno, "eventfd"));
  if (security.ring) {
    state->refresh();
  } else {
    state->stamp = state->look();
    SAE_TRY(state->all, read_authorized(security.directory));
    state->replace(state->all);
  }
  std::promise<int> bound;
  std::future<int> problem = bound.get_future();
  State& serving = *state;
  state->thread = run_thread(
      "doorkeeper",
      [&serving, &context, promise = std::make_shared<std::promise<int>>(std::move(bound))](
          const std::stop_token& stop) { serving.serve(context, stop, std::move(*promise)); });
  if (const int error = problem.get(); error != 0)
    return fail(ErrorCode::kUnavailable, "cannot answer {}: {}", kZapEndpoint, zmq_strerror(error));
  return std::unique_ptr<Authenticator>(new Authenticator(std::move(state)));
}

void Authenticator::reload() {
  state_->asked.store(true);
  state_->ring();
}

std::uint64_t Authenticator::generation() const { return state_->generation.load(); }
std::uint64_t Authenticator::accepted() const { return state_->accepted.load(); }
std::uint64_t Authenticator::refused() const { return state_->refused.load(); }

bool Authenticator::is_authorized(const Identity& identity) const {
  const auto key = parse_public_key(identity.key);
  if (!key) return false;
  const auto found = state_->find(*key);
  return found && found->role == identity.role && found->name == identity.name;
}

}  // namespace saesweep::protocol
