// The bytes of an activation chunk in the cache: a pure function each way.
//
//   key    index:4                                                       big-endian: training order
//   value  version:2 dtype:1 zero:1 rows:4 d_in:4 index:4 xxh3:8 | rows * d_in values, row-major
//
// Integers of the header are big-endian, values are as they lie in memory (little-endian on every
// machine we build for). xxh3 is XXH3-64 of the values, seeded with XXH3-64 of the 16 header bytes
// before it: no byte of header or values can change unnoticed, nor can a chunk pass for another.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "core/dtype.h"
#include "core/result.h"

namespace saesweep::storage {

inline constexpr std::uint16_t kChunkVersion = 1;
inline constexpr std::size_t kChunkHeaderBytes = 24;

struct ChunkShape {
  std::uint32_t rows = 0;  // tokens
  std::uint32_t d_in = 0;  // width of the hook point
  DType dtype = DType::kBFloat16;

  std::uint64_t bytes() const { return std::uint64_t{rows} * d_in * size_of(dtype); }
  bool operator==(const ChunkShape&) const = default;
};

struct DecodedChunk {
  ChunkShape shape;
  std::span<const std::byte> values;  // inside the value that was decoded
};

std::array<std::byte, 4> encode_chunk_key(std::uint32_t index);

// The header that makes `values` chunk `index`; values.size() must be shape.bytes().
std::array<std::byte, kChunkHeaderBytes> encode_chunk_header(std::uint32_t index, ChunkShape shape,
                                                             std::span<const std::byte> values);

// Errors: kCorrupted if these are not the bytes that were written for chunk `index`.
Result<DecodedChunk> decode_chunk(std::uint32_t index, std::span<const std::byte> value);

}  // namespace saesweep::storage
