// The client against an agent that answers by script, with a clock that only moves when slept on.
#include "worker/activations/chunk_client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <deque>
#include <optional>
#include <vector>

namespace saesweep::worker {
namespace {

using protocol::ChunkReply;
using protocol::ChunkRequest;
using testing::ElementsAre;
using testing::HasSubstr;
using namespace std::chrono_literals;

constexpr std::size_t kRowBytes = 8, kSlotBytes = 4 * kRowBytes;
constexpr std::uint32_t kSlots = 2;

struct Answer {
  ChunkReply::Status status;
  std::uint32_t rows = 0;
  char fill = 0;  // what READ leaves in the slot
  std::vector<std::uint32_t> granted = {};
};

// Answers from the script, in order; when it is at an end, the last answer for ever.
struct ScriptedAgent {
  int memory = ::memfd_create("test-chunks", MFD_CLOEXEC);
  std::byte* slots = nullptr;
  std::deque<Answer> script = {};
  std::vector<ChunkRequest> heard = {};
  TimePoint now{};
  std::vector<Duration> slept = {};
  std::optional<Error> dead = {};
  bool answers_another = false;

  ScriptedAgent() {
    EXPECT_EQ(::ftruncate(memory, kSlots * kSlotBytes), 0);
    slots = static_cast<std::byte*>(
        ::mmap(nullptr, kSlots * kSlotBytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0));
  }
  ~ScriptedAgent() {
    ::munmap(slots, kSlots * kSlotBytes);
    ::close(memory);
  }
  ScriptedAgent(const ScriptedAgent&) = delete;
  ScriptedAgent& operator=(const ScriptedAgent&) = delete;

  Result<ChunkReply> answer(const ChunkRequest& request) {
    heard.push_back(request);
    if (dead) return fail(*dead);
    const Answer answer = script.front();
    if (script.size() > 1) script.pop_front();
    if (request.verb() == ChunkRequest::READ && answer.status == ChunkReply::OK)
      std::memset(slots + request.slot() * kSlotBytes, answer.fill, kSlotBytes);
    ChunkReply reply;
    reply.set_id(request.id() + (answers_another ? 1 : 0));
    reply.set_status(answer.status);
    reply.set_rows(answer.rows);
    for (const std::uint32_t each : answer.granted) reply.add_granted(each);
    return reply;
  }

  ChunkClient client(Duration patience = 60s) {
    protocol::ChunkOpened opened;
    opened.set_slots(kSlots);
    opened.set_slot_bytes(kSlotBytes);
    ChunkClientOptions options;
    options.patience = patience;
    options.now = [this] { return now; };
    options.sleep = [this](Duration wait) {
      slept.push_back(wait);
      now += wait;
    };
    return ChunkClient::open(
               "the-stream", opened, memory, kRowBytes,
               [this](const ChunkRequest& request) { return answer(request); }, options)
        .value();
  }
  std::vector<ChunkRequest::Verb> verbs() const {
    std::vector<ChunkRequest::Verb> all;
    for (const auto& request : heard) all.push_back(request.verb());
    return all;
  }
};

struct ScriptedChunks : testing::Test {
  ScriptedAgent agent;
  std::vector<std::byte> out{kSlotBytes};
  int harvests = 0;

