#include "storage/activation_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <fstream>
#include <thread>
#include <vector>

#include "core/philox.h"
#include "tests/storage/storage_words.h"
#include "tests/support/temp_dir.h"

namespace saesweep::storage {
namespace {

struct ActivationCacheTest : testing::Test {
  test::TempDir dir;
  CacheOptions options = kSmallBuffers;

  ActivationCache open(std::uint64_t budget = kPlenty) {
    return ActivationCache::open(dir.path() / "cache", budget, options).value();
  }
};

Result<Values> get(ActivationCache& cache, const ActivationCache::Pin& pin, std::uint32_t index) {
  Values out(kShape.bytes());
  SAE_TRY(const ChunkShape shape, cache.get(pin, index, out));
  out.resize(shape.bytes());
  return out;
}

ErrorCode code_of(const Result<Values>& result) {
  EXPECT_FALSE(result);
  return result ? ErrorCode::kDiverged : result.error().code;
}

Result<void> put(ActivationCache& cache, const ActivationCache::Pin& pin, std::uint32_t index) {
  return cache.put(pin, index, kShape, values_of(index));
}

TEST_F(ActivationCacheTest, EveryChunkComesBackAsItWasPut) {
  auto cache = open();
  const auto pin = cache.pin("stream").value();
  for (std::uint32_t i = 0; i < 60; ++i) ASSERT_TRUE(put(cache, pin, i * 7919 % 61));
  for (std::uint32_t i = 0; i < 60; ++i) {
    const std::uint32_t index = i * 7919 % 61;
    const auto found = get(cache, pin, index);
    ASSERT_TRUE(found) << found.error().message;
    EXPECT_EQ(*found, values_of(index));
  }
  EXPECT_EQ(cache.stats().hits, 60u);
}

TEST_F(ActivationCacheTest, ChunksOfAnyShapeAndDTypeComeBack) {
  auto cache = open();
  const auto pin = cache.pin("stream").value();
  const ChunkShape shapes[] = {
      {0, 512, DType::kBFloat16}, {1, 1, DType::kFloat32}, {3, 5, DType::kBFloat16}};
  for (std::uint32_t i = 0; i < 3; ++i) {
    Values out(shapes[i].bytes() + 1, std::byte{0x5a});
    ASSERT_TRUE(cache.put(pin, i, shapes[i], values_of(i, shapes[i])));
    ASSERT_EQ(cache.get(pin, i, out), shapes[i]);
    EXPECT_EQ(out.back(), std::byte{0x5a}) << "wrote beyond the chunk";
  }
}

TEST_F(ActivationCacheTest, AnAbsentChunkIsNotFound) {
  auto cache = open();
  const auto pin = cache.pin("stream").value();
  EXPECT_EQ(code_of(get(cache, pin, 0)), ErrorCode::kNotFound);
  ASSERT_TRUE(put(cache, pin, 0));
  EXPECT_EQ(code_of(get(cache, pin, 1)), ErrorCode::kNotFound);
  EXPECT_TRUE(cache.has(pin, 0));
  EXPECT_FALSE(cache.has(pin, 1));
  EXPECT_EQ(cache.stats().misses, 2u) << "who only asks whether it is there misses nothing";
}

TEST_F(ActivationCacheTest, SecondPutOfAnIndexKeepsTheFirstChunk) {
  auto cache = open();
  const auto pin = cache.pin("stream").value();
  ASSERT_TRUE(put(cache, pin, 3));
  ASSERT_TRUE(cache.put(pin, 3, kShape, values_of(4)));
  EXPECT_EQ(*get(cache, pin, 3), values_of(3));
  EXPECT_LT(cache.stats().bytes, 2 * kShape.bytes());
}

TEST_F(ActivationCacheTest, StreamsDoNotMix) {
  auto cache = open();
  const auto a = cache.pin("a").value(), b = cache.pin("b").value();
  ASSERT_TRUE(put(cache, a, 0));
  EXPECT_EQ(code_of(get(cache, b, 0)), ErrorCode::kNotFound);
}

TEST_F(ActivationCacheTest, ABufferThatIsTooSmallIsRefused) {
  auto cache = open();
  const auto pin = cache.pin("stream").value();
  ASSERT_TRUE(put(cache, pin, 0));
  Values small(kShape.bytes() - 1);
  EXPECT_EQ(cache.get(pin, 0, small).error().code, ErrorCode::kInvalidArgument);
}

TEST_F(ActivationCacheTest, NamesThatCannotBeStreamsAreRefused) {
  auto cache = open();
  for (const std::string& name : {std::string(), std::string("default"), std::string(129, 'a')}) {
    EXPECT_EQ(cache.pin(name).error().code, ErrorCode::kInvalidArgument) << name;
  }
}

TEST_F(ActivationCacheTest, ChunksSurviveClosing) {
  {
    auto cache = open();
    const auto pin = cache.pin("stream").value();
    for (std::uint32_t i = 0; i < 40; ++i) ASSERT_TRUE(put(cache, pin, i));
  }
  auto cache = open();
  EXPECT_GE(cache.stats().bytes, 40 * kShape.bytes());
  const auto pin = cache.pin("stream").value();
  for (std::uint32_t i = 0; i < 40; ++i) EXPECT_EQ(*get(cache, pin, i), values_of(i));
}

TEST_F(ActivationCacheTest, WorksWithoutDirectIo) {
  options.direct_io = false;
  auto cache = open();
  const auto pin = cache.pin("stream").value();
  ASSERT_TRUE(put(cache, pin, 0));
  ASSERT_TRUE(cache.flush());
  EXPECT_EQ(*get(cache, pin, 0), values_of(0));
}

// ---- eviction -----------------------------------------------------------------------------------

TEST_F(ActivationCacheTest, OverTheBudgetTheLeastRecentlyUsedStreamGoes) {
  auto cache = open(21 * kShape.bytes());
  for (const char* name : {"oldest", "older"}) {
    const auto pin = cache.pin(name).value();
    for (std::uint32_t i = 0; i < 10; ++i) ASSERT_TRUE(put(cache, pin, i));
  }
  (void)cache.pin("oldest").value();  // used again: now the younger of the two
  const auto pin = cache.pin("new").value();
  for (std::uint32_t i = 0; i < 10; ++i) ASSERT_TRUE(put(cache, pin, i));
  EXPECT_EQ(*get(cache, cache.pin("oldest").value(), 0), values_of(0));
  EXPECT_EQ(code_of(get(cache, cache.pin("older").value(), 0)), ErrorCode::kNotFound);
  EXPECT_LE(cache.stats().bytes, 21 * kShape.bytes());
  EXPECT_GE(cache.stats().evicted_bytes, 10 * kShape.bytes());
}

TEST_F(ActivationCacheTest, TheOrderOfUseSurvivesClosing) {
  {
    auto cache = open();
    for (const char* name : {"a", "b"}) ASSERT_TRUE(put(cache, cache.pin(name).value(), 0));
    (void)cache.pin("a").value();
  }
  auto cache = open(kShape.bytes() * 3 / 2);
  EXPECT_TRUE(get(cache, cache.pin("a").value(), 0));
  EXPECT_FALSE(get(cache, cache.pin("b").value(), 0));
}

TEST_F(ActivationCacheTest, APinnedStreamIsNeverEvicted) {
  auto cache = open(15 * kShape.bytes());
  const auto held = cache.pin("held").value();
  for (std::uint32_t i = 0; i < 10; ++i) ASSERT_TRUE(put(cache, held, i));
  const auto other = cache.pin("other").value();
  std::uint32_t stored = 0;
  for (std::uint32_t i = 0; i < 10; ++i) stored += put(cache, other, i) ? 1 : 0;
  EXPECT_EQ(stored, 4u);  // what is left of the budget
  for (std::uint32_t i = 0; i < 10; ++i) EXPECT_EQ(*get(cache, held, i), values_of(i));
  cache.set_budget(0);
  EXPECT_EQ(*get(cache, held, 9), values_of(9));
}

TEST_F(ActivationCacheTest, AStreamLargerThanTheBudgetKeepsWhatFits) {
  auto cache = open(8 * kShape.bytes());
  const auto pin = cache.pin("large").value();
  for (std::uint32_t i = 0; i < 20; ++i) {
    const auto result = put(cache, pin, i);
    EXPECT_EQ(result.has_value(), i < 7) << i;
    EXPECT_TRUE(result || result.error().code == ErrorCode::kResourceExhausted);
  }
  for (std::uint32_t i = 0; i < 20; ++i) EXPECT_EQ(get(cache, pin, i).has_value(), i < 7) << i;
  EXPECT_EQ(cache.stats().refused_puts, 13u);
}

TEST_F(ActivationCacheTest, APutThatCanNeverFitEvictsNobody) {
  auto cache = open(kShape.bytes() * 3 / 2);
  ASSERT_TRUE(put(cache, cache.pin("small").value(), 0));
  const ChunkShape large{.rows = 200, .d_in = 512, .dtype = DType::kBFloat16};
  EXPECT_EQ(cache.put(cache.pin("large").value(), 0, large, values_of(0, large)).error().code,
            ErrorCode::kResourceExhausted);
  EXPECT_TRUE(get(cache, cache.pin("small").value(), 0));
}

TEST_F(ActivationCacheTest, ABudgetOfZeroStoresNothing) {
  auto cache = open(0);
  const auto pin = cache.pin("stream").value();
  EXPECT_EQ(put(cache, pin, 0).error().code, ErrorCode::kResourceExhausted);
  EXPECT_EQ(cache.stats().bytes, 0u);
}

TEST_F(ActivationCacheTest, LoweringTheBudgetFreesTheDisk) {
  const auto on_disk = [&] {
    std::uint64_t bytes = 0;
    for (const auto& file : std::filesystem::directory_iterator(dir.path() / "cache")) {
      if (file.path().extension() == ".sst") bytes += file.file_size();
    }
    return bytes;
  };
  auto cache = open();
  for (const char* name : {"a", "b", "c"}) {
    const auto pin = cache.pin(name).value();
    for (std::uint32_t i = 0; i < 20; ++i) ASSERT_TRUE(put(cache, pin, i));
  }
  ASSERT_TRUE(cache.flush());
  EXPECT_GE(on_disk(), 60 * kShape.bytes());
  cache.set_budget(25 * kShape.bytes());
  EXPECT_LE(on_disk(), 25 * kShape.bytes());
  EXPECT_EQ(cache.stats().streams, 1u);
}

TEST_F(ActivationCacheTest, AnEvictedStreamCanBeFilledAgain) {
  auto cache = open();
  ASSERT_TRUE(put(cache, cache.pin("a").value(), 0));
  cache.set_budget(0);
  cache.set_budget(kPlenty);
  const auto pin = cache.pin("a").value();
  EXPECT_EQ(code_of(get(cache, pin, 0)), ErrorCode::kNotFound);
  ASSERT_TRUE(put(cache, pin, 0));
  EXPECT_EQ(*get(cache, pin, 0), values_of(0));
}

TEST_F(ActivationCacheTest, NearAFullDiskPutsAreRefused) {
  options.min_free_bytes = std::uint64_t{1} << 60;
  auto cache = open();
  EXPECT_EQ(put(cache, cache.pin("a").value(), 0).error().code, ErrorCode::kResourceExhausted);
  EXPECT_EQ(cache.stats().refused_puts, 1u);
}

TEST_F(ActivationCacheTest, NearAFullDiskUnpinnedStreamsAreEvicted) {
  {
    auto cache = open();
    ASSERT_TRUE(put(cache, cache.pin("old").value(), 0));
  }
  options.min_free_bytes = std::uint64_t{1} << 60;
  auto cache = open();
  EXPECT_FALSE(put(cache, cache.pin("new").value(), 0));
  EXPECT_FALSE(get(cache, cache.pin("old").value(), 0));
  EXPECT_GE(cache.stats().evicted_bytes, kShape.bytes());
}

// ---- many threads -------------------------------------------------------------------------------

TEST_F(ActivationCacheTest, ThreadsThatPutGetAndEvictSeeOnlyWholeChunks) {
  auto cache = open(40 * kShape.bytes());
  std::vector<std::jthread> threads;
  std::atomic<int> wrong{0}, whole{0};
  for (unsigned t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      Rng rng(t, "test.cache.threads");
      for (int round = 0; round < 60; ++round) {
        const auto pin = cache.pin(fmt::format("stream {}", rng.below(6))).value();
        for (int i = 0; i < 5; ++i) {
          const std::uint32_t index = rng.below(10);
          (void)put(cache, pin, index);
          const auto found = get(cache, pin, index);
          if (found && *found == values_of(index)) ++whole;
          if (found && *found != values_of(index)) ++wrong;
          if (!found && found.error().code != ErrorCode::kNotFound) ++wrong;
        }
      }
    });
  }
  threads.clear();
  EXPECT_EQ(wrong, 0);
  EXPECT_GT(whole, 0);
}

