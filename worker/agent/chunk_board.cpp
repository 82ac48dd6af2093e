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

}  // namespace saesweep::agent
