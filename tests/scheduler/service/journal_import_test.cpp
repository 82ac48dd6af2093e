// What export writes is a journal again; what is no export becomes none.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "scheduler/service/journal_tools.h"
#include "scheduler/service/scheduler_service.h"
#include "scheduler/service/state_store.h"
#include "scheduler/service/submission.h"
#include "tests/scheduler/service/service_words.h"
#include "tests/support/temp_dir.h"

namespace saesweep::scheduler {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::IsEmpty;

struct Import : testing::Test {
  test::TempDir dir;
  fs::path state = dir.path() / "state", copy = dir.path() / "copy";
  Unfolded unfolded{.events = 0};  // objects with every commit

  // A sweep with a run under way.
  void SetUp() override {
    StateStore store =
        StateStore::open(state / "journal", StateStore::Mode::kWrite, unfolded).value();
    const auto hear = [&](const std::string& peer, Heard heard) {
      store.apply(decide(store.state(), {peer, std::move(heard)}, TimePoint{}).events, 12.5);
    };
    hear("", ProcessBegins{});
    protocol::Hello hello;
    hello.set_worker_name("w");
    hello.set_slots(1);
    hear("session1", hello);
    hear("", to_submission(plan_of({4, 8})));
    hear("", Tick{});
    ASSERT_FALSE(store.state().runs().empty());
    ASSERT_TRUE(store.commit());
  }
  std::vector<std::string> rows() const {
    std::vector<std::string> lines;
    EXPECT_TRUE(export_journal(state / "journal", [&](std::string_view line) {
      lines.emplace_back(line);
      return true;
    }));
    return lines;
  }
  // The error, or nothing: it was imported into `copy`.
  std::string import(const std::vector<std::string>& lines) const {
    JournalImport import;
    for (const std::string& line : lines)
      if (const auto taken = import.take(line); !taken) return taken.error().message;
    if (const auto fits = import.check(); !fits) return fits.error().message;
    const auto written = import.write(copy);
    if (!written) return written.error().message;
    EXPECT_EQ(*written + 1, lines.size());
    return {};
  }
  static std::map<std::string, std::string> contents(const fs::path& journal) {
    std::map<std::string, std::string> all;
    const auto opened = open_journal(journal, StateStore::Mode::kReadOnly).value();
    for (const char* family : {"meta", "sweep", "task", "run", "event"})
      EXPECT_TRUE(opened.scan(family, "", [&](std::string_view key, std::string_view value) {
        all[std::string(family) + " " + std::string(key)] = value;
        return true;
      }));
    return all;
  }
};

// `line` with one text in place of another.
std::string with(std::string line, const std::string& is, const std::string& becomes) {
  const std::size_t at = line.find(is);
  EXPECT_NE(at, std::string::npos) << is << " in " << line;
  return line.replace(at, is.size(), becomes);
}

TEST_F(Import, OfAnExportIsTheSameJournal) {
  EXPECT_EQ(import(rows()), "");
  EXPECT_EQ(contents(copy / "journal"), contents(state / "journal"));
  EXPECT_THAT(verify_journal(copy / "journal").value(), IsEmpty());
  EXPECT_FALSE(fs::exists(copy / "journal.import"));
}

TEST_F(Import, HasObjectsAsOfTheLastEventWhateverIsStored) {
  const auto before = rows();
  fs::remove_all(state);
  unfolded = {};
  SetUp();
  EXPECT_EQ(rows(), before);
}

TEST_F(Import, OverAJournalIsRefused) {
  ASSERT_EQ(import(rows()), "");
  EXPECT_THAT(import(rows()), HasSubstr("is there already"));
}

TEST_F(Import, ThatDidNotEndIsBegunAnew) {
  fs::create_directories(copy / "journal.import" / "half");
  EXPECT_EQ(import(rows()), "");
  EXPECT_THAT(verify_journal(copy / "journal").value(), IsEmpty());
}

TEST_F(Import, WithoutOneOfItsRowsIsRefused) {
  const auto all = rows();
  for (std::size_t left_out = 0; left_out < all.size(); ++left_out) {
    auto lines = all;
    lines.erase(lines.begin() + static_cast<std::ptrdiff_t>(left_out));
    EXPECT_NE(import(lines), "") << all[left_out];
    EXPECT_FALSE(fs::exists(copy));
  }
}

// The count at the end in accord with what is there, as a forger would have it.
TEST_F(Import, OfAForgeryWithoutAnEventIsRefused) {
  auto lines = rows();
  const std::size_t rows_said = lines.size() - 1;
  lines.erase(lines.end() - 2);
  lines.back() = with(lines.back(), std::to_string(rows_said), std::to_string(rows_said - 1));
  EXPECT_THAT(import(lines), HasSubstr("events; 1 to"));
}

TEST_F(Import, OfWhatIsNoRowSaysWhatWouldBeRight) {
  const std::string meta = rows().front();
  EXPECT_THAT(import({"{"}), Not(IsEmpty()));
  EXPECT_THAT(import({"[1]"}), HasSubstr("no row of saesweep journal export"));
  EXPECT_THAT(import({with(meta, "\"schema\":1", "\"schema\":2")}), HasSubstr("no row"));
  EXPECT_THAT(import({with(meta, "\"meta\"", "\"mata\"")}), HasSubstr("mata"));
  EXPECT_THAT(import({with(meta, "\"state\"", "\"stat\"")}), HasSubstr("stands under the key"));
  EXPECT_THAT(import({with(meta, "last_event", "lost_event")}), HasSubstr("lost_event"));
  EXPECT_THAT(import({meta, meta}), HasSubstr("twice"));
  EXPECT_THAT(import({rows().back(), meta}), HasSubstr("after the last"));
  EXPECT_THAT(import({}), HasSubstr("not whole"));
}

TEST_F(Import, OfATaskWhoseFolderIsElsewhereIsRefused) {
  auto lines = rows();
  for (std::string& line : lines)
    if (line.starts_with(R"({"schema":1,"family":"task")") && line.find("trials/") != line.npos) {
      line = with(line, "\"trials/", "\"../trials/");
      break;
    }
  EXPECT_THAT(import(lines), HasSubstr("the folder of"));
  EXPECT_FALSE(fs::exists(copy));
}

}  // namespace
}  // namespace saesweep::scheduler
