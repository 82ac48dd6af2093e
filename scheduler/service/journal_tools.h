// A journal looked at from outside: exported, backed up. verify_journal is in state_store.h.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string_view>

#include "core/result.h"

namespace saesweep::scheduler {

// Calls `line` with one JSON object a row: {"schema":1,"family","key","value"}, families in the
// order meta, sweep, task, run, event. Works beside a scheduler: what was committed by now.
// False from `line` ends it. Rows written.
// Errors: those of opening and reading; kCorrupted for a row that cannot be read.
Result<std::uint64_t> export_journal(const std::filesystem::path& journal,
                                     const std::function<bool(std::string_view line)>& line);

// Copies the journal of a state directory that nobody serves to STATE/backups/<UTC time>; gives
// back that folder. Errors: kUnavailable if somebody serves it; those of opening.
Result<std::filesystem::path> backup_journal(const std::filesystem::path& state_directory);
// Where the next backup goes; its parent is made.
Result<std::filesystem::path> next_backup(const std::filesystem::path& state_directory);

}  // namespace saesweep::scheduler
