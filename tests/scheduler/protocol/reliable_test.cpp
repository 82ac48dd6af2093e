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
    EXPECT_TRUE(receiver.accept(frame.header, at(0s)));
  }
  EXPECT_EQ(sender.unacknowledged(), 3u);
  receiver.confirm();
  EXPECT_TRUE(sender.accept(receiver.unreliable(MessageType::kHeartbeatAck, "").header, at(0s)));
  EXPECT_EQ(sender.unacknowledged(), 0u);
  EXPECT_THAT(sender.due(at(1h)), IsEmpty());
}

TEST(Reliable, DoesNotAcknowledgeBeforeItIsConfirmed) {
  ReliablePeer sender(1), receiver(2);
  EXPECT_TRUE(
      receiver.accept(sender.reliable(MessageType::kResult, "r", at(0s)).value().header, at(0s)));
  EXPECT_EQ(receiver.unreliable(MessageType::kHeartbeatAck, "").header.ack, 0u);
  receiver.confirm();
  EXPECT_EQ(receiver.unreliable(MessageType::kHeartbeatAck, "").header.ack, 1u);
}

TEST(Reliable, DeliversInOrderAndOnce) {
  ReliablePeer sender(1), receiver(2);
  const auto first = sender.reliable(MessageType::kResult, "1", at(0s)).value();
  const auto second = sender.reliable(MessageType::kResult, "2", at(0s)).value();
  EXPECT_FALSE(receiver.accept(second.header, at(0s))) << "a gap before it";
  EXPECT_TRUE(receiver.accept(first.header, at(0s)));
  EXPECT_FALSE(receiver.accept(first.header, at(0s))) << "repeated";
  EXPECT_TRUE(receiver.accept(second.header, at(0s)));
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
  EXPECT_TRUE(sender.accept(ack, at(0s)));
  EXPECT_TRUE(sender.reliable(MessageType::kResult, "", at(0s)));
}

TEST(Reliable, TakesNoMoreBytesThanItMayHold) {
  ReliablePeer sender(1);
  const std::string big(ReliablePeer::kMaxUnackedBytes / 2, 'x');
  EXPECT_TRUE(sender.reliable(MessageType::kResult, big, at(0s)));
  EXPECT_TRUE(sender.reliable(MessageType::kResult, big, at(0s)));
  EXPECT_FALSE(sender.reliable(MessageType::kResult, "x", at(0s)));
}

TEST(Reliable, SendsNoBodyThatIsTooLongToTravel) {
  ReliablePeer sender(1);
  EXPECT_TRUE(sender.reliable(MessageType::kResult, std::string(kMaxBodyBytes, 'x'), at(0s)));
  const auto sent =
      sender.reliable(MessageType::kResult, std::string(kMaxBodyBytes + 1, 'x'), at(0s));
  ASSERT_FALSE(sent);
  EXPECT_EQ(sent.error().code, ErrorCode::kInvalidArgument);
}

// What `peer` says of itself now.
Header said_by(ReliablePeer& peer) { return peer.unreliable(MessageType::kHeartbeat, "").header; }

TEST(Credit, IsTheNumberOfMessagesBeyondTheAcknowledgedOnes) {
  ReliablePeer sender(1, {.peers = 2}), receiver(2, {.ours = 2});
  std::vector<OutgoingFrame> sent;
  while (auto frame = sender.reliable(MessageType::kResult, "", at(0s))) sent.push_back(*frame);
  EXPECT_THAT(numbers(sent), ElementsAre(1, 2));
  for (const OutgoingFrame& frame : sent) EXPECT_TRUE(receiver.accept(frame.header, at(0s)));
  EXPECT_TRUE(sender.accept(said_by(receiver), at(0s)));
  EXPECT_FALSE(sender.reliable(MessageType::kResult, "", at(0s))) << "not confirmed yet";
  receiver.confirm();
  EXPECT_TRUE(sender.accept(said_by(receiver), at(0s)));
  EXPECT_EQ(sender.reliable(MessageType::kResult, "", at(0s))->header.seq, 3u);
}

TEST(Credit, GoesBothWays) {
  ReliablePeer one(1), two(2);
  one.set_credit(3);
  two.set_credit(5);
  EXPECT_TRUE(one.accept(said_by(two), at(0s)));
  EXPECT_TRUE(two.accept(said_by(one), at(0s)));
  int by_one = 0, by_two = 0;
  while (one.reliable(MessageType::kResult, "", at(0s))) ++by_one;
  while (two.reliable(MessageType::kAssign, "", at(0s))) ++by_two;
  EXPECT_EQ(by_one, 5);
  EXPECT_EQ(by_two, 3);
}

TEST(Credit, NoMessageBeyondItIsTaken) {
  ReliablePeer greedy(1), receiver(2, {.ours = 1});
  const auto first = greedy.reliable(MessageType::kResult, "1", at(0s)).value();
  const auto second = greedy.reliable(MessageType::kResult, "2", at(0s)).value();
  EXPECT_TRUE(receiver.accept(first.header, at(0s)));
  EXPECT_FALSE(receiver.accept(second.header, at(0s)));
  receiver.confirm();
  (void)said_by(receiver);  // grants 2
  EXPECT_TRUE(receiver.accept(second.header, at(0s)));
}

