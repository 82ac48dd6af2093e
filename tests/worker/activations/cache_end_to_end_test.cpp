// The whole way of a chunk in one process: model, harvest, client, shared memory, service, RocksDB,
// and back into the stream. Whatever the disk does, the rows are those of a stream without a cache.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/digest.h"
#include "core/json.h"
#include "storage/activation_cache.h"
#include "tests/support/temp_dir.h"
#include "tests/worker/small_model.h"
#include "worker/activations/cached_stream.h"
#include "worker/activations/chunk_client.h"
#include "worker/agent/chunk_service.h"

namespace saesweep::worker {
namespace {

using agent::ChunkService;
using storage::ActivationCache;

constexpr std::uint64_t kPlenty = std::uint64_t{1} << 30;

TransformerConfig wide_config() {
  TransformerConfig config = test::small_config();
  config.layers = 1;
  config.d_model = 256;  // 11 rows of fp32 are 11 KiB: 64 documents and about 700 KiB a chunk
  config.d_mlp = 32;
  return config;
}

struct CacheEndToEnd : testing::Test {
  ::saesweep::test::TempDir dir;
  std::filesystem::path folder = dir.path() / "cache";
  ThreadPool pool{1};
  std::shared_ptr<const Transformer> model =
      std::make_shared<const Transformer>(test::lively_model(wide_config()));
  std::shared_ptr<const TokenDocuments> games = test::small_games(600);
  sweeps::StreamSpec spec = [] {
    sweeps::StreamSpec stream;
    stream.hook = "blocks.0.hook_resid_post";
    stream.tokens = 5000;
    stream.dtype = DType::kFloat32;
    stream.shuffle_rows = 2000;
    return stream;
  }();
  std::uint64_t harvested = 0;

