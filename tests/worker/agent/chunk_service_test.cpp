#include "worker/agent/chunk_service.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <condition_variable>
#include <cstring>
#include <fstream>
#include <map>
#include <mutex>
#include <thread>

#include "core/files.h"
#include "core/philox.h"
#include "tests/support/temp_dir.h"
#include "worker/activations/chunk_client.h"

namespace saesweep::agent {
namespace {

using protocol::ChunkReply;
using protocol::ChunkRequest;
using testing::ElementsAre;
using testing::HasSubstr;
using namespace std::chrono_literals;

constexpr std::uint32_t kRows = 32, kWidth = 16;
constexpr std::size_t kRowBytes = kWidth * 2, kChunkBytes = kRows * kRowBytes;
constexpr std::uint64_t kPlenty = std::uint64_t{1} << 30;
const TimePoint kStart{};

protocol::ChunkOpen open_request(std::string stream = "stream",
                                 std::uint64_t cache_bytes = kPlenty) {
  protocol::ChunkOpen request;
  request.set_stream(std::move(stream));
  request.set_cache_bytes(cache_bytes);
  request.set_rows_per_chunk(kRows);
  request.set_d_in(kWidth);
  request.set_dtype(static_cast<std::uint32_t>(DType::kBFloat16));
  return request;
}

// What a harvest of chunk `index` gives; the last row count is index-dependent.
std::uint32_t rows_of(std::uint32_t index) { return kRows - index % 3; }
std::vector<std::byte> values_of(std::uint32_t index) {
  Rng rng(5, "test.chunk_service", index);
  std::vector<std::byte> values(rows_of(index) * kRowBytes);
  for (std::byte& value : values) value = static_cast<std::byte>(rng.below(256));
  return values;
}

// An executor as the service sees it.
struct Executor {
  ChunkService& service;
  ConnectionId id;
  TimePoint now = kStart;
  OwnedFd descriptor{};
  std::byte* memory = nullptr;

  Executor(ChunkService& to, ConnectionId connection,
           const protocol::ChunkOpen& request = open_request())
      : service(to), id(connection) {
    auto opened = service.open(id, request);
    EXPECT_EQ(opened.message.problem(), "");
    EXPECT_EQ(opened.message.slot_bytes(), kChunkBytes);
    descriptor = std::move(opened.memory);
    memory =
        static_cast<std::byte*>(::mmap(nullptr, opened.message.slots() * kChunkBytes,
                                       PROT_READ | PROT_WRITE, MAP_SHARED, descriptor.get(), 0));
  }
  ~Executor() { ::munmap(memory, ChunkService::kSlots * kChunkBytes); }

