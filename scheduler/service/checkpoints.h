// Which checkpoints of the store are needed no more. Executors that see the store remove old ones
// themselves; those of executors elsewhere come over the data port, and nobody else removes them.
#pragma once

#include <cstdint>
#include <filesystem>

#include "scheduler/decisions/journal.pb.h"

namespace saesweep::scheduler {

// All of a task that is finished for good: it goes on from nowhere.
void forget_checkpoints(const std::filesystem::path& store, const journal::Task& task);

// Those of a task before `step`, of any fence. The newest one that the journal names, from which a
// lease may go on, is never older than a step that the journal named before.
void forget_checkpoints_before(const std::filesystem::path& store, const journal::Task& task,
                               std::uint64_t step);

}  // namespace saesweep::scheduler
