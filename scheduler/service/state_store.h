// The state and its journal: events are applied and, with the new value of every object that they
// changed, become durable in one batch.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "core/result.h"
#include "scheduler/decisions/sweep_state.h"
#include "storage/journal.h"

namespace saesweep::scheduler {

class StateStore {
 public:
  enum class Mode { kWrite, kReadOnly };
  // Errors: those of storage::Journal::open; kCorrupted for objects that cannot be read.
  static Result<StateStore> open(const std::filesystem::path& journal, Mode mode);

  const SweepState& state() const { return state_; }

  // Changes the state; durable after the next commit. `unix_time` is for people.
  void apply(std::vector<journal::Event> events, double unix_time);

  // Everything applied since the last commit, in one batch. After an error nothing is forgotten: a
  // later commit, which opens the journal anew, has it all.
  // Errors: kResourceExhausted if the disk is full; kUnavailable.
  Result<void> commit();
  bool has_pending() const { return !pending_.empty(); }
  // Copies what is durable into a directory that does not exist yet.
  Result<void> backup(const std::filesystem::path& directory) const {
    return journal_.backup(directory);
  }

 private:
  explicit StateStore(storage::Journal journal) : journal_(std::move(journal)) {}
  Result<void> load();

  storage::Journal journal_;
  SweepState state_;
  std::vector<journal::Event> pending_;  // numbered, not durable yet
  Changes changes_;                      // what they changed
  bool failed_ = false;                  // the last commit did
};

// The journal as this program lays it out. Errors: those of storage::Journal::open.
Result<storage::Journal> open_journal(const std::filesystem::path& journal, StateStore::Mode mode);

// Folds all events and compares with the stored objects. What differs, in words; empty if nothing.
// Errors: those of opening and reading.
Result<std::vector<std::string>> verify_journal(const std::filesystem::path& journal);

}  // namespace saesweep::scheduler
