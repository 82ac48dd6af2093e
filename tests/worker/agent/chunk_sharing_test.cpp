// Executors' clients and the agent's service together: who harvests what, and who reads it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>

#include "tests/support/temp_dir.h"
#include "tests/worker/agent/chunk_words.h"
#include "worker/activations/chunk_client.h"

namespace saesweep::agent {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;

// A service that several threads may talk to, as the agent's loop serialises them.
struct SharedService {
  explicit SharedService(storage::ActivationCache* cache, Duration term = 60s)
      : service(cache, term) {}

  worker::ChunkClient client(ConnectionId id, worker::ChunkClientOptions options = {},
                             std::uint64_t cache_bytes = kPlenty) {
    const std::lock_guard lock(mutex);
    auto opened = service.open(id, open_request("stream", cache_bytes));
    return worker::ChunkClient::open(
               "stream", opened.message, opened.memory.get(), kRowBytes,
               [this, id](const ChunkRequest& request) -> Result<ChunkReply> {
                 const std::lock_guard asking(mutex);
                 if (dead) return fail(ErrorCode::kUnavailable, "the agent is gone");
                 return service.handle(id, request, now);
               },
               std::move(options))
        .value();
  }

  std::mutex mutex;
  ChunkService service;
  TimePoint now = kStart;
  bool dead = false;
};

Result<std::uint32_t> harvest_into(std::span<std::byte> out, std::uint32_t index) {
  const auto values = values_of(index);
  std::memcpy(out.data(), values.data(), values.size());
  return rows_of(index);
}

const worker::HarvestChunk kNeverHarvest = [](std::span<std::byte>, std::span<worker::ChunkOrder>) {
  ADD_FAILURE() << "harvested";
  return Result<std::uint32_t>(0);
};

struct ChunkClientTest : testing::Test {
  test::TempDir dir;
  storage::ActivationCache cache = open_cache(dir.path() / "cache");
  SharedService shared{&cache};
  std::vector<std::byte> out{kChunkBytes};

