// Chunks that go from one node's cache to another's: real sockets, real caches, two nodes in one
// process.
#include "worker/agent/chunk_fetching.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>

#include <atomic>
#include <barrier>
#include <future>
#include <optional>
#include <thread>

#include "core/philox.h"
#include "scheduler/protocol/data_port.h"
#include "tests/support/temp_dir.h"
#include "worker/activations/chunk_client.h"
#include "worker/agent/chunk_server.h"
#include "worker/agent/chunk_service.h"

namespace saesweep::agent {
namespace {

using namespace std::chrono_literals;
using protocol::DataChunkReply;
using protocol::DataReply;
using protocol::DataRequest;
using protocol::DataServer;

constexpr std::uint32_t kRows = 32, kWidth = 16;
constexpr std::size_t kRowBytes = kWidth * 2, kChunkBytes = kRows * kRowBytes;
const std::string kStream = "stream";

std::uint32_t rows_of(std::uint32_t index) { return kRows - index % 3; }
std::vector<std::byte> values_of(std::uint32_t index) {
  Rng rng(5, "test.chunk_fetching", index);
  std::vector<std::byte> values(rows_of(index) * kRowBytes);
  for (std::byte& value : values) value = static_cast<std::byte>(rng.below(256));
  return values;
}
storage::ChunkShape shape_of(std::uint32_t index) {
  return {rows_of(index), kWidth, DType::kBFloat16};
}
std::string encoded(std::uint32_t index) {
  const auto values = values_of(index);
  const auto header = storage::encode_chunk_header(index, shape_of(index), values);
  std::string value(reinterpret_cast<const char*>(header.data()), header.size());
  return value.append(reinterpret_cast<const char*>(values.data()), values.size());
}

// A node with an executor that reads one stream.
struct Node {
  test::TempDir dir;
  storage::ActivationCache cache =
      storage::ActivationCache::open(dir.path() / "cache", storage::ActivationCache::kUnlimited,
                                     {.min_free_bytes = 0})
          .value();
  ChunkBoard board;
  ChunkFetching fetching;
  ChunkService service{&cache};
  std::optional<ChunkServer> server;
  std::optional<worker::ChunkClient> executor;
  std::function<void()> at_wait;  // when the executor waits for a chunk
  TimePoint now = SystemClock().now();
  Duration harvest_takes{};
  int harvested = 0;

  explicit Node(std::chrono::milliseconds patience = ChunkFetching::kNodePatience)
      : fetching(board, patience) {
    service.join_others(board, fetching);
  }
  void serve(bool encrypted = false) {
    server.emplace(ChunkServer::start("tcp://127.0.0.1:*", encrypted, cache, board).value());
  }
  void put(std::uint32_t index) {
    const auto pin = cache.pin(kStream).value();
    ASSERT_TRUE(cache.put(pin, index, shape_of(index), values_of(index)));
  }
  protocol::ChunkSource source() const {
    protocol::ChunkSource named;
    named.set_stream(kStream);
    named.set_endpoint(server->announced());
    named.set_server_key(server->public_key());
    return named;
  }
  void begin_to_read(std::uint64_t cache_bytes = std::uint64_t{1} << 30) {
    protocol::ChunkOpen open;
    open.set_stream(kStream);
    open.set_cache_bytes(cache_bytes);
    open.set_rows_per_chunk(kRows);
    open.set_d_in(kWidth);
    open.set_dtype(static_cast<std::uint32_t>(DType::kBFloat16));
    const auto opened = service.open(1, open);
    worker::ChunkClientOptions options;
    options.sleep = [this](Duration wait) {
      if (at_wait) at_wait();
      pollfd ready{.fd = service.signal(), .events = POLLIN, .revents = 0};
      ::poll(&ready, 1,
             static_cast<int>(std::chrono::ceil<std::chrono::milliseconds>(wait).count()));
    };
    executor.emplace(worker::ChunkClient::open(
                         kStream, opened.message, opened.memory.get(), kRowBytes,
                         [this](const protocol::ChunkRequest& request) {
                           service.step(now);
                           return Result<protocol::ChunkReply>(service.handle(1, request, now));
                         },
                         options)
                         .value());
  }
  // The chunk as the executor gets it, from wherever.
  void expect(std::uint32_t index) {
    std::vector<std::byte> out(kChunkBytes);
    const auto rows = executor->fetch(index, out, [&](std::span<std::byte> into, auto) {
      ++harvested;
      now += harvest_takes;
      std::ranges::copy(values_of(index), into.begin());
      return Result<std::uint32_t>(rows_of(index));
    });
    ASSERT_TRUE(rows) << rows.error().message;
    EXPECT_EQ(*rows, rows_of(index));
    out.resize(*rows * kRowBytes);
    EXPECT_EQ(out, values_of(index)) << index;
  }
};

struct ChunkFetchingTest : testing::Test {
  Node there, here;

