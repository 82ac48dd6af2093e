#include "worker/agent/chunk_fetching.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <span>
#include <thread>
#include <utility>

#include "core/bounded_queue.h"
#include "core/check.h"
#include "core/log.h"
#include "core/thread.h"
#include "scheduler/protocol/data_port.h"

namespace saesweep::agent {
namespace {

using namespace std::chrono_literals;
using protocol::DataChunkReply;
using protocol::DataReply;
using protocol::DataRequest;

constexpr auto kAskAgain = 10ms;            // for a chunk that is being harvested over there
constexpr std::size_t kMostNodes = 8;       // to which connections are kept
constexpr std::size_t kMostSources = 1024;  // streams; beyond, the scheduler names them again

enum class Fate : std::uint8_t { kHere, kAbsent, kFailed };

struct Order {
  std::string stream;
  std::uint32_t index = 0;
  std::string endpoint;
  std::string server_key;
  std::string own_endpoint, own_key;  // to introduce ourselves with
  std::shared_ptr<const protocol::KeyPair> keys;
  TimePoint until{};
};

struct Delivery {
  Order order = {};
  Fate fate = Fate::kFailed;
  std::string value = {};          // kHere
  storage::ChunkShape shape = {};  // of it
  double seconds = 0;              // from asking to arrival
  bool was_coming = false;         // then `seconds` says nothing about the line
  std::optional<double> harvest_seconds = {};
  std::string problem = {};  // kFailed
};

TimePoint now() { return SystemClock().now(); }

bool is_loopback(std::string_view endpoint) {
  return endpoint.starts_with("tcp://127.") || endpoint.starts_with("tcp://[::1]:");
}

// Of a connection: where, to whom, as whom.
std::string name_of(const Order& order) {
  return order.endpoint + " " + order.server_key +
         (order.keys ? protocol::z85(order.keys->public_key) : "");
}

protocol::ClientSecurity security_of(const Order& order) {
  protocol::ClientSecurity security;
  security.insecure_loopback = order.keys == nullptr;
  security.keys = order.keys;
  if (order.server_key.size() == security.server.size())
    std::copy(order.server_key.begin(), order.server_key.end(), security.server.begin());
  return security;
}

}  // namespace

// The thread that asks, and its queues.
struct ChunkFetching::Carrier {
  ChunkBoard& board;
  const std::chrono::milliseconds patience;
  const int signal = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  // Each holds what is in flight, so that nobody waits at them.
  BoundedQueue<Order> orders{kMostInFlight};
  BoundedQueue<Delivery> deliveries{kMostInFlight};

  struct Pending {
    Order order;
    TimePoint asked{};  // last
    bool was_coming = false;
  };
  // Of the thread:
  std::vector<Pending> pending;
  std::map<std::string, protocol::DataClient> clients;  // by name_of()

  std::jthread thread;  // last: it uses all of the above

  Carrier(ChunkBoard& tells, std::chrono::milliseconds node_patience)
      : board(tells), patience(node_patience) {
    SAE_CHECK(signal >= 0, "no eventfd");
    thread = run_thread("chunk fetch", [this](const std::stop_token& stop) { work(stop); });
  }
  ~Carrier() {
    thread.request_stop();
    orders.close();
    deliveries.close();
    thread.join();
    ::close(signal);
  }
  Carrier(const Carrier&) = delete;
  Carrier& operator=(const Carrier&) = delete;

  void work(const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      auto order = pending.empty() ? orders.pop() : orders.pop_for(kAskAgain);
      for (; order; order = orders.pop_for(0ms)) pending.push_back({.order = std::move(*order)});
      if (!pending.empty()) ask(pending.front().order, stop);
    }
  }

