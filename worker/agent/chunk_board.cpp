#include "worker/agent/chunk_board.h"

#include <chrono>

namespace saesweep::agent {
namespace {

// Streams whose times are remembered; beyond, all are measured anew.
constexpr std::size_t kMostStreams = 1024;

}  // namespace

void ChunkBoard::begin(const std::string& stream, std::uint32_t index) {
  const std::lock_guard lock(mutex_);
  coming_.emplace(stream, index);
  expected_.erase({stream, index});
}

void ChunkBoard::end(const std::string& stream, std::uint32_t index) {
  const std::lock_guard lock(mutex_);
  coming_.erase({stream, index});
}

bool ChunkBoard::is_coming(const std::string& stream, std::uint32_t index) const {
  const std::lock_guard lock(mutex_);
  return coming_.contains({stream, index}) || expected_.contains({stream, index});
}

void ChunkBoard::expect(const std::string& stream, std::uint32_t index) {
  const std::lock_guard lock(mutex_);
  expected_.emplace(stream, index);
}

void ChunkBoard::forget(const std::string& stream, std::optional<std::uint32_t> index) {
  const std::lock_guard lock(mutex_);
  if (index)
    expected_.erase({stream, *index});
  else
    std::erase_if(expected_, [&](const ChunkName& chunk) { return chunk.first == stream; });
}

void ChunkBoard::begin_to_ask(const std::string& stream, std::uint32_t index, NodeName other,
                              NodeName own) {
  const std::lock_guard lock(mutex_);
  asked_.insert_or_assign({stream, index}, Asked{std::move(other), std::move(own)});
}

void ChunkBoard::hear_that_it_comes(const std::string& stream, std::uint32_t index) {
  const std::lock_guard lock(mutex_);
  if (const auto found = asked_.find({stream, index}); found != asked_.end())
    found->second.is_coming_there = true;
}

void ChunkBoard::end_asking(const std::string& stream, std::uint32_t index, bool is_given) {
  const std::lock_guard lock(mutex_);
  asked_.erase({stream, index});
  if (!is_given) expected_.emplace(stream, index);
}

bool ChunkBoard::is_to_wait(const std::string& stream, std::uint32_t index,
                            const NodeName& other) const {
  const std::lock_guard lock(mutex_);
  const auto found = asked_.find({stream, index});
  if (found == asked_.end() || found->second.other != other) return false;
  return found->second.own < other || !found->second.is_coming_there;
}

void ChunkBoard::harvest_took(const std::string& stream, Duration time) {
  const std::lock_guard lock(mutex_);
  if (took_.size() >= kMostStreams && !took_.contains(stream)) took_.clear();
  took_[stream].add(std::chrono::duration<double>(time).count());
}

std::optional<double> ChunkBoard::harvest_seconds(const std::string& stream) const {
  const std::lock_guard lock(mutex_);
  const auto found = took_.find(stream);
  return found == took_.end() ? std::nullopt : found->second.value();
}

void ChunkBoard::note_ahead(protocol::ChunkSource node) {
  const std::lock_guard lock(mutex_);
  if (ahead_.size() >= kMostStreams && !ahead_.contains(node.stream())) ahead_.clear();
  std::string stream = node.stream();
  ahead_.insert_or_assign(std::move(stream), std::move(node));
}

bool ChunkBoard::is_ahead(const std::string& stream) const {
  const std::lock_guard lock(mutex_);
  return ahead_.contains(stream);
}

std::optional<protocol::ChunkSource> ChunkBoard::take_ahead(const std::string& stream) {
  const std::lock_guard lock(mutex_);
  const auto found = ahead_.find(stream);
  if (found == ahead_.end()) return std::nullopt;
  protocol::ChunkSource node = std::move(found->second);
  ahead_.erase(found);
  return node;
}

}  // namespace saesweep::agent