// ---- crashes, damage, other processes -----------------------------------------------------------

TEST_F(ActivationCacheTest, WhatReadsBackAfterAKillIsWhole) {
  for (unsigned round = 0; round < 5; ++round) {
    SCOPED_TRACE(round);
    Child child({"cache", (dir.path() / "cache").string(), std::to_string(1000 * round),
                 std::to_string(100 + 17 * round)});
    ASSERT_EQ(child.wait_for(1), 1u);
    child.kill();

    auto cache = open();
    const auto pin = cache.pin("stream").value();
    unsigned whole = 0;
    for (std::uint32_t i = 0; i < 5000; ++i) {
      const auto found = get(cache, pin, i);
      if (found) {
        ASSERT_EQ(*found, values_of(i));
        ++whole;
      } else {
        ASSERT_EQ(found.error().code, ErrorCode::kNotFound);
      }
    }
    EXPECT_GT(whole, 0u);  // at most four buffers of 16 chunks were still in memory
  }
}

// Flips a bit in the middle of every table file.
void damage_tables(const std::filesystem::path& directory) {
  for (const auto& file : std::filesystem::directory_iterator(directory)) {
    if (file.path().extension() != ".sst" || file.file_size() < kShape.bytes()) continue;
    std::fstream stream(file.path(), std::ios::in | std::ios::out | std::ios::binary);
    stream.seekg(1000);
    const char old = static_cast<char>(stream.get());
    stream.seekp(1000);
    stream.put(static_cast<char>(old ^ 4));
  }
}

