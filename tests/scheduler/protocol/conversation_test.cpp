// Frames of a scheduler that is gone, of one that began anew, and of a worker that has not noticed.
#include "scheduler/protocol/conversation.h"

#include <gtest/gtest.h>

#include "scheduler/protocol/reliable.h"
#include "scheduler/protocol/running_set.h"

namespace saesweep::protocol {
namespace {

using namespace std::chrono_literals;

constexpr std::uint64_t kWorker = 0xfedcba9876543210;

TEST(Conversation, AWorkerKnowsANewSchedulerFromOneThatIsGone) {
  WorkerConversation worker(kWorker);
  EXPECT_EQ(worker.session(), kWorker);
  EXPECT_EQ(worker.hear(7), Standing::kCurrent) << "the first";
  EXPECT_EQ(worker.session(), kWorker + 7);
  EXPECT_EQ(worker.hear(7), Standing::kCurrent);
  EXPECT_EQ(worker.hear(9), Standing::kNew);
  EXPECT_EQ(worker.hear(7), Standing::kOld) << "a frame that was long on its way";
  EXPECT_EQ(worker.hear(9), Standing::kCurrent);
}

TEST(Conversation, ASchedulerKnowsWhomAWorkersNumbersAreAbout) {
  WorkerConversation worker(kWorker);
  EXPECT_EQ(standing_of(worker.session(), kWorker, 7), Standing::kCurrent) << "heard nobody yet";
  worker.hear(7);
  EXPECT_EQ(standing_of(worker.session(), kWorker, 7), Standing::kCurrent);
  EXPECT_EQ(standing_of(worker.session(), kWorker, 9), Standing::kOld);
  worker.hear(9);
  EXPECT_EQ(standing_of(worker.session(), kWorker, 9), Standing::kCurrent);
}

TEST(Conversation, WhatWasNotAcknowledgedIsNumberedAnewForAnotherPeer) {
  const TimePoint now{1h};
  ReliablePeer worker(1), old_scheduler(2), new_scheduler(3);
  for (int i = 0; i < 5; ++i) {
    const auto frame = worker.reliable(MessageType::kResult, std::to_string(i), now).value();
    if (i >= 3) continue;  // lost
    EXPECT_TRUE(old_scheduler.accept(frame.header, now));
    old_scheduler.confirm();
  }
  EXPECT_TRUE(
      worker.accept(old_scheduler.reliable(MessageType::kControl, "", now).value().header, now));
  EXPECT_EQ(worker.unacknowledged(), 2u);
  worker.begin_anew(11);
  EXPECT_EQ(worker.last_received(), 0u);
  const auto again = worker.due(now + 1min);
  ASSERT_EQ(again.size(), 2u);
  for (std::size_t i = 0; i < again.size(); ++i) {
    EXPECT_EQ(again[i].header.seq, i + 1);
    EXPECT_EQ(again[i].header.session, 11u);
    EXPECT_EQ(again[i].body, std::to_string(i + 3));
    EXPECT_TRUE(new_scheduler.accept(again[i].header, now));
  }
  EXPECT_TRUE(
      worker.accept(new_scheduler.reliable(MessageType::kControl, "", now).value().header, now))
      << "the new one counts from 1 too";
}

TEST(RunningSet, TellsLeasesApart) {
  EXPECT_NE(lease_hash("train:a", 1), lease_hash("train:a", 2));
  EXPECT_NE(lease_hash("train:a", 1), lease_hash("train:b", 1));
}

}  // namespace
}  // namespace saesweep::protocol
