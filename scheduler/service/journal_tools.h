// A journal looked at from outside: exported, imported, backed up. verify_journal is in
// state_store.h.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string_view>

#include "core/result.h"

namespace saesweep::scheduler {

// Calls `line` with one JSON object a row: {"schema":1,"family","key","value"}, families in the
// order meta, sweep, task, run, event; the last line is of the family "end" and says how many rows
// there were, so that a part is not taken for the whole. Works beside a scheduler: what was
// committed by now. False from `line` ends it. Rows written. Errors: those of opening and reading;
// kCorrupted for a row that cannot be read.
Result<std::uint64_t> export_journal(const std::filesystem::path& journal,
                                     const std::function<bool(std::string_view line)>& line);

// What export wrote, row by row: whoever wrote it, what is taken is a journal that a scheduler can
// go on from.
class JournalImport {
 public:
  JournalImport();
  JournalImport(JournalImport&&) noexcept;
  ~JournalImport();

  // Errors: kInvalidArgument, saying what is wrong with the row.
  Result<void> take(std::string_view line);
  // Every row is there and they fit together. Errors: kInvalidArgument, saying what does not.
  Result<void> check();
  // After check(): becomes the journal of a state directory that has none; it appears whole or not
  // at all. Rows written.
  // Errors: kInvalidArgument if there is one; kResourceExhausted on a full disk; kUnavailable.
  Result<std::uint64_t> write(const std::filesystem::path& state_directory);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Copies the journal of a state directory that nobody serves to STATE/backups/<UTC time>; gives
// back that folder. Errors: kUnavailable if somebody serves it; those of opening.
Result<std::filesystem::path> backup_journal(const std::filesystem::path& state_directory);
// Where the next backup goes; its parent is made.
Result<std::filesystem::path> next_backup(const std::filesystem::path& state_directory);

}  // namespace saesweep::scheduler
