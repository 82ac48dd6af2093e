// Sweeps, tasks, runs and workers as they are now: the fold of the events. No socket, no clock, no
// disk; one thread.
//
// `apply` is the only code that changes an object. Everything but the workers, who come and go with
// the process, is kept in the journal as the same protobuf objects that are held here.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/clock.h"
#include "scheduler/decisions/journal.pb.h"

namespace saesweep::scheduler {

// One agent process.
struct Worker {
  std::string name;  // for people
  std::uint32_t slots = 0;
  std::uint64_t memory_bytes = 0;  // 0: unknown
  std::uint32_t said_free = 0;     // slots, when it last said so
  TimePoint heard;
  bool lost = false;  // silent for too long; its runs were taken away
};

// What an event changed. A run or sweep named here may be gone.
struct Changes {
  bool meta = false;
  std::set<std::string> sweeps;
  std::set<std::string> tasks;
  std::set<std::uint64_t> runs;
};

bool is_finished(const journal::Task& task);  // one of the terminal phases
bool is_leased(const journal::Task& task);    // assigned or running
// Ready, or its backoff is over.
bool is_due(const journal::Task& task, TimePoint now);
// True if the journal does not keep it.
bool is_passing(const journal::Event& event);
std::vector<std::string> tasks_of(const journal::Sweep& sweep);  // each once, in order

std::uint64_t to_ns(TimePoint time);
TimePoint from_ns(std::uint64_t ns);

class SweepState {
 public:
  // From stored objects; call settle_indexes() after the last.
  void load(journal::Meta meta) { meta_ = std::move(meta); }
  void load(journal::Sweep sweep);
  void load(journal::Task task);
  void load(journal::Run run);
  void settle_indexes();

  void apply(const journal::Event& event, Changes* changes = nullptr);

  const journal::Meta& meta() const { return meta_; }
  const std::map<std::string, journal::Sweep>& sweeps() const { return sweeps_; }
  const std::map<std::string, journal::Task>& tasks() const { return tasks_; }
  const std::map<std::uint64_t, journal::Run>& runs() const { return runs_; }
  const std::map<std::string, Worker>& workers() const { return workers_; }
  const journal::Task* find_task(const std::string& id) const;
  const journal::Run* find_run(std::uint64_t id) const;

  // Sweeps that name the task.
  const std::set<std::string>& wanted_by(const std::string& task) const;
  // The newest active sweep that names it; null: nobody waits for it.
  const journal::Sweep* active_sweep_of(const std::string& task) const;

  // Tasks that could be leased, of no run, by what may share one; in order of submission.
  struct GroupKey {
    protocol::TaskKind kind;
    std::string group;
    auto operator<=>(const GroupKey&) const = default;
  };
  using Ordered = std::set<std::pair<std::uint64_t, std::string>>;  // order, task
  const std::map<GroupKey, Ordered>& ready() const { return ready_; }

  // The first rule that does not hold, in words; empty if all do.
  std::string broken_invariant() const;

 private:
  friend class Applier;
  void index(const journal::Task& task);
  void unindex(const journal::Task& task);

  journal::Meta meta_;
  std::map<std::string, journal::Sweep> sweeps_;
  std::map<std::string, journal::Task> tasks_;
  std::map<std::uint64_t, journal::Run> runs_;
  std::map<std::string, Worker> workers_;
  // Derived from the above.
  std::map<std::string, std::set<std::string>> wanted_by_;
  std::map<std::string, std::set<std::string>> dependents_;
  std::map<GroupKey, Ordered> ready_;
};

// The state after these events, from nothing.
SweepState replay(std::span<const journal::Event> log);

}  // namespace saesweep::scheduler
