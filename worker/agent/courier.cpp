#include "worker/agent/courier.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <chrono>
#include <thread>
#include <utility>

#include "core/bounded_queue.h"
#include "core/check.h"
#include "core/thread.h"
#include "worker/agent/chunk_service.h"  // OwnedFd

namespace saesweep::agent {
namespace {

struct Errand {
  std::uint64_t id = 0;
  std::vector<std::string> objects;
  std::string endpoint;
  std::stop_token stop;
};

}  // namespace

struct Courier::State {
  protocol::ClientSecurity security;
  protocol::DataClient::Patience patience;
  Carry carry;
  OwnedFd signal{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  BoundedQueue<Errand> errands{1};
  BoundedQueue<Delivered> ended{1};

  // Of the thread that calls.
  std::string endpoint;
  std::stop_source way;  // of the errand under way
  bool busy = false;

  std::jthread thread;  // last: it uses all of the above

  void work() {
    std::optional<protocol::DataClient> client;
    std::string reached;
    while (auto errand = errands.pop()) {
      Delivered done{.id = errand->id, .carried = 0, .outcome = {}};
      if (client && reached != errand->endpoint) client.reset();
      if (!client) {
        auto made = protocol::DataClient::connect(errand->endpoint, security, patience);
        if (made)
          client.emplace(std::move(*made));
        else
          done.outcome = fail(std::move(made.error()));
        reached = errand->endpoint;
      }
      while (done.outcome && done.carried < errand->objects.size()) {
        done.outcome = carry(*client, errand->objects[done.carried], errand->stop);
        if (done.outcome) ++done.carried;
      }
      // A connection over which nothing came is made anew.
      if (!done.outcome && done.outcome.error().code == ErrorCode::kUnavailable) client.reset();
      if (!ended.push(std::move(done))) return;
      const std::uint64_t one = 1;
      if (::write(signal.get(), &one, sizeof one) < 0) continue;  // it is readable already
    }
  }
};

Courier::Courier(std::string name, protocol::ClientSecurity security,
                 protocol::DataClient::Patience patience, Carry carry)
    : state_(std::make_unique<State>()) {
  state_->security = std::move(security);
  state_->patience = patience;
  state_->carry = std::move(carry);
  SAE_CHECK(state_->signal.get() >= 0, "no eventfd");
  state_->thread =
      run_thread(std::move(name), [raw = state_.get()](const std::stop_token&) { raw->work(); });
}

Courier::Courier(Courier&&) noexcept = default;

Courier::~Courier() {
  if (!state_) return;
  state_->way.request_stop();
  state_->errands.close();
  state_->ended.close();
}

void Courier::go_to(const std::string& endpoint) {
  if (endpoint == state_->endpoint) return;
  state_->endpoint = endpoint;
  give_up();
}

bool Courier::is_idle() const { return !state_->busy; }

void Courier::carry(std::uint64_t id, std::vector<std::string> objects) {
  SAE_CHECK(!state_->busy, "an errand {} is under way", id);
  state_->busy = true;
  state_->way = std::stop_source();
  const bool taken = state_->errands.try_push({.id = id,
                                               .objects = std::move(objects),
                                               .endpoint = state_->endpoint,
                                               .stop = state_->way.get_token()});
  SAE_CHECK(taken, "the queue of an idle courier holds something");
}

void Courier::give_up() { state_->way.request_stop(); }

std::optional<Courier::Delivered> Courier::delivered() {
  using namespace std::chrono_literals;
  // Emptied first: what is signalled from here on wakes us again.
  std::uint64_t count = 0;
  if (::read(state_->signal.get(), &count, sizeof count) < 0) count = 0;  // nothing was signalled
  if (!state_->busy) return std::nullopt;
  auto done = state_->ended.pop_for(0ms);
  if (!done) return std::nullopt;
  state_->busy = false;
  return done;
}

int Courier::signal() const { return state_->signal.get(); }

}  // namespace saesweep::agent
