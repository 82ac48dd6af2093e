#include "storage/journal.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <thread>

#include "core/files.h"
#include "tests/storage/storage_words.h"
#include "tests/support/temp_dir.h"

namespace saesweep::storage {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Pair;

const JournalOptions kOptions{.families = {"a", "b"}};
const JournalOptions kReader{.families = {"a", "b"}, .read_only = true};

using Rows = std::vector<std::pair<std::string, std::string>>;

Rows rows_with(const Journal& journal, std::string_view family, std::string_view prefix = "",
               std::string_view from = "") {
  Rows rows;
  const auto scanned = journal.scan(
      family, prefix,
      [&](std::string_view key, std::string_view value) {
        rows.emplace_back(key, value);
        return true;
      },
      from);
  EXPECT_TRUE(scanned);
  return rows;
}

Result<void> commit(Journal& journal, std::vector<JournalWrite> batch) {
  return journal.commit(batch);
}

// How many batches of rows_of are there; each must be whole.
std::uint64_t whole_batches(const Journal& journal) {
  const Rows a = rows_with(journal, "a", "0"), b = rows_with(journal, "b", "0");
  EXPECT_EQ(a.size(), b.size()) << "a torn batch";
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    EXPECT_EQ(a[i].first, fmt::format("{:08}", i));
    EXPECT_EQ(b[i].first, a[i].first);
  }
  EXPECT_TRUE(a.empty() || journal.get("a", "last") == a.back().first);
  return a.size();
}

struct JournalTest : testing::Test {
  test::TempDir dir;
  std::filesystem::path home = dir.path() / "journal";
  Journal open(const JournalOptions& options = kOptions) {
    return Journal::open(home, options).value();
  }
};

TEST_F(JournalTest, CommittedRowsComeBackAfterReopening) {
  {
    auto journal = open();
    ASSERT_TRUE(commit(journal, {{"a", "1", "one"}, {"b", "1", "uno"}}));
    ASSERT_TRUE(commit(journal, {{"a", "2", ""}, {"b", "1", std::nullopt}}));
  }
  const auto journal = open();
  EXPECT_EQ(journal.get("a", "1"), "one");
  EXPECT_EQ(journal.get("a", "2"), "");
  EXPECT_EQ(journal.get("b", "1").error().code, ErrorCode::kNotFound);
}

TEST_F(JournalTest, AScanGivesThePrefixInOrderOfKeys) {
  auto journal = open();
  ASSERT_TRUE(commit(journal, {{"a", "x2", "2"},
                               {"a", "x1", "1"},
                               {"a", "w", ""},
                               {"a", "y", ""},
                               {"a", "x", "0"},
                               {"b", "x9", "other family"}}));
  EXPECT_THAT(rows_with(journal, "a", "x"),
              ElementsAre(Pair("x", "0"), Pair("x1", "1"), Pair("x2", "2")));
  EXPECT_THAT(rows_with(journal, "a", "x", "x1"), ElementsAre(Pair("x1", "1"), Pair("x2", "2")));
  EXPECT_EQ(rows_with(journal, "a").size(), 5u);
}

TEST_F(JournalTest, AScanEndsWhenItsVisitorHasEnough) {
  auto journal = open();
  ASSERT_TRUE(commit(journal, {{"a", "1", ""}, {"a", "2", ""}}));
  int seen = 0;
  ASSERT_TRUE(journal.scan("a", "", [&](auto, auto) { return ++seen < 1; }));
  EXPECT_EQ(seen, 1);
}

TEST_F(JournalTest, KeysAndValuesMayHoldAnyBytes) {
  auto journal = open();
  const std::string bytes("\0\xff\n\0", 4);
  ASSERT_TRUE(commit(journal, {{"a", bytes, bytes}}));
  EXPECT_EQ(journal.get("a", bytes), bytes);
}