  HarvestChunk harvest(std::uint32_t rows = 3) {
    return [this, rows](std::span<std::byte> to, std::span<ChunkOrder>) -> Result<std::uint32_t> {
      ++harvests;
      std::memset(to.data(), 'h', rows * kRowBytes);
      return rows;
    };
  }
  std::string text(std::size_t bytes) const {
    return {reinterpret_cast<const char*>(out.data()), bytes};
  }
  std::string slot(std::size_t bytes) const {
    return {reinterpret_cast<const char*>(agent.slots), bytes};
  }
};

TEST_F(ScriptedChunks, AChunkThatIsThereIsCopiedFromTheSlot) {
  agent.script = {{ChunkReply::OK, 2, 'c'}};
  EXPECT_EQ(agent.client().fetch(7, out, harvest()).value(), 2u);
  EXPECT_EQ(text(2 * kRowBytes), std::string(2 * kRowBytes, 'c'));
  EXPECT_EQ(harvests, 0);
  ASSERT_THAT(agent.verbs(), ElementsAre(ChunkRequest::READ));
  EXPECT_EQ(agent.heard[0].index(), 7u);
  EXPECT_EQ(agent.heard[0].stream(), "the-stream");
}

TEST_F(ScriptedChunks, AMissingChunkIsClaimedHarvestedAndHandedIn) {
  agent.script = {{ChunkReply::MISSING}, {ChunkReply::OK}, {ChunkReply::OK}};
  EXPECT_EQ(agent.client().fetch(4, out, harvest()).value(), 3u);
  EXPECT_THAT(agent.verbs(),
              ElementsAre(ChunkRequest::READ, ChunkRequest::CLAIM, ChunkRequest::WRITE));
  EXPECT_EQ(agent.heard[2].rows(), 3u);
  EXPECT_EQ(slot(3 * kRowBytes), std::string(3 * kRowBytes, 'h'));
  EXPECT_EQ(harvests, 1);
  EXPECT_TRUE(agent.slept.empty());
}

TEST_F(ScriptedChunks, ACorruptChunkIsHarvestedAgainAndHandedIn) {
  agent.script = {{ChunkReply::CORRUPT}, {ChunkReply::OK}, {ChunkReply::OK}};
  EXPECT_EQ(agent.client().fetch(4, out, harvest()).value(), 3u);
  EXPECT_THAT(agent.verbs(),
              ElementsAre(ChunkRequest::READ, ChunkRequest::CLAIM, ChunkRequest::WRITE));
  EXPECT_EQ(text(3 * kRowBytes), std::string(3 * kRowBytes, 'h'));
}

TEST_F(ScriptedChunks, ACacheThatIsFullChangesNothingForTheReader) {
  agent.script = {{ChunkReply::MISSING}, {ChunkReply::OK}, {ChunkReply::FULL}};
  EXPECT_EQ(agent.client().fetch(4, out, harvest()).value(), 3u);
  EXPECT_EQ(text(3 * kRowBytes), std::string(3 * kRowBytes, 'h'));
}

TEST_F(ScriptedChunks, WhileAnotherHarvestsItWaitsLongerAndLongerAndThenReads) {
  agent.script.clear();
  for (int i = 0; i < 10; ++i) {
    agent.script.push_back({ChunkReply::MISSING});
    agent.script.push_back({ChunkReply::BUSY});
  }
  agent.script.push_back({ChunkReply::OK, 1, 'o'});
  EXPECT_EQ(agent.client().fetch(4, out, harvest()).value(), 1u);
  EXPECT_EQ(harvests, 0);
  EXPECT_EQ(text(kRowBytes), std::string(kRowBytes, 'o'));
  EXPECT_THAT(agent.slept,
              ElementsAre(2ms, 4ms, 8ms, 16ms, 32ms, 64ms, 128ms, 250ms, 250ms, 250ms));
}

TEST_F(ScriptedChunks, WithLittlePatienceThereIsNothingWhileAnotherHarvestsIt) {
  agent.script.clear();
  for (int i = 0; i < 100; ++i)
    agent.script.push_back({i % 2 == 0 ? ChunkReply::MISSING : ChunkReply::BUSY});
  ChunkClient client = agent.client();
  EXPECT_EQ(client.fetch_within(0ms, 4, out, harvest()).value(), std::nullopt);
  EXPECT_TRUE(agent.slept.empty());
  EXPECT_EQ(client.fetch_within(5ms, 4, out, harvest()).value(), std::nullopt);
  EXPECT_THAT(agent.slept, ElementsAre(2ms, 3ms));
  agent.script = {{ChunkReply::OK, 1, 'o'}};
  EXPECT_EQ(client.fetch_within(0ms, 4, out, harvest()).value(), 1u);
  EXPECT_EQ(harvests, 0);
}

TEST_F(ScriptedChunks, AClaimThatRanOutIsTakenOver) {
  agent.script = {{ChunkReply::MISSING},
                  {ChunkReply::BUSY},
                  {ChunkReply::MISSING},
                  {ChunkReply::OK},
                  {ChunkReply::OK}};
  EXPECT_EQ(agent.client().fetch(4, out, harvest()).value(), 3u);
  EXPECT_EQ(harvests, 1);
  EXPECT_EQ(agent.slept.size(), 1u);
}

TEST_F(ScriptedChunks, OutOfPatienceItHarvestsWithoutAClaim) {
  agent.script.clear();
  for (int i = 0; i < 100; ++i)
    agent.script.push_back({i % 2 == 0 ? ChunkReply::MISSING : ChunkReply::BUSY});
  EXPECT_EQ(agent.client(1s).fetch(4, out, harvest()).value(), 3u);
  EXPECT_EQ(harvests, 1);
  EXPECT_EQ(agent.now - TimePoint{}, 1s) << "not a moment later than it has patience";
  EXPECT_EQ(agent.heard.back().verb(), ChunkRequest::WRITE);
}

TEST_F(ScriptedChunks, AStopEndsTheWaitAndIsNotAskedBeforeThere) {
  agent.script = {{ChunkReply::MISSING}, {ChunkReply::BUSY}};
  const auto stopped = agent.client().fetch(4, out, harvest(), [] { return true; });
  ASSERT_FALSE(stopped);
  EXPECT_EQ(stopped.error().code, ErrorCode::kUnavailable);
  EXPECT_EQ(harvests, 0);
  agent.script = {{ChunkReply::OK, 1, 'x'}};
  EXPECT_TRUE(agent.client().fetch(4, out, harvest(), [] { return true; }));
}

TEST_F(ScriptedChunks, AFailedHarvestReleasesTheClaimAndIsTheError) {
  agent.script = {{ChunkReply::MISSING}, {ChunkReply::OK}, {ChunkReply::OK}};
  const auto failed = agent.client().fetch(4, out, [](auto, auto) -> Result<std::uint32_t> {
    return fail(ErrorCode::kResourceExhausted, "no memory");
  });
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().message, "no memory");
  EXPECT_EQ(agent.heard.back().verb(), ChunkRequest::RELEASE);
}

// ---- chunks that are harvested beside one
// --------------------------------------------------------

// Another stream at the same agent, with memory of its own.
struct BesideChunks : ScriptedChunks {
  ScriptedAgent other_agent;
  ChunkClient own = agent.client(), other = other_agent.client();
  std::vector<ChunkClient::Beside> beside{{{1, 8}, &other}, {{1, 9}, &other}};
  std::vector<MemberChunk> brought;

