#include "worker/activations/cached_stream.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "tests/worker/activations/synthetic_stream.h"

namespace saesweep::worker {
namespace {

using test::rows_of_pass;
using test::stream_spec;
using test::SyntheticDocuments;
using test::SyntheticHarvester;
using test::value_of;
using testing::HasSubstr;

constexpr std::int64_t kWidth = 512;  // 16 rows of fp32: 32 KiB a document, 32 documents a chunk
const auto kDocuments = std::make_shared<const SyntheticDocuments>(200, 16, 0.1);

std::unique_ptr<CachedStream> open(const sweeps::StreamSpec& spec, FetchChunk fetch = {},
                                   StreamEvents events = {}, std::int64_t width = kWidth) {
  return CachedStream::open(spec,
                            std::make_unique<SyntheticHarvester>(kDocuments, width, spec.dtype),
                            std::move(fetch), std::move(events))
      .value();
}

std::vector<float> read(CachedStream& stream, std::uint64_t first, std::uint64_t count) {
  std::vector<float> rows(count * static_cast<std::size_t>(stream.d_in()));
  const auto done = stream.read(first, count, rows.data());
  EXPECT_TRUE(done) << (done ? "" : done.error().message);
  return rows;
}

// What the plan says row r of the endless stream is.
std::vector<float> expected_rows(const CachedStream& stream, std::uint64_t first,
                                 std::uint64_t count, DType dtype) {
  std::map<std::uint64_t, std::vector<test::RowName>> passes;
  std::vector<float> values;
  for (std::uint64_t r = first; r < first + count; ++r) {
    const std::uint64_t pass = r / stream.rows_per_pass();
    auto& rows = passes[pass];
    if (rows.empty()) rows = rows_of_pass(stream.plan(), *kDocuments, pass);
    for (std::size_t j = 0; j < static_cast<std::size_t>(stream.d_in()); ++j) {
      const float value = value_of(rows[r % stream.rows_per_pass()], j);
      values.push_back(dtype == DType::kFloat32 ? value : from_bf16(to_bf16(value)));
    }
  }
  return values;
}

TEST(CachedStream, ReadsTheRowsOfThePlanInBothDtypesAndAllGroupSizes) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16})
    for (const std::uint64_t group : {0, 1, 100, 256, 5000}) {
      const auto stream = open(stream_spec(1100, group, dtype));
      EXPECT_EQ(stream->rows_per_pass(), 1100u);
      EXPECT_EQ(stream->norm_factor(), 1);
      const std::uint64_t count = group == 1 ? 20 : 1500;
      EXPECT_EQ(read(*stream, 0, count), expected_rows(*stream, 0, count, dtype)) << group;
    }
}

TEST(CachedStream, OneReadAcrossGroupsAndPassesEqualsReadsRowByRow) {
  const auto spec = stream_spec(300, 128);
  const auto at_once = open(spec), by_row = open(spec), backwards = open(spec);
  const std::uint64_t first = 250, count = 400;  // pass 0 to pass 2, seven groups
  const auto rows = read(*at_once, first, count);
  std::vector<float> single, reversed(rows.size());
  for (std::uint64_t i = 0; i < count; ++i) {
    const auto row = read(*by_row, first + i, 1);
    single.insert(single.end(), row.begin(), row.end());
  }
  EXPECT_EQ(rows, single);
  // Any order of reading gives the same rows.
  for (std::uint64_t end = count; end > 0; end -= 100) {
    const auto part = read(*backwards, first + end - 100, 100);
    std::copy(part.begin(), part.end(),
              reversed.begin() + static_cast<std::ptrdiff_t>((end - 100) * kWidth));
  }
  EXPECT_EQ(rows, reversed);
  EXPECT_TRUE(read(*at_once, 17, 0).empty());
}

// ---- caches -------------------------------------------------------------------------------------

// A cache that forgets, damages, refuses and shortens at random, but never says a wrong byte is
// right: what it hands out is a whole chunk or it harvests.
struct MoodyCache {
  std::map<std::uint32_t, std::vector<std::byte>> chunks = {};
  Rng rng{4, "test.moods"};
  int hits = 0, missing = 0, corrupt = 0, full = 0, short_ones = 0;