TEST_F(JournalTest, TheVersionIsADecimalNumberInTheDefaultFamily) {
  (void)open({.families = {"a"}, .version = 41});
  const auto journal = open({.families = {"a"}, .version = 41, .read_only = true});
  EXPECT_THAT(rows_with(journal, "default"), ElementsAre(Pair("saesweep.journal_version", "41")));
}

TEST_F(JournalTest, AnotherVersionIsRefusedNamingBoth) {
  (void)open({.families = {"a"}, .version = 3});
  for (const bool read_only : {false, true}) {
    const auto other =
        Journal::open(home, {.families = {"a"}, .version = 2, .read_only = read_only});
    ASSERT_FALSE(other);
    EXPECT_EQ(other.error().code, ErrorCode::kInvalidArgument);
    EXPECT_THAT(other.error().message, HasSubstr("version 3"));
    EXPECT_THAT(other.error().message, HasSubstr("version 2"));
  }
  EXPECT_TRUE(Journal::open(home, {.families = {"a"}, .version = 3})) << "the refusal did harm";
}

TEST_F(JournalTest, FamiliesCanBeAddedAndThoseNotNamedAreKept) {
  {
    auto journal = open();
    ASSERT_TRUE(commit(journal, {{"b", "1", "kept"}}));
  }
  {
    auto journal = open({.families = {"c"}});
    ASSERT_TRUE(commit(journal, {{"c", "1", "new"}}));
  }
  EXPECT_EQ(open().get("b", "1"), "kept");
}

TEST_F(JournalTest, AnAbsentJournalCannotBeReadAndIsNotCreated) {
  const auto journal = Journal::open(home, kReader);
  EXPECT_EQ(journal.error().code, ErrorCode::kNotFound);
  EXPECT_FALSE(std::filesystem::exists(home));
}

TEST_F(JournalTest, AReaderCannotCommit) {
  (void)open();
  auto reader = open(kReader);
  EXPECT_EQ(commit(reader, {{"a", "1", ""}}).error().code, ErrorCode::kInvalidArgument);
}

TEST_F(JournalTest, AReaderLacksNoFamilyThatIsEmpty) {
  (void)open({.families = {"a"}});
  const auto reader = open({.families = {"a", "later"}, .read_only = true});
  EXPECT_TRUE(rows_with(reader, "later").empty());
  EXPECT_EQ(reader.get("later", "1").error().code, ErrorCode::kNotFound);
}

TEST_F(JournalTest, BackupsCanBeOpened) {
  auto journal = open();
  ASSERT_TRUE(commit(journal, {{"a", "1", "before"}}));
  ASSERT_TRUE(journal.backup(dir.path() / "backup"));
  ASSERT_TRUE(commit(journal, {{"a", "1", "after"}}));
  EXPECT_EQ(Journal::open(dir.path() / "backup", kOptions)->get("a", "1"), "before");
}

TEST_F(JournalTest, NetworkFileSystemsAreKnownByTheirNumbers) {
  EXPECT_EQ(network_file_system(0x6969), "NFS");
  EXPECT_EQ(network_file_system(0x0BD00BD0), "Lustre");
  EXPECT_EQ(network_file_system(0x47504653), "GPFS");
  EXPECT_EQ(network_file_system(0x19830326), "BeeGFS");
  EXPECT_EQ(network_file_system(0x65735546), "FUSE");
  EXPECT_EQ(network_file_system(0xFFFFFFFFFF534D42), "CIFS") << "f_type is signed";
  for (const std::uint64_t local : {0xEF53, 0x01021994, 0x58465342}) {  // ext4, tmpfs, XFS
    EXPECT_EQ(network_file_system(local), "");
  }
}

TEST_F(JournalTest, ThreadsMayCommitAtOnce) {
  auto journal = open();
  {
    std::vector<std::jthread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&, t] {
        for (int i = 0; i < 20; ++i) {
          EXPECT_TRUE(commit(journal, {{"a", fmt::format("{}-{}", t, i), ""}}));
        }
      });
    }
  }
  EXPECT_EQ(rows_with(journal, "a").size(), 80u);
}

