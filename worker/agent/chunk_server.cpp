#include "worker/agent/chunk_server.h"

#include <cmath>
#include <cstring>
#include <utility>

#include "core/log.h"
#include "scheduler/protocol/frame.h"
#include "storage/chunk_codec.h"

namespace saesweep::agent {
namespace {

using protocol::DataChunkReply;
using protocol::DataReply;
using protocol::DataRequest;

constexpr std::size_t kMostEndpointBytes = 256;
// What is left of a message is for its other fields.
constexpr std::size_t kMostChunkBytes = protocol::kMaxBodyBytes - 4096;

}  // namespace

// Of the server's thread.
struct ChunkServer::Desk {
  Desk(storage::ActivationCache& from, ChunkBoard& tells) : cache(from), board(tells) {}

  DataReply answer(const DataRequest& request) {
    DataReply reply;
    reply.set_status(protocol::DATA_STATUS_OK);
    if (request.what_case() != DataRequest::kChunk) {
      reply.set_status(protocol::DATA_STATUS_REFUSED);
      reply.set_problem("a worker serves chunks, nothing else");
      return reply;
    }
    fill(request.chunk(), *reply.mutable_chunk());
    if (reply.chunk().status() == DataChunkReply::ABSENT) note(request.chunk());
    return reply;
  }

  void note(const protocol::DataChunk& asked) {
    const std::string& endpoint = asked.own_endpoint();
    if (!endpoint.starts_with("tcp://") || endpoint.size() > kMostEndpointBytes) return;
    protocol::ChunkSource node;
    node.set_stream(asked.stream());
    node.set_endpoint(endpoint);
    node.set_server_key(asked.own_key());
    board.note_ahead(std::move(node));
  }

  void fill(const protocol::DataChunk& asked, DataChunkReply& reply) {
    const std::string& stream = asked.stream();
    const std::uint32_t index = asked.index();
    // Asked first: who is done with a harvest has put the chunk before it says so.
    const bool is_coming = board.is_coming(stream, index) ||
                           board.is_to_wait(stream, index, {asked.own_endpoint(), asked.own_key()});
    if (const auto seconds = board.harvest_seconds(stream))
      reply.set_harvest_us(static_cast<std::uint64_t>(std::llround(*seconds * 1e6)));
    reply.set_status(is_coming ? DataChunkReply::COMING : DataChunkReply::ABSENT);
    const auto pin = cache.pin(stream);
    if (!pin) return;
    values.resize(kMostChunkBytes - storage::kChunkHeaderBytes);
    const auto shape = cache.get(*pin, index, values);
    if (!shape) {
      if (shape.error().code != ErrorCode::kNotFound)
        log::warn("chunks.not_served stream={} index={} error={}", stream, index,
                  shape.error().message);
      return;
    }
    const auto found = std::span(values).first(shape->bytes());
    const auto header = storage::encode_chunk_header(index, *shape, found);
    std::string& value = *reply.mutable_value();
    value.reserve(header.size() + found.size());
    value.assign(reinterpret_cast<const char*>(header.data()), header.size());
    value.append(reinterpret_cast<const char*>(found.data()), found.size());
    reply.set_status(DataChunkReply::HERE);
    board.served.fetch_add(1);
    board.served_bytes.fetch_add(value.size());
  }

  storage::ActivationCache& cache;
  ChunkBoard& board;
  std::vector<std::byte> values;
};

ChunkServer::ChunkServer(std::unique_ptr<Desk> desk, protocol::ServerSecurity security,
                         std::shared_ptr<protocol::KeyRing> ring, protocol::DataServer server)
    : desk_(std::move(desk)),
      security_(std::move(security)),
      ring_(std::move(ring)),
      server_(std::move(server)) {}
ChunkServer::ChunkServer(ChunkServer&&) noexcept = default;
ChunkServer::~ChunkServer() = default;

Result<ChunkServer> ChunkServer::start(const std::string& endpoint, bool encrypted,
                                       storage::ActivationCache& cache, ChunkBoard& board) {
  auto desk = std::make_unique<Desk>(cache, board);
  auto ring = std::make_shared<protocol::KeyRing>();
  protocol::ServerSecurity security;
  security.insecure_loopback = !encrypted;
  if (encrypted) {
    SAE_TRY(protocol::KeyPair keys, protocol::make_key_pair());
    security.keys = std::make_shared<const protocol::KeyPair>(std::move(keys));
    security.ring = ring;
  }
  SAE_TRY(protocol::DataServer server,
          protocol::DataServer::start(
              endpoint, security,
              [raw = desk.get()](const DataRequest& request) { return raw->answer(request); }));
  return ChunkServer(std::move(desk), std::move(security), std::move(ring), std::move(server));
}

void ChunkServer::admit(const protocol::PublicKey& key) {
  ring_->set({{.name = "worker",
               .public_key = key,
               .role = protocol::Role::kWorker,
               .expires = std::nullopt}});
}

std::shared_ptr<const protocol::KeyPair> chunk_keys_of(const protocol::Welcome& welcome) {
  const std::string &known = welcome.chunks_public(), &secret = welcome.chunks_secret();
  if (known.size() != protocol::kKeyBytes || secret.size() != protocol::kKeyBytes) return nullptr;
  protocol::KeyPair keys;
  std::memcpy(keys.public_key.data(), known.data(), known.size());
  keys.secret_key = protocol::SecretBytes(secret.size());
  std::memcpy(keys.secret_key.bytes().data(), secret.data(), secret.size());
  return std::make_shared<const protocol::KeyPair>(std::move(keys));
}

std::string usual_chunks_endpoint(const std::string& scheduler) {
  if (!scheduler.starts_with("tcp://")) return {};
  if (scheduler.starts_with("tcp://[::1]:")) return "tcp://[::1]:*";
  const bool is_loopback =
      scheduler.starts_with("tcp://127.") || scheduler.starts_with("tcp://localhost:");
  return is_loopback ? "tcp://127.0.0.1:*" : "tcp://*:*";
}

std::string ChunkServer::public_key() const {
  if (!security_.keys) return {};
  const protocol::PublicKey& key = security_.keys->public_key;
  return {reinterpret_cast<const char*>(key.data()), key.size()};
}

}  // namespace saesweep::agent
