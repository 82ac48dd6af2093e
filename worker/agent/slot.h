// One executor's place in the agent, and what the agent says of all of them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/clock.h"
#include "scheduler/protocol/messages.pb.h"
#include "worker/agent/agent.h"
#include "worker/agent/chunk_service.h"
#include "worker/agent/executor_process.h"
#include "worker/agent/outbox.h"
#include "worker/agent/shipping.h"

namespace saesweep::agent {

struct Slot {
  std::optional<ExecutorProcess> executor;
  ConnectionId connection = 0;  // of its chunks; new for each process
  std::optional<protocol::Run> run;
  std::map<std::string, std::uint64_t> unfinished;  // members of `run` without an answer -> fence
  std::optional<protocol::Run> next;  // accepted when `run` was answered; begins when it has ended
  std::optional<protocol::Progress> progress;  // the newest, not passed on yet
  TimePoint heard;                             // from the executor
  bool more = false;                           // of its messages may be read already
  bool is_fetching = false;                    // what `run` begins with; no executor has seen it

  // The scheduler counts a run as over with the answer of its last member.
  bool is_free() const { return !next && unfinished.empty(); }
  bool has(std::uint64_t run_id) const {
    return (run && run->run_id() == run_id) || (next && next->run_id() == run_id);
  }
};

bool is_any_busy(std::span<const Slot> slots);
// The free slot to take for a run: better one without a run that still ends, better one with a warm
// executor. Null: none is free.
Slot* best_free(std::span<Slot> slots);

// HELLO without what the link knows.
protocol::Hello hello_of(const AgentOptions& options);
std::uint32_t threads_of_slot(const AgentOptions& options);
ExecutorOptions executor_of(const AgentOptions& options, const std::filesystem::path& store,
                            std::uint32_t slot);

// What becomes of a member whose executor is gone. `alone`: it died while everything else went on.
protocol::TaskResult lost_result(std::uint64_t run, const std::string& task, std::uint64_t fence,
                                 const ExecutorDeath& death, bool alone);

// The answer to a word about a run that is not here.
protocol::ControlDone not_running(const protocol::Control& wanted);

// HEARTBEAT without its stamp and the counters that are not the chunk service's.
protocol::Heartbeat heartbeat_of(std::span<const Slot> slots,
                                 std::span<const Shipping::Waiting> waiting, bool is_serving,
                                 const ChunkService& chunks);
// RESYNC: everything that runs, and results that nobody has answered or that wait to be said.
protocol::Resync resync_of(std::span<const Slot> slots, std::span<const Shipping::Waiting> waiting,
                           const Outbox& outbox, std::uint64_t epoch);

}  // namespace saesweep::agent