// ---- other processes ----------------------------------------------------------------------------

TEST_F(JournalTest, AReaderBesideALivingWriterSeesWhatWasCommittedBeforeItOpened) {
  auto writer = open();
  for (std::uint64_t i = 0; i < 3; ++i) ASSERT_TRUE(writer.commit(rows_of(i)));
  const auto reader = open(kReader);
  EXPECT_EQ(whole_batches(reader), 3u);
  ASSERT_TRUE(writer.commit(rows_of(3)));
  EXPECT_EQ(whole_batches(reader), 3u) << "a view that stands still";
  EXPECT_EQ(whole_batches(open(kReader)), 4u);
}

TEST_F(JournalTest, AReaderBesideAWriterOfAnotherProcessSeesItsCommits) {
  Child writer({"journal", home.string(), "100000"});
  for (std::uint64_t seen = 0; seen < 200; seen += 50) {
    ASSERT_EQ(writer.wait_for(50), 50u);
    const auto reader = Journal::open(home, kReader);
    ASSERT_TRUE(reader) << reader.error().message;
    EXPECT_GE(whole_batches(*reader), seen + 50);
  }
}

TEST_F(JournalTest, ASecondWriterIsToldWhoHoldsTheJournal) {
  Child holder({"hold-journal", home.string()});
  ASSERT_EQ(holder.wait_for(1), 1u);
  for (int twice = 0; twice < 2; ++twice) {  // asking who holds it must not break the lock
    const auto second = Journal::open(home, kOptions);
    ASSERT_FALSE(second);
    EXPECT_EQ(second.error().code, ErrorCode::kUnavailable);
    EXPECT_THAT(second.error().message, HasSubstr(fmt::format("held by process {}", holder.pid())));
    EXPECT_THAT(second.error().message, HasSubstr(home.string()));
  }
  holder.kill();
  EXPECT_TRUE(Journal::open(home, kOptions));
}

TEST_F(JournalTest, ASecondWriterInThisProcessIsRefusedToo) {
  auto first = open();
  const auto second = Journal::open(home, kOptions);
  EXPECT_EQ(second.error().code, ErrorCode::kUnavailable);
  EXPECT_THAT(second.error().message, HasSubstr("held by this process"));
  EXPECT_TRUE(commit(first, {{"a", "1", ""}}));
}

TEST_F(JournalTest, EveryAcknowledgedCommitSurvivesAKill) {
  std::uint64_t acknowledged = 0;
  for (const std::uint64_t count : {1, 40, 333}) {
    std::filesystem::remove_all(home);
    Child writer({"journal", home.string(), "1000000"});
    acknowledged = writer.wait_for(count);
    ASSERT_EQ(acknowledged, count);
    writer.kill();
    EXPECT_GE(whole_batches(open()), acknowledged);
  }
}

// ---- damage and full disks ----------------------------------------------------------------------

std::vector<std::filesystem::path> files_named(const std::filesystem::path& directory,
                                               std::string_view extension) {
  std::vector<std::filesystem::path> found;
  for (const auto& file : std::filesystem::directory_iterator(directory)) {
    if (file.path().extension() == extension) found.push_back(file.path());
  }
  return found;
}

TEST_F(JournalTest, ATornEndIsDroppedAndNothingBeforeIt) {
  {
    auto journal = open();
    for (std::uint64_t i = 0; i < 10; ++i) ASSERT_TRUE(journal.commit(rows_of(i)));
  }
  const auto logs = files_named(home, ".log");
  ASSERT_EQ(logs.size(), 1u);
  std::filesystem::resize_file(logs[0], std::filesystem::file_size(logs[0]) - 5);
  EXPECT_EQ(whole_batches(open()), 9u);
}

