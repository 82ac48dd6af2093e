// A cache with a bit flipped anywhere in its files: it may forget chunks or all of them, but what
// it hands out is what was put, and a put repairs it.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "core/files.h"
#include "core/philox.h"
#include "storage/activation_cache.h"
#include "tests/storage/storage_words.h"
#include "tests/support/temp_dir.h"

namespace saesweep::storage {
namespace {

namespace fs = std::filesystem;

constexpr std::uint32_t kChunks = 6;
constexpr ChunkShape kSmall{.rows = 16, .d_in = 128, .dtype = DType::kBFloat16};  // 4 KiB

struct CacheDamageTest : testing::Test {
  test::TempDir dir;
  fs::path folder = dir.path() / "cache";

  Result<ActivationCache> open() const {
    return ActivationCache::open(folder, kPlenty, kSmallBuffers);
  }
  std::vector<fs::path> files(const std::string& part) const {
    std::vector<fs::path> found;
    for (const auto& file : fs::directory_iterator(folder))
      if (file.path().filename().string().find(part) != std::string::npos && file.file_size() > 0)
        found.push_back(file.path());
    std::sort(found.begin(), found.end());
    return found;
  }
};

TEST_F(CacheDamageTest, WhateverBitFlipsNoWrongByteIsReadAndAPutRepairsIt) {
  {
    auto cache = open().value();
    const auto pin = cache.pin("stream").value();
    for (std::uint32_t i = 0; i < kChunks; ++i)
      ASSERT_TRUE(cache.put(pin, i, kSmall, values_of(i, kSmall)));
  }
  const fs::path whole = dir.path() / "whole";
  fs::copy(folder, whole, fs::copy_options::recursive);
  Rng rng(6, "test.damage");
  int absent = 0, corrupt = 0, right = 0;
  for (int round = 0; round < 45; ++round) {
    SCOPED_TRACE(round);
    fs::remove_all(folder);
    fs::copy(whole, folder, fs::copy_options::recursive);
    auto targets = files(round % 6 == 5 ? "MANIFEST" : ".sst");
    ASSERT_FALSE(targets.empty());
    std::sort(targets.begin(), targets.end(), [](const fs::path& a, const fs::path& b) {
      return fs::file_size(a) > fs::file_size(b);
    });
    const fs::path& target = targets[round % 4 == 0 ? targets.size() - 1 : 0];
    std::string bytes = read_file(target).value();
    // Values fill most of a table; what describes it lies at its end.
    const std::uint64_t last =
        round % 3 == 0 ? std::min<std::uint64_t>(bytes.size(), 1500) : bytes.size();
    bytes[bytes.size() - 1 - rng.below64(last)] ^= static_cast<char>(1 << rng.below(8));
    std::ofstream(target, std::ios::binary) << bytes;

    auto opened = open();
    ASSERT_TRUE(opened) << opened.error().message;
    ActivationCache& cache = *opened;
    const auto pin = cache.pin("stream").value();
    Values out(kSmall.bytes());
    for (std::uint32_t i = 0; i < kChunks; ++i) {
      const auto shape = cache.get(pin, i, out);
      if (shape) {
        ++right;
        ASSERT_EQ(*shape, kSmall);
        ASSERT_EQ(out, values_of(i, kSmall));
        continue;
      }
      ++(shape.error().code == ErrorCode::kNotFound ? absent : corrupt);
      ASSERT_TRUE(shape.error().code == ErrorCode::kNotFound ||
                  shape.error().code == ErrorCode::kCorrupted)
          << shape.error().message;
      ASSERT_TRUE(cache.put(pin, i, kSmall, values_of(i, kSmall)));
      ASSERT_TRUE(cache.get(pin, i, out));
      ASSERT_EQ(out, values_of(i, kSmall));
    }
  }
  EXPECT_GT(right, 80);
  EXPECT_GT(corrupt, 5);
  EXPECT_GT(absent, 5);
  EXPECT_EQ(right + absent + corrupt, 45 * static_cast<int>(kChunks));
}

}  // namespace
}  // namespace saesweep::storage
