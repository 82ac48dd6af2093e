// Two ends of the reliable layer and the network between them, against a model: a list of what was
// said. The input orders who speaks, what is lost, repeated, late or out of order, when credit
// shrinks and when a connection is made anew. Whatever it orders, each side hears a prefix of what
// the other said, in order and once, within the credit that was given; once the network behaves,
// it hears all of it.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "scheduler/protocol/reliable.h"

namespace {

using saesweep::ErrorCode;
using saesweep::TimePoint;
using saesweep::protocol::kReliable;
using saesweep::protocol::MessageType;
using saesweep::protocol::OutgoingFrame;
using saesweep::protocol::ReliablePeer;

constexpr std::size_t kMostUnderWay = 256;

void require(bool condition) {
  if (!condition) std::abort();
}

struct Side {
  explicit Side(std::uint64_t session, std::uint32_t credit, std::uint32_t peers)
      : peer(session, {.ours = credit, .peers = peers}), granted(credit) {}
  ReliablePeer peer;
  std::vector<std::string> said;  // reliably
  std::size_t heard = 0;          // of what the other said
  std::uint64_t granted;          // the highest seq that this side ever said it takes
  std::vector<OutgoingFrame> coming;
};

struct World {
  Side sides[2] = {Side(1, 8, 5), Side(2, 5, 8)};
  TimePoint now{};

  void send(int from, const OutgoingFrame& frame) {
    Side& sender = sides[from];
    Side& receiver = sides[1 - from];
    sender.granted = std::max(sender.granted, frame.header.ack + frame.header.credit);
    require(frame.header.seq <= receiver.granted);
    require(frame.header.ack <= receiver.said.size());
    if (receiver.coming.size() < kMostUnderWay) receiver.coming.push_back(frame);
  }
  void send_all(int from, const std::vector<OutgoingFrame>& frames) {
    for (const OutgoingFrame& frame : frames) send(from, frame);
  }
  void say(int from) {
    Side& side = sides[from];
    std::string text = std::to_string(side.said.size());
    auto frame = side.peer.reliable(MessageType::kResult, text, now);
    if (!frame) {
      require(frame.error().code == ErrorCode::kResourceExhausted);
      return;
    }
    side.said.push_back(std::move(text));
    require(frame->header.seq == side.said.size());
    require(side.peer.unacknowledged() <= ReliablePeer::kMaxUnacked);
    send(from, *frame);
  }
  void deliver(int to, std::size_t index) {
    Side& side = sides[to];
    const OutgoingFrame frame = side.coming[index];
    side.coming.erase(side.coming.begin() + static_cast<std::ptrdiff_t>(index));
    const bool is_new = side.peer.accept(frame.header, now);
    if ((frame.header.flags & kReliable) == 0) {
      require(is_new);
      return;
    }
    if (!is_new) return;
    require(frame.header.seq <= side.granted);
    require(side.heard < sides[1 - to].said.size());
    require(frame.body == sides[1 - to].said[side.heard]);
    ++side.heard;
    require(side.peer.last_received() == side.heard);
  }
  // What was confirmed, and credit, are said.
  void beat(int from) { send(from, sides[from].peer.unreliable(MessageType::kHeartbeat, "")); }

  void settle() {
    for (Side& side : sides) {
      side.coming.clear();
      side.peer.set_credit(8);
    }
    for (int round = 0; round < 4096; ++round) {
      bool is_over = true;
      for (int i = 0; i < 2; ++i) {
        now += std::chrono::seconds(1);
        sides[i].peer.confirm();
        beat(i);
        send_all(i, sides[i].peer.due(now));
        while (!sides[1 - i].coming.empty()) deliver(1 - i, 0);
        is_over = is_over && sides[i].heard == sides[1 - i].said.size() &&
                  sides[i].peer.unacknowledged() == 0;
      }
      if (is_over) return;
    }
    std::abort();
  }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  World world;
  for (std::size_t i = 0; i + 1 < std::min<std::size_t>(size, 4096); i += 2) {
    const int me = data[i] & 1;
    const std::uint8_t value = data[i + 1];
    Side& side = world.sides[me];
    const std::size_t chosen = side.coming.empty() ? 0 : value % side.coming.size();
    switch ((data[i] >> 1) % 11) {
      case 0:
      case 1:
        world.say(me);
        break;
      case 2:
        world.beat(me);
        break;
      case 3:  // in order
        if (!side.coming.empty()) world.deliver(me, 0);
        break;
      case 4:  // out of order
        if (!side.coming.empty()) world.deliver(me, chosen);
        break;
      case 5:
        if (!side.coming.empty())
          side.coming.erase(side.coming.begin() + static_cast<std::ptrdiff_t>(chosen));
        break;
      case 6:
        if (!side.coming.empty() && side.coming.size() < kMostUnderWay)
          side.coming.push_back(OutgoingFrame(side.coming[chosen]));
        break;
      case 7:
        side.peer.confirm();
        if (side.peer.owes_acknowledgement()) world.beat(me);
        break;
      case 8:
        world.now += std::chrono::milliseconds(100 * value);
        world.send_all(me, side.peer.due(world.now));
        break;
      case 9:
        side.peer.set_credit(value % 16);
        break;
      default:  // a new connection: what was under way is gone, and the peer says what it has
        side.coming.clear();
        world.sides[1 - me].coming.clear();
        world.send_all(
            me, side.peer.resend_after(world.sides[1 - me].peer.last_confirmed(), world.now));
        break;
    }
  }
  world.settle();
  return 0;
}
