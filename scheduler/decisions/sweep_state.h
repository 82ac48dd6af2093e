// Sweeps, tasks, runs and workers as they are now: the fold of the events. No socket, no clock, no
// disk; one thread.
//
// `apply` is the only code that changes an object. Everything but the workers, who come and go with
// the process, and what sweeps have been charged, is kept in the journal as the same protobuf
// objects that are held here. Indexes follow the objects, so that no question about "who is next"
// looks at all tasks.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "core/check.h"
#include "core/clock.h"
#include "scheduler/decisions/journal.pb.h"
#include "scheduler/early_stopping/contest.h"

namespace saesweep::scheduler {

// One agent process.
struct Worker {
  std::string name;  // for people
  std::string host;
  std::uint32_t slots = 0;
  std::uint32_t gpus = 0;
  std::uint64_t gpu_memory_bytes = 0;  // of a GPU, for one slot; 0: unknown
  std::uint64_t memory_bytes = 0;      // of all slots together; 0: unknown
  std::uint32_t said_free = 0;         // slots, when it last said so
  TimePoint heard;
  bool lost = false;       // silent for too long; its runs were taken away
  bool awaited = false;    // since a restart of ours it has not said HELLO; its runs are held
  bool resyncing = false;  // it was asked for all that it runs and gets nothing before it has said
  std::uint32_t mismatches = 0;  // heartbeats in a row that tell of other runs than ours
  std::map<std::string, std::uint64_t> streams;  // in its cache, bytes
  std::string chunks_endpoint;                   // where others get chunks of them; empty: nowhere
  std::string chunks_key;        // of the server there, 32 bytes; empty: without keys
  std::set<std::uint64_t> runs;  // leased to it
};

using NamedWorker = std::pair<const std::string, Worker>;  // by session

struct Changes;

bool is_finished(const journal::Task& task);  // one of the terminal phases
bool is_leased(const journal::Task& task);    // assigned or running
bool is_waiting(const journal::Task& task);   // ready or in backoff
// Ready, or its backoff is over.
bool is_due(const journal::Task& task, TimePoint now);
// What it is expected to take, alone in a run.
std::uint64_t memory_of(const journal::Task& task);
// What the members of one run take together: each its own, and once what they share.
struct RunMemory {
  std::uint64_t own = 0, shared = 0;

  std::uint64_t bytes() const { return own + shared; }
};
RunMemory with_member(const RunMemory& run, const journal::Task& task);
RunMemory gpu_with_member(const RunMemory& run, const journal::Task& task);
// True if the journal does not keep it.
bool is_passing(const journal::Event& event);
std::vector<std::string> tasks_of(const journal::Sweep& sweep);  // each once, in order
// Its tasks are begun.
bool is_working(const journal::Sweep& sweep);
double weight_of(const journal::Sweep& sweep);  // positive

std::uint64_t to_ns(TimePoint time);
TimePoint from_ns(std::uint64_t ns);

class SweepState {
 public:
  // A row of a sweep that names a task.
  struct Want {
    std::uint32_t sweep = 0;   // its number among desks()
    std::int32_t subject = 0;  // -1: the sweep's model
    auto operator<=>(const Want&) const = default;
  };
  // Where the indexes have a task.
  struct Filed {
    std::vector<Want> wants;
    std::set<std::string> dependents;
    std::vector<std::uint32_t> open_at;     // desks that count it as open, one for each row
    std::optional<std::uint32_t> ready_at;  // desk
    std::optional<std::uint64_t> backoff_until;
    std::uint64_t begun_in = 0;    // run; 0: none
    std::uint64_t begun_hash = 0;  // of its lease there
    bool is_demand = false;        // counted in demand_of()
    bool operator==(const Filed&) const = default;
  };
  struct FiledTask {
    journal::Task task;
    Filed filed = {};
  };