  HarvestChunk harvest_all(std::uint32_t rows_beside = 2) {
    return [this, rows_beside](std::span<std::byte> to,
                               std::span<ChunkOrder> orders) -> Result<std::uint32_t> {
      std::memset(to.data(), 'h', 3 * kRowBytes);
      for (ChunkOrder& order : orders) {
        brought.push_back(order.chunk);
        EXPECT_EQ(order.out.size(), kSlotBytes);
        std::memset(order.out.data(), 'a' + static_cast<int>(order.chunk.index), order.out.size());
        order.rows = rows_beside;
      }
      return 3;
    };
  }
};

TEST_F(BesideChunks, WhatIsGrantedIsHarvestedAlongAndHandedIn) {
  agent.script = {
      {ChunkReply::MISSING}, {.status = ChunkReply::OK, .granted = {1}}, {ChunkReply::OK}};
  other_agent.script = {{ChunkReply::OK}};
  EXPECT_EQ(own.fetch(4, out, harvest_all(), {}, beside).value(), 3u);
  ASSERT_EQ(agent.heard[1].verb(), ChunkRequest::CLAIM);
  ASSERT_EQ(agent.heard[1].beside_size(), 2);
  EXPECT_EQ(agent.heard[1].beside(0).index(), 8u);
  EXPECT_EQ(agent.heard[1].beside(1).stream(), "the-stream");
  EXPECT_THAT(brought, ElementsAre(MemberChunk{1, 9}));
  ASSERT_EQ(other_agent.heard.size(), 1u);
  EXPECT_EQ(other_agent.heard[0].verb(), ChunkRequest::WRITE);
  EXPECT_EQ(other_agent.heard[0].index(), 9u);
  EXPECT_EQ(other_agent.heard[0].rows(), 2u);
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(other_agent.slots), 2 * kRowBytes),
            std::string(2 * kRowBytes, 'a' + 9));
  EXPECT_EQ(text(3 * kRowBytes), std::string(3 * kRowBytes, 'h'));
}

