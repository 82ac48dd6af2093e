// All that the scheduler knows: sweeps, tasks, groups, and who is here to work. A fold of events:
// apply() is the only code that changes it.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "core/result.h"
#include "scheduler/protocol/journal.pb.h"

namespace saesweep::scheduler {

using journal::Phase;

bool is_over(Phase phase);    // nothing will change it any more
bool is_leased(Phase phase);  // a worker has it
std::string_view to_string(Phase phase);

// Not journaled: an agent and what it runs are gone after a restart of the scheduler.
struct Run {
  std::uint64_t id = 0;
  std::uint64_t group = 0;
  std::string worker;          // peer
  std::set<std::string> open;  // members that nothing final was heard of
};
struct Worker {
  std::string peer;
  std::string name;
  std::uint32_t id = 0;
  std::uint32_t slots = 0;
  std::uint64_t memory_bytes = 0;  // 0: unknown
  std::uint32_t refusals = 0;      // in a row
};

class SweepState {
 public:
  void apply(const journal::Event& event);
  // As read from the journal.
  void load(journal::Meta meta) { meta_ = std::move(meta); }
  void load(journal::Sweep sweep);
  void load(journal::Task task);
  void load(journal::Group group);

  const journal::Meta& meta() const { return meta_; }
  const std::map<std::string, journal::Sweep>& sweeps() const { return sweeps_; }
  const std::map<std::string, journal::Task>& tasks() const { return tasks_; }
  const std::map<std::uint64_t, journal::Group>& groups() const { return groups_; }
  const journal::Task* task(const std::string& id) const;
  const journal::Group* group(std::uint64_t id) const;
  std::vector<std::string> needed_by(const std::string& task) const;  // ids of tasks that need it

  // Sweeps that are to be worked on now, tasks in the order in which they should be.
  void activate(const std::string& sweep) { active_.insert(sweep); }
  std::vector<const journal::Task*> wanted() const;
  const std::set<std::string>& active() const { return active_; }
  bool all_over(const journal::Sweep& sweep) const;

  // Who is here; changed by the service as it hears them.
  std::map<std::string, Worker> workers;
  std::map<std::uint64_t, Run> runs;
  std::uint32_t free_slots(const Worker& worker) const;

  // What changed since the last call: to be written with the events.
  struct Changes {
    bool meta = false;
    std::set<std::string> sweeps, tasks;
    std::set<std::uint64_t> groups;
  };
  Changes take_changes();

 private:
  journal::Task& mutable_task(const std::string& id);
  void close(const std::string& task);  // its run no longer waits for it

  journal::Meta meta_;
  std::map<std::string, journal::Sweep> sweeps_;
  std::map<std::string, journal::Task> tasks_;
  std::map<std::uint64_t, journal::Group> groups_;
  std::map<std::string, std::set<std::string>> needed_by_;
  std::set<std::string> active_;
  Changes changes_;
};

// What must hold whatever happened; each line a violation.
std::vector<std::string> check_invariants(const SweepState& state);

}  // namespace saesweep::scheduler
