#include "scheduler/protocol/data_port.h"

#include <atomic>
#include <map>
#include <thread>
#include <utility>
#include <zmq.hpp>

#include "core/clock.h"
#include "core/log.h"
#include "core/thread.h"
#include "scheduler/protocol/link.h"
#include "scheduler/protocol/link_socket.h"

namespace saesweep::protocol {
namespace {

using namespace std::chrono_literals;

constexpr auto kLongestPoll = 100ms;

void set_options(zmq::socket_t& socket) {
  socket.set(zmq::sockopt::linger, 0);
  socket.set(zmq::sockopt::maxmsgsize, static_cast<std::int64_t>(kMaxBodyBytes));
  socket.set(zmq::sockopt::ipv6, true);
  socket.set(zmq::sockopt::heartbeat_ivl, 5'000);
  socket.set(zmq::sockopt::heartbeat_timeout, 15'000);
}

bool wait_for(zmq::socket_t& socket, std::chrono::milliseconds timeout) {
  std::vector<zmq::pollitem_t> items{{socket.handle(), 0, ZMQ_POLLIN, 0}};
  try {
    zmq::poll(items, timeout);
  } catch (const zmq::error_t& error) {
    log::debug("data.poll error={}", error.what());  // a signal
  }
  return (items[0].revents & ZMQ_POLLIN) != 0;
}

}  // namespace

DataStatus to_status(ErrorCode code) {
  switch (code) {
    case ErrorCode::kNotFound:
      return DATA_STATUS_NOT_FOUND;
    case ErrorCode::kCorrupted:
      return DATA_STATUS_CORRUPTED;
    case ErrorCode::kResourceExhausted:
      return DATA_STATUS_FULL;
    case ErrorCode::kInvalidArgument:
      return DATA_STATUS_REFUSED;
    default:
      return DATA_STATUS_UNAVAILABLE;
  }
}

ErrorCode to_error_code(DataStatus status) {
  switch (status) {
    case DATA_STATUS_NOT_FOUND:
      return ErrorCode::kNotFound;
    case DATA_STATUS_CORRUPTED:
      return ErrorCode::kCorrupted;
    case DATA_STATUS_FULL:
      return ErrorCode::kResourceExhausted;
    case DATA_STATUS_REFUSED:
      return ErrorCode::kInvalidArgument;
    default:
      return ErrorCode::kUnavailable;
  }
}

// ---- server -------------------------------------------------------------------------------------

struct DataServer::State {
  zmq::context_t context;
  std::unique_ptr<Authenticator> doorkeeper;  // ends before the context
  zmq::socket_t socket{context, zmq::socket_type::router};
  std::string endpoint;
  Answer answer;
  std::atomic<std::uint64_t> dropped{0};
  std::jthread thread;  // last: joins before the rest goes

  void serve(const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      if (!wait_for(socket, kLongestPoll)) continue;
      for (auto frames = receive_frames(socket); !frames.empty(); frames = receive_frames(socket))
        hear(frames);
    }
  }
  void hear(const std::vector<zmq::message_t>& frames) {
    DataRequest request;
    const Identity identity = identity_of(frames.back());
    const bool is_worker = identity.role == Role::kWorker || identity.role == Role::kLocal;
    // A key may have been let in and revoked since.
    const bool counts = !doorkeeper || doorkeeper->is_authorized(identity);
    if (!is_worker || !counts || !read_message(frames, 3, MessageType::kDataRequest, request)) {
      dropped.fetch_add(1, std::memory_order_relaxed);
      log::warn("data.garbage frames={}", frames.size());
      return;
    }
    DataReply reply = answer(request);
    reply.set_id(request.id());
    const std::string peer = frames[0].to_string();
    if (!send_message(socket, &peer, MessageType::kDataReply, reply))
      log::debug("data.not_sent");  // it will be asked again
  }
};

DataServer::DataServer(std::unique_ptr<State> state) : state_(std::move(state)) {}
DataServer::DataServer(DataServer&&) noexcept = default;
DataServer::~DataServer() = default;
const std::string& DataServer::endpoint() const { return state_->endpoint; }
std::string DataServer::announced() const {
  const std::string& bound = state_->endpoint;
  for (const std::string_view every : {"tcp://0.0.0.0:", "tcp://[::]:", "tcp://*:"})
    if (bound.starts_with(every)) return "tcp://*:" + bound.substr(every.size());
  return bound;
}
std::uint64_t DataServer::dropped() const { return state_->dropped.load(); }

Result<DataServer> DataServer::start(const std::string& endpoint, const ServerSecurity& security,
                                     Answer answer) {
  auto state = std::make_unique<State>();
  state->answer = std::move(answer);
  try {
    SAE_TRY(state->doorkeeper, Authenticator::start(state->context, security));
    set_options(state->socket);
    // A reply that cannot be delivered is an error here, not a silence.
    state->socket.set(zmq::sockopt::router_mandatory, true);
    state->socket.set(zmq::sockopt::backlog, 1024);
    SAE_TRY_VOID(secure_server_socket(state->socket, endpoint, security, state->doorkeeper.get()));
    state->socket.bind(endpoint);
    state->endpoint = bound_endpoint(state->socket);
  } catch (const zmq::error_t& error) {
    return fail(error.num() == EADDRINUSE ? ErrorCode::kUnavailable : ErrorCode::kInvalidArgument,
                "cannot listen on {}: {}", endpoint, error.what());
  }
  // The socket changes hands before its thread begins, which is a full fence.
  state->thread = run_thread(
      "data port", [raw = state.get()](const std::stop_token& stop) { raw->serve(stop); });
  return DataServer(std::move(state));
}

// ---- client -------------------------------------------------------------------------------------

struct DataClient::State {
  zmq::context_t context;
  zmq::socket_t socket{context, zmq::socket_type::dealer};
  Patience patience;
  std::uint64_t last_id = 0;
};

DataClient::DataClient(std::unique_ptr<State> state) : state_(std::move(state)) {}
DataClient::DataClient(DataClient&&) noexcept = default;
DataClient::~DataClient() = default;

Result<DataClient> DataClient::connect(const std::string& endpoint, const ClientSecurity& security,
                                       Patience patience) {
  auto state = std::make_unique<State>();
  state->patience = patience;
  try {
    set_options(state->socket);
    state->socket.set(zmq::sockopt::reconnect_ivl, 200);
    state->socket.set(zmq::sockopt::reconnect_ivl_max, 5'000);
    SAE_TRY_VOID(secure_client_socket(state->socket, endpoint, security));
    state->socket.connect(endpoint);
  } catch (const zmq::error_t& error) {
    return fail(ErrorCode::kInvalidArgument, "cannot connect to {}: {}", endpoint, error.what());
  }
  return DataClient(std::move(state));
}

Result<void> DataClient::exchange(const Next& next, const Hear& hear, const std::stop_token& stop) {
  struct Flight {
    DataRequest request;
    TimePoint sent;
  };
  const SystemClock clock;
  std::map<std::uint64_t, Flight> flying;
  TimePoint last_answer = clock.now();
  bool more = true;
  while (true) {
    while (more && flying.size() < kPiecesInFlight) {
      DataRequest request;
      SAE_TRY(more, next(request));
      if (!more) break;
      const std::uint64_t id = ++state_->last_id;
      request.set_id(id);
      send_message(state_->socket, nullptr, MessageType::kDataRequest, request);
      flying.emplace(id, Flight{std::move(request), clock.now()});
    }
    if (flying.empty()) return {};
    if (stop.stop_requested()) return fail(ErrorCode::kUnavailable, "stopped");
    wait_for(state_->socket,
             std::min<std::chrono::milliseconds>(kLongestPoll, state_->patience.again));
    for (auto frames = receive_frames(state_->socket); !frames.empty();
         frames = receive_frames(state_->socket)) {
      DataReply reply;
      if (!read_message(frames, 2, MessageType::kDataReply, reply)) continue;
      const auto flight = flying.find(reply.id());
      if (flight == flying.end()) continue;  // answered before
      last_answer = clock.now();
      if (reply.status() != DATA_STATUS_OK)
        return fail(to_error_code(reply.status()), "{}", reply.problem());
      SAE_TRY_VOID(hear(flight->second.request, reply));
      flying.erase(flight);
    }
    const TimePoint now = clock.now();
    if (now - last_answer > state_->patience.give_up)
      return fail(ErrorCode::kUnavailable, "the data port has not answered for {} s",
                  std::chrono::duration_cast<std::chrono::seconds>(now - last_answer).count());
    for (auto& [id, flight] : flying) {
      if (now - flight.sent < state_->patience.again) continue;
      send_message(state_->socket, nullptr, MessageType::kDataRequest, flight.request);
      flight.sent = now;
    }
  }
}

Result<DataReply> DataClient::ask(DataRequest request, const std::stop_token& stop) {
  DataReply answer;
  bool asked = false;
  SAE_TRY_VOID(exchange(
      [&](DataRequest& out) -> Result<bool> {
        if (std::exchange(asked, true)) return false;
        out = request;
        return true;
      },
      [&](const DataRequest&, const DataReply& reply) -> Result<void> {
        answer = reply;
        return {};
      },
      stop));
  return answer;
}

}  // namespace saesweep::protocol
