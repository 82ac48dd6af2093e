// Through everything a network does to a connection, no reliable message is lost or doubled.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <string>

#include "core/philox.h"
#include "tests/scheduler/protocol/link_words.h"
#include "tests/support/fault_proxy.h"

namespace saesweep::protocol {
namespace {

using namespace std::chrono_literals;
using test::Direction;
using test::FaultProxy;

struct Faults : SecureLinks {
  FaultProxy proxy{port_of(endpoint)};
  // Less patient than outside of tests: a stall takes a second, not a minute.
  WorkerLink worker =
      WorkerLink::connect(
          fmt::format("tcp://127.0.0.1:{}", proxy.port()), security_of("worker"),
          {.silence = 1s, .longest_silence = 2s, .handshake = 1s, .longest_pause = 500ms})
          .value();
  std::string peer;  // the worker, to the scheduler
  // How many each side has said and heard; the numbers are in the messages.
  std::uint64_t said_up = 0, said_down = 0, heard_up = 0, heard_down = 0;
  std::chrono::steady_clock::time_point last_beat{};

  void SetUp() override {
    ASSERT_TRUE(worker.send(MessageType::kHello, Hello(), false));
    ASSERT_TRUE(eventually([&] {
      go_round();
      return !peer.empty();
    }));
  }

  void speak_up() {
    TaskResult result;
    result.set_fence(said_up);
    result.set_reason(std::string(said_up % 7 * 1000, 'x'));
    if (worker.send(MessageType::kResult, result, true)) ++said_up;
  }
  void speak_down() {
    Control control;
    control.set_fence(said_down);
    if (!peer.empty() && scheduler.send(peer, MessageType::kControl, control, true)) ++said_down;
  }

  void go_round() {
    const auto now = std::chrono::steady_clock::now();
    if (now - last_beat > 100ms) {
      last_beat = now;
      (void)worker.send(MessageType::kHeartbeat, Heartbeat(), false);
    }
    for (const HeardMessage& message : worker.poll(1ms).heard) {
      if (message.type != MessageType::kControl) continue;
      Control control;
      ASSERT_TRUE(parse_body(message.body, control));
      ASSERT_EQ(control.fence(), heard_down) << "in order, once";
      ++heard_down;
    }
    for (const HeardMessage& message : scheduler.poll(1ms)) {
      ASSERT_TRUE(peer.empty() || message.peer == peer) << "the session outlives its connections";
      peer = message.peer;
      if (message.type == MessageType::kHeartbeat) {
        ASSERT_TRUE(scheduler.send(peer, MessageType::kHeartbeatAck, HeartbeatAck(), false));
      }
      if (message.type != MessageType::kResult) continue;
      TaskResult result;
      ASSERT_TRUE(parse_body(message.body, result));
      ASSERT_EQ(result.fence(), heard_up) << "in order, once";
      ++heard_up;
    }
    scheduler.confirm();
  }

