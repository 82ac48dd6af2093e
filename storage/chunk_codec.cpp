#include "storage/chunk_codec.h"

#include "core/check.h"
#include "core/digest.h"

namespace saesweep::storage {
namespace {

// Where the fields of the header lie.
constexpr std::size_t kVersionAt = 0, kDTypeAt = 2, kZeroAt = 3, kRowsAt = 4, kWidthAt = 8,
                      kIndexAt = 12, kHashAt = 16;

template <class T>
void store_be(T value, std::byte* to) {
  for (std::size_t i = 0; i < sizeof(T); ++i) {
    to[i] = static_cast<std::byte>(value >> (8 * (sizeof(T) - 1 - i)) & 0xff);
  }
}

template <class T>
T load_be(const std::byte* from) {
  T value = 0;
  for (std::size_t i = 0; i < sizeof(T); ++i) {
    value = static_cast<T>(value << 8 | std::to_integer<T>(from[i]));
  }
  return value;
}

std::uint64_t hash_of(std::span<const std::byte> header, std::span<const std::byte> values) {
  return xxh3_64(values, xxh3_64(header.first(kHashAt)));
}

}  // namespace

std::array<std::byte, 4> encode_chunk_key(std::uint32_t index) {
  std::array<std::byte, 4> key;
  store_be(index, key.data());
  return key;
}

std::array<std::byte, kChunkHeaderBytes> encode_chunk_header(std::uint32_t index, ChunkShape shape,
                                                             std::span<const std::byte> values) {
  SAE_CHECK(values.size() == shape.bytes(), "{} bytes for [{}, {}] {}", values.size(), shape.rows,
            shape.d_in, to_string(shape.dtype));
  std::array<std::byte, kChunkHeaderBytes> header{};
  store_be(kChunkVersion, &header[kVersionAt]);
  header[kDTypeAt] = static_cast<std::byte>(shape.dtype);
  store_be(shape.rows, &header[kRowsAt]);
  store_be(shape.d_in, &header[kWidthAt]);
  store_be(index, &header[kIndexAt]);
  store_be(hash_of(header, values), &header[kHashAt]);
  return header;
}

Result<DecodedChunk> decode_chunk(std::uint32_t index, std::span<const std::byte> value) {
  if (value.size() < kChunkHeaderBytes) {
    return fail(ErrorCode::kCorrupted, "chunk {}: {} bytes hold no header", index, value.size());
  }
  const auto header = value.first(kChunkHeaderBytes);
  const auto values = value.subspan(kChunkHeaderBytes);
  if (const auto version = load_be<std::uint16_t>(&header[kVersionAt]); version != kChunkVersion) {
    return fail(ErrorCode::kCorrupted, "chunk {}: format version {}, not {}", index, version,
                kChunkVersion);
  }
  const auto dtype = std::to_integer<std::uint8_t>(header[kDTypeAt]);
  if ((dtype != static_cast<std::uint8_t>(DType::kFloat32) &&
       dtype != static_cast<std::uint8_t>(DType::kBFloat16)) ||
      header[kZeroAt] != std::byte{0}) {
    return fail(ErrorCode::kCorrupted, "chunk {}: unknown dtype {}", index, dtype);
  }
  const ChunkShape shape{load_be<std::uint32_t>(&header[kRowsAt]),
                         load_be<std::uint32_t>(&header[kWidthAt]), static_cast<DType>(dtype)};
  // rows * d_in fits 64 bits, their size in bytes may not: compare the quotient.
  if (values.size() % size_of(shape.dtype) != 0 ||
      values.size() / size_of(shape.dtype) != std::uint64_t{shape.rows} * shape.d_in) {
    return fail(ErrorCode::kCorrupted, "chunk {}: {} bytes for [{}, {}] {}", index, values.size(),
                shape.rows, shape.d_in, to_string(shape.dtype));
  }
  if (const auto stored = load_be<std::uint32_t>(&header[kIndexAt]); stored != index) {
    return fail(ErrorCode::kCorrupted, "chunk {}: holds chunk {}", index, stored);
  }
  if (hash_of(header, values) != load_be<std::uint64_t>(&header[kHashAt])) {
    return fail(ErrorCode::kCorrupted, "chunk {}: its checksum does not match", index);
  }
  return DecodedChunk{shape, values};
}

}  // namespace saesweep::storage
