#include "scheduler/service/chunk_desk.h"

#include <string_view>

namespace saesweep::scheduler {
namespace {

constexpr std::size_t kMostEndpointBytes = 256;

}  // namespace

Result<ChunkDesk> ChunkDesk::open(const protocol::ServerSecurity& security) {
  ChunkDesk desk;
  if (!security.keys) return desk;
  SAE_TRY(protocol::KeyPair keys, protocol::make_key_pair());
  desk.keys_.emplace(std::move(keys));
  return desk;
}

void ChunkDesk::complete(protocol::Welcome& welcome, const SweepState& state,
                         const std::string& worker) const {
  if (const auto known = state.workers().find(worker); known != state.workers().end())
    welcome.set_chunks_endpoint(known->second.chunks_endpoint);
  if (!keys_) return;
  welcome.set_chunks_public(keys_->public_key.data(), keys_->public_key.size());
  welcome.set_chunks_secret(std::string(keys_->secret_key.text()));
}

void complete(protocol::Hello& hello, const std::string& address) {
  constexpr std::string_view kAnyHost = "tcp://*:";
  const std::string& named = hello.chunks_endpoint();
  const std::size_t key_bytes = hello.chunks_key().size();
  if (!named.starts_with("tcp://") || named.size() > kMostEndpointBytes ||
      (key_bytes != 0 && key_bytes != protocol::kKeyBytes)) {
    hello.clear_chunks_endpoint();
    hello.clear_chunks_key();
    return;
  }
  if (!named.starts_with(kAnyHost)) return;
  hello.set_chunks_endpoint(
      address.empty() ? "" : "tcp://" + address + ":" + named.substr(kAnyHost.size()));
}

std::string plain(std::string endpoint) {
  constexpr std::string_view kMapped = "[::ffff:";
  const std::size_t at = endpoint.find(kMapped);
  const std::size_t end = endpoint.find(']');
  if (at == std::string::npos || end == std::string::npos) return endpoint;
  endpoint.erase(end, 1);
  endpoint.erase(at, kMapped.size());
  return endpoint;
}

}  // namespace saesweep::scheduler