  FetchChunk fetch() {
    return [this](std::uint32_t index, std::span<std::byte> out, const HarvestChunk& harvest,
                  Duration) -> Result<std::uint32_t> {
      const auto row_bytes = static_cast<std::size_t>(kWidth) * 4;
      const auto found = chunks.find(index);
      const std::uint32_t mood = rng.below(8);
      if (found != chunks.end() && mood > 1) {
        std::memcpy(out.data(), found->second.data(), found->second.size());
        if (mood == 7) {
          ++short_ones;
          return std::uint32_t{0};
        }
        ++hits;
        return static_cast<std::uint32_t>(found->second.size() / row_bytes);
      }
      ++(found == chunks.end() ? missing : corrupt);
      // What a damaged chunk left in the buffer must not shine through.
      std::fill(out.begin(), out.end(), std::byte{0xff});
      SAE_TRY(const std::uint32_t rows, harvest(out, {}));
      if (rng.below(4) == 0)
        ++full;
      else
        chunks[index].assign(out.begin(), out.begin() + rows * row_bytes);
      return rows;
    };
  }
};

TEST(CachedStream, RowsAreTheSameWithWhateverTheCacheAnswers) {
  const auto spec = stream_spec(1100, 300);
  const auto plain = open(spec);
  const auto expected = read(*plain, 0, 12 * 1100);
  MoodyCache cache;
  const auto cached = open(spec, cache.fetch());
  EXPECT_EQ(read(*cached, 0, 12 * 1100), expected);
  for (const int times : {cache.hits, cache.missing, cache.corrupt, cache.full, cache.short_ones})
    EXPECT_GT(times, 2) << "every mood should be seen";
}

TEST(CachedStream, WithoutACacheEveryPassHarvestsOnceAndWithOneTheFirst) {
  const auto spec = stream_spec(1100, 300);
  std::uint64_t harvested = 0;
  StreamEvents events;
  events.harvested = [&](std::uint64_t rows) { harvested += rows; };
  for (const bool ahead : {false, true}) {
    harvested = 0;
    const auto plain = open(spec, {}, events);
    if (ahead) plain->bring_ahead(1100);
    std::uint64_t all = 0;
    for (std::uint32_t chunk = 0; chunk < plain->plan().chunks(); ++chunk)
      all += test::rows_of_chunk(plain->plan(), *kDocuments, chunk).size();
    (void)read(*plain, 0, 1100);
    EXPECT_EQ(harvested, all) << "a chunk that two groups share too";
    (void)read(*plain, 1100, 1100);
    EXPECT_GE(harvested, 2200u);
  }

  harvested = 0;
  std::map<std::uint32_t, std::pair<std::uint32_t, std::vector<std::byte>>> chunks;
  const auto cached = open(
      spec,
      [&](std::uint32_t index, std::span<std::byte> out, const auto& harvest,
          Duration) -> Result<std::uint32_t> {
        auto& [rows, bytes] = chunks[index];
        if (bytes.empty()) {
          SAE_TRY(rows, harvest(out, {}));
          bytes.assign(out.begin(), out.end());
        }
        std::copy(bytes.begin(), bytes.end(), out.begin());
        return rows;
      },
      events);
  (void)read(*cached, 0, 2200);
  EXPECT_GE(harvested, 1100u);
  EXPECT_LE(harvested, 1100u + 32 * 16) << "the last chunk is harvested whole";
}

TEST(CachedStream, AChunkHasTheSameBytesForStreamsOfAnyLength) {
  MoodyCache cache;
  const auto longer = open(stream_spec(1100), cache.fetch());
  (void)read(*longer, 0, 1100);
  const auto shorter_spec = stream_spec(500);
  const auto plain = open(shorter_spec), sharing = open(shorter_spec, cache.fetch());
  EXPECT_EQ(read(*sharing, 0, 1000), read(*plain, 0, 1000));
}

// ---- normalisation ------------------------------------------------------------------------------

TEST(CachedStream, TheFactorIsWhatTheRowsSayAndMultipliesThem) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    auto spec = stream_spec(900, 200, dtype);
    const auto raw_stream = open(spec);
    const auto raw = read(*raw_stream, 0, 1800);
    double squares = 0, norms = 0;
    for (std::size_t row = 0; row < 900; ++row) {
      double square = 0;
      for (std::size_t j = 0; j < kWidth; ++j) square += std::pow(double{raw[row * kWidth + j]}, 2);
      squares += square;
      norms += std::sqrt(square);
    }
    const auto check = [&](sweeps::Normalize rule, double expected) {
      spec.normalize = rule;
      const auto stream = open(spec);
      EXPECT_NEAR(stream->norm_factor() / expected, 1, 1e-12);
      const auto rows = read(*stream, 0, 1800);
      for (std::size_t i = 0; i < rows.size(); i += 97)
        ASSERT_EQ(rows[i], raw[i] * static_cast<float>(stream->norm_factor()));
      // Whatever the cache does.
      MoodyCache cache;
      if (dtype == DType::kFloat32) {
        EXPECT_EQ(open(spec, cache.fetch())->norm_factor(), stream->norm_factor());
      }
    };
    check(sweeps::Normalize::kUnitMeanSquare, 1 / std::sqrt(squares / 900));
    check(sweeps::Normalize::kSqrtD, std::sqrt(double{kWidth}) / (norms / 900));
  }
}