  // The node of this order for all that is wanted of it.
  void ask(const Order& one_of_them, const std::stop_token& stop) {
    const Order first = one_of_them;
    const auto rest = std::stable_partition(pending.begin(), pending.end(), [&](const auto& one) {
      return one.order.endpoint == first.endpoint && one.order.server_key == first.server_key &&
             one.order.keys == first.keys;
    });
    std::vector<Pending> asked(std::make_move_iterator(pending.begin()),
                               std::make_move_iterator(rest));
    pending.erase(pending.begin(), rest);
    std::vector<Pending> again;
    std::size_t next = 0;
    std::vector<bool> is_answered(asked.size(), false);
    const auto find = [&](const DataRequest& request) {
      for (std::size_t i = 0; i < asked.size(); ++i)
        if (!is_answered[i] && asked[i].order.index == request.chunk().index() &&
            asked[i].order.stream == request.chunk().stream())
          return i;
      return asked.size();
    };
    const auto exchange = [&]() -> Result<void> {
      SAE_TRY(protocol::DataClient * client, client_of(first));
      return client->exchange(
          [&](DataRequest& request) -> Result<bool> {
            if (next == asked.size()) return false;
            asked[next].asked = now();
            request.mutable_chunk()->set_stream(asked[next].order.stream);
            request.mutable_chunk()->set_index(asked[next].order.index);
            request.mutable_chunk()->set_own_endpoint(asked[next].order.own_endpoint);
            request.mutable_chunk()->set_own_key(asked[next].order.own_key);
            ++next;
            return true;
          },
          [&](const DataRequest& request, const DataReply& reply) -> Result<void> {
            const std::size_t i = find(request);
            if (i == asked.size()) return {};
            SAE_TRY(const bool is_over, hear(asked[i], reply.chunk()));
            is_answered[i] = true;
            if (!is_over) again.push_back(std::move(asked[i]));
            return {};
          },
          stop);
    };
    if (const auto done = exchange(); !done) {
      clients.erase(name_of(first));
      for (std::size_t i = 0; i < asked.size(); ++i)
        if (!is_answered[i])
          deliver({.order = std::move(asked[i].order),
                   .fate = Fate::kFailed,
                   .problem = done.error().message});
    }
    for (Pending& one : again) pending.push_back(std::move(one));
  }

  Result<protocol::DataClient*> client_of(const Order& order) {
    const std::string name = name_of(order);
    auto found = clients.find(name);
    if (found == clients.end()) {
      if (clients.size() >= kMostNodes) clients.clear();
      SAE_TRY(protocol::DataClient made,
              protocol::DataClient::connect(order.endpoint, security_of(order),
                                            {.again = patience, .give_up = patience}));
      found = clients.emplace(name, std::move(made)).first;
    }
    return &found->second;
  }

  // False: it is to be asked for again. Errors: kCorrupted.
  Result<bool> hear(Pending& one, const DataChunkReply& reply) {
    Delivery delivery{.fate = Fate::kAbsent};
    if (reply.harvest_us() > 0)
      delivery.harvest_seconds = static_cast<double>(reply.harvest_us()) / 1e6;
    const TimePoint heard = now();
    switch (reply.status()) {
      case DataChunkReply::HERE: {
        const std::string& value = reply.value();
        SAE_TRY(const storage::DecodedChunk chunk,
                storage::decode_chunk(one.order.index, std::as_bytes(std::span(value))));
        delivery.fate = Fate::kHere;
        delivery.shape = chunk.shape;
        delivery.value = value;
        break;
      }
      case DataChunkReply::COMING:
        one.was_coming = true;
        board.hear_that_it_comes(one.order.stream, one.order.index);
        if (heard < one.order.until) return false;
        break;
      case DataChunkReply::ABSENT:
        break;
      default:
        return fail(ErrorCode::kInvalidArgument, "an answer of an unknown kind");
    }
    delivery.seconds = std::chrono::duration<double>(heard - one.asked).count();
    delivery.was_coming = one.was_coming;
    delivery.order = std::move(one.order);
    deliver(std::move(delivery));
    return true;
  }

  void deliver(Delivery delivery) {
    if (!deliveries.push(std::move(delivery))) return;
    const std::uint64_t one = 1;
    if (::write(signal, &one, sizeof one) < 0) return;  // it is readable already
  }
};

ChunkFetching::ChunkFetching(ChunkBoard& board, std::chrono::milliseconds node_patience)
    : board_(board), carrier_(std::make_unique<Carrier>(board, node_patience)) {}
ChunkFetching::~ChunkFetching() = default;

void ChunkFetching::use(std::shared_ptr<const protocol::KeyPair> keys) { keys_ = std::move(keys); }

void ChunkFetching::introduce(std::string endpoint, std::string server_key) {
  own_endpoint_ = std::move(endpoint);
  own_key_ = std::move(server_key);
}

