#include "tests/support/fault_proxy.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <deque>
#include <list>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "core/check.h"
#include "core/thread.h"

namespace saesweep::test {
namespace {

using Clock = std::chrono::steady_clock;

// What one direction holds before it stops reading: a stalled proxy fills the buffers behind it.
constexpr std::size_t kMostHeld = std::size_t{1} << 20;
constexpr auto kTick = std::chrono::milliseconds(2);

class Fd {
 public:
  explicit Fd(int value = -1) : value_(value) {}
  Fd(Fd&& other) noexcept : value_(std::exchange(other.value_, -1)) {}
  Fd& operator=(Fd&& other) noexcept {
    std::swap(value_, other.value_);
    return *this;
  }
  ~Fd() {
    if (value_ >= 0) ::close(value_);
  }
  int get() const { return value_; }

 private:
  int value_;
};

sockaddr_in loopback(std::uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(port);
  return address;
}

struct Held {
  std::string bytes;
  Clock::time_point arrived;
};

struct Flow {
  std::deque<Held> held;
  std::size_t size = 0;
  bool is_ended = false;  // its source said no more
};

struct Connection {
  std::array<Fd, 2> ends;  // [0] client, [1] server; flow d goes from ends[d] to ends[1 - d]
  std::array<Flow, 2> flows;
  bool is_dead = false;  // half-open: nobody reads, nobody closes
};

}  // namespace

struct FaultProxy::State {
  struct Orders {
    std::array<std::chrono::milliseconds, 2> delay{};
    std::array<bool, 2> is_stalled{};
    std::array<std::optional<std::uint64_t>, 2> flip, cut;
    bool is_refusing = false;
    bool kill = false, hang = false;  // once
  };

  std::uint16_t server = 0, port = 0;
  Fd listener;
  std::list<Connection> connections;  // of the thread
  std::mutex mutex;
  Orders orders;  // under mutex
  std::atomic<std::uint64_t> accepted = 0, flipped = 0, cut = 0, bytes = 0;
  std::jthread thread;  // last: it uses all of the above

  void serve(const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      std::vector<pollfd> polled{{listener.get(), POLLIN, 0}};
      for (const Connection& c : connections)
        if (!c.is_dead)
          for (std::size_t d = 0; d < 2; ++d)
            if (c.flows[d].size < kMostHeld && !c.flows[d].is_ended)
              polled.push_back({c.ends[d].get(), POLLIN, 0});
      ::poll(polled.data(), polled.size(), static_cast<int>(kTick.count()));
      const std::lock_guard lock(mutex);
      obey();
      accept_all();
      for (auto c = connections.begin(); c != connections.end();)
        c = c->is_dead || carry(*c) ? std::next(c) : connections.erase(c);
    }
  }

  void obey() {
    if (std::exchange(orders.kill, false)) {
      for (Connection& c : connections) make_rst(c);
      connections.clear();
    }
    if (std::exchange(orders.hang, false))
      for (Connection& c : connections) c.is_dead = true;
  }

  // Closing sends RST, not FIN.
  static void make_rst(const Connection& c) {
    const linger now{1, 0};
    for (const Fd& end : c.ends) ::setsockopt(end.get(), SOL_SOCKET, SO_LINGER, &now, sizeof now);
  }