  ChunkReply ask(ChunkRequest::Verb verb, std::uint32_t index, std::uint32_t slot = 0,
                 std::uint32_t rows = 0, std::string stream = "stream") {
    ChunkRequest request;
    request.set_id(77);
    request.set_stream(std::move(stream));
    request.set_verb(verb);
    request.set_index(index);
    request.set_slot(slot);
    request.set_rows(rows);
    const ChunkReply reply = service.handle(id, request, now);
    EXPECT_EQ(reply.id(), 77u);
    return reply;
  }
  ChunkReply::Status read(std::uint32_t index, std::uint32_t slot = 0) {
    return ask(ChunkRequest::READ, index, slot).status();
  }
  ChunkReply::Status claim(std::uint32_t index) { return ask(ChunkRequest::CLAIM, index).status(); }
  ChunkReply::Status release(std::uint32_t index) {
    return ask(ChunkRequest::RELEASE, index).status();
  }
  ChunkReply::Status write(std::uint32_t index, std::uint32_t slot = 0) {
    const auto values = values_of(index);
    std::memcpy(memory + slot * kChunkBytes, values.data(), values.size());
    return ask(ChunkRequest::WRITE, index, slot, rows_of(index)).status();
  }
  std::vector<std::byte> slot(std::uint32_t slot, std::size_t bytes) const {
    return {memory + slot * kChunkBytes, memory + slot * kChunkBytes + bytes};
  }
};

storage::ActivationCache open_cache(const std::filesystem::path& directory) {
  return storage::ActivationCache::open(directory, storage::ActivationCache::kUnlimited,
                                        {.min_free_bytes = 0})
      .value();
}

struct ChunkServiceTest : testing::Test {
  test::TempDir dir;
  storage::ActivationCache cache = open_cache(dir.path() / "cache");
  ChunkService service{&cache, 60s};
};

// Which of `beside` are granted with a claim of a chunk of `stream`.
std::vector<std::uint32_t> granted(
    Executor& executor, const std::string& stream, std::uint32_t index,
    const std::vector<std::pair<std::string, std::uint32_t>>& beside) {
  ChunkRequest request;
  request.set_stream(stream);
  request.set_verb(ChunkRequest::CLAIM);
  request.set_index(index);
  for (const auto& [name, number] : beside) {
    request.add_beside()->set_stream(name);
    request.mutable_beside()->rbegin()->set_index(number);
  }
  const ChunkReply reply = executor.service.handle(executor.id, request, executor.now);
  if (reply.status() != ChunkReply::OK) return {99};
  return {reply.granted().begin(), reply.granted().end()};
}

TEST_F(ChunkServiceTest, WithAClaimComesWhatIsMissingBesideItAndNobodyElses) {
  Executor a(service, 1), b(service, 2);
  Executor a2(service, 1, open_request("sibling")), b2(service, 2, open_request("sibling"));
  EXPECT_THAT(granted(a, "stream", 4, {{"sibling", 4}, {"sibling", 5}}), ElementsAre(0, 1));
  EXPECT_THAT(granted(b, "sibling", 4, {}), ElementsAre(99)) << "a harvests it";
  EXPECT_THAT(granted(b, "stream", 5, {{"sibling", 5}, {"sibling", 6}}), ElementsAre(1));
  // What was handed in is there for everybody, and is not asked for again.
  EXPECT_EQ(a2.ask(ChunkRequest::WRITE, 4, 0, 3, "sibling").status(), ChunkReply::OK);
  EXPECT_EQ(b2.ask(ChunkRequest::READ, 4, 0, 0, "sibling").status(), ChunkReply::OK);
  EXPECT_THAT(granted(b, "stream", 7, {{"sibling", 4}}), ElementsAre());
  // Claims beside one are claims: they end with the connection.
  service.close(1);
  EXPECT_THAT(granted(b, "sibling", 5, {}), ElementsAre());
}

TEST_F(ChunkServiceTest, WhatLiesInTheCacheFromBeforeIsNotGrantedBesideAClaim) {
  {
    Executor before(service, 1, open_request("sibling"));
    EXPECT_EQ(before.ask(ChunkRequest::WRITE, 4, 0, 3, "sibling").status(), ChunkReply::OK);
    service.close(1);
  }
  Executor a(service, 1), sibling(service, 1, open_request("sibling"));
  EXPECT_THAT(granted(a, "stream", 4, {{"sibling", 4}, {"sibling", 5}}), ElementsAre(1));
}

TEST_F(ChunkServiceTest, NothingIsGrantedOfAStreamThatIsNotOpenOrNotCached) {
  Executor a(service, 1), uncached(service, 1, open_request("uncached", 0));
  EXPECT_THAT(granted(a, "stream", 4, {{"unknown", 4}, {"uncached", 4}}), ElementsAre());
}

TEST_F(ChunkServiceTest, AChunkWrittenByOneExecutorIsReadByAnother) {
  Executor a(service, 1), b(service, 2);
  EXPECT_EQ(a.read(7), ChunkReply::MISSING);
  EXPECT_EQ(a.claim(7), ChunkReply::OK);
  EXPECT_EQ(a.write(7, 2), ChunkReply::OK);
  const ChunkReply read = b.ask(ChunkRequest::READ, 7, 3);
  EXPECT_EQ(read.status(), ChunkReply::OK);
  EXPECT_EQ(read.rows(), rows_of(7));
  EXPECT_EQ(b.slot(3, values_of(7).size()), values_of(7));
  EXPECT_EQ(service.counters().hits, 1u);
  EXPECT_EQ(service.counters().misses, 1u);
}

TEST_F(ChunkServiceTest, TheSlotsCannotBeResized) {
  const Executor a(service, 1);
  EXPECT_EQ(::fcntl(a.descriptor.get(), F_GET_SEALS), F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL);
  EXPECT_NE(::ftruncate(a.descriptor.get(), 0), 0);
  EXPECT_NE(::ftruncate(a.descriptor.get(), 1 << 30), 0);
}

TEST_F(ChunkServiceTest, OnlyOneExecutorHarvestsAChunk) {
  Executor a(service, 1), b(service, 2);
  EXPECT_EQ(a.claim(0), ChunkReply::OK);
  EXPECT_EQ(b.read(0), ChunkReply::MISSING);
  EXPECT_EQ(b.claim(0), ChunkReply::BUSY);
  EXPECT_EQ(a.claim(0), ChunkReply::OK) << "its own";
  EXPECT_EQ(b.claim(1), ChunkReply::OK) << "another chunk";
}

TEST_F(ChunkServiceTest, WhoSawAChunkMissingBeforeItWasWrittenMustReadAgain) {
  Executor a(service, 1), b(service, 2);
  EXPECT_EQ(b.read(0), ChunkReply::MISSING);
  EXPECT_EQ(a.claim(0), ChunkReply::OK);
  EXPECT_EQ(a.write(0), ChunkReply::OK);
  EXPECT_EQ(b.claim(0), ChunkReply::BUSY);
  EXPECT_EQ(b.read(0), ChunkReply::OK);
}

TEST_F(ChunkServiceTest, AClaimEndsWithReleaseWithItsConnectionAndWithItsTerm) {
  Executor b(service, 2);
  {
    Executor a(service, 1);
    EXPECT_EQ(a.claim(0), ChunkReply::OK);
    EXPECT_EQ(b.release(0), ChunkReply::OK);
    EXPECT_EQ(b.claim(0), ChunkReply::BUSY) << "released by somebody else";
    EXPECT_EQ(a.release(0), ChunkReply::OK);
    EXPECT_EQ(b.claim(0), ChunkReply::OK);
    EXPECT_EQ(a.claim(1), ChunkReply::OK);
    EXPECT_EQ(a.claim(2), ChunkReply::OK);
  }
  b.now = kStart + 59s;
  EXPECT_EQ(b.claim(1), ChunkReply::BUSY);
  b.now = kStart + 60s;
  EXPECT_EQ(b.claim(1), ChunkReply::OK);
  b.now = kStart;
  EXPECT_EQ(b.claim(2), ChunkReply::BUSY);
  service.close(1);
  EXPECT_EQ(b.claim(2), ChunkReply::OK);
}

TEST_F(ChunkServiceTest, AnOvertakenHarvestDoesNoHarm) {
  Executor a(service, 1), b(service, 2), c(service, 3);
  EXPECT_EQ(a.claim(0), ChunkReply::OK);
  b.now = c.now = kStart + 61s;
  EXPECT_EQ(b.claim(0), ChunkReply::OK);
  EXPECT_EQ(a.release(0), ChunkReply::OK);
  EXPECT_EQ(c.claim(0), ChunkReply::BUSY) << "the claim is b's now";
  EXPECT_EQ(a.write(0), ChunkReply::OK);
  EXPECT_EQ(b.write(0), ChunkReply::OK);
  EXPECT_EQ(c.read(0), ChunkReply::OK);
  EXPECT_EQ(c.slot(0, values_of(0).size()), values_of(0));
}

TEST_F(ChunkServiceTest, WithoutABudgetEverythingWorksAndNothingIsStored) {
  Executor a(service, 1, open_request("stream", 0)), b(service, 2, open_request("stream", 0));
  EXPECT_EQ(a.read(0), ChunkReply::MISSING);
  EXPECT_EQ(a.claim(0), ChunkReply::OK);
  EXPECT_EQ(b.claim(0), ChunkReply::OK) << "who shares nothing need not wait";
  EXPECT_EQ(a.write(0), ChunkReply::FULL);
  EXPECT_EQ(b.read(0), ChunkReply::MISSING);
  EXPECT_EQ(service.counters().refused_writes, 1u);
  EXPECT_EQ(service.counters().bytes, 0u);
}

TEST_F(ChunkServiceTest, WithoutACacheEverythingWorksToo) {
  ChunkService without(nullptr);
  Executor a(without, 1);
  EXPECT_EQ(a.read(0), ChunkReply::MISSING);
  EXPECT_EQ(a.claim(0), ChunkReply::OK);
  EXPECT_EQ(a.write(0), ChunkReply::FULL);
  without.close(1);
}

TEST_F(ChunkServiceTest, OverTheBudgetAWriteIsFullAndTheClaimIsFree) {
  Executor a(service, 1, open_request("stream", 2500)), b(service, 2, open_request("stream", 2500));
  EXPECT_EQ(a.claim(0), ChunkReply::OK);
  EXPECT_EQ(a.write(0), ChunkReply::OK);
  EXPECT_EQ(a.write(1), ChunkReply::OK);
  EXPECT_EQ(a.claim(2), ChunkReply::OK);
  EXPECT_EQ(a.write(2), ChunkReply::FULL);
  EXPECT_EQ(b.claim(2), ChunkReply::OK);
  EXPECT_EQ(service.counters().refused_writes, 1u);
  EXPECT_EQ(b.read(0), ChunkReply::OK) << "what fits is kept";
}

TEST_F(ChunkServiceTest, ClosingAConnectionFreesItsPins) {
  {
    Executor a(service, 1, open_request("old", 4500));
    for (std::uint32_t i = 0; i < 3; ++i) {
      ASSERT_EQ(a.ask(ChunkRequest::WRITE, i, 0, kRows, "old").status(), ChunkReply::OK);
    }
  }
  Executor b(service, 2, open_request("new", 4500));
  const auto write = [&](std::uint32_t i) {
    return b.ask(ChunkRequest::WRITE, i, 0, kRows, "new").status();
  };
  EXPECT_EQ(write(0), ChunkReply::OK);
  EXPECT_EQ(write(1), ChunkReply::FULL);
  service.close(1);
  EXPECT_EQ(write(1), ChunkReply::OK);
  EXPECT_GE(service.counters().evicted_bytes, 3 * kChunkBytes);
}

TEST_F(ChunkServiceTest, ClosingAStreamFreesItsPinAndItsClaimsAndNothingElse) {
  Executor old(service, 1, open_request("old", 4500));
  for (std::uint32_t i = 0; i < 3; ++i)
    ASSERT_EQ(old.ask(ChunkRequest::WRITE, i, 0, kRows, "old").status(), ChunkReply::OK);
  ASSERT_EQ(old.ask(ChunkRequest::CLAIM, 7, 0, 0, "old").status(), ChunkReply::OK);
  Executor fresh(service, 1, open_request("new", 4500));  // the next run of the same executor
  const auto write = [&](std::uint32_t i) {
    return fresh.ask(ChunkRequest::WRITE, i, 0, kRows, "new").status();
  };
  ASSERT_EQ(write(0), ChunkReply::OK);
  ASSERT_EQ(write(1), ChunkReply::FULL) << "the old stream is pinned";

  EXPECT_EQ(old.ask(ChunkRequest::CLOSE, 0, 0, 0, "old").status(), ChunkReply::OK);
  EXPECT_EQ(write(1), ChunkReply::OK);
  EXPECT_GE(service.counters().evicted_bytes, 3 * kChunkBytes);
  EXPECT_EQ(old.ask(ChunkRequest::READ, 0, 0, 0, "old").status(), ChunkReply::STATUS_UNSPECIFIED);
  Executor other(service, 2, open_request("old", 4500));
  EXPECT_EQ(other.ask(ChunkRequest::CLAIM, 7, 0, 0, "old").status(), ChunkReply::OK);
}

TEST_F(ChunkServiceTest, AStreamStaysPinnedWhileAnotherExecutorHasItOpen) {
  Executor a(service, 1, open_request("shared", 4500));
  Executor b(service, 2, open_request("shared", 4500));
  for (std::uint32_t i = 0; i < 3; ++i)
    ASSERT_EQ(a.ask(ChunkRequest::WRITE, i, 0, kRows, "shared").status(), ChunkReply::OK);
  EXPECT_EQ(a.ask(ChunkRequest::CLOSE, 0, 0, 0, "shared").status(), ChunkReply::OK);
  Executor c(service, 3, open_request("new", 4500));
  ASSERT_EQ(c.ask(ChunkRequest::WRITE, 0, 0, kRows, "new").status(), ChunkReply::OK);
  EXPECT_EQ(c.ask(ChunkRequest::WRITE, 1, 0, kRows, "new").status(), ChunkReply::FULL);
  EXPECT_EQ(b.ask(ChunkRequest::READ, 2, 0, 0, "shared").status(), ChunkReply::OK);
}

// Flips a bit of these bytes in the one file that holds them.
void damage_where(const std::filesystem::path& directory, const std::vector<std::byte>& bytes) {
  const std::string_view sought(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  int damaged = 0;
  for (const auto& file : std::filesystem::directory_iterator(directory)) {
    auto content = read_file(file.path());
    const auto at = content ? content->find(sought) : std::string::npos;
    if (at == std::string::npos) continue;
    (*content)[at + sought.size() / 2] ^= 1;
    std::ofstream(file.path(), std::ios::binary) << *content;
    ++damaged;
  }
  ASSERT_EQ(damaged, 1);
}

TEST_F(ChunkServiceTest, ADamagedChunkIsCorruptAndHarvestedAgainByOne) {
  {
    ChunkService first(&cache);
    Executor a(first, 1);
    EXPECT_EQ(a.write(0), ChunkReply::OK);
  }
  cache = open_cache(dir.path() / "elsewhere");  // closes the one to be damaged
  damage_where(dir.path() / "cache", values_of(0));
  auto damaged = open_cache(dir.path() / "cache");
  ChunkService second(&damaged);
  Executor a(second, 1), b(second, 2);
  EXPECT_EQ(a.read(0), ChunkReply::CORRUPT);
  EXPECT_EQ(b.read(0), ChunkReply::CORRUPT);
  EXPECT_EQ(a.claim(0), ChunkReply::OK);
  EXPECT_EQ(b.claim(0), ChunkReply::BUSY);
  EXPECT_EQ(a.write(0), ChunkReply::OK);
  EXPECT_EQ(b.claim(0), ChunkReply::BUSY);
  EXPECT_EQ(b.read(0), ChunkReply::OK);
  EXPECT_EQ(b.slot(0, values_of(0).size()), values_of(0));
  EXPECT_EQ(second.counters().corrupt, 2u);
}

TEST_F(ChunkServiceTest, MalformedRequestsGetNoStatusAndDoNoHarm) {
  Executor a(service, 1);
  const auto no_status = ChunkReply::STATUS_UNSPECIFIED;
  EXPECT_EQ(a.ask(ChunkRequest::READ, 0, ChunkService::kSlots).status(), no_status);
  EXPECT_EQ(a.ask(ChunkRequest::WRITE, 0, 0xffffffff, 1).status(), no_status);
  EXPECT_EQ(a.ask(ChunkRequest::WRITE, 0, 0, kRows + 1).status(), no_status);
  EXPECT_EQ(a.ask(ChunkRequest::READ, 0, 0, 0, "not opened").status(), no_status);
  EXPECT_EQ(a.ask(ChunkRequest::VERB_UNSPECIFIED, 0).status(), no_status);
  service.close(1);
  EXPECT_EQ(a.read(0), no_status);
}

TEST_F(ChunkServiceTest, StreamsThatCannotBeAreRefusedWithTheProblem) {
  const auto problem = [&](auto change) {
    protocol::ChunkOpen request = open_request();
    change(request);
    auto opened = service.open(1, request);
    EXPECT_LT(opened.memory.get(), 0);
    return opened.message.problem();
  };
  EXPECT_THAT(problem([](auto& r) { r.set_dtype(9); }), HasSubstr("dtype 9"));
  EXPECT_THAT(problem([](auto& r) { r.set_d_in(0); }), HasSubstr("[32, 0]"));
  EXPECT_THAT(problem([](auto& r) { r.set_rows_per_chunk(0xffffffff), r.set_d_in(0xffffffff); }),
              HasSubstr("[4294967295, 4294967295]"));
  EXPECT_THAT(problem([](auto& r) { r.set_stream("default"); }), HasSubstr("no name"));
}

// ---- with the client ----------------------------------------------------------------------------

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
