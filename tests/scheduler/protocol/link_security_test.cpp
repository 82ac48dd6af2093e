// Who gets in and what they may say: links over TCP with right, wrong, revoked and expired keys.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <optional>
#include <string>
#include <zmq.hpp>

#include "core/files.h"
#include "core/philox.h"
#include "scheduler/protocol/link.h"
#include "scheduler/protocol/link_socket.h"
#include "tests/scheduler/protocol/link_words.h"

namespace saesweep::protocol {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;

struct Security : SecureLinks {
  // What a worker with this key is told in the end: an error if it is refused.
  std::optional<Error> refusal(WorkerLink& worker) {
    std::optional<Error> refused;
    eventually([&] {
      auto polled = go_round(worker);
      if (polled.refused) refused = polled.refused;
      return refused || polled.is_connected_anew;
    });
    return refused;
  }
};

TEST_F(Security, RightKeysSpeakBothWaysUnderTheirNameAndRole) {
  ASSERT_TRUE(add_key(keys, {"gpu-7", Role::kWorker, {}}));
  WorkerLink worker = connect(security_of("gpu-7"));
  Hello hello;
  hello.set_worker_name("w");
  ASSERT_TRUE(worker.send(MessageType::kHello, hello, false));
  ASSERT_TRUE(hears(worker, 1));
  EXPECT_EQ(heard[0].role, Role::kWorker);
  EXPECT_EQ(heard[0].name, "gpu-7");
  EXPECT_EQ(heard[0].address, "127.0.0.1");
  Welcome welcome;
  welcome.set_epoch(7);
  ASSERT_TRUE(scheduler.send(heard[0].peer, MessageType::kWelcome, welcome, true));
  std::vector<HeardMessage> answer;
  ASSERT_TRUE(eventually([&] {
    answer = worker.poll(5ms).heard;
    return !answer.empty();
  }));
  ASSERT_TRUE(parse_body(answer[0].body, welcome));
  EXPECT_EQ(welcome.epoch(), 7u);
  EXPECT_EQ(scheduler.counters().accepted, 1u);
  EXPECT_EQ(scheduler.counters().handshake_succeeded, 1u);
  EXPECT_EQ(worker.counters().handshake_succeeded, 1u);
}

TEST_F(Security, AnUnknownKeyIsToldSoAfterThreeRefusals) {
  ClientSecurity stranger = security_of("worker");
  stranger.keys = std::make_shared<const KeyPair>(make_key_pair().value());
  WorkerLink worker = connect(stranger);
  ASSERT_TRUE(worker.send(MessageType::kHello, Hello(), false));
  const auto refused = refusal(worker);
  ASSERT_TRUE(refused);
  EXPECT_EQ(refused->code, ErrorCode::kInvalidArgument);
  EXPECT_THAT(refused->message, HasSubstr("refused our key 3 times"));
  EXPECT_EQ(worker.counters().handshake_failed_auth, 3u);
  EXPECT_TRUE(heard.empty());
}

TEST_F(Security, ARevokedKeyIsRefused) {
  const ClientSecurity security = security_of("worker");
  ASSERT_TRUE(revoke_key(keys, "worker"));
  WorkerLink worker = connect(security);
  EXPECT_TRUE(refusal(worker));
}

TEST_F(Security, AnExpiredKeyIsRefused) {
  ASSERT_TRUE(add_key(keys, {"old", Role::kWorker, 1'000'000'000}));
  ASSERT_TRUE(add_key(keys, {"fresh", Role::kWorker, 4'000'000'000}));
  WorkerLink old = connect(security_of("old"));
  EXPECT_TRUE(refusal(old));
  WorkerLink fresh = connect(security_of("fresh"));
  EXPECT_FALSE(refusal(fresh));
}

TEST_F(Security, AWorkerIsHeardNoMoreOnceItsKeyIsRevoked) {
  WorkerLink worker = connect(security_of("worker"));
  ASSERT_TRUE(worker.send(MessageType::kHello, Hello(), false));
  ASSERT_TRUE(hears(worker, 1));
  ASSERT_TRUE(revoke_key(keys, "worker"));
  scheduler.reload_keys();
  ASSERT_TRUE(eventually([&] {
    EXPECT_TRUE(worker.send(MessageType::kHeartbeat, Heartbeat(), false));
    (void)go_round(worker);
    return scheduler.dropped() > 0;
  }));
  const std::size_t before = heard.size();
  ASSERT_TRUE(worker.send(MessageType::kHeartbeat, Heartbeat(), false));
  const auto dropped = scheduler.dropped();
  ASSERT_TRUE(eventually([&] {
    (void)go_round(worker);
    return scheduler.dropped() > dropped;
  }));
  EXPECT_EQ(heard.size(), before);
}

TEST_F(Security, ANewKeyWorksWithoutARestart) {
  WorkerLink first = connect(security_of("worker"));
  EXPECT_FALSE(refusal(first));
  ASSERT_TRUE(add_key(keys, {"second", Role::kWorker, {}}));
  WorkerLink second = connect(security_of("second"));
  EXPECT_FALSE(refusal(second));
}

TEST_F(Security, NobodyComesInOnceTheDirectoryIsOpenToOthers) {
  std::filesystem::permissions(keys / "authorized", std::filesystem::perms(0755));
  scheduler.reload_keys();
  WorkerLink worker = connect(security_of("worker"));
  EXPECT_TRUE(refusal(worker));
}

TEST_F(Security, AnotherServersKeyNeverConnects) {
  ClientSecurity misled = security_of("worker");
  misled.server = make_key_pair()->public_key;
  WorkerLink worker = connect(misled);
  ASSERT_TRUE(worker.send(MessageType::kHello, Hello(), false));
  ASSERT_TRUE(eventually([&] {
    (void)go_round(worker);
    return worker.counters().handshake_failed_no_detail >= 2;
  }));
  EXPECT_EQ(worker.counters().handshake_succeeded, 0u);
  EXPECT_EQ(scheduler.counters().handshake_succeeded, 0u);
  EXPECT_TRUE(heard.empty());
}

TEST_F(Security, AClientsKeyMaySendNothingOfAWorker) {
  WorkerLink client = connect(security_of("client"));
  ASSERT_TRUE(client.send(MessageType::kResult, TaskResult(), true));
  ASSERT_TRUE(client.send(MessageType::kHello, Hello(), false));
  ASSERT_TRUE(client.send(MessageType::kHeartbeat, Heartbeat(), false));
  ASSERT_TRUE(eventually([&] {
    (void)go_round(client);
    return scheduler.dropped() >= 3;
  }));
  EXPECT_TRUE(heard.empty());
  // Three strikes: not even what it might say is heard now.
  ASSERT_TRUE(client.send(MessageType::kBye, Bye(), false));
  ASSERT_TRUE(eventually([&] {
    (void)go_round(client);
    return scheduler.dropped() >= 4;
  }));
  EXPECT_TRUE(heard.empty());
}

TEST_F(Security, NobodyMaySendWhatTheSchedulerSays) {
  WorkerLink worker = connect(security_of("worker"));
  ASSERT_TRUE(worker.send(MessageType::kAssign, Assign(), false));
  ASSERT_TRUE(eventually([&] {
    (void)go_round(worker);
    return scheduler.dropped() == 1;
  }));
  EXPECT_TRUE(heard.empty());
}

TEST(Roles, MaySendWhatIsTheirs) {
  using enum MessageType;
  for (const auto type : {kHello, kHeartbeat, kAssignReply, kStarted, kProgress, kCheckpointed,
                          kResult, kControlDone}) {
    EXPECT_TRUE(may_send(Role::kWorker, type)) << to_string(type);
    EXPECT_TRUE(may_send(Role::kLocal, type)) << to_string(type);
    EXPECT_FALSE(may_send(Role::kClient, type)) << to_string(type);
    EXPECT_FALSE(may_send(Role::kAdmin, type)) << to_string(type);
  }
  for (const auto type : {kWelcome, kReject, kHeartbeatAck, kAssign, kResultAck, kControl})
    for (const Role role : {Role::kLocal, Role::kWorker, Role::kClient, Role::kAdmin})
      EXPECT_FALSE(may_send(role, type)) << to_string(type);
}

TEST(ClearText, IsForLoopbackAndForThoseWhoAskForIt) {
  EXPECT_EQ(SchedulerLink::bind("tcp://127.0.0.1:*").error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(WorkerLink::connect("tcp://127.0.0.1:1").error().code, ErrorCode::kInvalidArgument);
  for (const char* open : {"tcp://0.0.0.0:*", "tcp://*:*", "tcp://[::]:*", "tcp://localhost:*",
                           "tcp://10.0.0.1:7077", "tcp://127.0.0.1.example.org:7077",
                           "tcp://127.0.0.1@10.0.0.1:7077", "tcp://", "tcp://lo:1"}) {
    EXPECT_EQ(SchedulerLink::bind(open, {.insecure_loopback = true}).error().code,
              ErrorCode::kInvalidArgument)
        << open;
    EXPECT_EQ(WorkerLink::connect(open, {.insecure_loopback = true}).error().code,
              ErrorCode::kInvalidArgument)
        << open;
  }
  SchedulerLink scheduler =
      SchedulerLink::bind("tcp://127.0.0.1:*", {.insecure_loopback = true}).value();
  WorkerLink worker =
      WorkerLink::connect(scheduler.endpoint(), {.insecure_loopback = true}).value();
  ASSERT_TRUE(worker.send(MessageType::kHello, Hello(), false));
  std::vector<HeardMessage> heard;
  ASSERT_TRUE(eventually([&] {
    (void)worker.poll(2ms);
    heard = scheduler.poll(2ms);
    return !heard.empty();
  }));
  EXPECT_EQ(heard[0].role, Role::kLocal);
}

TEST_F(Security, APlainClientHearsNothingAndIsNotHeard) {
  WorkerLink plain = WorkerLink::connect(endpoint, {.insecure_loopback = true}).value();
  ASSERT_TRUE(plain.send(MessageType::kHello, Hello(), false));
  ASSERT_TRUE(eventually([&] {
    (void)go_round(plain);
    const LinkCounters counters = scheduler.counters();
    return counters.handshake_failed_no_detail + counters.handshake_failed_protocol > 0;
  }));
  EXPECT_TRUE(heard.empty());
}

TEST_F(Security, GarbageOnThePortHarmsNobody) {
  WorkerLink worker = connect(security_of("worker"));
  ASSERT_TRUE(worker.send(MessageType::kHello, Hello(), false));
  ASSERT_TRUE(hears(worker, 1));
  Rng rng(1, "test.garbage");
  std::string noise(1 << 20, '\0');
  for (char& byte : noise) byte = static_cast<char>(rng.below(256));
  // The greeting of ZMTP 3.1 with CURVE, so that the noise also meets the handshake.
  std::string greeting("\xff\0\0\0\0\0\0\0\1\x7f\3\1CURVE", 17);
  greeting.resize(64, '\0');
  std::size_t sent = 0;
  for (int i = 0; i < 32; ++i) {
    const int rude = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const timeval patience{1, 0};
    ::setsockopt(rude, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(port_of(endpoint));
    ASSERT_EQ(::connect(rude, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    const std::string text = (i % 2 == 0 ? std::string() : greeting) + noise;
    for (std::size_t at = 0; at < text.size();) {
      const ssize_t put = ::send(rude, text.data() + at, text.size() - at, MSG_NOSIGNAL);
      if (put <= 0) break;  // it hung up, which is what it should do
      at += static_cast<std::size_t>(put);
      sent += static_cast<std::size_t>(put);
    }
    ::close(rude);
    ASSERT_TRUE(worker.send(MessageType::kResult, TaskResult(), true));
    ASSERT_TRUE(hears(worker, static_cast<std::size_t>(i) + 2));
    scheduler.confirm();
  }
  EXPECT_GT(sent, 0u);
  EXPECT_EQ(heard.size(), 33u);
  ASSERT_TRUE(eventually([&] {
    (void)go_round(worker);
    const LinkCounters counters = scheduler.counters();
    return counters.accepted == 33 &&
           counters.handshake_failed_no_detail + counters.handshake_failed_protocol > 0;
  }));
  EXPECT_EQ(scheduler.counters().handshake_succeeded, 1u);
  EXPECT_EQ(worker.counters().disconnected, 0u);
}

TEST_F(Security, EightMebibytesTravelAndNotAByteMore) {
  WorkerLink worker = connect(security_of("worker"));
  Bye bye;
  bye.set_reason(std::string(kMaxBodyBytes - 5, 'x'));  // tag, length of 4 bytes
  ASSERT_EQ(bye.ByteSizeLong(), kMaxBodyBytes);
  ASSERT_TRUE(worker.send(MessageType::kBye, bye, true));
  ASSERT_TRUE(hears(worker, 1));
  EXPECT_EQ(heard[0].body.size(), kMaxBodyBytes);
  bye.mutable_reason()->push_back('x');
  for (const bool reliable : {false, true}) {
    EXPECT_EQ(worker.send(MessageType::kBye, bye, reliable).error().code,
              ErrorCode::kInvalidArgument);
    EXPECT_EQ(scheduler.send(heard[0].peer, MessageType::kBye, bye, reliable).error().code,
              ErrorCode::kInvalidArgument);
  }
}

TEST_F(Security, ALongerMessageEndsTheConnectionThatBringsIt) {
  zmq::context_t context;
  zmq::socket_t rude(context, zmq::socket_type::dealer);
  rude.set(zmq::sockopt::linger, 0);
  ASSERT_TRUE(secure_client_socket(rude, endpoint, security_of("worker")));
  rude.connect(endpoint);
  OutgoingFrame frame;
  frame.header.type = MessageType::kBye;
  frame.body.assign(kMaxBodyBytes + 1024, 'x');
  ASSERT_TRUE(send_frame(rude, nullptr, frame));
  ASSERT_TRUE(eventually([&] {
    for (const HeardMessage& message : scheduler.poll(5ms)) heard.push_back(message);
    return scheduler.counters().disconnected > 0;
  }));
  EXPECT_TRUE(heard.empty());
}

TEST_F(Security, ASecondDoorkeeperOfAContextIsRefused) {
  zmq::context_t context;
  const ServerSecurity security = read_server_security(keys).value();
  const auto first = Authenticator::start(context, security);
  ASSERT_TRUE(first);
  EXPECT_EQ(Authenticator::start(context, security).error().code, ErrorCode::kUnavailable);
  EXPECT_EQ(Authenticator::start(context, {}).value(), nullptr) << "nothing to guard";
}

}  // namespace
}  // namespace saesweep::protocol