void ChunkFetching::learn(const protocol::ChunkSource& source) {
  if (source.stream().empty() || source.endpoint().empty()) return;
  if (sources_.size() >= kMostSources && !sources_.contains(source.stream())) sources_.clear();
  Source& known = sources_[source.stream()];
  if (known.endpoint == source.endpoint() && known.server_key == source.server_key()) return;
  known = Source{};
  known.endpoint = source.endpoint();
  known.server_key = source.server_key();
  log::info("chunks.source stream={} endpoint={}", source.stream(), known.endpoint);
}

bool ChunkFetching::is_worth_it(const std::string& stream, Source& source, TimePoint now) const {
  const auto here = board_.harvest_seconds(stream);
  const auto& harvest = here ? here : source.harvest_seconds;
  const auto& fetch = source.fetch_seconds.value();
  if (!harvest || !fetch || *fetch <= *harvest) return true;
  if (now < source.try_again) return false;
  source.try_again = now + kTryAgainAfter;
  return true;
}

bool ChunkFetching::begin(const std::string& stream, std::uint32_t index, TimePoint now) {
  const auto found = sources_.find(stream);
  if (found == sources_.end() || in_flight_ >= kMostInFlight) return false;
  Source& source = found->second;
  if (const auto resting = resting_.find(source.endpoint); resting != resting_.end()) {
    if (now < resting->second) return false;
    resting_.erase(resting);
  }
  if (!is_worth_it(stream, source, now)) return false;
  // A loopback address is of use on this machine only.
  const bool is_of_use = !is_loopback(own_endpoint_) || is_loopback(source.endpoint);
  if (is_of_use)  // before it goes: the other may ask us in the same moment
    board_.begin_to_ask(stream, index, {source.endpoint, source.server_key},
                        {own_endpoint_, own_key_});
  const bool taken = carrier_->orders.try_push({.stream = stream,
                                                .index = index,
                                                .endpoint = source.endpoint,
                                                .server_key = source.server_key,
                                                .own_endpoint = is_of_use ? own_endpoint_ : "",
                                                .own_key = is_of_use ? own_key_ : "",
                                                .keys = keys_,
                                                .until = saesweep::agent::now() + kLongestWait});
  if (!taken) {
    board_.end_asking(stream, index, false);
    return false;
  }
  ++in_flight_;
  return true;
}

std::vector<ChunkFetching::Arrived> ChunkFetching::arrived(TimePoint now) {
  // Emptied first: what is signalled from here on wakes us again.
  std::uint64_t count = 0;
  if (::read(carrier_->signal, &count, sizeof count) < 0) count = 0;  // nothing was signalled
  std::vector<Arrived> all;
  while (auto delivery = carrier_->deliveries.pop_for(0ms)) {
    --in_flight_;
    const Order& order = delivery->order;
    board_.end_asking(order.stream, order.index, delivery->fate == Fate::kHere);
    const auto source = sources_.find(order.stream);
    const bool is_current = source != sources_.end() && source->second.endpoint == order.endpoint;
    if (is_current && delivery->harvest_seconds)
      source->second.harvest_seconds = delivery->harvest_seconds;
    Arrived& one = all.emplace_back();
    one.stream = order.stream;
    one.index = order.index;
    switch (delivery->fate) {
      case Fate::kHere:
        if (is_current && !delivery->was_coming)
          source->second.fetch_seconds.add(delivery->seconds);
        one.value = std::move(delivery->value);
        one.shape = delivery->shape;
        break;
      case Fate::kAbsent:
        break;
      case Fate::kFailed:
        log::warn("chunks.not_fetched endpoint={} stream={} index={} error={}", order.endpoint,
                  order.stream, order.index, delivery->problem);
        resting_[order.endpoint] = now + kNodeRest;
        break;
    }
  }
  return all;
}

void ChunkFetching::distrust(const std::string& stream, TimePoint now) {
  if (const auto source = sources_.find(stream); source != sources_.end())
    resting_[source->second.endpoint] = now + kNodeRest;
}

int ChunkFetching::signal() const { return carrier_->signal; }

std::span<const std::byte> ChunkFetching::Arrived::values() const {
  return std::as_bytes(std::span(*value)).subspan(storage::kChunkHeaderBytes);
}

}  // namespace saesweep::agent
