// Logs of executors by trial and attempt.
#include "scheduler/service/executor_logs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/files.h"
#include "scheduler/decisions/decide.h"
#include "scheduler/service/submission.h"
#include "tests/scheduler/service/service_words.h"
#include "tests/support/temp_dir.h"

namespace saesweep::scheduler {
namespace {

using testing::HasSubstr;

// A trial whose first worker said goodbye while it trained, and that trains on another one now.
struct Logs : testing::Test {
  test::TempDir dir;
  SweepState state;

  void hear(const std::string& peer, Heard heard) {
    for (const journal::Event& event : decide(state, {peer, std::move(heard)}, TimePoint{}).events)
      state.apply(event);
  }
  void join(const std::string& session) {
    protocol::Hello hello;
    hello.set_worker_name(session);
    hello.set_slots(1);
    hear(session, hello);
    hear("", Tick{});
  }
  void SetUp() override {
    hear("", ProcessBegins{});
    hear("", to_submission(plan_of({4})));
    join("one");
    hear("one", protocol::Bye());
    join("two");
    for (const auto& [id, entry] : state.tasks()) {
      const journal::Task& task = entry.task;
      if (task.spec().kind() != protocol::TASK_KIND_TRAIN) continue;
      ASSERT_EQ(task.attempts_size(), 2);
      for (const journal::Attempt& attempt : task.attempts())
        ASSERT_TRUE(write_log(dir.path(), fmt::format("run-{}.log", attempt.run()), 0,
                              "printed on " + attempt.worker()));
    }
  }
  Result<Json> read(std::uint64_t attempt) const {
    const journal::Sweep& sweep = state.sweeps().at("widths");
    for (const journal::Subject& subject : sweep.subjects())
      if (!subject.baseline()) return read_log(state, sweep, subject, dir.path(), 0, attempt);
    return fail(ErrorCode::kNotFound, "no trial");
  }
};

TEST_F(Logs, OfATrialAreThoseOfItsNewestAttempt) {
  const Json log = read(0).value();
  EXPECT_EQ(log["text"], "printed on two");
  EXPECT_EQ(log["attempt"], 2);
  EXPECT_EQ(log["more"], true) << "it still runs";
}

TEST_F(Logs, OfAnOlderAttemptAreKeptAndComeToAnEnd) {
  const Json log = read(1).value();
  EXPECT_EQ(log["text"], "printed on one");
  EXPECT_EQ(log["more"], false);
}

TEST_F(Logs, OfAnAttemptThatNeverWasAreAnError) {
  const auto log = read(3);
  ASSERT_FALSE(log);
  EXPECT_EQ(log.error().code, ErrorCode::kNotFound);
  EXPECT_THAT(log.error().message, HasSubstr("has no attempt 3; 1, 2 would be right"));
}

}  // namespace
}  // namespace saesweep::scheduler
