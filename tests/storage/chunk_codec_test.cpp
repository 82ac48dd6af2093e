#include "storage/chunk_codec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "core/philox.h"

namespace saesweep::storage {
namespace {

std::vector<std::byte> bytes_of(std::string_view text) {
  const auto bytes = std::as_bytes(std::span(text.data(), text.size()));
  return {bytes.begin(), bytes.end()};
}

std::vector<std::byte> encode(std::uint32_t index, ChunkShape shape,
                              const std::vector<std::byte>& values) {
  const auto header = encode_chunk_header(index, shape, values);
  std::vector<std::byte> value(header.size() + values.size());
  std::copy(values.begin(), values.end(), std::copy(header.begin(), header.end(), value.begin()));
  return value;
}

std::string hex(std::span<const std::byte> bytes) {
  std::string text;
  for (const std::byte byte : bytes) text += fmt::format("{:02x}", std::to_integer<int>(byte));
  return text;
}

const ChunkShape kShape{.rows = 2, .d_in = 3, .dtype = DType::kBFloat16};

TEST(ChunkCodec, WritesTheBytesOfVersionOne) {
  // The hash is what a C program calling libxxhash 0.8.1 prints for the values, seeded with the
  // hash of the sixteen bytes before it.
  EXPECT_EQ(hex(encode(0x01020304, kShape, bytes_of("abcdefghijkl"))),
            "0001"
            "02"
            "00"
            "00000002"
            "00000003"
            "01020304"
            "915190c9c5367411"
            "6162636465666768696a6b6c");
}

TEST(ChunkCodec, KeysSortInTrainingOrder) {
  EXPECT_EQ(hex(encode_chunk_key(0x00010203)), "00010203");
  EXPECT_LT(hex(encode_chunk_key(255)), hex(encode_chunk_key(256)));
}

TEST(ChunkCodec, EveryChunkComesBackAsItWasEncoded) {
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    SCOPED_TRACE(seed);
    Rng rng(seed, "test.chunk_codec");
    const ChunkShape shape{rng.below(20), rng.below(20),
                           rng.below(2) == 0 ? DType::kFloat32 : DType::kBFloat16};
    std::vector<std::byte> values(shape.bytes());
    for (std::byte& value : values) value = static_cast<std::byte>(rng.below(256));
    const std::uint32_t index = rng.next_u32();
    const auto encoded = encode(index, shape, values);
    const auto decoded = decode_chunk(index, encoded);
    ASSERT_TRUE(decoded) << decoded.error().message;
    EXPECT_EQ(decoded->shape, shape);
    EXPECT_THAT(decoded->values, testing::ElementsAreArray(values));
  }
}

TEST(ChunkCodec, EveryChangedBitIsCorruption) {
  const auto whole = encode(7, kShape, bytes_of("abcdefghijkl"));
  for (std::size_t bit = 0; bit < whole.size() * 8; ++bit) {
    auto damaged = whole;
    damaged[bit / 8] ^= std::byte(1 << bit % 8);
    const auto decoded = decode_chunk(7, damaged);
    ASSERT_FALSE(decoded) << "bit " << bit;
    EXPECT_EQ(decoded.error().code, ErrorCode::kCorrupted);
  }
}

TEST(ChunkCodec, EveryTruncationAndExtensionIsCorruption) {
  auto value = encode(7, kShape, bytes_of("abcdefghijkl"));
  for (std::size_t size = 0; size < value.size(); ++size) {
    EXPECT_FALSE(decode_chunk(7, std::span(value).first(size))) << size;
  }
  value.push_back(std::byte{0});
  EXPECT_FALSE(decode_chunk(7, value));
}

TEST(ChunkCodec, AChunkCannotPassForAnother) {
  EXPECT_FALSE(decode_chunk(8, encode(7, kShape, bytes_of("abcdefghijkl"))));
}

TEST(ChunkCodec, SizesThatOverflowAreCorruption) {
  // rows * d_in * 2 wraps to 0 in 64 bits, which would fit an empty chunk.
  auto value = encode(0, {0, 0, DType::kFloat32}, {});
  for (std::size_t at = 4; at < 12; ++at) value[at] = std::byte{0};
  value[4] = value[8] = std::byte{0x80};
  EXPECT_FALSE(decode_chunk(0, value));
}

}  // namespace
}  // namespace saesweep::storage
