// What executors printed, as far as it is kept: STORE/logs/run-<id>.log of each run that printed
// something, written by the agent that supervised it and bounded there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>

#include "core/json.h"
#include "core/result.h"
#include "scheduler/decisions/sweep_state.h"

namespace saesweep::scheduler {

// log.schema.json: {"schema", "trial", "attempt", "run", "state", "offset", "next", "text",
// "more"}: a piece of the log of a run that trained the trial, from `offset` bytes on. `attempt`:
// as explain numbers them, 0 for the newest. Bytes that are no UTF-8 become '?'. `more`: there may
// be more to come. Errors: kNotFound if nothing ran yet or there is no such attempt; kUnavailable.
Result<Json> read_log(const SweepState& state, const journal::Sweep& sweep,
                      const journal::Subject& trial, const std::filesystem::path& store,
                      std::uint64_t offset, std::uint64_t attempt = 0);

// What an agent elsewhere sends of a log: bytes at their place in logs/<name>, again and again.
// Errors: kInvalidArgument for no name of a log and for bytes past its largest size; kUnavailable.
Result<void> write_log(const std::filesystem::path& store, const std::string& name,
                       std::uint64_t offset, const std::string& bytes);
inline constexpr std::uint64_t kMostLogBytes = std::uint64_t{2} << 20;

inline constexpr std::size_t kRunLogsKept = 4096;

// Removes the logs of all but the newest runs.
void prune_logs(const std::filesystem::path& store, std::size_t kept = kRunLogsKept);

}  // namespace saesweep::scheduler
