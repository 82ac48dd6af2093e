#include "scheduler/protocol/executor_channel.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

namespace saesweep::protocol {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;

Envelope progress(std::uint64_t run, std::string stage) {
  Envelope envelope;
  envelope.mutable_progress()->set_run_id(run);
  envelope.mutable_progress()->set_stage(std::move(stage));
  return envelope;
}

struct Pair {
  static std::pair<int, int> make() { return ExecutorChannel::make_pair().value(); }
  explicit Pair(std::pair<int, int> ends = make()) : left(ends.first), right(ends.second) {}
  ExecutorChannel left, right;
};

// One side is ours, the other writes bytes of its own.
struct RawPair {
  std::pair<int, int> ends = ExecutorChannel::make_pair().value();
  ExecutorChannel channel{ends.first};
  int raw = ends.second;
  ~RawPair() { hang_up(); }
  void hang_up() {
    if (raw >= 0) ::close(raw);
    raw = -1;
  }
  void write(std::string_view bytes) const {
    ASSERT_EQ(::write(raw, bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
  }
};

std::string on_the_wire(const Envelope& envelope) {
  const std::string body = envelope.SerializeAsString();
  std::string bytes;
  for (unsigned shift = 0; shift < 32; shift += 8)
    bytes.push_back(static_cast<char>((body.size() >> shift) & 0xff));
  return bytes + body;
}

int open_descriptors() {
  int count = 0;
  for (int i = 0; i < 1024; ++i) count += ::fcntl(i, F_GETFD) >= 0 ? 1 : 0;
  return count;
}

TEST(ExecutorChannel, CarriesMessagesBothWaysInOrder) {
  Pair pair;
  ASSERT_TRUE(pair.left.send(progress(1, "train")));
  ASSERT_TRUE(pair.left.send(progress(2, "evaluate")));
  ASSERT_TRUE(pair.right.send(progress(3, "harvest")));
  EXPECT_EQ(pair.right.receive(1s).value().value().envelope.progress().run_id(), 1U);
  EXPECT_EQ(pair.right.receive(1s).value().value().envelope.progress().stage(), "evaluate");
  EXPECT_EQ(pair.left.receive(1s).value().value().envelope.progress().run_id(), 3U);
}

TEST(ExecutorChannel, CarriesAMessageLargerThanTheSocketBuffer) {
  Pair pair;
  const std::string large(9'000'000, 'x');
  std::jthread writer([&] { EXPECT_TRUE(pair.left.send(progress(1, large))); });
  EXPECT_EQ(pair.right.receive(10s).value().value().envelope.progress().stage(), large);
}

TEST(ExecutorChannel, HandsADescriptorToTheMessageItCameWith) {
  Pair pair;
  const int memory = ::memfd_create("test", MFD_CLOEXEC);
  ASSERT_EQ(::ftruncate(memory, 4711), 0);
  ASSERT_TRUE(pair.left.send(progress(1, "before")));
  ASSERT_TRUE(pair.left.send(progress(2, "with"), memory));
  ASSERT_TRUE(pair.left.send(progress(3, "after")));
  ::close(memory);
  EXPECT_EQ(pair.right.receive(1s).value().value().descriptor, -1);
  const auto heard = pair.right.receive(1s).value().value();
  EXPECT_EQ(pair.right.receive(1s).value().value().descriptor, -1);
  ASSERT_GE(heard.descriptor, 0);
  EXPECT_EQ(::lseek(heard.descriptor, 0, SEEK_END), 4711);
  EXPECT_NE(::fcntl(heard.descriptor, F_GETFD) & FD_CLOEXEC, 0) << "children would inherit it";
  ::close(heard.descriptor);
}

TEST(ExecutorChannel, ClosesDescriptorsThatNobodyFetched) {
  const int before = open_descriptors();
  {
    Pair pair;
    const int memory = ::memfd_create("test", MFD_CLOEXEC);
    ASSERT_TRUE(pair.left.send(progress(1, "read")));
    ASSERT_TRUE(pair.left.send(progress(2, "never read"), memory));
    ::close(memory);
    ASSERT_TRUE(pair.right.receive(1s).value());
  }
  EXPECT_EQ(open_descriptors(), before);
}

TEST(ExecutorChannel, DescriptorsWithoutMessagesAreCorruption) {
  RawPair pair;
  std::array<char, CMSG_SPACE(4 * sizeof(int))> control{};
  char byte = 0;
  iovec part{&byte, 1};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(4 * sizeof(int));
  for (std::size_t i = 0; i < 4; ++i) {
    const int descriptor = 0;
    std::memcpy(CMSG_DATA(header) + i * sizeof(int), &descriptor, sizeof(int));
  }
  // The bytes are those of a message that never ends.
  pair.write(std::string("\xff\xff\0\0", 4));
  for (int i = 0; i < 6; ++i) ASSERT_EQ(::sendmsg(pair.raw, &message, 0), 1);
  const auto heard = pair.channel.receive(1s);
  ASSERT_FALSE(heard);
  EXPECT_EQ(heard.error().code, ErrorCode::kCorrupted);
}

TEST(ExecutorChannel, WhatWasSentBeforeTheEndIsStillHeard) {
  Pair pair;
  ASSERT_TRUE(pair.left.send(progress(1, "last words")));
  { const ExecutorChannel gone = std::move(pair.left); }
  EXPECT_EQ(pair.right.receive(1s).value().value().envelope.progress().stage(), "last words");
  const auto end = pair.right.receive(1s);
  ASSERT_FALSE(end);
  EXPECT_EQ(end.error().code, ErrorCode::kUnavailable);
}

TEST(ExecutorChannel, SendingToOneThatIsGoneFailsWithoutASignal) {
  RawPair pair;
  pair.hang_up();
  const auto sent = pair.channel.send(progress(1, "hello?"));
  ASSERT_FALSE(sent);
  EXPECT_EQ(sent.error().code, ErrorCode::kUnavailable);
}

TEST(ExecutorChannel, AnEndInsideAMessageIsAnEnd) {
  RawPair pair;
  const std::string bytes = on_the_wire(progress(1, "train"));
  pair.write(bytes.substr(0, bytes.size() - 1));
  EXPECT_FALSE(pair.channel.receive(0ms).value());
  pair.hang_up();
  const auto heard = pair.channel.receive(1s);
  ASSERT_FALSE(heard);
  EXPECT_EQ(heard.error().code, ErrorCode::kUnavailable);
}

TEST(ExecutorChannel, AMessageMayArriveByteByByte) {
  RawPair pair;
  const std::string bytes = on_the_wire(progress(7, "train"));
  for (const char byte : bytes.substr(0, bytes.size() - 1)) {
    pair.write({&byte, 1});
    ASSERT_FALSE(pair.channel.receive(0ms).value());
  }
  pair.write({&bytes.back(), 1});
  EXPECT_EQ(pair.channel.receive(1s).value().value().envelope.progress().run_id(), 7U);
}

TEST(ExecutorChannel, ALengthBeyondTheLimitIsCorruptionBeforeItsBytesAreRead) {
  RawPair pair;
  pair.write(std::string("\x01\x00\x00\x04", 4));  // 64 MiB and one
  const auto heard = pair.channel.receive(1s);
  ASSERT_FALSE(heard);
  EXPECT_EQ(heard.error().code, ErrorCode::kCorrupted);
  EXPECT_THAT(heard.error().message, HasSubstr("67108865"));
}

TEST(ExecutorChannel, AMessageBeyondTheLimitIsNotSent) {
  Pair pair;
  const auto sent = pair.left.send(progress(1, std::string((64U << 20) + 1, 'x')));
  ASSERT_FALSE(sent);
  EXPECT_EQ(sent.error().code, ErrorCode::kInvalidArgument);
}

TEST(ExecutorChannel, BytesThatAreNoMessageAreCorruption) {
  RawPair pair;
  pair.write(std::string("\x04\0\0\0\xff\xff\xff\xff", 8));
  const auto heard = pair.channel.receive(1s);
  ASSERT_FALSE(heard);
  EXPECT_EQ(heard.error().code, ErrorCode::kCorrupted);
}

TEST(ExecutorChannel, SaysNothingWhenNothingComesInTime) {
  Pair pair;
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_FALSE(pair.left.receive(30ms).value());
  EXPECT_GE(std::chrono::steady_clock::now() - begin, 30ms);
}

TEST(ExecutorChannel, MessagesOfTwoThreadsAreNotMixed) {
  Pair pair;
  constexpr int kEach = 2000;
  const auto speak = [&](char letter) {
    for (int i = 0; i < kEach; ++i)
      ASSERT_TRUE(pair.left.send(progress(static_cast<std::uint64_t>(i),
                                          std::string(static_cast<std::size_t>(i % 997), letter))));
  };
  std::vector<std::jthread> threads;
  for (const char letter : {'a', 'b'}) threads.emplace_back([&, letter] { speak(letter); });
  std::array<std::uint64_t, 2> next{};
  for (int heard = 0; heard < 2 * kEach; ++heard) {
    const auto message = pair.right.receive(10s);
    ASSERT_TRUE(message && *message);
    const Progress& said = (*message)->envelope.progress();
    if (said.stage().empty()) continue;
    const char letter = said.stage()[0];
    ASSERT_EQ(said.stage(), std::string(said.run_id() % 997, letter));
    std::uint64_t& newest = next[letter == 'a' ? 0 : 1];
    ASSERT_GE(said.run_id(), newest);
    newest = said.run_id();
  }
}

}  // namespace
}  // namespace saesweep::protocol