  ActivationCache open_cache() const {
    return ActivationCache::open(folder, ActivationCache::kUnlimited, {.min_free_bytes = 0})
        .value();
  }
  std::unique_ptr<CachedStream> open_stream(FetchChunk fetch = {}) {
    StreamEvents events;
    events.harvested = [this](std::uint64_t rows) { harvested += rows; };
    return CachedStream::open(spec, make_harvester(spec, model, games, pool).value(),
                              std::move(fetch), std::move(events))
        .value();
  }
  // As an executor fetches: through a client of its own connection.
  FetchChunk fetch_from(ChunkService& service, agent::ConnectionId id,
                        std::uint64_t cache_bytes = kPlenty) const {
    const auto client = std::make_shared<std::optional<ChunkClient>>();
    const std::string name = sha256(canonical_json(spec.cache_json())).hex();
    return [this, &service, id, cache_bytes, client, name](
               std::uint32_t index, std::span<std::byte> out, const HarvestChunk& harvest,
               Duration most) -> Result<std::optional<std::uint32_t>> {
      const std::size_t row_bytes = 256 * size_of(spec.dtype);
      if (!*client) {
        protocol::ChunkOpen request;
        request.set_stream(name);
        request.set_cache_bytes(cache_bytes);
        request.set_rows_per_chunk(static_cast<std::uint32_t>(out.size() / row_bytes));
        request.set_d_in(256);
        request.set_dtype(static_cast<std::uint32_t>(spec.dtype));
        auto opened = service.open(id, request);
        SAE_TRY(*client, ChunkClient::open(name, opened.message, opened.memory.get(), row_bytes,
                                           [&service, id](const protocol::ChunkRequest& asked)
                                               -> Result<protocol::ChunkReply> {
                                             return service.handle(id, asked, TimePoint{});
                                           }));
      }
      if (most != kPatiently) return (*client)->fetch_within(most, index, out, harvest);
      return (*client)->fetch(index, out, harvest);
    };
  }
  std::vector<float> read(CachedStream& stream, std::uint64_t count) {
    std::vector<float> rows(count * 256);
    const auto done = stream.read(0, count, rows.data());
    EXPECT_TRUE(done) << (done ? "" : done.error().message);
    return rows;
  }
  // EXPECT_EQ would print millions of floats.
  void expect_same(const std::vector<float>& a, const std::vector<float>& b) {
    ASSERT_EQ(a.size(), b.size());
    EXPECT_EQ(std::memcmp(a.data(), b.data(), a.size() * sizeof(float)), 0);
  }
  std::vector<float> without_cache(std::uint64_t count) {
    auto rows = read(*open_stream(), count);
    harvested = 0;
    return rows;
  }
};

TEST_F(CacheEndToEnd, LaterPassesAndLaterRunsReadWhatTheFirstHarvested) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    spec.dtype = dtype;
    const auto expected = without_cache(15'000);
    {
      auto cache = open_cache();
      ChunkService service(&cache);
      const auto stream = open_stream(fetch_from(service, 1));
      ASSERT_GE(stream->plan().chunks(), 4u);
      expect_same(read(*stream, 15'000), expected);
      EXPECT_GE(harvested, 5000u);
      EXPECT_LT(harvested, 7000u) << "each chunk once";
      EXPECT_EQ(service.counters().misses, stream->plan().chunks());
      EXPECT_GT(service.counters().hits, 5u);
    }
    harvested = 0;
    auto cache = open_cache();
    ChunkService service(&cache);
    expect_same(read(*open_stream(fetch_from(service, 1)), 15'000), expected);
    EXPECT_EQ(harvested, 0u);
  }
}

TEST_F(CacheEndToEnd, TwoExecutorsShareWhatEitherHarvested) {
  const auto expected = without_cache(5000);
  auto cache = open_cache();
  ChunkService service(&cache);
  const auto a = open_stream(fetch_from(service, 1)), b = open_stream(fetch_from(service, 2));
  std::vector<float> from_a(5000 * 256), from_b(5000 * 256);
  for (std::uint64_t first = 0; first < 5000; first += 1000) {
    ASSERT_TRUE(a->read(first, 1000, from_a.data() + first * 256));
    ASSERT_TRUE(b->read(first, 1000, from_b.data() + first * 256));
  }
  expect_same(from_a, expected);
  expect_same(from_b, expected);
  EXPECT_LT(harvested, 7000u) << "each chunk once, by one of them";
  service.close(1);
  expect_same(read(*b, 5000), expected);
}

// Flips a bit in the middle of every table file; returns how many.
int damage(const std::filesystem::path& folder) {
  int damaged = 0;
  for (const auto& file : std::filesystem::directory_iterator(folder)) {
    if (file.path().extension() != ".sst" || file.file_size() < 100'000) continue;
    std::fstream stream(file.path(), std::ios::in | std::ios::out | std::ios::binary);
    const auto middle = static_cast<std::streamoff>(file.file_size() / 2);
    stream.seekg(middle);
    const char old = static_cast<char>(stream.get());
    stream.seekp(middle);
    stream.put(static_cast<char>(old ^ 16));
    ++damaged;
  }
  return damaged;
}

TEST_F(CacheEndToEnd, AFlippedBitIsFoundAndTheChunkHarvestedAgainWithTheSameBytes) {
  const auto expected = without_cache(5000);
  {
    auto cache = open_cache();
    ChunkService service(&cache);
    expect_same(read(*open_stream(fetch_from(service, 1)), 5000), expected);
  }
  ASSERT_GE(damage(folder), 1);
  {
    auto cache = open_cache();
    ChunkService service(&cache);
    harvested = 0;
    expect_same(read(*open_stream(fetch_from(service, 1)), 5000), expected);
    EXPECT_GE(service.counters().corrupt, 1u);
    EXPECT_GT(service.counters().hits, 0u) << "the other chunks are used";
    EXPECT_GT(harvested, 0u);
    EXPECT_LT(harvested, 5000u);
  }
  // The damage was repaired on disk.
  harvested = 0;
  auto cache = open_cache();
  ChunkService service(&cache);
  expect_same(read(*open_stream(fetch_from(service, 1)), 5000), expected);
  EXPECT_EQ(service.counters().corrupt, 0u);
  EXPECT_EQ(harvested, 0u);
}

TEST_F(CacheEndToEnd, ABudgetBelowTheStreamKeepsWhatFitsAndRecomputesTheRest) {
  const auto expected = without_cache(15'000);
  auto cache = open_cache();
  ChunkService service(&cache);
  const std::uint64_t budget = 2'500'000;  // of about 5.4 MB
  const auto stream = open_stream(fetch_from(service, 1, budget));
  expect_same(read(*stream, 15'000), expected);
  EXPECT_GT(service.counters().refused_writes, 0u);
  EXPECT_GT(service.counters().hits, 3u);
  EXPECT_LE(service.counters().bytes, budget);
  EXPECT_GT(service.counters().bytes, budget / 2);
  EXPECT_GT(harvested, 10'000u) << "passes two and three compute a part anew";
}

TEST_F(CacheEndToEnd, ACacheThatVanishesUnderARunIsOnlySlower) {
  const auto expected = without_cache(10'000);
  ChunkService no_cache(nullptr);
  expect_same(read(*open_stream(fetch_from(no_cache, 1)), 10'000), expected);
  EXPECT_EQ(no_cache.counters().hits, 0u);
  EXPECT_EQ(no_cache.counters().bytes, 0u);
}

}  // namespace
}  // namespace saesweep::worker
