#include "scheduler/protocol/query.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>
#include <random>
#include <span>
#include <zmq.hpp>

#include "core/log.h"
#include "scheduler/protocol/frame.h"
#include "scheduler/protocol/link.h"
#include "scheduler/protocol/link_socket.h"
#include "scheduler/protocol/messages.pb.h"

namespace saesweep::protocol {
namespace {

using namespace std::chrono_literals;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr milliseconds kAskAgain = 2s;
constexpr milliseconds kUploadPatience = 60s;  // between two pieces of a payload

constexpr std::array<std::pair<ErrorCode, std::string_view>, 7> kCodes{{
    {ErrorCode::kInvalidArgument, "invalid_argument"},
    {ErrorCode::kNotFound, "not_found"},
    {ErrorCode::kUnavailable, "unavailable"},
    {ErrorCode::kResourceExhausted, "resource_exhausted"},
    {ErrorCode::kStaleLease, "stale_lease"},
    {ErrorCode::kCorrupted, "corrupted"},
    {ErrorCode::kDiverged, "diverged"},
}};

std::string random_bytes(std::size_t count) {
  std::random_device random;
  std::string bytes;
  while (bytes.size() < count) bytes.push_back(static_cast<char>(random() & 0xff));
  return bytes;
}

void set_options(zmq::socket_t& socket) {
  // Enough for all pieces of the largest payload.
  socket.set(zmq::sockopt::sndhwm, 4096);
  socket.set(zmq::sockopt::rcvhwm, 4096);
  socket.set(zmq::sockopt::linger, 500);
  socket.set(zmq::sockopt::maxmsgsize, static_cast<std::int64_t>(kMaxBodyBytes));
  socket.set(zmq::sockopt::ipv6, true);
  socket.set(zmq::sockopt::heartbeat_ivl, 5'000);
  socket.set(zmq::sockopt::heartbeat_timeout, 15'000);
  socket.set(zmq::sockopt::heartbeat_ttl, 20'000);
}

}  // namespace

std::string_view code_word(ErrorCode code) {
  for (const auto& [each, word] : kCodes)
    if (each == code) return word;
  return "unavailable";
}

ErrorCode code_of(std::string_view word) {
  for (const auto& [code, each] : kCodes)
    if (each == word) return code;
  return ErrorCode::kUnavailable;
}

// ---- server -------------------------------------------------------------------------------------

struct QueryServer::State {
  State() : socket(context, zmq::socket_type::router) {}
  zmq::context_t context;
  std::unique_ptr<Authenticator> doorkeeper;  // null: everybody comes in
  zmq::socket_t socket;
  struct Upload {
    HeardQuery query;
    std::uint64_t total = 0;
    steady_clock::time_point heard;
  };
  std::map<std::string, Upload> uploads;  // by peer: one at a time
  Send over_link = [](const std::string&, const QueryReply&) {};

  void reply(const Asker& asker, std::string_view code, const std::string& body) {
    std::uint64_t offset = 0;
    do {
      QueryReply piece;
      piece.set_id(asker.id);
      piece.set_code(code.data(), code.size());
      piece.set_piece(body.substr(offset, kPieceBytes));
      piece.set_offset(offset);
      piece.set_body_bytes(body.size());
      if (asker.at_link)
        over_link(asker.peer, piece);
      else if (!send_message(socket, &asker.peer, MessageType::kQueryReply, piece))
        return;
      offset += kPieceBytes;
    } while (offset < body.size());
  }

  // Adds the piece; true once the payload is whole.
  Result<bool> add(Upload& upload, const Query& piece) {
    if (piece.offset() != upload.query.payload.size()) return false;  // a repeated or a lost one
    if (piece.payload_bytes() != upload.total ||
        upload.query.payload.size() + piece.piece().size() > upload.total)
      return fail(ErrorCode::kInvalidArgument, "the pieces of the payload do not fit together");
    upload.query.payload += piece.piece();
    upload.heard = steady_clock::now();
    return upload.query.payload.size() == upload.total;
  }

  void hear(const std::string& peer, bool at_link, const Query& query,
            std::vector<HeardQuery>& heard) {
    HeardQuery whole{{peer, query.id(), at_link}, query.verb(), Json::object(), query.key(), {}};
    const auto refuse = [&](const Error& error) {
      reply(whole.asker, code_word(error.code), canonical_json({{"message", error.message}}));
    };
    if (query.offset() == 0) {
      auto body = parse_json(query.body().empty() ? "{}" : query.body(), 16, kMaxBodyBytes);
      if (!body || !body->is_object())
        return refuse({ErrorCode::kInvalidArgument, "the body is no JSON object"});
      whole.body = std::move(*body);
      if (query.payload_bytes() == 0) {
        heard.push_back(std::move(whole));
        return;
      }
      if (query.payload_bytes() > kMostPayloadBytes)
        return refuse(
            {ErrorCode::kInvalidArgument, fmt::format("a payload of {} bytes; at most {} travel",
                                                      query.payload_bytes(), kMostPayloadBytes)});
      std::erase_if(uploads, [](const auto& each) {
        return steady_clock::now() - each.second.heard > kUploadPatience;
      });
      if (!uploads.contains(peer) && uploads.size() >= kMostUploads)
        return refuse({ErrorCode::kUnavailable, "others are submitting; try again in a moment"});
      Upload& begun = uploads[peer];
      begun = {std::move(whole), query.payload_bytes(), steady_clock::now()};
      begun.query.payload.reserve(query.payload_bytes());
    }
    const auto upload = uploads.find(peer);
    if (upload == uploads.end() || upload->second.query.asker.id != query.id()) return;
    const auto complete = add(upload->second, query);
    if (complete && !*complete) return;
    if (complete)
      heard.push_back(std::move(upload->second.query));
    else
      refuse(complete.error());
    uploads.erase(upload);
  }
};

QueryServer::QueryServer(std::unique_ptr<State> state) : state_(std::move(state)) {}
QueryServer::QueryServer(QueryServer&&) noexcept = default;
QueryServer& QueryServer::operator=(QueryServer&&) noexcept = default;
QueryServer::~QueryServer() = default;

Result<QueryServer> QueryServer::bind(const std::string& endpoint, const ServerSecurity& security) {
  try {
    auto state = std::make_unique<State>();
    set_options(state->socket);
    SAE_TRY(state->doorkeeper, Authenticator::start(state->context, security));
    SAE_TRY_VOID(secure_server_socket(state->socket, endpoint, security, state->doorkeeper.get()));
    state->socket.set(zmq::sockopt::router_mandatory, true);
    state->socket.bind(endpoint);
    return QueryServer(std::move(state));
  } catch (const zmq::error_t& error) {
    return fail(error.num() == EADDRINUSE ? ErrorCode::kUnavailable : ErrorCode::kInvalidArgument,
                "cannot listen on {}: {}", endpoint, error.what());
  }
}

std::string QueryServer::endpoint() const { return bound_endpoint(state_->socket); }
void* QueryServer::handle() const { return state_->socket.handle(); }

std::vector<HeardQuery> QueryServer::take() {
  std::vector<HeardQuery> heard;
  while (true) {
    const auto frames = receive_frames(state_->socket);
    if (frames.empty()) return heard;
    Query query;
    if (!read_message(frames, 3, MessageType::kQuery, query)) {
      log::warn("query.garbage frames={}", frames.size());
      continue;
    }
    if (const Identity sender = identity_of(frames[1]);
        !may_send(sender.role, MessageType::kQuery)) {
      log::warn("query.not_allowed name={} role={}", sender.name, to_string(sender.role));
      continue;
    }
    state_->hear(frames[0].to_string(), false, query, heard);
  }
}

std::vector<HeardQuery> QueryServer::take(const HeardMessage& message) {
  std::vector<HeardQuery> heard;
  Query query;
  if (parse_body(message.body, query))
    state_->hear(message.peer, true, query, heard);
  else
    log::warn("query.garbage bytes={}", message.body.size());
  return heard;
}

void QueryServer::answer_at_link(Send send) { state_->over_link = std::move(send); }

void QueryServer::answer(const Asker& asker, const Json& body) {
  state_->reply(asker, "ok", canonical_json(body));
}

void QueryServer::refuse(const Asker& asker, const Error& error) {
  state_->reply(asker, code_word(error.code), canonical_json({{"message", error.message}}));
}

// ---- client -------------------------------------------------------------------------------------

struct QueryClient::State {
  State() : socket(context, zmq::socket_type::dealer) {}
  zmq::context_t context;
  zmq::socket_t socket;
  std::uint64_t last_id = 0;

  void send(std::uint64_t id, const Question& question) {
    Query query;
    query.set_id(id);
    query.set_verb(question.verb);
    query.set_body(canonical_json(question.body));
    query.set_key(question.key);
    query.set_payload_bytes(question.payload.size());
    std::uint64_t offset = 0;
    do {
      const auto piece = question.payload.substr(offset, QueryServer::kPieceBytes);
      query.set_piece(piece.data(), piece.size());
      query.set_offset(offset);
      if (!send_message(socket, nullptr, MessageType::kQuery, query)) return;
      query.clear_body();
      offset += QueryServer::kPieceBytes;
    } while (offset < question.payload.size());
  }
};

QueryClient::QueryClient(std::unique_ptr<State> state) : state_(std::move(state)) {}
QueryClient::QueryClient(QueryClient&&) noexcept = default;
QueryClient& QueryClient::operator=(QueryClient&&) noexcept = default;
QueryClient::~QueryClient() = default;

Result<QueryClient> QueryClient::connect(const std::string& endpoint,
                                         const ClientSecurity& security) {
  try {
    auto state = std::make_unique<State>();
    set_options(state->socket);
    SAE_TRY_VOID(secure_client_socket(state->socket, endpoint, security));
    state->socket.set(zmq::sockopt::linger, 0);
    std::string id = random_bytes(16);
    if (id[0] == '\0') id[0] = '\1';  // such ids are reserved
    state->socket.set(zmq::sockopt::routing_id, id);
    state->socket.set(zmq::sockopt::reconnect_ivl, 100);
    state->socket.set(zmq::sockopt::reconnect_ivl_max, 2'000);
    state->socket.connect(endpoint);
    return QueryClient(std::move(state));
  } catch (const zmq::error_t& error) {
    return fail(ErrorCode::kInvalidArgument, "cannot connect to {}: {}", endpoint, error.what());
  }
}

Result<Json> QueryClient::ask(const Question& question, milliseconds patience) {
  const std::uint64_t id = ++state_->last_id;
  // A large payload takes its time to be read and made durable: it is not sent again meanwhile.
  const milliseconds again = kAskAgain + milliseconds(question.payload.size() / 10'000);
  const auto end = steady_clock::now() + patience;
  auto next_try = steady_clock::now();
  std::string body;
  while (steady_clock::now() < end) {
    if (steady_clock::now() >= next_try) {
      state_->send(id, question);
      next_try = steady_clock::now() + again;
    }
    const auto wait =
        std::chrono::ceil<milliseconds>(std::min(end, next_try) - steady_clock::now());
    std::vector<zmq::pollitem_t> items{{state_->socket.handle(), 0, ZMQ_POLLIN, 0}};
    try {
      zmq::poll(items, std::clamp(wait, 1ms, 1000ms));
    } catch (const zmq::error_t& error) {
      log::debug("query.poll error={}", error.what());  // a signal
    }
    while (true) {
      const auto frames = receive_frames(state_->socket);
      if (frames.empty()) break;
      QueryReply reply;
      if (!read_message(frames, 2, MessageType::kQueryReply, reply) || reply.id() != id) continue;
      if (reply.offset() == 0) body.clear();
      if (reply.offset() != body.size()) continue;
      body += reply.piece();
      if (body.size() < reply.body_bytes()) continue;
      SAE_TRY(Json answer, parse_json(body));
      if (reply.code() == "ok") return answer;
      const auto message = answer.find("message");
      return fail(Error{code_of(reply.code()), message != answer.end() && message->is_string()
                                                   ? message->get<std::string>()
                                                   : "refused without a word why"});
    }
  }
  return fail(ErrorCode::kUnavailable, "the scheduler does not answer");
}

std::string QueryClient::new_key() {
  std::string hex;
  for (const char byte : random_bytes(16))
    hex += fmt::format("{:02x}", static_cast<unsigned char>(byte));
  return hex;
}

}  // namespace saesweep::protocol