  // By id. None ever leaves. What is asked for is mostly what was asked for last: that is found
  // without a search. Not even reading is for two threads.
  class Tasks {
   public:
    using Map = std::unordered_map<std::string, FiledTask>;
    Tasks() = default;
    Tasks(const Tasks& other) : map_(other.map_) {}
    Tasks(Tasks&& other) noexcept
        : map_(std::move(other.map_)), last_(std::exchange(other.last_, nullptr)) {}
    Tasks& operator=(Tasks other) noexcept {
      map_.swap(other.map_);
      last_ = std::exchange(other.last_, nullptr);
      return *this;
    }
    ~Tasks() = default;

    const Map::value_type* find(const std::string& id) const {
      return const_cast<Tasks*>(this)->find(id);
    }
    Map::value_type* find(const std::string& id) {
      if (last_ != nullptr && last_->first == id) return last_;
      const auto found = map_.find(id);
      if (found == map_.end()) return nullptr;
      return last_ = &*found;
    }
    FiledTask& at(const std::string& id) {
      Map::value_type* const found = find(id);
      SAE_CHECK(found != nullptr, "no task {}", id);
      return found->second;
    }
    const FiledTask& at(const std::string& id) const { return const_cast<Tasks*>(this)->at(id); }
    Map::value_type& add(const std::string& id) { return *map_.try_emplace(id).first; }
    void make_room_for(std::size_t more) { map_.reserve(map_.size() + more); }
    std::size_t size() const { return map_.size(); }
    Map::iterator begin() { return map_.begin(); }
    Map::iterator end() { return map_.end(); }
    Map::const_iterator begin() const { return map_.begin(); }
    Map::const_iterator end() const { return map_.end(); }

   private:
    Map map_;
    Map::value_type* last_ = nullptr;  // found
  };

  SweepState() = default;
  SweepState(const SweepState& other);
  SweepState& operator=(const SweepState& other);
  SweepState(SweepState&&) noexcept = default;  // tasks stay where they are
  SweepState& operator=(SweepState&&) noexcept = default;
  ~SweepState() = default;

  // From stored objects; call settle_indexes() after the last.
  void load(journal::Meta meta) { meta_ = std::move(meta); }
  void load(journal::Sweep sweep);
  void load(journal::Task task);
  void load(journal::Run run);
  void settle_indexes();

  void apply(journal::Event event, Changes* changes = nullptr);

  const journal::Meta& meta() const { return meta_; }
  const std::map<std::string, journal::Sweep>& sweeps() const { return sweeps_; }
  const Tasks& tasks() const { return tasks_; }
  const std::map<std::uint64_t, journal::Run>& runs() const { return runs_; }
  const std::map<std::string, Worker>& workers() const { return workers_; }
  const journal::Task* find_task(const std::string& id) const;
  const journal::Run* find_run(std::uint64_t id) const;
  bool is_draining(const std::string& session) const;

  const std::vector<Want>& wants(const std::string& task) const;
  const journal::Sweep& sweep_of(const Want& want) const;
  // False if the row is cancelled in its sweep, or was stopped early.
  bool is_wanted(const Want& want) const;
  // The row is to be worked on now: not paused, not cancelled, not waiting at a rung, its sweep
  // active.
  bool is_working(const Want& want) const;
  // Somebody wants it, now or later, besides `except`.
  bool is_wanted(const std::string& task, const std::string& except = {}) const;
  // The newest active sweep that names it; null: nobody waits for it.
  const journal::Sweep* active_sweep_of(const std::string& task) const;
  // Who is charged for it: of the sweeps that want it worked on now the one of the highest
  // priority, of those the newest. Null: nobody.
  const journal::Sweep* payer_of(const std::string& task) const;

  // Of a sweep with early stopping: what its rule goes by. Null for others.
  const Contest* contest(const std::string& sweep) const;
  const std::map<std::string, Contest>& contests() const { return contests_; }

  // ---- who is next

