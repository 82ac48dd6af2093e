#include "tests/sim/network.h"

#include <algorithm>
#include <span>

#include "core/check.h"
#include "scheduler/protocol/frame.h"

namespace saesweep::sim {

using namespace std::chrono_literals;

void Network::reconnect(const std::string& session) {
  for (const bool up : {false, true}) pipes_[{session, up}].last = {};
}

void Network::cut(const std::string& session, bool up, bool down, Duration time) {
  if (up) pipes_[{session, true}].cut_until = timeline_.now() + time;
  if (down) pipes_[{session, false}].cut_until = timeline_.now() + time;
}

// Whoever reads it drops it. (Of the header ZeroMQ's encryption takes care.)
void Network::damage(protocol::OutgoingFrame& frame) {
  const auto header = protocol::encode_header(frame.header, std::as_bytes(std::span(frame.body)));
  const auto size = static_cast<std::uint32_t>(frame.body.size());
  char& byte = frame.body[rng_.below(size)];
  byte = static_cast<char>(byte ^ (1 << rng_.below(8)));
  SAE_CHECK(!protocol::decode_header(header, std::as_bytes(std::span(frame.body))),
            "a damaged {} of {} bytes is taken for a sound one",
            protocol::to_string(frame.header.type), size);
}

void Network::send(const std::string& session, protocol::OutgoingFrame frame, bool up) {
  const Name name{session, up};
  if (!faults_.is_over && timeline_.now() < pipes_[name].cut_until) return;
  if (!faults_.is_over && rng_.uniform() < faults_.loss) return;
  if (!faults_.is_over && rng_.uniform() < faults_.damage && !frame.body.empty()) {
    damage(frame);
    return;
  }
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
