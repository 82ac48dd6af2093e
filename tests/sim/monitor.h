// What must hold after every step, whatever fails. The first thing that does not is kept.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "scheduler/decisions/decide.h"
#include "tests/sim/disk.h"

namespace saesweep::sim {

class Monitor {
 public:
  const std::string& violation() const { return violation_; }
  void violated(std::string what) {
    if (violation_.empty()) violation_ = std::move(what);
  }

  void restarted(const scheduler::SweepState& state);
  // About to be applied.
  void decided(const scheduler::SweepState& before, const journal::Event& event);
  void applied(const scheduler::SweepState& state, const journal::Event& event,
               const scheduler::Changes& changes);
  void committed(const std::vector<journal::Event>& events);
  void acknowledged(const Disk& disk, const protocol::ResultAck& ack);
  // A worker begins with a member of a run.
  void began(const std::string& session, const std::string& task, std::uint64_t fence);
  void queued(std::size_t unacknowledged);

  // Digest of all that became durable, in order.
  std::uint64_t hash() const { return hash_; }
  std::uint64_t events() const { return events_; }

 private:
  void check_transition(const journal::Task& task);

  std::string violation_;
  std::uint64_t hash_ = 0, events_ = 0, applied_ = 0;
  std::uint64_t epoch_ = 0;
  std::map<std::string, journal::Task::PhaseCase> phases_;
  std::map<std::string, std::uint64_t> fences_;    // durable ones
  std::map<std::string, std::uint64_t> finished_;  // times, since it was begun
  std::map<std::pair<std::string, std::uint64_t>, std::string> holders_;  // of a fence
};

}  // namespace saesweep::sim
