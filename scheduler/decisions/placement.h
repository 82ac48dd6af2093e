// What placement goes by, and `explain` with it. Private to this folder.
#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "core/clock.h"
#include "scheduler/decisions/sweep_state.h"

namespace saesweep::scheduler {

// A task whose turn it was for this long without a worker that has room is kept one free.
inline constexpr std::chrono::minutes kReserveAfter{30};

enum class Availability { kFree, kBusy, kAwaited, kResyncing, kLost, kSuspect, kDraining };

// One worker, as placement sees it now.
struct Room {
  std::string session;
  const Worker* worker = nullptr;
  Availability availability = Availability::kFree;
  std::uint32_t free_slots = 0;
  std::uint64_t memory_bytes = 0;  // 0: unknown, and no limit
  std::uint64_t free_bytes = 0;    // not promised to a run
  std::uint64_t share_bytes = 0;   // of a slot
  // That a task may need of a GPU's memory to begin there. What no worker can ever hold may try the
  // largest one by itself, where there is no limit.
  std::uint64_t gpu_limit = std::numeric_limits<std::uint64_t>::max();
};
std::vector<Room> survey(const SweepState& state, TimePoint now);

// True unless the task needs a GPU, and there is none or one that is too small.
bool has_device_for(const Room& room, const journal::Task& task);
// The most that any worker present which suits the task could give to one run.
std::uint64_t largest_memory(const std::vector<Room>& rooms, const journal::Task& task);
// True if a run that needs `bytes` can begin there. What no worker can ever hold may try the
// largest one by itself.
bool has_memory_for(const Room& room, std::uint64_t bytes, std::uint64_t largest);
// The room that waits for this task because others passed it for too long; null: none.
const Room* reserved_for(const std::vector<Room>& rooms, const journal::Task& task);
// The task that has been passed for too long, the longest; null: none.
const journal::Task* overtaken(const SweepState& state, TimePoint now);

// The other worker from which a run at `session` may fetch chunks of `stream`: the one that holds
// the most of it, if that is more than `session` holds; else, if `session` does not run the stream
// itself, the one that has done so for the longest: `begun` says who begins it in this moment. Only
// one that serves chunks, that is heard, and whose address is of use over there: a loopback one is
// on the same host. Null: none.
const NamedWorker* chunk_source_of(const SweepState& state, const std::string& session,
                                   const std::string& stream, const std::string* begun,
                                   TimePoint now);

// Slots that a sweep's runs take now, by number of its desk.
std::vector<double> slots_taken(const SweepState& state);
// Sweeps are served in this order: (-priority, share of what it was given, age).
struct Turn {
  std::int64_t minus_priority = 0;
  double share = 0;
  std::uint64_t submission = 0;
  auto operator<=>(const Turn&) const = default;
};
// `taken`: slots that it takes now.
Turn turn_of(const SweepState& state, const SweepState::Desk& desk, double taken);

}  // namespace saesweep::scheduler
