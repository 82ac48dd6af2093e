#include "scheduler/service/chunk_desk.h"

#include <gtest/gtest.h>

namespace saesweep::scheduler {
namespace {

std::string completed(const std::string& named, const std::string& address,
                      std::size_t key_bytes = 32) {
  protocol::Hello hello;
  hello.set_chunks_endpoint(named);
  hello.set_chunks_key(std::string(key_bytes, 'k'));
  complete(hello, address);
  return hello.chunks_endpoint();
}

TEST(ChunkDesk, AnyHostIsTheOneFromWhichAWorkerIsHeard) {
  EXPECT_EQ(completed("tcp://*:7080", "10.0.0.5"), "tcp://10.0.0.5:7080");
  EXPECT_EQ(completed("tcp://*:7080", "[fd00::5]"), "tcp://[fd00::5]:7080");
  EXPECT_EQ(completed("tcp://10.1.1.1:7080", "10.0.0.5"), "tcp://10.1.1.1:7080");
  EXPECT_EQ(completed("tcp://*:7080", ""), "") << "over a socket file nobody knows";
}

TEST(ChunkDesk, WhatNobodyShouldConnectToIsNotPassedOn) {
  EXPECT_EQ(completed("ipc:///run/other", "10.0.0.5"), "");
  EXPECT_EQ(completed("tcp://10.0.0.5:7080", "10.0.0.5", 31), "");
  EXPECT_EQ(completed("tcp://10.0.0.5:7080", "10.0.0.5", 0), "tcp://10.0.0.5:7080");
  EXPECT_EQ(completed("tcp://" + std::string(300, 'a') + ":1", "10.0.0.5"), "");
}

TEST(ChunkDesk, EveryIncarnationGivesItsWorkersAnotherKeyPair) {
  protocol::ServerSecurity security;
  security.keys = std::make_shared<const protocol::KeyPair>(protocol::make_key_pair().value());
  const ChunkDesk one = ChunkDesk::open(security).value(), two = ChunkDesk::open(security).value();
  const SweepState state;
  protocol::Welcome first, again, other;
  one.complete(first, state, "w");
  one.complete(again, state, "w");
  two.complete(other, state, "w");
  EXPECT_EQ(first.chunks_public().size(), protocol::kKeyBytes);
  EXPECT_EQ(first.chunks_secret().size(), protocol::kKeyBytes);
  EXPECT_EQ(first.SerializeAsString(), again.SerializeAsString());
  EXPECT_NE(first.chunks_secret(), other.chunks_secret());
}

TEST(ChunkDesk, WithoutKeysNoneAreGiven) {
  protocol::Welcome welcome;
  ChunkDesk::open({}).value().complete(welcome, SweepState(), "w");
  EXPECT_EQ(welcome.ByteSizeLong(), 0u);
}

TEST(ChunkDesk, MappedAddressesAreWrittenPlainly) {
  EXPECT_EQ(plain("tcp://[::ffff:10.0.0.5]:7077"), "tcp://10.0.0.5:7077");
  EXPECT_EQ(plain("tcp://[fd00::5]:7077"), "tcp://[fd00::5]:7077");
}

}  // namespace
}  // namespace saesweep::scheduler