TEST_F(JournalTest, DamageBeforeTheEndIsCorruptedInsteadOfLoss) {
  {
    auto journal = open();
    for (std::uint64_t i = 0; i < 10; ++i) ASSERT_TRUE(journal.commit(rows_of(i)));
  }
  const auto logs = files_named(home, ".log");
  ASSERT_EQ(logs.size(), 1u);
  std::fstream log(logs[0], std::ios::in | std::ios::out | std::ios::binary);
  log.seekp(static_cast<std::streamoff>(std::filesystem::file_size(logs[0]) / 2));
  log << "damage";
  log.close();
  const auto journal = Journal::open(home, kOptions);
  ASSERT_FALSE(journal);
  EXPECT_EQ(journal.error().code, ErrorCode::kCorrupted);
}

// Appends to a file until the disk is full.
void fill(const std::filesystem::path& path) {
  std::ofstream ballast(path, std::ios::binary | std::ios::app);
  const std::string block(4096, 'x');
  while (ballast.write(block.data(), 4096).flush()) {
  }
}

TEST_F(JournalTest, AFullDiskRefusesCommitsKeepsReadsAndReopensWhenThereIsRoom) {
  const SmallDisk disk(dir.path() / "disk", "size=16m");
  if (!disk.mounted) GTEST_SKIP() << "mounting a tmpfs is not permitted here";
  auto journal = Journal::open(disk.path / "journal", kOptions).value();
  std::uint64_t committed = 0;
  for (; committed < 20; ++committed) ASSERT_TRUE(journal.commit(rows_of(committed)));

  // Reopening gives back what the log had reserved, so it may succeed a few times.
  Result<void> reopened = {};
  for (int round = 0; round < 20 && reopened; ++round) {
    fill(disk.path / "ballast");
    Result<void> last = {};
    while (committed < 1'000'000 && (last = journal.commit(rows_of(committed)))) ++committed;
    ASSERT_FALSE(last);
    ASSERT_EQ(last.error().code, ErrorCode::kResourceExhausted) << last.error().message;
    ASSERT_EQ(whole_batches(journal), committed);
    ASSERT_EQ(journal.commit(rows_of(committed)).error().code, ErrorCode::kUnavailable);
    fill(disk.path / "ballast");
    reopened = journal.reopen();
  }
  ASSERT_FALSE(reopened);
  EXPECT_EQ(reopened.error().code, ErrorCode::kResourceExhausted) << reopened.error().message;
  EXPECT_GE(whole_batches(journal), committed) << "reading goes on";
  EXPECT_FALSE(journal.commit(rows_of(committed)));

  std::filesystem::remove(disk.path / "ballast");
  reopened = journal.reopen();
  ASSERT_TRUE(reopened) << reopened.error().message;
  ASSERT_TRUE(journal.commit(rows_of(committed)));  // the batch that failed, again
  ASSERT_TRUE(journal.commit(rows_of(committed + 1)));
  EXPECT_EQ(whole_batches(journal), committed + 2);
}

TEST_F(JournalTest, AReadOnlyDiskSaysSo) {
  const SmallDisk disk(dir.path() / "disk", "size=16m");
  if (!disk.mounted) GTEST_SKIP() << "mounting a tmpfs is not permitted here";
  {
    auto journal = Journal::open(disk.path / "journal", kOptions).value();
    ASSERT_TRUE(journal.commit(rows_of(0)));
  }
  ASSERT_EQ(::mount("tmpfs", disk.path.c_str(), "tmpfs", MS_REMOUNT | MS_RDONLY, ""), 0);
  const auto journal = Journal::open(disk.path / "journal", kOptions);
  EXPECT_EQ(journal.error().code, ErrorCode::kUnavailable);
  EXPECT_THAT(journal.error().message, HasSubstr("Read-only file system"));
  EXPECT_EQ(whole_batches(Journal::open(disk.path / "journal", kReader).value()), 1u);
}

}  // namespace
}  // namespace saesweep::storage
