// Chunks of a small stream, and executors that ask a chunk service for them.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstring>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "core/philox.h"
#include "storage/activation_cache.h"
#include "worker/agent/chunk_service.h"

namespace saesweep::agent {

using protocol::ChunkReply;
using protocol::ChunkRequest;

inline constexpr std::uint32_t kRows = 32, kWidth = 16;
inline constexpr std::size_t kRowBytes = kWidth * 2, kChunkBytes = kRows * kRowBytes;
inline constexpr std::uint64_t kPlenty = std::uint64_t{1} << 30;
inline const TimePoint kStart{};

inline protocol::ChunkOpen open_request(std::string stream = "stream",
                                        std::uint64_t cache_bytes = kPlenty) {
  protocol::ChunkOpen request;
  request.set_stream(std::move(stream));
  request.set_cache_bytes(cache_bytes);
  request.set_rows_per_chunk(kRows);
  request.set_d_in(kWidth);
  request.set_dtype(static_cast<std::uint32_t>(DType::kBFloat16));
  return request;
}

// What a harvest of chunk `index` gives; the last row count is index-dependent.
inline std::uint32_t rows_of(std::uint32_t index) { return kRows - index % 3; }
inline std::vector<std::byte> values_of(std::uint32_t index) {
  Rng rng(5, "test.chunk_service", index);
  std::vector<std::byte> values(rows_of(index) * kRowBytes);
  for (std::byte& value : values) value = static_cast<std::byte>(rng.below(256));
  return values;
}

// An executor as the service sees it.
struct Executor {
  ChunkService& service;
  ConnectionId id;
  TimePoint now = kStart;
  OwnedFd descriptor{};
  std::byte* memory = nullptr;

  Executor(ChunkService& to, ConnectionId connection,
           const protocol::ChunkOpen& request = open_request())
      : service(to), id(connection) {
    auto opened = service.open(id, request);
    EXPECT_EQ(opened.message.problem(), "");
    EXPECT_EQ(opened.message.slot_bytes(), kChunkBytes);
    descriptor = std::move(opened.memory);
    memory =
        static_cast<std::byte*>(::mmap(nullptr, opened.message.slots() * kChunkBytes,
                                       PROT_READ | PROT_WRITE, MAP_SHARED, descriptor.get(), 0));
  }
  ~Executor() { ::munmap(memory, ChunkService::kSlots * kChunkBytes); }

  ChunkReply ask(ChunkRequest::Verb verb, std::uint32_t index, std::uint32_t slot = 0,
                 std::uint32_t rows = 0, std::string stream = "stream") {
    ChunkRequest request;
    request.set_id(77);
    request.set_stream(std::move(stream));
    request.set_verb(verb);
    request.set_index(index);
    request.set_slot(slot);
    request.set_rows(rows);
    const ChunkReply reply = service.handle(id, request, now);
    EXPECT_EQ(reply.id(), 77u);
    return reply;
  }
  ChunkReply::Status read(std::uint32_t index, std::uint32_t slot = 0) {
    return ask(ChunkRequest::READ, index, slot).status();
  }
  ChunkReply::Status claim(std::uint32_t index) { return ask(ChunkRequest::CLAIM, index).status(); }
  ChunkReply::Status release(std::uint32_t index) {
    return ask(ChunkRequest::RELEASE, index).status();
  }
  ChunkReply::Status write(std::uint32_t index, std::uint32_t slot = 0) {
    const auto values = values_of(index);
    std::memcpy(memory + slot * kChunkBytes, values.data(), values.size());
    return ask(ChunkRequest::WRITE, index, slot, rows_of(index)).status();
  }
  std::vector<std::byte> slot(std::uint32_t slot, std::size_t bytes) const {
    return {memory + slot * kChunkBytes, memory + slot * kChunkBytes + bytes};
  }
};

inline storage::ActivationCache open_cache(const std::filesystem::path& directory) {
  return storage::ActivationCache::open(directory, storage::ActivationCache::kUnlimited,
                                        {.min_free_bytes = 0})
      .value();
}

}  // namespace saesweep::agent
