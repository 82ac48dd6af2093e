#include "scheduler/service/reply_batch.h"

#include <cstddef>
#include <string>
#include <unordered_map>
#include <utility>

namespace saesweep::scheduler {
namespace {

constexpr std::size_t kMostBytes = std::size_t{1} << 20;

struct Last {
  std::size_t index = 0;  // of the peer's newest message
  std::size_t bytes = 0;
};

void add(protocol::ResultAck& to, protocol::ResultAck&& ack) { *to.add_more() = std::move(ack); }
void add(protocol::Assign& to, protocol::Assign&& assign) {
  for (protocol::Run& run : *assign.mutable_runs()) *to.add_runs() = std::move(run);
}

// False if they do not go together.
template <class Body>
bool add_if_alike(Reply& last, Reply& reply) {
  auto* const to = std::get_if<Body>(&last.body);
  auto* const from = std::get_if<Body>(&reply.body);
  if (to == nullptr || from == nullptr) return false;
  add(*to, std::move(*from));
  return true;
}

std::size_t bytes_of(const Reply& reply) {
  return std::visit([](const auto& body) { return body.ByteSizeLong(); }, reply.body);
}

}  // namespace

std::vector<Reply> put_together(std::vector<Reply> replies) {
  std::vector<Reply> together;
  together.reserve(replies.size());
  std::unordered_map<std::string, Last> lasts;
  for (Reply& reply : replies) {
    const std::size_t bytes = bytes_of(reply);
    const auto [found, is_new] = lasts.try_emplace(reply.peer);
    Last& last = found->second;
    if (!is_new && last.bytes + bytes <= kMostBytes &&
        (add_if_alike<protocol::ResultAck>(together[last.index], reply) ||
         add_if_alike<protocol::Assign>(together[last.index], reply))) {
      last.bytes += bytes;
      continue;
    }
    last = {together.size(), bytes};
    together.push_back(std::move(reply));
  }
  return together;
}

}  // namespace saesweep::scheduler
