// A TCP proxy on loopback that does to a connection what networks do: delay, stall, hang half-open,
// reset, flip a bit, cut after some bytes. No privileges, no dice of its own: what happens is
// ordered by the test, or drawn from the seed the test gives.
//
//   client -> FaultProxy(port of the server).port() -> server
//
// One thread moves all bytes; the test orders from another.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>

namespace saesweep::test {

enum class Direction : std::uint8_t { kToServer, kToClient };

class FaultProxy {
 public:
  explicit FaultProxy(std::uint16_t server_port);
  ~FaultProxy();
  FaultProxy(const FaultProxy&) = delete;
  FaultProxy& operator=(const FaultProxy&) = delete;

  std::uint16_t port() const;

  // Of all connections, present and future.
  void delay(Direction direction, std::chrono::milliseconds delay);
  // Bytes of that direction are kept until go_on().
  void stall(Direction direction);
  void go_on();
  // Of the present connections: they stay open on both sides and carry nothing ever again.
  void leave_half_open();
  void reset();  // both sides see RST
  // The next byte of that direction has a bit flipped after `bytes` more; once.
  void flip_bit_after(Direction direction, std::uint64_t bytes);
  // The connection is reset once `bytes` more have gone through; once.
  void cut_after(Direction direction, std::uint64_t bytes);
  // New connections are closed at once until go_on().
  void refuse();

  std::uint64_t accepted() const;
  std::uint64_t flipped() const;
  std::uint64_t cut() const;
  std::uint64_t bytes() const;  // that went through

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace saesweep::test