  static protocol::ChunkSource source_at(const DataServer& server) {
    protocol::ChunkSource named;
    named.set_stream(kStream);
    named.set_endpoint(server.endpoint());
    return named;
  }
  static DataServer answering(DataServer::Answer answer) {
    protocol::ServerSecurity security;
    security.insecure_loopback = true;
    return DataServer::start("tcp://127.0.0.1:*", security, std::move(answer)).value();
  }
  static DataReply with(DataChunkReply::Status status, std::string value = {}) {
    DataReply reply;
    reply.set_status(protocol::DATA_STATUS_OK);
    reply.mutable_chunk()->set_status(status);
    reply.mutable_chunk()->set_value(std::move(value));
    return reply;
  }
  static std::vector<ChunkFetching::Arrived> wait_for(ChunkFetching& fetching, std::size_t count,
                                                      TimePoint now) {
    std::vector<ChunkFetching::Arrived> all;
    while (all.size() < count) {
      pollfd ready{.fd = fetching.signal(), .events = POLLIN, .revents = 0};
      EXPECT_EQ(::poll(&ready, 1, 60'000), 1) << "nothing arrived in a minute";
      if (ready.revents == 0) break;
      for (auto& one : fetching.arrived(now)) all.push_back(std::move(one));
    }
    return all;
  }
};

TEST_F(ChunkFetchingTest, AChunkOfAnotherNodeIsFetchedOnceAndKept) {
  for (std::uint32_t i = 0; i < 10; ++i) there.put(i);
  there.serve();
  here.service.learn(there.source());
  here.begin_to_read();
  for (int pass = 0; pass < 2; ++pass)
    for (std::uint32_t i = 0; i < 10; ++i) here.expect(i);
  EXPECT_EQ(here.harvested, 0);
  const ChunkCounters counted = here.service.counters();
  EXPECT_EQ(counted.fetched, 10u);
  EXPECT_EQ(counted.failed_fetches, 0u);
  EXPECT_EQ(there.board.served, 10u);
  EXPECT_EQ(there.board.served_bytes, counted.fetched_bytes);
}

TEST_F(ChunkFetchingTest, WhatTheOtherNodeLacksIsHarvestedHere) {
  there.put(1);
  there.serve();
  here.service.learn(there.source());
  here.begin_to_read();
  for (std::uint32_t i = 0; i < 3; ++i) here.expect(i);
  EXPECT_EQ(here.harvested, 2);
  EXPECT_EQ(here.service.counters().fetched, 1u);
  EXPECT_EQ(here.service.counters().failed_fetches, 2u);
}

TEST_F(ChunkFetchingTest, AChunkThatIsBeingHarvestedThereIsWaitedFor) {
  there.board.begin(kStream, 4);
  there.serve();
  here.service.learn(there.source());
  here.begin_to_read();
  int waits = 0;
  here.at_wait = [&] {
    if (++waits != 3) return;
    there.put(4);
    there.board.end(kStream, 4);
  };
  here.expect(4);
  EXPECT_GE(waits, 3);
  EXPECT_EQ(here.harvested, 0);
  EXPECT_EQ(here.service.counters().fetched, 1u);
}

TEST_F(ChunkFetchingTest, WhatNobodyHarvestsThereAnyMoreIsHarvestedHere) {
  there.board.begin(kStream, 4);
  there.serve();
  here.service.learn(there.source());
  here.begin_to_read();
  int waits = 0;
  here.at_wait = [&] {
    if (++waits == 3) there.board.end(kStream, 4);  // its executor died
  };
  here.expect(4);
  EXPECT_EQ(here.harvested, 1);
}

TEST_F(ChunkFetchingTest, TwoThatReadTheSameFollowTheOneThatIsAhead) {
  there.serve();
  here.serve();
  here.fetching.introduce(here.server->announced(), here.server->public_key());
  here.service.learn(there.source());
  here.begin_to_read();
  there.begin_to_read();
  here.expect(0);  // asks first, and so harvests
  here.expect(1);
  for (std::uint32_t i = 0; i < 4; ++i) there.expect(i);  // was told of nobody but by that
  here.expect(2);
  here.expect(3);
  EXPECT_EQ(here.harvested, 2);
  EXPECT_EQ(there.harvested, 2);
  EXPECT_EQ(there.service.counters().fetched, 2u);
  EXPECT_EQ(here.service.counters().fetched, 2u);
}

// As two workers do that were given trials of the same stream at once.
TEST_F(ChunkFetchingTest, TwoThatReadInStepHarvestEachChunkOnce) {
  constexpr std::uint32_t kChunks = 100;
  there.serve();
  here.serve();
  for (auto [one, other] : {std::pair(&here, &there), std::pair(&there, &here)}) {
    one->fetching.introduce(one->server->announced(), one->server->public_key());
    one->service.learn(other->source());
    one->harvest_takes = 1s;  // more than fetching
    one->begin_to_read();
  }
  std::barrier together(2);
  const auto read = [&](Node& node) {
    for (std::uint32_t i = 0; i < kChunks; ++i) {
      together.arrive_and_wait();
      node.expect(i);
    }
  };
  std::jthread second([&] { read(there); });
  read(here);
  second.join();
  EXPECT_EQ(here.harvested + there.harvested, static_cast<int>(kChunks));
  EXPECT_EQ(here.service.counters().fetched + there.service.counters().fetched, kChunks);
}

TEST_F(ChunkFetchingTest, WhatIsHarvestedInTheEndIsNoLongerComing) {
  there.serve();
  here.serve();
  here.fetching.introduce(here.server->announced(), here.server->public_key());
  here.service.learn(there.source());
  here.begin_to_read();
  here.expect(0);  // is not there
  EXPECT_EQ(here.harvested, 1);
  EXPECT_FALSE(here.board.is_coming(kStream, 0));
}

TEST_F(ChunkFetchingTest, AFlippedByteIsRefusedAndTheChunkHarvested) {
  std::atomic<int> asked = 0;
  const DataServer server = answering([&](const DataRequest& request) {
    ++asked;
    std::string value = encoded(request.chunk().index());
    value[value.size() / 2] ^= 1;
    return with(DataChunkReply::HERE, value);
  });
  here.service.learn(source_at(server));
  here.begin_to_read();
  here.expect(0);
  EXPECT_EQ(here.harvested, 1);
  here.expect(1);
  EXPECT_EQ(asked, 1) << "who sends damaged chunks is left alone";
  here.now += ChunkFetching::kNodeRest;
  here.expect(2);
  EXPECT_EQ(asked, 2) << "for a while";
  EXPECT_EQ(here.harvested, 3);
  EXPECT_EQ(here.service.counters().fetched, 0u);
}

TEST_F(ChunkFetchingTest, AnotherChunkThanTheOneAskedForIsRefused) {
  const DataServer server =
      answering([&](const DataRequest&) { return with(DataChunkReply::HERE, encoded(7)); });
  here.service.learn(source_at(server));
  here.begin_to_read();
  here.expect(0);
  EXPECT_EQ(here.harvested, 1);
}

TEST_F(ChunkFetchingTest, AChunkOfAnotherWidthIsRefused) {
  const DataServer server = answering([&](const DataRequest&) {
    const std::vector<std::byte> values(kRows * kWidth * 4);
    const auto header =
        storage::encode_chunk_header(0, {kRows, 2 * kWidth, DType::kBFloat16}, values);
    std::string value(reinterpret_cast<const char*>(header.data()), header.size());
    return with(DataChunkReply::HERE, value + std::string(values.size(), '\0'));
  });
  here.service.learn(source_at(server));
  here.begin_to_read();
  here.expect(0);
  EXPECT_EQ(here.harvested, 1);
  EXPECT_EQ(here.service.counters().failed_fetches, 1u);
}

TEST_F(ChunkFetchingTest, ANodeThatDiesMidwayMeansHarvesting) {
  Node impatient(200ms);
  for (std::uint32_t i = 0; i < 4; ++i) there.put(i);
  there.serve();
  impatient.service.learn(there.source());
  impatient.begin_to_read();
  impatient.expect(0);
  impatient.expect(1);
  there.server.reset();
  impatient.expect(2);
  impatient.expect(3);
  EXPECT_EQ(impatient.harvested, 2);
  EXPECT_EQ(impatient.service.counters().fetched, 2u);
  EXPECT_EQ(impatient.service.counters().failed_fetches, 1u) << "the last one was not asked for";
}

TEST_F(ChunkFetchingTest, OnlyWhoHoldsTheKeyOfTheClusterIsServed) {
  there.put(0);
  there.serve(/*encrypted=*/true);
  const auto pair = [] {
    return std::make_shared<const protocol::KeyPair>(protocol::make_key_pair().value());
  };
  const auto keys = pair(), others = pair();
  there.server->admit(keys->public_key);
  const auto asks = [&](const std::shared_ptr<const protocol::KeyPair>& with,
                        const protocol::ChunkSource& named) {
    Node stranger(300ms);
    stranger.fetching.use(with);
    stranger.service.learn(named);
    stranger.begin_to_read();
    stranger.expect(0);
    return stranger.harvested == 0;
  };
  EXPECT_FALSE(asks(others, there.source())) << "another key";
  EXPECT_FALSE(asks(nullptr, there.source())) << "none";
  protocol::ChunkSource forged = there.source();
  forged.set_server_key(std::string(32, 'x'));
  EXPECT_FALSE(asks(keys, forged)) << "not the server that the scheduler named";
  EXPECT_EQ(there.board.served, 0u);
  EXPECT_TRUE(asks(keys, there.source()));
  there.server->admit(others->public_key);  // of the next incarnation of the scheduler
  EXPECT_FALSE(asks(keys, there.source()));
  EXPECT_TRUE(asks(others, there.source()));
}

TEST_F(ChunkFetchingTest, AWelcomeWithoutWholeKeysGivesNone) {
  protocol::Welcome welcome;
  EXPECT_EQ(chunk_keys_of(welcome), nullptr);
  const auto keys = protocol::make_key_pair().value();
  welcome.set_chunks_public(keys.public_key.data(), keys.public_key.size());
  welcome.set_chunks_secret(std::string(31, 'x'));
  EXPECT_EQ(chunk_keys_of(welcome), nullptr);
  welcome.set_chunks_secret(std::string(keys.secret_key.text()));
  EXPECT_EQ(chunk_keys_of(welcome)->public_key, keys.public_key);
}

TEST_F(ChunkFetchingTest, AFullCachePassesChunksOn) {
  for (std::uint32_t i = 0; i < 3; ++i) there.put(i);
  there.serve();
  here.service.learn(there.source());
  here.begin_to_read(/*cache_bytes=*/1);
  for (int pass = 0; pass < 2; ++pass)
    for (std::uint32_t i = 0; i < 3; ++i) here.expect(i);
  EXPECT_EQ(here.harvested, 0);
  EXPECT_EQ(here.service.counters().fetched, 6u);
  EXPECT_EQ(here.service.counters().bytes, 0u);
}

TEST_F(ChunkFetchingTest, WhatIsSlowerToFetchThanToHarvestIsHarvested) {
  const DataServer server = answering([&](const DataRequest& request) {
    DataReply reply = with(DataChunkReply::HERE, encoded(request.chunk().index()));
    reply.mutable_chunk()->set_harvest_us(1);  // no line is faster
    return reply;
  });
  ChunkFetching& fetching = here.fetching;
  fetching.learn(source_at(server));
  const TimePoint now = here.now;
  ASSERT_TRUE(fetching.begin(kStream, 0, now)) << "nothing is known yet";
  ASSERT_EQ(wait_for(fetching, 1, now).size(), 1u);
  ASSERT_TRUE(fetching.begin(kStream, 1, now)) << "tried again";
  ASSERT_EQ(wait_for(fetching, 1, now).size(), 1u);
  EXPECT_FALSE(fetching.begin(kStream, 2, now)) << "but only once in a while";
  EXPECT_TRUE(fetching.begin(kStream, 2, now + ChunkFetching::kTryAgainAfter));
  here.board.harvest_took(kStream, 1h);
  EXPECT_TRUE(fetching.begin(kStream, 3, now)) << "what is measured here counts more";
}

TEST_F(ChunkFetchingTest, EightChunksAreOnTheirWayAtMost) {
  std::promise<void> go_on;
  const DataServer server =
      answering([&, gate = go_on.get_future().share()](const DataRequest& request) {
        gate.wait();
        return with(DataChunkReply::HERE, encoded(request.chunk().index()));
      });
  here.fetching.learn(source_at(server));
  for (std::uint32_t i = 0; i < ChunkFetching::kMostInFlight; ++i)
    ASSERT_TRUE(here.fetching.begin(kStream, i, here.now));
  EXPECT_FALSE(here.fetching.begin(kStream, 8, here.now));
  go_on.set_value();
  EXPECT_EQ(wait_for(here.fetching, 8, here.now).size(), 8u);
  EXPECT_TRUE(here.fetching.begin(kStream, 8, here.now));
}

TEST_F(ChunkFetchingTest, AWorkerServesNothingButChunks) {
  there.serve();
  protocol::ClientSecurity security;
  security.insecure_loopback = true;
  auto client = protocol::DataClient::connect(there.server->announced(), security).value();
  DataRequest request;
  request.mutable_list()->set_object("artifacts/x");
  const auto refused = client.ask(request, {});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kInvalidArgument);
}

TEST(ChunksEndpoint, IsWhereTheSchedulerIsReached) {
  EXPECT_EQ(usual_chunks_endpoint("tcp://10.0.0.1:7077"), "tcp://*:*");
  EXPECT_EQ(usual_chunks_endpoint("tcp://127.0.0.1:7077"), "tcp://127.0.0.1:*");
  EXPECT_EQ(usual_chunks_endpoint("tcp://[::1]:7077"), "tcp://[::1]:*");
  EXPECT_EQ(usual_chunks_endpoint("ipc:///tmp/x"), "");
}

}  // namespace
}  // namespace saesweep::agent
