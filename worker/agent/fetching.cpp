#include "worker/agent/fetching.h"

#include <algorithm>
#include <utility>

#include "core/log.h"
#include "worker/agent/input_files.h"
#include "worker/agent/object_transfer.h"

namespace saesweep::agent {
namespace {

using namespace std::chrono_literals;

constexpr Duration kFirstWait = 500ms;  // after a pull that failed; doubles
constexpr int kDoublings = 6;
constexpr int kMostDamaged = 4;  // times that one object arrived otherwise than it was sent

}  // namespace

std::vector<std::string> objects_of(const protocol::Run& run) {
  std::vector<std::string> objects;
  for (const auto& member : run.members()) {
    if (member.has_resume()) objects.push_back(member.resume().path());
    for (const auto& input : member.inputs()) objects.push_back("artifacts/" + input.sha256());
  }
  for (std::string& file : files_to_copy(run)) objects.push_back(std::move(file));
  return objects;
}

void Fetching::travel(OwnStore& store, const protocol::ClientSecurity& security,
                      protocol::DataClient::Patience patience) {
  store_ = &store;
  courier_.emplace("data pull", security, patience,
                   [&store](protocol::DataClient& client, const std::string& object,
                            const std::stop_token& stop) {
                     return pull_object(client, store.objects(), object, stop);
                   });
}

void Fetching::go_to(const std::string& data_endpoint) {
  if (!courier_) return;
  courier_->go_to(data_endpoint);
  for (Wanted& wanted : wanted_) wanted.not_before = {};
}

bool Fetching::begin(const protocol::Run& run) {
  if (!courier_) return false;
  std::vector<std::string> objects = objects_of(run);
  std::erase_if(objects,
                [&](const std::string& object) { return store_->objects().contains(object); });
  if (objects.empty()) return false;
  wanted_.push_back({.run = run.run_id(), .objects = std::move(objects)});
  return true;
}

void Fetching::forget(std::uint64_t run) {
  std::erase_if(wanted_, [&](const Wanted& wanted) {
    if (wanted.run != run) return false;
    if (wanted.errand != 0) courier_->give_up();
    return true;
  });
}

int Fetching::signal() const { return courier_ ? courier_->signal() : -1; }

void Fetching::add_in_use(std::set<std::string>& objects) const {
  for (const Wanted& wanted : wanted_) objects.insert(wanted.objects.begin(), wanted.objects.end());
}

std::vector<Fetching::Fetched> Fetching::step() {
  std::vector<Fetched> fetched;
  if (!courier_) return fetched;
  if (const auto done = courier_->delivered()) {
    const auto wanted = std::ranges::find(wanted_, done->id, &Wanted::errand);
    if (wanted != wanted_.end()) {
      wanted->errand = 0;
      if (auto ended = finish(*wanted, *done)) {
        fetched.push_back(std::move(*ended));
        wanted_.erase(wanted);
      }
    }
  }
  if (!courier_->is_idle()) return fetched;
  const TimePoint now = clock_.now();
  const auto next =
      std::ranges::find_if(wanted_, [&](const Wanted& wanted) { return wanted.not_before <= now; });
  if (next != wanted_.end()) {
    next->errand = ++last_errand_;
    courier_->carry(next->errand, next->objects);
  }
  return fetched;
}

// What it came to; nothing if it goes on.
std::optional<Fetching::Fetched> Fetching::finish(Wanted& wanted, const Courier::Delivered& done) {
  const auto end = wanted.objects.begin() + static_cast<std::ptrdiff_t>(done.carried);
  if (done.carried > 0) wanted.tries = 0;
  wanted.objects.erase(wanted.objects.begin(), end);
  if (done.outcome) return Fetched{.run = wanted.run, .outcome = {}};
  const Error& error = done.outcome.error();
  if (error.code == ErrorCode::kResourceExhausted)
    return Fetched{.run = wanted.run, .outcome = fail(error)};
  const std::string& object = wanted.objects.front();
  ++wanted.tries;
  const bool is_hopeless = error.code == ErrorCode::kNotFound ||
                           error.code == ErrorCode::kInvalidArgument ||
                           (error.code == ErrorCode::kCorrupted && wanted.tries >= kMostDamaged);
  if (!is_hopeless) {
    if (wanted.tries == 1) log::warn("data.not_pulled object={} error={}", object, error.message);
    wanted.not_before = clock_.now() + kFirstWait * (1 << std::min(wanted.tries - 1, kDoublings));
    return std::nullopt;
  }
  log::warn("data.left_out object={} error={}", object, error.message);
  wanted.objects.erase(wanted.objects.begin());
  wanted.tries = 0;
  if (wanted.objects.empty()) return Fetched{.run = wanted.run, .outcome = {}};
  return std::nullopt;
}

}  // namespace saesweep::agent
