// A scheduler process: decide, apply, the reliable layer and a disk, in the order in which the
// service does it: hear, decide, make durable, confirm, answer. It may die between any two of
// these.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "scheduler/decisions/decide.h"
#include "tests/sim/disk.h"
#include "tests/sim/monitor.h"
#include "tests/sim/network.h"

namespace saesweep::sim {

class SchedulerNode {
 public:
  SchedulerNode(Timeline& timeline, Network& network, const Faults& faults, Rng& rng,
                Monitor& monitor)
      : timeline_(timeline), network_(network), faults_(faults), rng_(rng), monitor_(monitor) {}

  void start();
  void crash();
  void pause(Duration time) { paused_until_ = timeline_.now() + time; }
  void jump_wall_clock(Duration by) { wall_offset_ += by; }
  bool is_alive() const { return alive_; }
  void hear_frame(const std::string& session, const protocol::OutgoingFrame& frame);
  // A person's word; `done` hears the answer once it is durable, and nothing if we die before.
  void command(scheduler::Heard heard, std::function<void(const scheduler::Answer*)> done = {});

  const scheduler::SweepState& state() const { return state_; }
  Disk& disk() { return disk_; }

  // Checkpoints and artifacts, which every machine sees.
  std::set<std::string> files;

 private:
  struct Command {
    scheduler::Heard heard;
    std::function<void(const scheduler::Answer*)> done;
  };
  struct Answered {
    std::optional<scheduler::Answer> answer;
    std::function<void(const scheduler::Answer*)> done;
  };
  TimePoint clock() const { return clock_.at(timeline_.now()); }
  double wall_time() const {
    return std::chrono::duration<double>((timeline_.now() + wall_offset_).time_since_epoch())
        .count();
  }
  void turn_at(TimePoint when);
  void turn();
  std::optional<scheduler::Answer> hear(const std::string& peer, scheduler::Heard heard);
  void hear_message(const std::string& session, const protocol::OutgoingFrame& frame);
  bool commit();
  void send(const scheduler::Reply& reply);
  void forget_checkpoints(const std::string& task);

  Timeline& timeline_;
  Network& network_;
  const Faults& faults_;
  Rng& rng_;
  Monitor& monitor_;
  Disk disk_;

  bool alive_ = false;
  std::uint64_t life_ = 0;  // callbacks of an earlier one do nothing
  TimePoint paused_until_;
  TimePoint last_look_, next_turn_;
  LocalClock clock_;
  Duration wall_offset_{};
  std::uint64_t session_ = 0;
  scheduler::SweepState state_;
  std::vector<journal::Event> pending_;
  scheduler::Changes changes_;
  std::vector<scheduler::Reply> replies_;
  std::vector<Answered> answers_;
  std::vector<std::string> finished_;
  std::map<std::string, protocol::ReliablePeer> peers_;
  std::deque<std::pair<std::string, protocol::OutgoingFrame>> inbox_;
  std::deque<Command> commands_;
};

}  // namespace saesweep::sim
