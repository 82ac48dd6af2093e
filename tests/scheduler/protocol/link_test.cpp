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

  // What the scheduler hears until there are `count` messages or nothing comes any more.
  std::vector<HeardMessage> hear(std::size_t count) {
    std::vector<HeardMessage> heard;
    const auto end = std::chrono::steady_clock::now() + 10s;
    while (heard.size() < count && std::chrono::steady_clock::now() < end)
      for (HeardMessage& message : scheduler.poll(20ms)) heard.push_back(std::move(message));
    return heard;
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
  WorkerLink worker = WorkerLink::connect(endpoint).value();
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
  WorkerLink worker = WorkerLink::connect(endpoint).value();
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
  WorkerLink worker = WorkerLink::connect(endpoint).value();
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(worker.send(MessageType::kResult, TaskResult(), true));
  ASSERT_EQ(hear(3).size(), 3u);
  worker.resend_after(0);
  ASSERT_TRUE(worker.send(MessageType::kHello, hello(), false));
  const auto heard = hear(1);
  ASSERT_EQ(heard.size(), 1u);
  EXPECT_EQ(heard[0].type, MessageType::kHello);
}

TEST_F(Link, KeepsApartTwoWorkers) {
  WorkerLink one = WorkerLink::connect(endpoint).value();
  WorkerLink two = WorkerLink::connect(endpoint).value();
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
  WorkerLink polite = WorkerLink::connect(endpoint).value();
  ASSERT_TRUE(polite.send(MessageType::kHello, hello(), false));
  std::vector<HeardMessage> heard;
  const auto end = std::chrono::steady_clock::now() + 10s;
  while ((heard.empty() || scheduler.dropped() < 4) && std::chrono::steady_clock::now() < end)
    for (HeardMessage& message : scheduler.poll(20ms)) heard.push_back(std::move(message));
  ASSERT_EQ(heard.size(), 1u);
  EXPECT_EQ(heard[0].type, MessageType::kHello);
  EXPECT_EQ(scheduler.dropped(), 4u);
}

TEST(Endpoints, ThatAreNoneAreRefused) {
  EXPECT_EQ(WorkerLink::connect("nonsense").error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(SchedulerLink::bind("nonsense").error().code, ErrorCode::kInvalidArgument);
}

TEST(Endpoints, ThatAreTakenAreUnavailable) {
  for (int port = 49'200; port < 49'300; ++port) {
    const std::string endpoint = fmt::format("tcp://127.0.0.1:{}", port);
    const auto first = SchedulerLink::bind(endpoint);
    if (!first) continue;  // somebody else's
    const auto second = SchedulerLink::bind(endpoint);
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