  // Tasks that may share a run.
  struct GroupKey {
    protocol::TaskKind kind;
    std::string group;
    auto operator<=>(const GroupKey&) const = default;
  };
  using Ordered = std::map<std::uint64_t, const journal::Task*>;  // by order, which no two share
  // What is kept about a sweep.
  struct Desk {
    std::string sweep;
    std::map<GroupKey, Ordered> ready;  // it pays for them; of no run, without backoff
    std::uint64_t open = 0;             // rows' tasks that it wants and that are not finished
    double charge = 0;                  // slot-seconds that its runs took, the old ones fading
  };
  const std::vector<Desk>& desks() const { return desks_; }
  const Desk& desk(const std::string& sweep) const;
  // Sweeps of which nothing is open and that are not marked as ended.
  const std::set<std::string>& overdue() const { return overdue_; }
  // Waiting for their moment, of no run, by (until_ns, order).
  using Backoffs = std::map<std::pair<std::uint64_t, std::uint64_t>, const journal::Task*>;
  const Backoffs& backoffs() const { return backoffs_; }
  const std::set<std::uint64_t>& waiting_runs() const { return waiting_runs_; }  // leased to nobody
  // Tasks whose turn it was and that found no room, since when.
  const std::map<std::string, TimePoint>& passed_over() const { return passed_over_; }
  std::optional<TimePoint> charged_until() const { return charged_until_; }
  // Tasks of a run that its worker says it has begun, and the XOR of their lease hashes.
  struct Begun {
    std::uint32_t tasks = 0;
    std::uint64_t hash = 0;
    bool operator==(const Begun&) const = default;
  };
  Begun begun_of(std::uint64_t run) const;
  // By stream, of a family: train tasks that somebody wants and that are not finished, and the spec
  // of one of them.
  struct Demand {
    std::uint64_t tasks = 0;
    const journal::TaskSpec* one = nullptr;
  };
  const std::map<std::string, Demand>& demand_of(const std::string& family) const;

  // The first rule that does not hold, in words; empty if all do.
  std::string broken_invariant() const;

 private:
  friend class Applier;
  // After any change of the object. The task is one of tasks_.
  void file(const journal::Task& task);
  void file(FiledTask& entry);
  void file(const journal::Sweep& sweep);
  void file(const journal::Run& run);
  void unfile(FiledTask& entry);
  const journal::Sweep* payer_of(const std::vector<Want>& wants) const;
  void file_begun(FiledTask& entry);  // only whether it is begun
  void unfile_run(std::uint64_t run, const std::string& worker);
  // The rows of a sweep want their tasks, which are to be filed then; before rows change, they no
  // longer do. The tasks, in order; one that several rows want is there several times.
  std::vector<FiledTask*> want(const journal::Sweep& sweep);
  void unwant(const journal::Sweep& sweep);
  // How the row stands in its sweep; null: no early stopping.
  const journal::Standing* standing_of(const Want& want) const;
  std::uint32_t number_of(const std::string& sweep);
  std::string broken_index() const;

  journal::Meta meta_;
  std::map<std::string, journal::Sweep> sweeps_;
  Tasks tasks_;
  std::map<std::uint64_t, journal::Run> runs_;
  std::map<std::string, Worker> workers_;
  // Derived from the above.
  std::map<std::string, Contest> contests_;  // by sweep
  std::vector<Desk> desks_;
  std::map<std::string, std::uint32_t> desk_numbers_;
  std::set<std::string> overdue_;
  Backoffs backoffs_;
  std::set<std::uint64_t> waiting_runs_;
  std::map<std::uint64_t, Begun> begun_;                         // by run
  std::map<std::string, std::map<std::string, Demand>> demand_;  // by family and stream
  // Of this incarnation.
  std::map<std::string, TimePoint> passed_over_;
  std::optional<TimePoint> charged_until_;
};

// What an event changed. A run or sweep named here may be gone; tasks are those of the state.
struct Changes {
  bool meta = false;
  std::set<std::string> sweeps;
  std::unordered_set<const SweepState::Tasks::Map::value_type*> tasks;
  std::set<std::uint64_t> runs;
};

// The state after these events, from nothing.
SweepState replay(std::span<const journal::Event> log);

}  // namespace saesweep::scheduler