TEST(CachedStream, TheFactorIsMeasuredOnTheFirst262144RowsOfTheFirstPass) {
  const auto documents = std::make_shared<const SyntheticDocuments>(300, 1024, 0, false);
  auto spec = stream_spec(300'000);
  const auto open_narrow = [&] {
    return CachedStream::open(spec, std::make_unique<SyntheticHarvester>(documents, 1, spec.dtype))
        .value();
  };
  const auto raw_stream = open_narrow();
  const auto raw = read(*raw_stream, 0, 300'000);
  double squares = 0;
  for (std::size_t i = 0; i < 262'144; ++i) squares += double{raw[i]} * raw[i];
  spec.normalize = sweeps::Normalize::kUnitMeanSquare;
  EXPECT_NEAR(open_narrow()->norm_factor() * std::sqrt(squares / 262'144), 1, 1e-12);
}

class ConstantHarvester final : public Harvester {
 public:
  explicit ConstantHarvester(float value) : value_(value) {}
  std::int64_t d_in() const override { return kWidth; }
  const Documents& documents() const override { return *kDocuments; }
  Result<std::uint32_t> harvest(const ChunkPlan& plan, std::uint32_t chunk,
                                std::span<std::byte> out, std::span<ChunkOrder>) override {
    const std::size_t rows = test::rows_of_chunk(plan, *kDocuments, chunk).size();
    for (std::size_t i = 0; i < rows * kWidth; ++i)
      std::memcpy(out.data() + 4 * i, &value_, sizeof(value_));
    return static_cast<std::uint32_t>(rows);
  }

 private:
  float value_;
};

TEST(CachedStream, RowsThatHaveNoSizeCannotBeNormalised) {
  auto spec = stream_spec(100);
  spec.normalize = sweeps::Normalize::kSqrtD;
  for (const float value : {0.0F, std::nanf("")}) {
    const auto opened = CachedStream::open(spec, std::make_unique<ConstantHarvester>(value));
    ASSERT_FALSE(opened);
    EXPECT_EQ(opened.error().code, ErrorCode::kInvalidArgument);
    EXPECT_THAT(opened.error().message, HasSubstr("activations.normalize"));
  }
}

// ---- being stopped, failing ---------------------------------------------------------------------

TEST(CachedStream, StopsBetweenChunksAndGoesOnWhenAskedAgain) {
  bool stop = false, resumed = false;
  std::uint64_t loaded = 0, total = 0;
  StreamEvents events;
  events.stop = [&] { return stop; };
  events.loading = [&](std::uint64_t done, std::uint64_t of) {
    EXPECT_GT(done, loaded);
    loaded = done;
    total = of;
    if (done > 300 && !resumed) stop = true;
  };
  const auto spec = stream_spec(1100, 1000);
  const auto stream = open(spec, {}, events), plain = open(spec);
  std::vector<float> rows(10 * kWidth);
  const auto stopped = stream->read(0, 10, rows.data());
  ASSERT_FALSE(stopped);
  EXPECT_EQ(stopped.error().code, ErrorCode::kUnavailable);
  EXPECT_LT(loaded, 1000u);
  EXPECT_EQ(total, 1000u);

  // What had been read is kept.
  loaded = 0;
  stop = false;
  resumed = true;
  EXPECT_EQ(read(*stream, 0, 50), read(*plain, 0, 50));
  EXPECT_EQ(loaded, 1000u);
}

// Two executors that read the same chunks in the same order: while one is harvested by the other,
// the next is harvested here.
TEST(CachedStream, ChunksThatSomebodyElseHarvestsAreLeftForLater) {
  const auto spec = stream_spec(1100, 0);
  const auto expected = read(*open(spec), 0, 2200);
  for (const std::uint32_t busy : {1u, 3u, 100u}) {
    std::vector<std::uint32_t> came, waited_for;
    std::uint32_t left = 0;
    const auto stream = open(spec,
                             [&](std::uint32_t index, std::span<std::byte> out, const auto& harvest,
                                 Duration most) -> Result<std::optional<std::uint32_t>> {
                               // The first few times that it is asked, each is somebody else's.
                               if (most == Duration::zero() && left++ < busy) return std::nullopt;
                               (most > Duration::zero() ? waited_for : came).push_back(index);
                               SAE_TRY(const std::uint32_t rows, harvest(out, {}));
                               return rows;
                             });
    EXPECT_EQ(read(*stream, 0, 2200), expected) << busy;
    const auto pieces = stream->plan().pieces_of_group(0, 0);
    ASSERT_GE(pieces.size(), 5u);
    if (busy == 100) {
      ASSERT_FALSE(waited_for.empty());
      EXPECT_EQ(waited_for[0], pieces[0].chunk) << "the first, when all that follow are busy";
    } else {
      EXPECT_TRUE(waited_for.empty());
      EXPECT_EQ(came[0], pieces[busy].chunk);
      EXPECT_EQ(came[1], pieces[0].chunk);
    }
  }
}

TEST(CachedStream, AFailedHarvestIsItsErrorAndTheNextReadTriesAgain) {
  bool broken = true;
  const auto spec = stream_spec(1100, 300);
  const auto stream = open(spec,
                           [&](std::uint32_t, std::span<std::byte> out, const auto& harvest,
                               Duration) -> Result<std::uint32_t> {
                             if (broken)
                               return fail(ErrorCode::kResourceExhausted, "no memory for this");
                             return harvest(out, {});
                           });
  std::vector<float> rows(kWidth);
  const auto failed = stream->read(0, 1, rows.data());
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().code, ErrorCode::kResourceExhausted);
  EXPECT_EQ(failed.error().message, "no memory for this");
  broken = false;
  EXPECT_EQ(read(*stream, 0, 400), read(*open(spec), 0, 400));
}

// ---- ahead of who reads -------------------------------------------------------------------------

// Answers from a map that it fills, and says which thread asked for what.
struct ThreadedCache {
  std::mutex mutex = {};
  std::condition_variable changed = {};
  std::map<std::uint32_t, std::pair<std::uint32_t, std::vector<std::byte>>> chunks = {};
  std::vector<std::thread::id> asked_by = {};
  int broken = 0;  // so many answers of other threads are errors
  const std::thread::id reader = std::this_thread::get_id();

  FetchChunk fetch() {
    return [this](std::uint32_t index, std::span<std::byte> out, const auto& harvest,
                  Duration) -> Result<std::uint32_t> {
      const std::lock_guard lock(mutex);
      asked_by.push_back(std::this_thread::get_id());
      changed.notify_all();
      if (asked_by.back() != reader && broken > 0) {
        --broken;
        return fail(ErrorCode::kResourceExhausted, "not now");
      }
      auto& [rows, bytes] = chunks[index];
      if (bytes.empty()) {
        SAE_TRY(rows, harvest(out, {}));
        bytes.assign(out.begin(), out.end());
      }
      std::copy(bytes.begin(), bytes.end(), out.begin());
      return rows;
    };
  }
  std::size_t by_others() {
    const std::lock_guard lock(mutex);
    return static_cast<std::size_t>(
        std::ranges::count_if(asked_by, [&](auto id) { return id != reader; }));
  }
  // False if another thread has not asked so often within a minute.
  bool wait_for_others(std::size_t times) {
    std::unique_lock lock(mutex);
    return changed.wait_for(lock, std::chrono::minutes(1), [&] {
      return static_cast<std::size_t>(
                 std::ranges::count_if(asked_by, [&](auto id) { return id != reader; })) >= times;
    });
  }
};

TEST(CachedStream, TheNextGroupIsBroughtBesideTheOneThatIsRead) {
  const auto spec = stream_spec(1100, 300);
  std::uint64_t harvested = 0, of_plain = 0;
  StreamEvents events, plain_events;
  const std::thread::id reader = std::this_thread::get_id();
  events.harvested = [&](std::uint64_t rows) {
    EXPECT_EQ(std::this_thread::get_id(), reader);
    harvested += rows;
  };
  plain_events.harvested = [&](std::uint64_t rows) { of_plain += rows; };
  ThreadedCache cache, plain_cache;
  const auto stream = open(spec, cache.fetch(), events);
  stream->bring_ahead(3300);
  const auto plain = open(spec, plain_cache.fetch(), plain_events);
  EXPECT_EQ(read(*stream, 0, 10), read(*plain, 0, 10));
  const auto before = stream->plan().pieces_of_group(0, 0);
  const auto next = stream->plan().pieces_of_group(0, 1);
  // A chunk of both groups is there already.
  const std::size_t asked = next.size() - (next.front().chunk == before.back().chunk ? 1 : 0);
  ASSERT_GT(asked, 0u);
  ASSERT_TRUE(cache.wait_for_others(asked)) << "while nobody reads";
  // Odd amounts, so that reads straddle groups and passes.
  for (std::uint64_t first = 10; first < 3300; first += 47) {
    const std::uint64_t count = std::min<std::uint64_t>(47, 3300 - first);
    ASSERT_EQ(read(*stream, first, count), read(*plain, first, count)) << first;
  }
  EXPECT_EQ(harvested, of_plain);
  // Back to the beginning, as a newcomer would.
  EXPECT_EQ(read(*stream, 0, 400), read(*plain, 0, 400));
}

TEST(CachedStream, NothingIsBroughtThatNobodyWillRead) {
  ThreadedCache cache;
  const auto stream = open(stream_spec(1100, 300), cache.fetch());
  stream->bring_ahead(300);
  (void)read(*stream, 0, 300);
  EXPECT_EQ(cache.by_others(), 0u);
  stream->bring_ahead(301);
  (void)read(*stream, 0, 300);
  EXPECT_TRUE(cache.wait_for_others(1));
  (void)read(*stream, 300, 1);
  // Of a stream that is one group there is nothing to bring.
  ThreadedCache whole;
  const auto one_group = open(stream_spec(1100), whole.fetch());
  one_group->bring_ahead(10'000);
  (void)read(*one_group, 0, 3000);
  EXPECT_EQ(whole.by_others(), 0u);
}

TEST(CachedStream, WhatCouldNotBeBroughtAheadTheReaderBrings) {
  const auto spec = stream_spec(1100, 300);
  ThreadedCache cache;
  cache.broken = 3;
  const auto stream = open(spec, cache.fetch()), plain = open(spec);
  stream->bring_ahead(2200);
  for (std::uint64_t first = 0; first < 2200; first += 100) {
    ASSERT_EQ(read(*stream, first, 100), read(*plain, first, 100)) << first;
    if (first == 0) {
      ASSERT_TRUE(cache.wait_for_others(1));
    }
  }
  EXPECT_LT(cache.broken, 3);
}

TEST(CachedStream, MayEndWhileItIsAhead) {
  for (int i = 0; i < 20; ++i) {
    ThreadedCache cache;
    const auto stream = open(stream_spec(1100, 300), cache.fetch());
    stream->bring_ahead(100'000);
    (void)read(*stream, 0, 1);
  }
}

TEST(CachedStream, AStreamOfOneGroupIsBroughtOnceHoweverOftenItIsRead) {
  for (const auto shuffle :
       {sweeps::Shuffle::kFull, sweeps::Shuffle::kWindow, sweeps::Shuffle::kNone}) {
    auto spec = stream_spec(1100);
    spec.shuffle = shuffle;
    std::uint64_t harvested = 0;
    StreamEvents events;
    events.harvested = [&](std::uint64_t rows) { harvested += rows; };
    const auto stream = open(spec, {}, events);
    EXPECT_EQ(read(*stream, 0, 3300), expected_rows(*stream, 0, 3300, DType::kFloat32));
    EXPECT_EQ(read(*stream, 500, 900), expected_rows(*stream, 500, 900, DType::kFloat32));
    EXPECT_LE(harvested, 1100u + 32 * 16) << "the last chunk is harvested whole";
    // Whoever begins in a later pass reads the same.
    const auto later = open(spec);
    EXPECT_EQ(read(*later, 2000, 1300), read(*stream, 2000, 1300));
    EXPECT_EQ(read(*later, 100, 50), read(*stream, 100, 50));
  }
}

TEST(CachedStream, AStreamLongerThanItsDataIsRefused) {
  const auto opened =
      CachedStream::open(stream_spec(kDocuments->training_rows() + 1),
                         std::make_unique<SyntheticHarvester>(kDocuments, kWidth, DType::kFloat32));
  ASSERT_FALSE(opened);
  EXPECT_THAT(opened.error().message, HasSubstr("activations.tokens"));
}

}  // namespace
}  // namespace saesweep::worker