  // Both sides say `messages` each while `fault` (called with the round) does its worst, for so
  // many rounds at most: there are faults that let nothing through. Then everything arrives.
  void converse(std::uint64_t messages, const std::function<void(std::uint64_t)>& fault) {
    constexpr std::uint64_t kFaultyRounds = 1'500;
    const auto speak = [&] {
      if (said_up < messages) speak_up();
      if (said_down < messages) speak_down();
      go_round();
      return said_up == messages && said_down == messages;
    };
    for (std::uint64_t round = 0; round < kFaultyRounds; ++round) {
      fault(round);
      if (speak() || HasFatalFailure()) break;
    }
    proxy.go_on();
    EXPECT_TRUE(eventually([&] {
      return HasFatalFailure() || (speak() && heard_up == said_up && heard_down == said_down &&
                                   worker.unacknowledged() == 0);
    })) << heard_up
        << " of " << said_up << " up, " << heard_down << " of " << said_down << " down";
  }
};

TEST_F(Faults, NothingIsLostWithoutAny) {
  converse(500, [](std::uint64_t) {});
  EXPECT_EQ(worker.counters().retransmitted, 0u);
  EXPECT_EQ(proxy.accepted(), 1u);
}

TEST_F(Faults, NothingIsLostWhenAllIsLate) {
  proxy.delay(Direction::kToServer, 30ms);
  proxy.delay(Direction::kToClient, 50ms);
  converse(200, [](std::uint64_t) {});
}

TEST_F(Faults, NothingIsLostInAStallOfEitherDirection) {
  converse(300, [&](std::uint64_t round) {
    if (round == 50) proxy.stall(Direction::kToServer);
    if (round == 120) proxy.go_on();
    if (round == 150) proxy.stall(Direction::kToClient);
    if (round == 220) proxy.go_on();
  });
}

TEST_F(Faults, NothingIsLostWhenTheConnectionIsResetAgainAndAgain) {
  converse(400, [&](std::uint64_t round) {
    if (round % 60 == 30) proxy.reset();
  });
  EXPECT_GE(proxy.accepted(), 3u);
  EXPECT_GT(worker.counters().disconnected, 0u);
}

TEST_F(Faults, NothingIsLostWhenABitIsFlippedOnTheWay) {
  converse(300, [&](std::uint64_t round) {
    if (round == 20) proxy.flip_bit_after(Direction::kToServer, 777);
    if (round == 90) proxy.flip_bit_after(Direction::kToServer, 1501);
    if (round == 160) proxy.flip_bit_after(Direction::kToClient, 333);
    if (round == 230) proxy.flip_bit_after(Direction::kToClient, 97);
  });
  EXPECT_GE(proxy.flipped(), 3u);
  EXPECT_GE(proxy.accepted(), 2u) << "a damaged message ends its connection";
}

TEST_F(Faults, NothingIsLostWhenTheConnectionIsCutInTheMiddleOfAMessage) {
  converse(300, [&](std::uint64_t round) {
    if (round == 20) proxy.cut_after(Direction::kToServer, 5001);
    if (round == 150) proxy.cut_after(Direction::kToClient, 101);
  });
  EXPECT_EQ(proxy.cut(), 2u);
}

TEST_F(Faults, NothingIsLostWhenNobodyCanConnectForAWhile) {
  converse(200, [&](std::uint64_t round) {
    if (round == 30) proxy.refuse();
    if (round == 31) proxy.reset();
    if (round == 150) proxy.go_on();
  });
}

// The scheduler's side of the old connection lives on while the worker's is gone: a new connection
// must not be taken for a copy of the old one.
TEST_F(Faults, NothingIsLostWhenAConnectionStaysHalfOpen) {
  converse(200, [&](std::uint64_t round) {
    if (round == 50) proxy.leave_half_open();
  });
  EXPECT_GE(proxy.accepted(), 2u);
  EXPECT_EQ(scheduler.counters().disconnected, 0u) << "it has not even noticed";
}

class FaultsOfASeed : public Faults, public testing::WithParamInterface<std::uint64_t> {};

TEST_P(FaultsOfASeed, LoseNothing) {
  Rng rng(GetParam(), "test.faults");
  converse(400, [&](std::uint64_t) {
    if (rng.below(20) == 0) proxy.go_on();
    if (rng.below(40) != 0) return;
    const auto direction = rng.below(2) == 0 ? Direction::kToServer : Direction::kToClient;
    switch (rng.below(5)) {
      case 0:
        return proxy.delay(direction, std::chrono::milliseconds(rng.below(20)));
      case 1:
        return proxy.stall(direction);
      case 2:
        return proxy.reset();
      case 3:
        return proxy.flip_bit_after(direction, rng.below(5000));
      default:
        return proxy.cut_after(direction, rng.below(5000));
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Seeds, FaultsOfASeed, testing::Range<std::uint64_t>(0, 4));

}  // namespace
}  // namespace saesweep::protocol