TEST_F(BesideChunks, WhatTheCacheHasNoRoomForIsNotAskedForAgain) {
  agent.script = {{ChunkReply::MISSING}, {.status = ChunkReply::OK, .granted = {0, 1}},
                  {ChunkReply::OK},      {ChunkReply::MISSING},
                  {ChunkReply::OK},      {ChunkReply::OK}};
  other_agent.script = {{ChunkReply::FULL}};
  EXPECT_TRUE(own.fetch(4, out, harvest_all(), {}, beside));
  EXPECT_TRUE(own.fetch(5, out, harvest_all(), {}, beside));
  EXPECT_EQ(agent.heard[4].verb(), ChunkRequest::CLAIM);
  EXPECT_EQ(agent.heard[4].beside_size(), 0);
}

TEST_F(BesideChunks, AHarvestThatFailsGivesAllClaimsUp) {
  agent.script = {
      {ChunkReply::MISSING}, {.status = ChunkReply::OK, .granted = {0, 1}}, {ChunkReply::OK}};
  other_agent.script = {{ChunkReply::OK}};
  EXPECT_FALSE(own.fetch(
      4, out,
      [](auto, auto) -> Result<std::uint32_t> {
        return fail(ErrorCode::kResourceExhausted, "no memory");
      },
      {}, beside));
  EXPECT_EQ(agent.heard.back().verb(), ChunkRequest::RELEASE);
  EXPECT_THAT(other_agent.verbs(), ElementsAre(ChunkRequest::RELEASE, ChunkRequest::RELEASE));
}

TEST_F(BesideChunks, GrantsOfNothingThatWasAskedForAreIgnored) {
  agent.script = {
      {ChunkReply::MISSING}, {.status = ChunkReply::OK, .granted = {2, 7}}, {ChunkReply::OK}};
  EXPECT_TRUE(own.fetch(4, out, harvest_all(), {}, beside));
  EXPECT_TRUE(brought.empty());
}

TEST_F(ScriptedChunks, RowsThatNoSlotHoldsAreNotBelieved) {
  agent.script = {{ChunkReply::OK, 5, 'c'}, {ChunkReply::OK}};
  EXPECT_EQ(agent.client().fetch(4, out, harvest()).value(), 3u);
  EXPECT_EQ(harvests, 1);
  agent.script = {{ChunkReply::OK, 0xffffffff, 'c'}, {ChunkReply::OK}};
  EXPECT_EQ(agent.client().fetch(4, out, harvest()).value(), 3u);
  // More than the reader has room for, though the slot has it.
  std::vector<std::byte> small(2 * kRowBytes);
  agent.script = {{ChunkReply::OK, 3, 'c'}, {ChunkReply::OK}};
  EXPECT_EQ(agent.client().fetch(4, small, harvest(2)).value(), 2u);
}

TEST_F(ScriptedChunks, AnAnswerToAnotherQuestionIsAnError) {
  agent.script = {{ChunkReply::OK, 1, 'c'}};
  agent.answers_another = true;
  EXPECT_FALSE(agent.client().fetch(4, out, harvest()));
  agent.answers_another = false;
  agent.script = {{ChunkReply::STATUS_UNSPECIFIED}};
  const auto misunderstood = agent.client().fetch(4, out, harvest());
  ASSERT_FALSE(misunderstood);
  EXPECT_THAT(misunderstood.error().message, HasSubstr("chunk 4"));
}

TEST_F(ScriptedChunks, TheErrorOfTheTransportIsTheErrorOfTheFetch) {
  agent.dead = Error{ErrorCode::kUnavailable, "the agent is gone"};
  const auto failed = agent.client().fetch(4, out, harvest());
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().message, "the agent is gone");
}

}  // namespace
}  // namespace saesweep::worker