TEST(Credit, ThatWasGrantedIsKeptWhenItShrinks) {
  ReliablePeer sender(1, {.peers = 4}), receiver(2, {.ours = 4});
  const auto under_way = sender.reliable(MessageType::kResult, "1", at(0s)).value();
  receiver.set_credit(0);
  EXPECT_TRUE(sender.accept(said_by(receiver), at(0s)));
  EXPECT_FALSE(sender.reliable(MessageType::kResult, "2", at(0s)));
  EXPECT_TRUE(receiver.accept(under_way.header, at(0s)));
  receiver.confirm();
  receiver.set_credit(1);
  EXPECT_TRUE(sender.accept(said_by(receiver), at(0s)));
  EXPECT_TRUE(sender.reliable(MessageType::kResult, "2", at(0s)));
  EXPECT_FALSE(sender.reliable(MessageType::kResult, "3", at(0s)));
}

TEST(Credit, OfALateFrameIsSpent) {
  ReliablePeer sender(1, {.peers = 2}), receiver(2, {.ours = 2});
  const Header early = said_by(receiver);
  for (int i = 0; i < 2; ++i)
    EXPECT_TRUE(receiver.accept(sender.reliable(MessageType::kResult, "", at(0s))->header, at(0s)));
  receiver.confirm();
  EXPECT_TRUE(sender.accept(said_by(receiver), at(0s)));
  EXPECT_TRUE(sender.accept(early, at(0s)));
  EXPECT_TRUE(sender.reliable(MessageType::kResult, "", at(0s)));
  EXPECT_TRUE(sender.reliable(MessageType::kResult, "", at(0s)));
  EXPECT_FALSE(sender.reliable(MessageType::kResult, "", at(0s)));
}

TEST(Acknowledgement, IsOwedOnceAQuarterOfTheCreditIsUsed) {
  ReliablePeer sender(1), receiver(2);
  for (std::uint32_t i = 1; i <= ReliablePeer::kCredit / 4; ++i) {
    EXPECT_FALSE(receiver.owes_acknowledgement()) << i;
    EXPECT_TRUE(receiver.accept(sender.reliable(MessageType::kResult, "", at(0s))->header, at(0s)));
    if (i == ReliablePeer::kCredit / 4) {
      EXPECT_FALSE(receiver.owes_acknowledgement()) << "nothing is confirmed";
    }
    receiver.confirm();
  }
  EXPECT_TRUE(receiver.owes_acknowledgement());
  (void)said_by(receiver);
  EXPECT_FALSE(receiver.owes_acknowledgement());
}

TEST(Acknowledgement, OfWhatWasNeverSentIsIgnored) {
  ReliablePeer sender(1);
  (void)sender.reliable(MessageType::kResult, "1", at(0s));
  Header nonsense;
  nonsense.ack = 7;
  nonsense.credit = 0;
  EXPECT_TRUE(sender.accept(nonsense, at(0s)));
  EXPECT_EQ(sender.unacknowledged(), 1u);
  EXPECT_TRUE(sender.reliable(MessageType::kResult, "2", at(0s)));
}

// Sends one message whose acknowledgement comes after `round_trip`.
void exchange(ReliablePeer& sender, ReliablePeer& receiver, Duration& now, Duration round_trip) {
  const auto frame = sender.reliable(MessageType::kResult, "", at(now)).value();
  EXPECT_TRUE(receiver.accept(frame.header, at(now)));
  receiver.confirm();
  now += round_trip;
  EXPECT_TRUE(sender.accept(said_by(receiver), at(now)));
}

TEST(Patience, IsFourSmoothedRoundTripsButAtLeastTwoSeconds) {
  ReliablePeer sender(1), receiver(2);
  Duration now{};
  EXPECT_EQ(sender.patience(), 2s);
  exchange(sender, receiver, now, 100ms);
  EXPECT_EQ(sender.patience(), 2s);
  for (int i = 0; i < 200; ++i) exchange(sender, receiver, now, 1s);
  EXPECT_NEAR(std::chrono::duration<double>(sender.patience()).count(), 4, 1e-6);
  exchange(sender, receiver, now, 9s);  // (7 * 1 + 9) / 8 = 2
  EXPECT_NEAR(std::chrono::duration<double>(sender.patience()).count(), 8, 1e-6);
  for (int i = 0; i < 200; ++i) exchange(sender, receiver, now, 60s);
  EXPECT_EQ(sender.patience(), 30s);
}

TEST(Patience, LearnsNothingFromARepeatedMessage) {
  ReliablePeer sender(1), receiver(2);
  const auto frame = sender.reliable(MessageType::kResult, "", at(0s)).value();
  ASSERT_THAT(numbers(sender.due(at(20s))), ElementsAre(1));
  EXPECT_TRUE(receiver.accept(frame.header, at(20s)));
  receiver.confirm();
  EXPECT_TRUE(sender.accept(said_by(receiver), at(20s)));
  EXPECT_EQ(sender.unacknowledged(), 0u);
  EXPECT_EQ(sender.patience(), 2s);
}

TEST(Patience, StartsAgainOnceThePeerHears) {
  ReliablePeer sender(1), receiver(2);
  const auto first = sender.reliable(MessageType::kResult, "1", at(0s)).value();
  (void)sender.reliable(MessageType::kResult, "2", at(0s));
  ASSERT_EQ(sender.due(at(2s)).size(), 2u);
  ASSERT_EQ(sender.due(at(6s)).size(), 2u);
  EXPECT_TRUE(receiver.accept(first.header, at(6s)));
  receiver.confirm();
  EXPECT_TRUE(sender.accept(said_by(receiver), at(6s)));
  EXPECT_THAT(sender.due(at(7999ms)), IsEmpty());
  EXPECT_THAT(numbers(sender.due(at(8s))), ElementsAre(2)) << "2 s again, not 8";
  EXPECT_EQ(sender.retransmitted(), 5u);
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
        if (side.peer.accept(frame.header, at(now)) && (frame.header.flags & kReliable) != 0)
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
