// Digests against published answers.
#include "core/digest.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "core/files.h"
#include "tests/support/temp_dir.h"

namespace saesweep {
namespace {

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text));
}

// The input of xxHash's own sanity check: bytes of a multiplicative generator.
// Source: tests/sanity_test_vectors of Cyan4973/xxHash.
std::vector<std::byte> xxhash_sanity_input(std::size_t size) {
  std::vector<std::byte> bytes(size);
  std::uint64_t state = 2654435761ull;
  for (std::byte& byte : bytes) {
    byte = static_cast<std::byte>(state >> 56);
    state *= 11400714785074694797ull;
  }
  return bytes;
}

// Source: FIPS 180-4 examples.
TEST(Sha256Test, HasTheKnownAnswers) {
  EXPECT_EQ(sha256("").hex(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(sha256("abc").hex(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(sha256("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq").hex(),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
}

TEST(Sha256Test, PeopleSeeTheFirstTwelveDigits) {
  EXPECT_EQ(sha256("abc").short_hex(), "ba7816bf8f01");
}

TEST(Sha256Test, AStreamInPiecesIsTheWhole) {
  const std::string text(100000, 'x');
  for (const std::size_t cut : {0u, 1u, 63u, 64u, 65u, 99999u}) {
    Sha256Stream stream;
    stream.update(bytes_of(std::string_view(text).substr(0, cut)));
    stream.update(bytes_of(std::string_view(text).substr(cut)));
    EXPECT_EQ(stream.finish(), sha256(text)) << cut;
  }
}

TEST(Sha256Test, AFileHasTheDigestOfItsBytes) {
  const test::TempDir dir;
  const std::string text((1 << 20) + 17, 'y');  // longer than one buffer
  ASSERT_TRUE(write_file_atomically(dir.path() / "file", text));
  EXPECT_EQ(sha256_file(dir.path() / "file").value(), sha256(text));
}

TEST(Sha256Test, AnAbsentFileIsNotFound) {
  const test::TempDir dir;
  const auto digest = sha256_file(dir.path() / "absent");
  ASSERT_FALSE(digest);
  EXPECT_EQ(digest.error().code, ErrorCode::kNotFound);
  EXPECT_THAT(digest.error().message, testing::HasSubstr("absent"));
}

TEST(Sha256Test, WhatCannotBeReadIsUnavailableAndNotAbsent) {
  const test::TempDir dir;
  const auto of_directory = sha256_file(dir.path());
  ASSERT_FALSE(of_directory);
  EXPECT_EQ(of_directory.error().code, ErrorCode::kUnavailable);
  if (::geteuid() == 0) return;  // root may read what nobody may
  ASSERT_TRUE(write_file_atomically(dir.path() / "closed", std::string_view("text")));
  std::filesystem::permissions(dir.path() / "closed", std::filesystem::perms::none);
  EXPECT_EQ(sha256_file(dir.path() / "closed").error().code, ErrorCode::kUnavailable);
}

// Source: RFC 3720, B.4, and the check value of the CRC catalogue.
TEST(Crc32cTest, HasTheKnownAnswers) {
  EXPECT_EQ(crc32c(bytes_of("123456789")), 0xe3069283u);
  EXPECT_EQ(crc32c({}), 0u);
  EXPECT_EQ(crc32c(std::vector<std::byte>(32)), 0x8a9136aau);
  EXPECT_EQ(crc32c(std::vector<std::byte>(32, std::byte{0xff})), 0x62a8ab43u);
}

TEST(Crc32c, IsTheSameWithAndWithoutTheInstruction) {
  std::vector<std::byte> bytes(257);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i * 131 + 7);
  const std::span<const std::byte> all(bytes);
  for (std::size_t from = 0; from < 9; ++from)
    for (std::size_t count = 0; from + count <= all.size(); ++count)
      ASSERT_EQ(crc32c(all.subspan(from, count)), crc32c_portable(all.subspan(from, count)));
}

// Source: tests/sanity_test_vectors.h of Cyan4973/xxHash, XSUM_XXH3_testdata.
TEST(Xxh3Test, HasTheKnownAnswers) {
  constexpr std::uint64_t kSeed = 0x9E3779B185EBCA8Dull;
  EXPECT_EQ(xxh3_64({}), 0x2D06800538D394C2ull);
  EXPECT_EQ(xxh3_64({}, kSeed), 0xA8A6B918B2F0364Aull);
  EXPECT_EQ(xxh3_64(xxhash_sanity_input(1)), 0xC44BDFF4074EECDBull);
  EXPECT_EQ(xxh3_64(xxhash_sanity_input(6)), 0x27B56A84CD2D7325ull);
  EXPECT_EQ(xxh3_64(xxhash_sanity_input(12)), 0xA713DAF0DFBB77E7ull);
  EXPECT_EQ(xxh3_64(xxhash_sanity_input(24)), 0xA3FE70BF9D3510EBull);
  EXPECT_EQ(xxh3_64(xxhash_sanity_input(48)), 0x397DA259ECBA1F11ull);
  EXPECT_EQ(xxh3_64(xxhash_sanity_input(80)), 0xBCDEFBBB2C47C90Aull);
  EXPECT_EQ(xxh3_64(xxhash_sanity_input(195)), 0xCD94217EE362EC3Aull);
  EXPECT_EQ(xxh3_64(xxhash_sanity_input(403)), 0xCDEB804D65C6DEA4ull);
  EXPECT_EQ(xxh3_64(xxhash_sanity_input(2367)), 0xCB37AEB9E5D361EDull);
}

}  // namespace
}  // namespace saesweep
