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
}

void ChunkBoard::end(const std::string& stream, std::uint32_t index) {
  const std::lock_guard lock(mutex_);
  coming_.erase({stream, index});
}

bool ChunkBoard::is_coming(const std::string& stream, std::uint32_t index) const {
  const std::lock_guard lock(mutex_);
  return coming_.contains({stream, index});
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

std::optional<protocol::ChunkSource> ChunkBoard::take_ahead(const std::string& stream) {
  const std::lock_guard lock(mutex_);
  const auto found = ahead_.find(stream);
  if (found == ahead_.end()) return std::nullopt;
  protocol::ChunkSource node = std::move(found->second);
  ahead_.erase(found);
  return node;
}

}  // namespace saesweep::agent
