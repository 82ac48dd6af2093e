// Frames between agents and the scheduler. In order within a connection; after a reconnect, frames
// of the old one may come later than those of the new one. Loses, doubles, damages, delays and cuts
// as the faults say.
#pragma once

#include <functional>
#include <map>
#include <string>

#include "core/philox.h"
#include "scheduler/protocol/reliable.h"
#include "tests/sim/faults.h"
#include "tests/sim/timeline.h"

namespace saesweep::sim {

class Network {
 public:
  using Deliver = std::function<void(const std::string& session, const protocol::OutgoingFrame&)>;

  Network(Timeline& timeline, const Faults& faults, Rng& rng)
      : timeline_(timeline), faults_(faults), rng_(rng) {}

  Deliver to_scheduler, to_worker;  // set once, before anything is sent

  void send_up(const std::string& session, protocol::OutgoingFrame frame) {
    send(session, std::move(frame), true);
  }
  void send_down(const std::string& session, protocol::OutgoingFrame frame) {
    send(session, std::move(frame), false);
  }
  // Every connection of `session` begins anew.
  void reconnect(const std::string& session);
  // Nothing passes until then.
  void cut(const std::string& session, bool up, bool down, Duration time);
  std::uint64_t delivered() const { return delivered_; }

 private:
  struct Pipe {
    TimePoint last;  // delivery
    TimePoint cut_until;
  };
  using Name = std::pair<std::string, bool>;  // session, up
  void send(const std::string& session, protocol::OutgoingFrame frame, bool up);
  void damage(protocol::OutgoingFrame& frame);
  void deliver_later(const Name& name, const protocol::OutgoingFrame& frame);

  Timeline& timeline_;
  const Faults& faults_;
  Rng& rng_;
  std::map<Name, Pipe> pipes_;
  std::uint64_t delivered_ = 0;
};

}  // namespace saesweep::sim
