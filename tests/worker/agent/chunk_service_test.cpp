#include "worker/agent/chunk_service.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>

#include "core/files.h"
#include "tests/support/temp_dir.h"
#include "tests/worker/agent/chunk_words.h"

namespace saesweep::agent {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using namespace std::chrono_literals;

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

TEST_F(ChunkServiceTest, WhatAnotherNodeHasBegunToHarvestIsNotGrantedBesideAClaim) {
  ChunkBoard board;
  ChunkFetching fetching(board);
  service.join_others(board, fetching);
  Executor a(service, 1), sibling(service, 1, open_request("sibling"));
  EXPECT_THAT(granted(a, "stream", 4, {{"sibling", 4}}), ElementsAre(0));
  protocol::ChunkSource node;
  node.set_stream("sibling");
  node.set_endpoint("tcp://127.0.0.1:1");
  board.note_ahead(node);
  EXPECT_THAT(granted(a, "stream", 5, {{"sibling", 5}}), ElementsAre());
  service.close(1);
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

}  // namespace
}  // namespace saesweep::agent
