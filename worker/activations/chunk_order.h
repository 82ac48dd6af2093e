// Chunks that are harvested together: those of the same documents, of streams of one family. No
// LibTorch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include "core/result.h"

namespace saesweep::worker {

// A chunk of a stream: `member` 0 is the one that is harvested, then come its siblings.
struct MemberChunk {
  std::size_t member = 0;
  std::uint32_t index = 0;
  bool operator==(const MemberChunk&) const = default;
};

// It is to be written to `out`, and `rows` says how many it has.
struct ChunkOrder {
  MemberChunk chunk;
  std::span<std::byte> out;
  std::uint32_t rows = 0;
};

// Fills the bytes of a chunk and returns its rows, and those of others beside it.
using HarvestChunk =
    std::function<Result<std::uint32_t>(std::span<std::byte> out, std::span<ChunkOrder> beside)>;

}  // namespace saesweep::worker
