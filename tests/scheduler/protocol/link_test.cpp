#include "scheduler/protocol/link.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <functional>
#include <string>
#include <thread>
#include <zmq.hpp>

#include "core/thread.h"
#include "scheduler/protocol/messages.pb.h"
#include "scheduler/protocol/reliable.h"
#include "tests/support/temp_dir.h"

namespace saesweep::protocol {
namespace {

using namespace std::chrono_literals;
using testing::ElementsAre;
using testing::IsEmpty;

struct Link : testing::Test {
  test::TempDir dir;
  std::string endpoint = "ipc://" + (dir.path() / "workers").string();
  SchedulerLink scheduler = SchedulerLink::bind(endpoint).value();

  // Another scheduler at the same address, which knows nobody. The old one, when it closes, takes
  // the file of its socket away: it goes first.
  void begin_anew() {
    { const SchedulerLink old = std::move(scheduler); }
    scheduler = SchedulerLink::bind(endpoint).value();
  }

  // What the scheduler hears until there are `count` messages or nothing comes any more.
  std::vector<HeardMessage> hear(std::size_t count) {
    std::vector<HeardMessage> heard;
    const auto end = std::chrono::steady_clock::now() + 10s;
    while (heard.size() < count && std::chrono::steady_clock::now() < end)
      for (HeardMessage& message : scheduler.poll(20ms)) heard.push_back(std::move(message));
    return heard;
  }
  // A worker whose connection stands.
  WorkerLink connect() const {
    WorkerLink worker = WorkerLink::connect(endpoint).value();
    const auto end = std::chrono::steady_clock::now() + 10s;
    while (!worker.poll(20ms).is_connected_anew && std::chrono::steady_clock::now() < end) continue;
    return worker;
  }
  static std::vector<HeardMessage> hear(WorkerLink& worker, std::size_t count) {
    std::vector<HeardMessage> heard;
    const auto end = std::chrono::steady_clock::now() + 10s;
    while (heard.size() < count && std::chrono::steady_clock::now() < end)
      for (HeardMessage& message : worker.poll(20ms).heard) heard.push_back(std::move(message));
    return heard;
  }
  static Hello hello() {
    Hello hello;
    hello.set_worker_name("w");
    return hello;
  }
};

TEST_F(Link, CarriesMessagesBothWays) {
  WorkerLink worker = connect();
  ASSERT_TRUE(worker.send(MessageType::kHello, hello(), false));
  const auto heard = hear(1);
  ASSERT_EQ(heard.size(), 1u);
  EXPECT_EQ(heard[0].type, MessageType::kHello);
  Hello read;
  ASSERT_TRUE(parse_body(heard[0].body, read));
  EXPECT_EQ(read.worker_name(), "w");

  Welcome welcome;
  welcome.set_epoch(7);
  ASSERT_TRUE(scheduler.send(heard[0].peer, MessageType::kWelcome, welcome, true));
  const auto answer = hear(worker, 1);
  ASSERT_EQ(answer.size(), 1u);
  EXPECT_EQ(answer[0].type, MessageType::kWelcome);
  ASSERT_TRUE(parse_body(answer[0].body, welcome));
  EXPECT_EQ(welcome.epoch(), 7u);
}

TEST_F(Link, AcknowledgesWhatWasConfirmedAndNothingElse) {
  WorkerLink worker = connect();
  TaskResult result;
  result.set_task("t");
  ASSERT_TRUE(worker.send(MessageType::kResult, result, true));
  const auto heard = hear(1);
  ASSERT_EQ(heard.size(), 1u);
  ASSERT_TRUE(scheduler.send(heard[0].peer, MessageType::kHeartbeatAck, HeartbeatAck(), false));
  ASSERT_EQ(hear(worker, 1).size(), 1u);
  EXPECT_EQ(worker.unacknowledged(), 1u);
  scheduler.confirm();
  ASSERT_TRUE(scheduler.send(heard[0].peer, MessageType::kHeartbeatAck, HeartbeatAck(), false));
  ASSERT_EQ(hear(worker, 1).size(), 1u);
  EXPECT_EQ(worker.unacknowledged(), 0u);
}

TEST_F(Link, DeliversAgainNothingThatWasHeard) {
  WorkerLink worker = connect();
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(worker.send(MessageType::kResult, TaskResult(), true));
  ASSERT_EQ(hear(3).size(), 3u);
  worker.resend_after(0);
  ASSERT_TRUE(worker.send(MessageType::kHello, hello(), false));
  const auto heard = hear(1);
  ASSERT_EQ(heard.size(), 1u);
  EXPECT_EQ(heard[0].type, MessageType::kHello);
}

TEST_F(Link, KeepsApartTwoWorkers) {
  WorkerLink one = connect();
  WorkerLink two = connect();
  ASSERT_TRUE(one.send(MessageType::kHello, hello(), false));
  const auto first = hear(1);
  ASSERT_TRUE(two.send(MessageType::kHello, hello(), false));
  const auto second = hear(1);
  ASSERT_EQ(first.size() + second.size(), 2u);
  EXPECT_NE(first[0].peer, second[0].peer);
  Bye bye;
  ASSERT_TRUE(scheduler.send(second[0].peer, MessageType::kBye, bye, false));
  EXPECT_EQ(hear(two, 1).size(), 1u);
  EXPECT_THAT(one.poll(10ms).heard, IsEmpty());
}

TEST_F(Link, SaysThatAPeerWasNeverHeard) {
  const auto sent = scheduler.send("nobody", MessageType::kBye, Bye(), false);
  ASSERT_FALSE(sent);
  EXPECT_EQ(sent.error().code, ErrorCode::kNotFound);
}

TEST_F(Link, LooksAtOtherDescriptorsToo) {
  WorkerLink worker = WorkerLink::connect(endpoint).value();
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  const int others[] = {ends[0]};
  EXPECT_THAT(worker.poll(1ms, others).readable, IsEmpty());
  ASSERT_EQ(::write(ends[1], "x", 1), 1);
  EXPECT_THAT(worker.poll(10s, others).readable, ElementsAre(ends[0]));
  ::close(ends[0]);
  ::close(ends[1]);
}

// ZeroMQ connects again by itself and under the same routing id: what was on its way is lost then.
TEST_F(Link, RepeatsAtOnceWhatAPeerMayHaveLostWithItsConnection) {
  zmq::context_t context;
  zmq::socket_t worker(context, zmq::socket_type::dealer);
  worker.set(zmq::sockopt::linger, 0);
  worker.connect(endpoint);
  const auto say = [&](MessageType type, std::uint8_t flags) {
    worker.send(zmq::buffer(encode_header({.type = type, .flags = flags}, {})),
                zmq::send_flags::sndmore);
    worker.send(zmq::message_t(), zmq::send_flags::none);
  };
  say(MessageType::kHello, 0);
  const auto heard = hear(1);
  ASSERT_EQ(heard.size(), 1u);
  ASSERT_TRUE(scheduler.send(heard[0].peer, MessageType::kControl, Control(), true));
  say(MessageType::kHeartbeat, 0);
  ASSERT_EQ(hear(1).size(), 1u);
  EXPECT_EQ(scheduler.counters().retransmitted, 0u);
  say(MessageType::kAcknowledge, kNewConnection);
  say(MessageType::kHeartbeat, 0);
  ASSERT_EQ(hear(1).size(), 1u);
  EXPECT_EQ(scheduler.counters().retransmitted, 1u);
}

TEST_F(Link, SurvivesGarbageAndHearsAPeerNoMoreThatSendsALot) {
  zmq::context_t context;
  zmq::socket_t rude(context, zmq::socket_type::dealer);
  rude.set(zmq::sockopt::linger, 0);
  rude.connect(endpoint);
  const auto say = [&](std::vector<std::string> frames) {
    for (std::size_t i = 0; i < frames.size(); ++i)
      rude.send(zmq::buffer(frames[i]),
                i + 1 < frames.size() ? zmq::send_flags::sndmore : zmq::send_flags::none);
  };
  const auto valid = [] {
    const auto header = encode_header({.type = MessageType::kBye}, {});
    return std::string(reinterpret_cast<const char*>(header.data()), header.size());
  };
  say({valid(), ""});
  EXPECT_EQ(hear(1).size(), 1u);
  say({"one frame"});
  say({"no header", "body"});
  say({valid(), "another body"});
  say({valid(), ""});
  WorkerLink polite = connect();
  ASSERT_TRUE(polite.send(MessageType::kHello, hello(), false));
  std::vector<HeardMessage> heard;
  const auto end = std::chrono::steady_clock::now() + 10s;
  while ((heard.empty() || scheduler.dropped() < 4) && std::chrono::steady_clock::now() < end)
    for (HeardMessage& message : scheduler.poll(20ms)) heard.push_back(std::move(message));
  ASSERT_EQ(heard.size(), 1u);
  EXPECT_EQ(heard[0].type, MessageType::kHello);
  EXPECT_EQ(scheduler.dropped(), 4u);
}

TEST_F(Link, KeepsWhatIsSaidBeforeItIsConnectedTheNewestOfEachType) {
  test::TempDir elsewhere;
  endpoint = "ipc://" + (elsewhere.path() / "workers").string();
  WorkerLink worker = WorkerLink::connect(endpoint).value();
  for (const char* name : {"old", "new"}) {
    Hello message;
    message.set_worker_name(name);
    ASSERT_TRUE(worker.send(MessageType::kHello, message, false));
  }
  ASSERT_TRUE(worker.send(MessageType::kResult, TaskResult(), true));
  begin_anew();
  std::vector<HeardMessage> heard;
  const auto end = std::chrono::steady_clock::now() + 10s;
  while (heard.size() < 2 && std::chrono::steady_clock::now() < end) {
    (void)worker.poll(5ms);
    for (HeardMessage& message : scheduler.poll(5ms)) heard.push_back(std::move(message));
  }
  ASSERT_EQ(heard.size(), 2u);
  Hello read;
  ASSERT_EQ(heard[0].type, MessageType::kHello);
  ASSERT_TRUE(parse_body(heard[0].body, read));
  EXPECT_EQ(read.worker_name(), "new");
  EXPECT_EQ(heard[1].type, MessageType::kResult);
}

TEST_F(Link, StartsOverWithASessionOfItsOwn) {
  WorkerLink worker = connect();
  ASSERT_TRUE(worker.send(MessageType::kResult, TaskResult(), true));
  const auto before = hear(1);
  ASSERT_EQ(before.size(), 1u);
  begin_anew();
  worker.start_over();
  EXPECT_EQ(worker.unacknowledged(), 0u);
  ASSERT_TRUE(worker.send(MessageType::kResult, TaskResult(), true));
  std::vector<HeardMessage> after;
  const auto end = std::chrono::steady_clock::now() + 10s;
  while (after.empty() && std::chrono::steady_clock::now() < end) {
    (void)worker.poll(5ms);
    after = scheduler.poll(5ms);
  }
  ASSERT_EQ(after.size(), 1u);
  EXPECT_NE(after[0].peer, before[0].peer);
}

TEST_F(Link, HoldsBackWhatAWorkerGivesNoCreditFor) {
  WorkerLink worker = connect();
  ASSERT_TRUE(worker.send(MessageType::kHello, hello(), false));
  const std::string peer = hear(1).at(0).peer;
  constexpr std::size_t kMessages = 3 * kWorkerCredit;
  for (std::size_t i = 0; i < kMessages; ++i)
    ASSERT_TRUE(scheduler.send(peer, MessageType::kControl, Control(), true)) << i;
  EXPECT_EQ(hear(worker, kWorkerCredit).size(), kWorkerCredit);
  std::size_t heard = kWorkerCredit;
  const auto end = std::chrono::steady_clock::now() + 10s;
  while (heard < kMessages && std::chrono::steady_clock::now() < end) {
    (void)scheduler.poll(5ms);  // hears what the worker took, and sends more
    heard += worker.poll(5ms).heard.size();
  }
  EXPECT_EQ(heard, kMessages);
  EXPECT_EQ(scheduler.counters().retransmitted, 0u);
}

TEST_F(Link, RefusesMoreThanMayWait) {
  WorkerLink worker = connect();
  ASSERT_TRUE(worker.send(MessageType::kHello, hello(), false));
  const std::string peer = hear(1).at(0).peer;
  for (std::size_t i = 0; i < ReliablePeer::kMaxUnacked; ++i)
    ASSERT_TRUE(scheduler.send(peer, MessageType::kControl, Control(), true)) << i;
  EXPECT_EQ(scheduler.send(peer, MessageType::kControl, Control(), true).error().code,
            ErrorCode::kResourceExhausted);
}

TEST_F(Link, GivesWorkersLessCreditWhenAsked) {
  WorkerLink worker = connect();
  const auto send_all = [&] {
    std::size_t sent = 0;
    while (worker.send(MessageType::kResult, TaskResult(), true)) ++sent;
    return sent;
  };
  const auto learn = [&](std::uint32_t credit) {
    scheduler.set_credit(credit);
    ASSERT_TRUE(worker.send(MessageType::kHeartbeat, Heartbeat(), false));
    const auto beat = hear(1);
    ASSERT_FALSE(beat.empty());
    ASSERT_TRUE(
        scheduler.send(beat.back().peer, MessageType::kHeartbeatAck, HeartbeatAck(), false));
    ASSERT_EQ(hear(worker, 1).size(), 1u);
  };
  learn(16);
  EXPECT_EQ(send_all(), 16u);
  ASSERT_EQ(hear(16).size(), 16u);
  scheduler.confirm();
  learn(0);
  EXPECT_EQ(send_all(), 0u);
  learn(2);
  EXPECT_EQ(send_all(), 2u);
}

TEST(Endpoints, ThatAreNoneAreRefused) {
  EXPECT_EQ(WorkerLink::connect("nonsense").error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(SchedulerLink::bind("nonsense").error().code, ErrorCode::kInvalidArgument);
}

TEST(Endpoints, ThatAreTakenAreUnavailable) {
  for (int port = 49'200; port < 49'300; ++port) {
    const std::string endpoint = fmt::format("tcp://127.0.0.1:{}", port);
    const ServerSecurity plain{.insecure_loopback = true};
    const auto first = SchedulerLink::bind(endpoint, plain);
    if (!first) continue;  // somebody else's
    const auto second = SchedulerLink::bind(endpoint, plain);
    ASSERT_FALSE(second);
    EXPECT_EQ(second.error().code, ErrorCode::kUnavailable);
    return;
  }
  FAIL() << "no port is free";
}

TEST_F(Link, CarriesManyMessagesBetweenThreadsInOrder) {
  constexpr int kMessages = 2000;
  const auto worker_thread = run_thread("worker", [&](std::stop_token) {
    WorkerLink worker = WorkerLink::connect(endpoint).value();
    int said = 0;
    const auto end = std::chrono::steady_clock::now() + 30s;
    while ((said < kMessages || worker.unacknowledged() > 0) &&
           std::chrono::steady_clock::now() < end) {
      TaskResult result;
      result.set_fence(static_cast<std::uint64_t>(said));
      if (said < kMessages && worker.send(MessageType::kResult, result, true))
        ++said;
      else
        (void)worker.poll(5ms);
    }
  });
  std::uint64_t expected = 0;
  const auto end = std::chrono::steady_clock::now() + 30s;
  while (expected < kMessages && std::chrono::steady_clock::now() < end) {
    std::string peer;
    for (const HeardMessage& message : scheduler.poll(20ms)) {
      TaskResult result;
      ASSERT_TRUE(parse_body(message.body, result));
      ASSERT_EQ(result.fence(), expected++);
      peer = message.peer;
    }
    scheduler.confirm();
    if (!peer.empty())
      (void)scheduler.send(peer, MessageType::kHeartbeatAck, HeartbeatAck(), false);
  }
  EXPECT_EQ(expected, static_cast<std::uint64_t>(kMessages));
}

}  // namespace
}  // namespace saesweep::protocol