  std::vector<std::byte> front(std::uint32_t rows) const {
    return {out.begin(), out.begin() + rows * kRowBytes};
  }
};

TEST_F(ChunkClientTest, AChunkIsHarvestedOnceAndThenRead) {
  auto client = shared.client(1);
  int harvests = 0;
  for (int pass = 0; pass < 3; ++pass) {
    for (std::uint32_t index = 0; index < 5; ++index) {
      std::fill(out.begin(), out.end(), std::byte{0});
      const auto rows = client.fetch(index, out, [&](std::span<std::byte> to, auto) {
        ++harvests;
        return harvest_into(to, index);
      });
      ASSERT_EQ(*rows, rows_of(index));
      EXPECT_EQ(front(*rows), values_of(index));
    }
  }
  EXPECT_EQ(harvests, 5);
}

TEST_F(ChunkClientTest, ThreeExecutorsHarvestEachChunkExactlyOnce) {
  constexpr std::uint32_t kChunks = 40;
  std::mutex mutex;
  std::map<std::uint32_t, int> harvests;
  std::vector<worker::ChunkClient> clients;
  for (ConnectionId id = 0; id < 3; ++id) {
    clients.push_back(shared.client(id, {.sleep = [](Duration) { std::this_thread::yield(); }}));
  }
  {
    std::vector<std::jthread> executors;
    for (unsigned t = 0; t < 3; ++t) {
      executors.emplace_back([&, t] {
        std::vector<std::byte> mine(kChunkBytes);
        const Permutation order(kChunks, 1, "test.order", t == 2 ? 1 : 0);  // two go in step
        for (std::uint32_t i = 0; i < kChunks; ++i) {
          const auto index = static_cast<std::uint32_t>(order(i));
          const auto rows = clients[t].fetch(index, mine, [&](std::span<std::byte> to, auto) {
            const std::lock_guard lock(mutex);
            ++harvests[index];
            return harvest_into(to, index);
          });
          ASSERT_TRUE(rows) << rows.error().message;
          const auto values = values_of(index);
          EXPECT_EQ(*rows, rows_of(index));
          EXPECT_TRUE(std::equal(values.begin(), values.end(), mine.begin())) << index;
        }
      });
    }
  }
  EXPECT_EQ(harvests.size(), kChunks);
  for (const auto& [index, times] : harvests) EXPECT_EQ(times, 1) << "chunk " << index;
}

TEST_F(ChunkClientTest, TheChunkOfADyingExecutorIsTakenOver) {
  auto dying = shared.client(1);
  int waits = 0;
  auto client = shared.client(2, {.sleep = [&](Duration) {
                                if (++waits == 3) {
                                  const std::lock_guard lock(shared.mutex);
                                  shared.service.close(1);
                                }
                              }});
  std::vector<std::byte> other(kChunkBytes);
  const auto died = dying.fetch(0, other, [&](auto, auto) -> Result<std::uint32_t> {
    // While it harvests, the other waits, and then it is gone.
    const auto rows =
        client.fetch(0, out, [&](std::span<std::byte> to, auto) { return harvest_into(to, 0); });
    EXPECT_EQ(*rows, rows_of(0));
    return fail(ErrorCode::kUnavailable, "killed");
  });
  EXPECT_FALSE(died);
  EXPECT_EQ(waits, 3);
  EXPECT_EQ(front(rows_of(0)), values_of(0));
}

TEST_F(ChunkClientTest, TheChunkOfASilentExecutorIsTakenOverAfterTheTerm) {
  auto silent = shared.client(1);
  auto client = shared.client(2, {.sleep = [&](Duration) { shared.now += 20s; }});
  std::vector<std::byte> other(kChunkBytes);
  (void)silent.fetch(0, other, [&](auto, auto) -> Result<std::uint32_t> {
    EXPECT_TRUE(
        client.fetch(0, out, [&](std::span<std::byte> to, auto) { return harvest_into(to, 0); }));
    EXPECT_EQ(shared.now, kStart + 60s);
    return fail(ErrorCode::kUnavailable, "too late");
  });
}

TEST_F(ChunkClientTest, OutOfPatienceItHarvestsAnyway) {
  Executor holder(shared.service, 1);
  ASSERT_EQ(holder.claim(0), ChunkReply::OK);
  TimePoint now = kStart;
  std::vector<Duration> waits;
  auto client = shared.client(2, {.patience = 100ms,
                                  .first_wait = 10ms,
                                  .longest_wait = 40ms,
                                  .now = [&] { return now; },
                                  .sleep =
                                      [&](Duration wait) {
                                        waits.push_back(wait);
                                        now += wait;
                                      }});
  const auto rows =
      client.fetch(0, out, [&](std::span<std::byte> to, auto) { return harvest_into(to, 0); });
  EXPECT_EQ(*rows, rows_of(0));
  EXPECT_THAT(waits, testing::ElementsAre(10ms, 20ms, 40ms, 30ms));
}

TEST_F(ChunkClientTest, WaitingEndsWhenToldToStop) {
  Executor holder(shared.service, 1);
  ASSERT_EQ(holder.claim(0), ChunkReply::OK);
  int waits = 0;
  auto client = shared.client(2, {.sleep = [&](Duration) { ++waits; }});
  const auto rows = client.fetch(0, out, kNeverHarvest, [&] { return waits == 2; });
  EXPECT_EQ(rows.error().code, ErrorCode::kUnavailable);
}

TEST_F(ChunkClientTest, AFailedHarvestIsReportedAndLeavesTheChunkToOthers) {
  auto a = shared.client(1), b = shared.client(2);
  const auto failed = a.fetch(0, out, [](auto, auto) -> Result<std::uint32_t> {
    return fail(ErrorCode::kResourceExhausted, "out of memory");
  });
  EXPECT_EQ(failed.error().code, ErrorCode::kResourceExhausted);
  const auto rows =
      b.fetch(0, out, [&](std::span<std::byte> to, auto) { return harvest_into(to, 0); });
  EXPECT_EQ(*rows, rows_of(0));
}

TEST_F(ChunkClientTest, WithoutACacheEveryFetchHarvests) {
  auto client = shared.client(1, {}, 0);
  int harvests = 0;
  for (int pass = 0; pass < 2; ++pass) {
    const auto rows = client.fetch(0, out, [&](std::span<std::byte> to, auto) {
      ++harvests;
      return harvest_into(to, 0);
    });
    EXPECT_EQ(*rows, rows_of(0));
    EXPECT_EQ(front(*rows), values_of(0));
  }
  EXPECT_EQ(harvests, 2);
  EXPECT_EQ(shared.service.counters().refused_writes, 2u);
}

TEST_F(ChunkClientTest, TheDeathOfTheAgentIsAnError) {
  auto client = shared.client(1);
  shared.dead = true;
  EXPECT_EQ(client.fetch(0, out, kNeverHarvest).error().code, ErrorCode::kUnavailable);
}

TEST_F(ChunkClientTest, SlotsThatDoNotFitTheMemoryAreRefused) {
  auto opened = shared.service.open(1, open_request());
  const auto code = [&](const protocol::ChunkOpened& message, std::size_t row_bytes) {
    return worker::ChunkClient::open("stream", message, opened.memory.get(), row_bytes, {})
        .error()
        .code;
  };
  protocol::ChunkOpened more = opened.message;
  more.set_slots(more.slots() + 1);
  EXPECT_EQ(code(more, kRowBytes), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code(opened.message, kChunkBytes + 1), ErrorCode::kInvalidArgument);
  protocol::ChunkOpened refused;
  refused.set_problem("no");
  EXPECT_EQ(code(refused, kRowBytes), ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace saesweep::agent
