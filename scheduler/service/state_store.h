// The state and its journal. Events are applied and become durable; every few thousand of them the
// new values of all objects that they changed are written too, in the same batch. The stored
// objects are thus the state as of the event that the stored meta names, and opening applies those
// after it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "core/result.h"
#include "scheduler/decisions/sweep_state.h"
#include "storage/journal.h"

namespace saesweep::scheduler {

// Events that are not yet in the stored objects.
struct Unfolded {
  std::uint64_t events = 16'384;
  std::uint64_t bytes = std::uint64_t{32} << 20;
};

class StateStore {
 public:
  enum class Mode { kWrite, kReadOnly };
  // `most`: with as many the next commit writes the objects; what an opening applies anew.
  // Errors: those of storage::Journal::open; kCorrupted for objects that cannot be read.
  static Result<StateStore> open(const std::filesystem::path& journal, Mode mode,
                                 Unfolded most = Unfolded());

  const SweepState& state() const { return state_; }

  // Changes the state; durable after the next commit. `unix_time` is for people.
  void apply(std::vector<journal::Event> events, double unix_time);

  // Everything applied since the last commit, in one batch. After an error nothing is forgotten: a
  // later commit, which opens the journal anew, has it all.
  // Errors: kResourceExhausted if the disk is full; kUnavailable.
  Result<void> commit();
  // The events that were durable at opening, and since. Errors: kCorrupted; kUnavailable.
  Result<void> read_events(const std::function<bool(const journal::Event&)>& take) const;
  bool has_pending() const { return !pending_.empty(); }
  // Copies what is durable into a directory that does not exist yet.
  Result<void> backup(const std::filesystem::path& directory) const {
    return journal_.backup(directory);
  }

 private:
  StateStore(storage::Journal journal, Unfolded most) : journal_(std::move(journal)), most_(most) {}
  Result<void> load();
  void add_objects(std::vector<storage::JournalWrite>& batch) const;

  storage::Journal journal_;
  Unfolded most_;
  SweepState state_;
  std::vector<storage::JournalWrite> pending_;  // events, not durable yet
  Unfolded unfolded_{0, 0};                     // durable, and not in the stored objects
  Changes changes_;                             // what differs from the stored objects
  bool failed_ = false;                         // the last commit did
};

// The journal as this program lays it out. Errors: those of storage::Journal::open.
Result<storage::Journal> open_journal(const std::filesystem::path& journal, StateStore::Mode mode);

// Folds all events and compares with the stored objects. What differs, in words; empty if nothing.
// Errors: those of opening and reading.
Result<std::vector<std::string>> verify_journal(const std::filesystem::path& journal);

}  // namespace saesweep::scheduler