TEST_F(ActivationCacheTest, ADamagedChunkIsCorruptedAndAPutReplacesIt) {
  {
    auto cache = open();
    ASSERT_TRUE(put(cache, cache.pin("stream").value(), 0));
  }
  damage_tables(dir.path() / "cache");
  auto cache = open();
  const auto pin = cache.pin("stream").value();
  EXPECT_EQ(code_of(get(cache, pin, 0)), ErrorCode::kCorrupted);
  EXPECT_EQ(cache.stats().corrupt, 1u);
  ASSERT_TRUE(put(cache, pin, 0));
  EXPECT_EQ(*get(cache, pin, 0), values_of(0));
  ASSERT_TRUE(cache.flush());
  EXPECT_EQ(*get(cache, pin, 0), values_of(0));
}

TEST_F(ActivationCacheTest, ACacheDamagedBeyondOpeningIsEmptied) {
  for (const std::string broken : {"MANIFEST", "CURRENT", ".sst"}) {
    SCOPED_TRACE(broken);
    {
      auto cache = open();
      ASSERT_TRUE(put(cache, cache.pin("stream").value(), 0));
    }
    for (const auto& file : std::filesystem::directory_iterator(dir.path() / "cache")) {
      const std::string name = file.path().filename().string();
      if (name.find(broken) == std::string::npos) continue;
      if (broken == ".sst") {
        std::filesystem::remove(file.path());
      } else {
        std::ofstream(file.path(), std::ios::binary | std::ios::trunc) << "not what it was";
      }
    }
    auto cache = open();
    const auto pin = cache.pin("stream").value();
    EXPECT_EQ(code_of(get(cache, pin, 0)), ErrorCode::kNotFound);
    ASSERT_TRUE(put(cache, pin, 0));
    EXPECT_EQ(*get(cache, pin, 0), values_of(0));
  }
}

