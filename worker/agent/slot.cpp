#include "worker/agent/slot.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <map>
#include <string>
#include <utility>

#include "scheduler/protocol/running_set.h"

namespace saesweep::agent {
namespace {

constexpr std::size_t kMostStreamsNamed = 64;  // of the cache, in a heartbeat

// Leases that were accepted and not answered: (task, fence) -> run. The answer of some waits.
using Leases = std::map<std::pair<std::string, std::uint64_t>, std::uint64_t>;
Leases leases_of(std::span<const Slot> slots, std::span<const Shipping::Waiting> waiting) {
  Leases all;
  for (const Slot& slot : slots) {
    for (const auto& [task, fence] : slot.unfinished) all[{task, fence}] = slot.run->run_id();
    if (!slot.next) continue;
    for (const auto& member : slot.next->members())
      all[{member.task(), member.fence()}] = slot.next->run_id();
  }
  for (const Shipping::Waiting& one : waiting)
    if (!one.is_old) all[{one.task, one.fence}] = one.run;
  return all;
}

}  // namespace

bool is_any_busy(std::span<const Slot> slots) {
  return std::any_of(slots.begin(), slots.end(),
                     [](const Slot& slot) { return slot.run || slot.next; });
}

Slot* best_free(std::span<Slot> slots) {
  Slot* best = nullptr;
  const auto worth = [](const Slot& slot) { return (slot.run ? 0 : 2) + (slot.executor ? 1 : 0); };
  for (Slot& slot : slots)
    if (slot.is_free() && (best == nullptr || worth(slot) > worth(*best))) best = &slot;
  return best;
}

protocol::Hello hello_of(const AgentOptions& options) {
  protocol::Hello hello;
  hello.set_worker_name(options.name);
  std::array<char, 256> host{};
  if (::gethostname(host.data(), host.size() - 1) == 0) hello.set_host(host.data());
  hello.set_build(options.build);
  hello.set_slots(options.slots);
  hello.set_gpus(options.gpus);
  hello.set_gpu_memory_bytes(options.gpu_memory_bytes);
  hello.set_memory_bytes(options.memory_bytes);
  return hello;
}

std::uint32_t threads_of_slot(const AgentOptions& options) {
  return std::max(1U, options.threads / options.slots);
}

ExecutorOptions executor_of(const AgentOptions& options, const std::filesystem::path& store,
                            std::uint32_t slot) {
  ExecutorOptions wanted;
  wanted.program = options.task_program;
  wanted.state_directory = options.state_directory;
  wanted.store_directory = store;
  wanted.slot = slot;
  wanted.threads = threads_of_slot(options);
  wanted.log_level = options.log_level;
  return wanted;
}

protocol::TaskResult lost_result(std::uint64_t run, const std::string& task, std::uint64_t fence,
                                 const ExecutorDeath& death, bool alone) {
  protocol::TaskResult lost;
  lost.set_run_id(run);
  lost.set_task(task);
  lost.set_fence(fence);
  lost.set_outcome(protocol::OUTCOME_LOST);
  lost.set_reason(death.reason);
  lost.set_executor_died_alone(alone && !death.by_kill);
  lost.set_out_of_memory(death.out_of_memory);
  return lost;
}

protocol::ControlDone not_running(const protocol::Control& wanted) {
  protocol::ControlDone done;
  done.set_run_id(wanted.run_id());
  done.set_task(wanted.task());
  done.set_fence(wanted.fence());
  done.set_verb(wanted.verb());
  done.set_outcome("not running");
  return done;
}

protocol::Heartbeat heartbeat_of(std::span<const Slot> slots,
                                 std::span<const Shipping::Waiting> waiting, bool is_serving,
                                 const ChunkService& chunks) {
  protocol::Heartbeat beat;
  std::uint32_t free = 0;
  for (const Slot& slot : slots) free += slot.is_free() ? 1 : 0;
  std::uint64_t hash = 0;
  const Leases running = leases_of(slots, waiting);
  for (const auto& [lease, run] : running) hash ^= protocol::lease_hash(lease.first, lease.second);
  beat.set_running(static_cast<std::uint32_t>(running.size()));
  beat.set_running_hash(hash);
  for (const auto& [stream, bytes] : chunks.streams(kMostStreamsNamed)) {
    auto& held = *beat.add_streams();
    held.set_stream(stream);
    held.set_bytes(bytes);
  }
  beat.set_free_slots(is_serving ? free : 0);
  const ChunkCounters counted = chunks.counters();
  protocol::AgentCounters& totals = *beat.mutable_counters();
  totals.set_cache_hits(counted.hits);
  totals.set_cache_misses(counted.misses);
  totals.set_cache_bytes(counted.bytes);
  totals.set_cache_evicted_bytes(counted.evicted_bytes);
  totals.set_cache_corrupt_chunks(counted.corrupt);
  totals.set_cache_refused_writes(counted.refused_writes);
  totals.set_chunks_fetched(counted.fetched);
  totals.set_chunk_bytes_fetched(counted.fetched_bytes);
  totals.set_chunks_served(counted.served);
  totals.set_chunk_bytes_served(counted.served_bytes);
  totals.set_chunk_fetches_failed(counted.failed_fetches);
  return beat;
}

protocol::Resync resync_of(std::span<const Slot> slots, std::span<const Shipping::Waiting> waiting,
                           const Outbox& outbox, std::uint64_t epoch) {
  protocol::Resync resync;
  resync.set_epoch(epoch);
  const auto fill = [](protocol::Resync::Lease& lease, std::uint64_t run, const std::string& task,
                       std::uint64_t fence) {
    lease.set_run_id(run);
    lease.set_task(task);
    lease.set_fence(fence);
  };
  Leases running = leases_of(slots, waiting);
  for (const Shipping::Waiting& one : waiting) {
    if (!one.has_result) continue;
    running.erase({one.task, one.fence});
    fill(*resync.add_finished(), one.run, one.task, one.fence);
  }
  for (const auto& [lease, run] : running)
    fill(*resync.add_running(), run, lease.first, lease.second);
  for (const auto& [grant, result] : outbox.unanswered())
    fill(*resync.add_finished(), result.run_id(), grant.first, grant.second);
  return resync;
}

}  // namespace saesweep::agent
