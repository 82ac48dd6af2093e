#include "tests/sim/network.h"

#include <algorithm>

namespace saesweep::sim {

using namespace std::chrono_literals;

void Network::reconnect(const std::string& session) {
  for (const bool up : {false, true}) pipes_[{session, up}].last = {};
}

void Network::cut(const std::string& session, bool up, bool down, Duration time) {
  if (up) pipes_[{session, true}].cut_until = timeline_.now() + time;
  if (down) pipes_[{session, false}].cut_until = timeline_.now() + time;
}

void Network::send(const std::string& session, protocol::OutgoingFrame frame, bool up) {
  const Name name{session, up};
  if (!faults_.is_over && timeline_.now() < pipes_[name].cut_until) return;
  if (!faults_.is_over && rng_.uniform() < faults_.loss) return;
  deliver_later(name, frame);
  if (!faults_.is_over && rng_.uniform() < faults_.duplicate) deliver_later(name, frame);
}

void Network::deliver_later(const Name& name, const protocol::OutgoingFrame& frame) {
  Duration delay = 200us;
  if (!faults_.is_over) {
    delay += std::chrono::duration_cast<Duration>(faults_.delay * 2 * rng_.uniform());
    if (faults_.heavy_tail && rng_.below(50) == 0) delay *= 100;
  }
  Pipe& pipe = pipes_[name];
  pipe.last = std::max(pipe.last, timeline_.now() + delay);
  timeline_.at(pipe.last, [this, name, frame] {
    ++delivered_;
    (name.second ? to_scheduler : to_worker)(name.first, frame);
  });
}

}  // namespace saesweep::sim
