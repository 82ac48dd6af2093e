#include "scheduler/protocol/reliable.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "core/philox.h"

namespace saesweep::protocol {
namespace {

using namespace std::chrono_literals;
using testing::ElementsAre;
using testing::IsEmpty;

TimePoint at(Duration time) { return TimePoint(1h + time); }

std::vector<std::uint64_t> numbers(const std::vector<OutgoingFrame>& frames) {
  std::vector<std::uint64_t> all;
  for (const OutgoingFrame& frame : frames) all.push_back(frame.header.seq);
  return all;
}

std::string text(int i) { return fmt::format("message {}", i); }

TEST(Reliable, NumbersFromOneAndForgetsWhatIsAcknowledged) {
  ReliablePeer sender(1), receiver(2);
  for (int i = 1; i <= 3; ++i) {
    const auto frame = sender.reliable(MessageType::kResult, text(i), at(0s)).value();
    EXPECT_EQ(frame.header.seq, static_cast<std::uint64_t>(i));
    EXPECT_TRUE(receiver.accept(frame.header));
  }
  EXPECT_EQ(sender.unacknowledged(), 3u);
  receiver.confirm();
  EXPECT_TRUE(sender.accept(receiver.unreliable(MessageType::kHeartbeatAck, "").header));
  EXPECT_EQ(sender.unacknowledged(), 0u);
  EXPECT_THAT(sender.due(at(1h)), IsEmpty());
}

TEST(Reliable, DoesNotAcknowledgeBeforeItIsConfirmed) {
  ReliablePeer sender(1), receiver(2);
  EXPECT_TRUE(receiver.accept(sender.reliable(MessageType::kResult, "r", at(0s)).value().header));
  EXPECT_EQ(receiver.unreliable(MessageType::kHeartbeatAck, "").header.ack, 0u);
  receiver.confirm();
  EXPECT_EQ(receiver.unreliable(MessageType::kHeartbeatAck, "").header.ack, 1u);
}

TEST(Reliable, DeliversInOrderAndOnce) {
  ReliablePeer sender(1), receiver(2);
  const auto first = sender.reliable(MessageType::kResult, "1", at(0s)).value();
  const auto second = sender.reliable(MessageType::kResult, "2", at(0s)).value();
  EXPECT_FALSE(receiver.accept(second.header)) << "a gap before it";
  EXPECT_TRUE(receiver.accept(first.header));
  EXPECT_FALSE(receiver.accept(first.header)) << "repeated";
  EXPECT_TRUE(receiver.accept(second.header));
}

TEST(Reliable, SendsAgainAfterItsPatienceAndThenMoreAndMoreSlowly) {
  ReliablePeer sender(1);
  (void)sender.reliable(MessageType::kResult, "1", at(0s));
  EXPECT_THAT(sender.due(at(1999ms)), IsEmpty());
  const auto again = sender.due(at(2s));
  ASSERT_THAT(numbers(again), ElementsAre(1));
  EXPECT_EQ(again[0].header.flags, kReliable | kRetransmission);
  EXPECT_EQ(again[0].body, "1");
  EXPECT_THAT(sender.due(at(5s)), IsEmpty());
  EXPECT_THAT(numbers(sender.due(at(6s))), ElementsAre(1));
  Duration now = 6s;
  for (int i = 0; i < 10; ++i) (void)sender.due(at(now += 30s));
  EXPECT_THAT(sender.due(at(now + 29s)), IsEmpty());
  EXPECT_THAT(numbers(sender.due(at(now + 30s))), ElementsAre(1)) << "30 s is the longest wait";
}

TEST(Reliable, SendsTheRestAtOnceWhenThePeerSaysWhatItHas) {
  ReliablePeer sender(1);
  for (int i = 1; i <= 4; ++i) (void)sender.reliable(MessageType::kResult, text(i), at(0s));
  EXPECT_THAT(numbers(sender.resend_after(2, at(1ms))), ElementsAre(3, 4));
  EXPECT_EQ(sender.unacknowledged(), 2u);
}

TEST(Reliable, TakesNoMoreThanItsPeerGivesCreditFor) {
  ReliablePeer sender(1);
  for (std::uint32_t i = 0; i < ReliablePeer::kCredit; ++i)
    ASSERT_TRUE(sender.reliable(MessageType::kResult, "", at(0s))) << i;
  const auto full = sender.reliable(MessageType::kResult, "", at(0s));
  ASSERT_FALSE(full);
  EXPECT_EQ(full.error().code, ErrorCode::kResourceExhausted);
  Header ack;
  ack.ack = 1;
  ack.credit = ReliablePeer::kCredit;
  EXPECT_TRUE(sender.accept(ack));
  EXPECT_TRUE(sender.reliable(MessageType::kResult, "", at(0s)));
}

TEST(Reliable, TakesNoMoreBytesThanItMayHold) {
  ReliablePeer sender(1);
  const std::string big(ReliablePeer::kMaxUnackedBytes / 2, 'x');
  EXPECT_TRUE(sender.reliable(MessageType::kResult, big, at(0s)));
  EXPECT_TRUE(sender.reliable(MessageType::kResult, big, at(0s)));
  EXPECT_FALSE(sender.reliable(MessageType::kResult, "x", at(0s)));
}

// A network that drops, repeats and reorders in both directions; whoever gives up is a failure.
class BadNetwork : public testing::TestWithParam<int> {};

TEST_P(BadNetwork, DeliversEverythingInOrderAndOnce) {
  Rng rng(static_cast<std::uint64_t>(GetParam()), "test.reliable");
  constexpr int kMessages = 60;
  struct Side {
    ReliablePeer peer;
    std::vector<std::string> delivered;
    int said = 0;
  };
  Side sides[2] = {{ReliablePeer(1), {}, 0}, {ReliablePeer(2), {}, 0}};
  std::vector<OutgoingFrame> under_way[2];  // towards side i
  Duration now{};
  const auto send = [&](int to, const OutgoingFrame& frame) {
    const auto fate = rng.below(10);
    if (fate < 3) return;                          // lost
    for (int i = 0; i < (fate == 9 ? 3 : 1); ++i)  // repeated
      under_way[to].push_back(frame);
  };
  const auto all_done = [&] {
    return sides[0].delivered.size() == kMessages && sides[1].delivered.size() == kMessages;
  };
  int round = 0;
  for (; round < 20'000 && !all_done(); ++round) {
    now += 100ms;
    for (int me = 0; me < 2; ++me) {
      Side& side = sides[me];
      if (side.said < kMessages && rng.below(2) == 0)
        if (auto frame = side.peer.reliable(MessageType::kResult, text(side.said), at(now))) {
          ++side.said;
          send(1 - me, *frame);
        }
      for (const OutgoingFrame& frame : side.peer.due(at(now))) send(1 - me, frame);
      if (rng.below(8) == 0) side.peer.confirm();
      if (rng.below(4) == 0) send(1 - me, side.peer.unreliable(MessageType::kHeartbeat, ""));
      if (rng.below(64) == 0)
        for (const OutgoingFrame& frame :
             side.peer.resend_after(sides[1 - me].peer.last_received(), at(now)))
          send(1 - me, frame);
      while (!under_way[me].empty() && rng.below(3) != 0) {
        const std::size_t i = rng.below(static_cast<std::uint32_t>(under_way[me].size()));
        const OutgoingFrame frame = under_way[me][i];
        under_way[me].erase(under_way[me].begin() + static_cast<std::ptrdiff_t>(i));
        if (side.peer.accept(frame.header) && (frame.header.flags & kReliable) != 0)
          side.delivered.push_back(frame.body);
      }
    }
  }
  for (const Side& side : sides) {
    ASSERT_EQ(side.delivered.size(), static_cast<std::size_t>(kMessages)) << "round " << round;
    for (int i = 0; i < kMessages; ++i)
      ASSERT_EQ(side.delivered[static_cast<std::size_t>(i)], text(i));
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, BadNetwork, testing::Range(0, 20));

}  // namespace
}  // namespace saesweep::protocol
