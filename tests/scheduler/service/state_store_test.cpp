#include "scheduler/service/state_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mount.h>

#include <optional>

#include "core/files.h"
#include "scheduler/decisions/decide.h"
#include "scheduler/service/submission.h"
#include "tests/scheduler/service/service_words.h"
#include "tests/support/temp_dir.h"

namespace saesweep::scheduler {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;
using testing::IsEmpty;

std::map<std::string, std::string> contents(const SweepState& state) {
  std::map<std::string, std::string> all{{"meta", state.meta().SerializeAsString()}};
  for (const auto& [name, sweep] : state.sweeps()) all["sweep " + name] = sweep.SerializeAsString();
  for (const auto& [id, entry] : state.tasks()) all["task " + id] = entry.task.SerializeAsString();
  for (const auto& [id, run] : state.runs())
    all[fmt::format("run {}", id)] = run.SerializeAsString();
  return all;
}

struct Store : testing::Test {
  test::TempDir dir;
  std::filesystem::path journal = dir.path() / "journal";
  TimePoint now{1h};
  std::optional<StateStore> store;
  Unfolded most;

  void open() {
    store.reset();
    store.emplace(StateStore::open(journal, StateStore::Mode::kWrite, most).value());
  }
  std::vector<Reply> hear(const std::string& peer, Heard heard) {
    Decision decision = decide(store->state(), {peer, std::move(heard)}, now);
    store->apply(std::move(decision.events), 5);
    EXPECT_EQ(store->state().broken_invariant(), "");
    return std::move(decision.replies);
  }
  void join() {
    protocol::Hello hello;
    hello.set_slots(1);
    hear("w", hello);
  }
  // One step of a diligent worker: gets a run, or finishes one task of it. False: nothing to do.
  bool step() {
    for (const auto& [id, run] : store->state().runs()) {
      if (run.worker().empty()) continue;
      const journal::Task& task = *store->state().find_task(run.tasks(0));
      ResultHeard result;
      result.result.set_task(task.spec().id());
      result.result.set_fence(task.fence());
      result.result.set_outcome(protocol::OUTCOME_DONE);
      result.result.set_summary("{}");
      hear("w", result);
      return true;
    }
    protocol::Heartbeat beat;
    beat.set_free_slots(1);
    hear("w", beat);
    const auto before = store->state().meta().last_event();
    hear("", Tick{});
    return store->state().meta().last_event() != before;
  }
};

TEST_F(Store, KeepsWhatWasCommittedAndForgetsWhatWasNot) {
  open();
  hear("", ProcessBegins{});
  hear("", to_submission(plan_of({4})));
  ASSERT_TRUE(store->commit());
  const auto committed = contents(store->state());
  join();
  hear("", Tick{});
  EXPECT_NE(contents(store->state()), committed);
  open();
  EXPECT_EQ(contents(store->state()), committed);
}

// Events that are not in the stored objects yet: none, some, all.
struct StoreOf : Store, testing::WithParamInterface<std::uint64_t> {};
INSTANTIATE_TEST_SUITE_P(Events, StoreOf, testing::Values(1, 5, 4096));

TEST_P(StoreOf, GoesOnAfterACrashAtEveryCommit) {
  most.events = GetParam();
  const auto plan = plan_of({4, 8, 16});
  for (int crash_at = 0;; ++crash_at) {
    std::filesystem::remove_all(journal);
    open();
    bool crashed = false;
    int commits = 0;
    hear("", ProcessBegins{});
    hear("", to_submission(plan));
    join();
    ASSERT_TRUE(store->commit());
    while (step()) {
      if (!crashed && ++commits > crash_at) {
        // Decided, but not durable; or durable, but nobody heard of it.
        if (crash_at % 2 == 0) {
          ASSERT_TRUE(store->commit());
        }
        crashed = true;
        const auto before = contents(store->state());
        open();
        if (crash_at % 2 == 0) {
          EXPECT_EQ(contents(store->state()), before);
        }
        EXPECT_THAT(verify_journal(journal).value(), IsEmpty());
        hear("", ProcessBegins{});
        hear("", to_submission(plan));
        join();
      }
      ASSERT_TRUE(store->commit());
    }
    for (const auto& [id, entry] : store->state().tasks())
      EXPECT_TRUE(entry.task.has_succeeded()) << id;
    EXPECT_NE(store->state().sweeps().at("widths").ended(), 0);
    EXPECT_THAT(verify_journal(journal).value(), IsEmpty());
    if (!crashed) {
      EXPECT_GE(crash_at, 10) << "commits of a calm run";
      return;
    }
  }
}

TEST_F(Store, WritesObjectsWhenTheEventsThatTheyLackAreMany) {
  most.events = 3;
  open();
  const auto stored_as_of = [&] {
    journal::Meta meta;
    const auto raw = open_journal(journal, StateStore::Mode::kReadOnly).value();
    if (const auto row = raw.get("meta", "state")) EXPECT_TRUE(meta.ParseFromString(*row));
    return meta.last_event();
  };
  hear("", ProcessBegins{});
  ASSERT_TRUE(store->commit());
  EXPECT_EQ(stored_as_of(), 0u);
  hear("", to_submission(plan_of({4})));
  ASSERT_TRUE(store->commit());
  EXPECT_EQ(stored_as_of(), 0u);
  open();  // what it applied anew counts
  hear("", ProcessBegins{});
  ASSERT_TRUE(store->commit());
  EXPECT_EQ(stored_as_of(), 0u) << "who waits for the third does not wait for the objects";
  hear("", ProcessBegins{});
  ASSERT_TRUE(store->commit());
  EXPECT_EQ(stored_as_of(), 4u);
  EXPECT_THAT(verify_journal(journal).value(), IsEmpty());
}

TEST_F(Store, WhoseObjectsAreNewerThanItsEventsIsFoundOut) {
  most.events = 0;
  open();
  hear("", ProcessBegins{});
  hear("", to_submission(plan_of({4})));
  ASSERT_TRUE(store->commit());
  store.reset();
  {
    auto raw = open_journal(journal, StateStore::Mode::kWrite).value();
    const storage::JournalWrite lost[] = {{"event", "0000000000000002", std::nullopt}};
    ASSERT_TRUE(raw.commit(lost));
  }
  EXPECT_THAT(verify_journal(journal).value(),
              testing::Contains(HasSubstr("as of event 2, but the last one is 1")));
}

TEST_F(Store, OfWhichAnObjectWasChangedBehindItsBackIsFoundOut) {
  most.events = 0;
  open();
  hear("", ProcessBegins{});
  hear("", to_submission(plan_of({4})));
  ASSERT_TRUE(store->commit());
  journal::Task task = store->state().tasks().begin()->second.task;
  store.reset();
  task.set_fence(17);
  {
    auto raw = open_journal(journal, StateStore::Mode::kWrite).value();
    const storage::JournalWrite forged[] = {
        {"task", task.spec().id(), task.SerializeAsString()},
        {"sweep", "nobody submitted this", journal::Sweep().SerializeAsString()}};
    ASSERT_TRUE(raw.commit(forged));
  }
  const auto differences = verify_journal(journal).value();
  ASSERT_EQ(differences.size(), 2u);
  EXPECT_THAT(differences[0], HasSubstr(task.spec().id()));
  EXPECT_THAT(differences[1], HasSubstr("nobody submitted this"));
}

TEST_F(Store, ThatCannotBeReadSaysSo) {
  open();
  store.reset();
  {
    auto raw = open_journal(journal, StateStore::Mode::kWrite).value();
    const storage::JournalWrite garbage[] = {{"task", "train:x", "\xff\xff"}};
    ASSERT_TRUE(raw.commit(garbage));
  }
  const auto opened = StateStore::open(journal, StateStore::Mode::kWrite);
  ASSERT_FALSE(opened);
  EXPECT_EQ(opened.error().code, ErrorCode::kCorrupted);
  EXPECT_THAT(opened.error().message, HasSubstr("train:x"));
}

TEST_F(Store, OfAnotherVersionIsRefused) {
  {
    auto raw = storage::Journal::open(
        journal, {.families = {"meta", "sweep", "task", "run", "event"}, .version = 99});
    ASSERT_TRUE(raw);
  }
  EXPECT_EQ(StateStore::open(journal, StateStore::Mode::kReadOnly).error().code,
            ErrorCode::kInvalidArgument);
}

TEST_F(Store, KeepsWhatAFullDiskRefusedUntilThereIsRoom) {
  const std::filesystem::path disk = dir.path() / "disk";
  std::filesystem::create_directories(disk);
  if (::mount("tmpfs", disk.c_str(), "tmpfs", 0, "size=8m") != 0)
    GTEST_SKIP() << "may not mount a small disk";
  journal = disk / "journal";
  open();
  hear("", ProcessBegins{});
  ASSERT_TRUE(store->commit());
  // Fill it up.
  const std::string filler(std::size_t{64} << 10, 'x');
  int files = 0;
  while (write_file_atomically(disk / fmt::format("filler-{}", files), filler)) ++files;
  Result<void> committed;
  std::vector<std::uint64_t> ks;
  for (std::uint64_t k = 1; k < 40 && committed; ++k) {
    ks.push_back(k);
    hear("", to_submission(plan_of(ks)));
    committed = store->commit();
  }
  ASSERT_FALSE(committed) << "the disk is never full";
  EXPECT_EQ(committed.error().code, ErrorCode::kResourceExhausted) << committed.error().message;
  EXPECT_TRUE(store->has_pending());
  hear("", to_submission(plan_of({50})));
  for (int i = 0; i < files; ++i) std::filesystem::remove(disk / fmt::format("filler-{}", i));
  const auto again = store->commit();
  EXPECT_TRUE(again) << again.error().message;
  const auto expected = contents(store->state());
  open();
  EXPECT_EQ(contents(store->state()), expected);
  store.reset();
  EXPECT_THAT(verify_journal(journal).value(), IsEmpty());
  ::umount2(disk.c_str(), MNT_DETACH);
}

}  // namespace
}  // namespace saesweep::scheduler