TEST_F(ActivationCacheTest, ASecondOpenSaysWhoHoldsTheDirectory) {
  Child child({"hold-cache", (dir.path() / "cache").string()});
  ASSERT_EQ(child.wait_for(1), 1u);
  const auto second = ActivationCache::open(dir.path() / "cache", kPlenty);
  EXPECT_EQ(second.error().code, ErrorCode::kUnavailable);
  EXPECT_THAT(second.error().message,
              testing::HasSubstr(fmt::format("held by process {}", child.pid())));
  EXPECT_THAT(second.error().message, testing::HasSubstr((dir.path() / "cache").string()));
  child.kill();
  EXPECT_TRUE(ActivationCache::open(dir.path() / "cache", kPlenty));
}

TEST_F(ActivationCacheTest, AFullDiskRefusesPutsKeepsReadsWholeAndRecovers) {
  const SmallDisk disk(dir.path() / "disk", "size=12m");
  if (!disk.mounted) GTEST_SKIP() << "mounting a tmpfs is not permitted here";
  std::ofstream(disk.path / "ballast") << std::string(3 << 20, 'x');
  {
    auto cache = ActivationCache::open(disk.path / "cache", kPlenty, options).value();
    const auto pin = cache.pin("stream").value();
    std::uint32_t refused = 0;
    for (std::uint32_t i = 0; i < 400; ++i) {
      const auto result = put(cache, pin, i);
      if (result) continue;
      ASSERT_EQ(result.error().code, ErrorCode::kResourceExhausted) << result.error().message;
      ++refused;
    }
    EXPECT_GT(refused, 200u);
    EXPECT_EQ(cache.stats().refused_puts, refused);
    unsigned whole = 0;
    for (std::uint32_t i = 0; i < 400; ++i) {
      const auto found = get(cache, pin, i);
      if (found) {
        EXPECT_EQ(*found, values_of(i));
        ++whole;
      } else {
        EXPECT_EQ(found.error().code, ErrorCode::kNotFound) << found.error().message;
      }
    }
    EXPECT_GT(whole, 50u);
  }
  // RocksDB notices room only after some seconds; opening anew is sooner.
  std::filesystem::remove(disk.path / "ballast");
  auto cache = ActivationCache::open(disk.path / "cache", kPlenty, options).value();
  const auto pin = cache.pin("stream").value();
  EXPECT_EQ(*get(cache, pin, 0), values_of(0));
  EXPECT_TRUE(put(cache, pin, 1000));
  EXPECT_EQ(*get(cache, pin, 1000), values_of(1000));
}

TEST_F(ActivationCacheTest, AReadOnlyDiskSaysSo) {
  const SmallDisk disk(dir.path() / "disk", "size=12m");
  if (!disk.mounted) GTEST_SKIP() << "mounting a tmpfs is not permitted here";
  ASSERT_EQ(::mount("tmpfs", disk.path.c_str(), "tmpfs", MS_REMOUNT | MS_RDONLY, ""), 0);
  const auto cache = ActivationCache::open(disk.path / "cache", kPlenty);
  EXPECT_EQ(cache.error().code, ErrorCode::kUnavailable);
  EXPECT_THAT(cache.error().message, testing::HasSubstr("Read-only file system"));
}

}  // namespace
}  // namespace saesweep::storage