  void accept_all() {
    while (true) {
      Fd client(::accept4(listener.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
      if (client.get() < 0) return;
      accepted.fetch_add(1);
      if (orders.is_refusing) continue;
      Fd to_server(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
      const sockaddr_in address = loopback(server);
      if (::connect(to_server.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) !=
          0)
        continue;
      ::fcntl(to_server.get(), F_SETFL, O_NONBLOCK);
      const int one = 1;
      for (const Fd* end : {&client, &to_server})
        ::setsockopt(end->get(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
      Connection& c = connections.emplace_back();
      c.ends = {std::move(client), std::move(to_server)};
    }
  }

  // False once the connection is over.
  bool carry(Connection& c) {
    for (std::size_t d = 0; d < 2; ++d)
      if (!read(c, d) || !write(c, d)) return false;
    return true;
  }

  bool read(Connection& c, std::size_t d) {
    Flow& flow = c.flows[d];
    std::array<char, 65'536> buffer;
    while (flow.size < kMostHeld && !flow.is_ended) {
      const ssize_t got = ::read(c.ends[d].get(), buffer.data(), buffer.size());
      if (got < 0 && (errno == EAGAIN || errno == EINTR)) return true;
      if (got < 0) return false;
      if (got == 0) {
        flow.is_ended = true;
        return true;
      }
      flow.held.push_back(
          {std::string(buffer.data(), static_cast<std::size_t>(got)), Clock::now()});
      flow.size += static_cast<std::size_t>(got);
    }
    return true;
  }

  bool write(Connection& c, std::size_t d) {
    Flow& flow = c.flows[d];
    while (!flow.held.empty() && !orders.is_stalled[d] &&
           Clock::now() - flow.held.front().arrived >= orders.delay[d]) {
      std::string& front = flow.held.front().bytes;
      std::size_t size = front.size();
      std::optional<std::uint64_t>& flip = orders.flip[d];
      std::optional<std::uint64_t>& cut_at = orders.cut[d];
      if (cut_at) size = std::min<std::size_t>(size, *cut_at);
      // Flipped where it waits, so that a short write does not flip it twice.
      if (flip && *flip == 0 && size > 0) {
        front[0] = static_cast<char>(front[0] ^ 0x10);
        flip.reset();
        flipped.fetch_add(1);
      } else if (flip) {
        size = std::min<std::size_t>(size, *flip);
      }
      if (cut_at && *cut_at == 0) {
        cut_at.reset();
        cut.fetch_add(1);
        make_rst(c);
        return false;
      }
      const ssize_t put = ::send(c.ends[1 - d].get(), front.data(), size, MSG_NOSIGNAL);
      if (put < 0 && (errno == EAGAIN || errno == EINTR)) return true;
      if (put < 0) return false;
      const auto done = static_cast<std::size_t>(put);
      bytes.fetch_add(done);
      if (flip) *flip -= std::min<std::uint64_t>(*flip, done);
      if (cut_at) *cut_at -= std::min<std::uint64_t>(*cut_at, done);
      flow.size -= done;
      front.erase(0, done);
      if (front.empty()) flow.held.pop_front();
    }
    return !(flow.is_ended && flow.held.empty());
  }

  template <class Order>
  void give(Order order) {
    const std::lock_guard lock(mutex);
    order(orders);
  }
};

FaultProxy::FaultProxy(std::uint16_t server_port) : state_(std::make_unique<State>()) {
  state_->server = server_port;
  state_->listener = Fd(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  sockaddr_in address = loopback(0);
  socklen_t size = sizeof address;
  SAE_CHECK(
      ::bind(state_->listener.get(), reinterpret_cast<sockaddr*>(&address), size) == 0 &&
          ::listen(state_->listener.get(), 64) == 0 &&
          ::getsockname(state_->listener.get(), reinterpret_cast<sockaddr*>(&address), &size) == 0,
      "no port is free");
  state_->port = ntohs(address.sin_port);
  State& serving = *state_;
  state_->thread =
      run_thread("proxy", [&serving](const std::stop_token& stop) { serving.serve(stop); });
}

FaultProxy::~FaultProxy() = default;

std::uint16_t FaultProxy::port() const { return state_->port; }

void FaultProxy::delay(Direction direction, std::chrono::milliseconds delay) {
  state_->give([&](auto& orders) { orders.delay[static_cast<std::size_t>(direction)] = delay; });
}
void FaultProxy::stall(Direction direction) {
  state_->give(
      [&](auto& orders) { orders.is_stalled[static_cast<std::size_t>(direction)] = true; });
}
void FaultProxy::go_on() {
  state_->give([](auto& orders) {
    orders.is_stalled = {};
    orders.is_refusing = false;
  });
}
void FaultProxy::leave_half_open() {
  state_->give([](auto& orders) { orders.hang = true; });
}
void FaultProxy::reset() {
  state_->give([](auto& orders) { orders.kill = true; });
}
void FaultProxy::flip_bit_after(Direction direction, std::uint64_t bytes) {
  state_->give([&](auto& orders) { orders.flip[static_cast<std::size_t>(direction)] = bytes; });
}
void FaultProxy::cut_after(Direction direction, std::uint64_t bytes) {
  state_->give([&](auto& orders) { orders.cut[static_cast<std::size_t>(direction)] = bytes; });
}
void FaultProxy::refuse() {
  state_->give([](auto& orders) { orders.is_refusing = true; });
}

std::uint64_t FaultProxy::accepted() const { return state_->accepted.load(); }
std::uint64_t FaultProxy::flipped() const { return state_->flipped.load(); }
std::uint64_t FaultProxy::cut() const { return state_->cut.load(); }
std::uint64_t FaultProxy::bytes() const { return state_->bytes.load(); }

}  // namespace saesweep::test
