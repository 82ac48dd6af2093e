// Who comes, lives and goes, and whether a worker runs what we think that it runs.
#include <algorithm>

#include "core/log.h"
#include "scheduler/decisions/decider.h"
#include "scheduler/protocol/running_set.h"

namespace saesweep::scheduler {
namespace {

using namespace std::chrono_literals;
using journal::Task;

constexpr std::uint32_t kMismatchesBeforeAsking = 2;  // heartbeats; one may cross what it lacks
constexpr Duration kAssignPatience = 30s;             // for an ASSIGN to be answered

}  // namespace

void Decider::hear(const protocol::Hello& hello) {
  const auto known = state_.workers().find(peer_);
  const bool is_known = known != state_.workers().end();
  const bool served_another =
      hello.known_epoch() != 0 && hello.known_epoch() != state_.meta().epoch();
  auto& joined = *event().mutable_worker_joined();
  joined.set_worker(peer_);
  joined.set_name(hello.worker_name());
  joined.set_host(hello.host());
  joined.set_slots(std::max(1u, hello.slots()));
  if (is_known)
    joined.set_slots(
        std::max(joined.slots(), static_cast<std::uint32_t>(known->second.runs.size())));
  joined.set_memory_bytes(hello.memory_bytes());
  joined.set_gpus(hello.gpus());
  joined.set_gpu_memory_bytes(hello.gpu_memory_bytes());
  joined.set_chunks_endpoint(hello.chunks_endpoint());
  joined.set_chunks_key(hello.chunks_key());
  joined.set_now_ns(to_ns(now_));
  // It may run what we do not know of: it tells before it gets more.
  joined.set_resync(is_known ? known->second.awaited || known->second.resyncing : served_another);
  protocol::Welcome welcome;
  welcome.set_worker_id(static_cast<std::uint32_t>(state_.workers().size()) + (is_known ? 0 : 1));
  welcome.set_epoch(state_.meta().epoch());
  welcome.set_heartbeat_ms(
      static_cast<std::uint32_t>(std::chrono::milliseconds(kHeartbeat).count()));
  welcome.set_lease_ms(static_cast<std::uint32_t>(std::chrono::milliseconds(kLease).count()));
  welcome.set_resume(is_known);
  reply(std::move(welcome));
}

void Decider::hear(const protocol::Heartbeat& beat) {
  protocol::HeartbeatAck ack;
  ack.set_sent_ns(beat.sent_ns());
  ack.set_epoch(state_.meta().epoch());
  const bool is_known = note_life(static_cast<std::int64_t>(beat.free_slots()));
  // A stranger learns from the epoch that we are another, and says HELLO.
  if (!is_known) return reply(std::move(ack));
  const Worker& worker = state_.workers().at(peer_);
  const bool mismatch = runs_otherwise(worker, beat);
  std::map<std::string, std::uint64_t> streams;
  for (const auto& held : beat.streams()) streams[held.stream()] = held.bytes();
  if (mismatch || worker.mismatches > 0 || streams != worker.streams) {
    auto& noted = *event().mutable_worker_noted();
    noted.set_worker(peer_);
    noted.set_mismatch(mismatch);
    noted.set_has_streams(streams != worker.streams);
    if (noted.has_streams())
      for (const auto& [stream, bytes] : streams) {
        auto& held = *noted.add_streams();
        held.set_stream(stream);
        held.set_bytes(bytes);
      }
  }
  ack.set_want_full_list(worker.resyncing ||
                         (mismatch && worker.mismatches + 1 >= kMismatchesBeforeAsking));
  reply(std::move(ack));
}

bool Decider::runs_otherwise(const Worker& worker, const protocol::Heartbeat& beat) const {
  std::uint32_t running = 0;
  std::uint64_t hash = 0;
  bool is_overdue = false;
  for (const std::uint64_t id : worker.runs) {
    const journal::Run& run = *state_.find_run(id);
    const SweepState::Begun begun = state_.begun_of(id);
    running += begun.tasks;
    hash ^= begun.hash;
    // The tasks of a run begin together.
    is_overdue |= begun.tasks == 0 && now_ - from_ns(run.granted_ns()) >= kAssignPatience;
  }
  return is_overdue || running != beat.running() || hash != beat.running_hash();
}

void Decider::hear(const protocol::Resync& resync) {
  if (resync.epoch() != state_.meta().epoch() || !note_life()) return;
  const Worker& worker = state_.workers().at(peer_);
  Leases running, told;
  for (const auto& lease : resync.running())
    running[{lease.task(), lease.fence()}] = lease.run_id();
  told = running;
  for (const auto& lease : resync.finished()) told[{lease.task(), lease.fence()}] = lease.run_id();
  adopt_or_cancel(running);
  miss(worker, told);
  event().mutable_worker_resynced()->set_worker(peer_);
}

// What it runs: ours, or taken from it and given to nobody (it goes on), or not ours (it stops).
void Decider::adopt_or_cancel(const Leases& running) {
  const Worker& worker = state_.workers().at(peer_);
  std::map<std::uint64_t, std::vector<std::string>> adopted;
  std::map<std::uint64_t, RunMemory> memory;  // of those
  std::set<std::uint64_t> started;
  std::uint64_t promised = 0;  // others may have got its memory since
  for (const std::uint64_t id : worker.runs) promised += state_.find_run(id)->memory_bytes();
  for (const auto& [lease, run_id] : running) {
    const auto& [id, fence] = lease;
    const Task* task = state_.find_task(id);
    const journal::Run* run = own_run(run_id);
    if (task == nullptr || task->fence() != fence) {
      cancel_lease(run_id, id, fence);
      continue;
    }
    if (run != nullptr && task->run() == run_id && is_leased(*task)) {
      if (started.insert(run_id).second) start(*run);
      if (!state_.is_wanted(id))
        control(*task, "cancel");
      else if (state_.payer_of(id) == nullptr || state_.is_draining(peer_))
        control(*task, "pause");
      continue;
    }
    const journal::Run* other = state_.find_run(run_id);
    const bool is_free = is_waiting(*task) && (task->run() == 0 || task->run() == run_id) &&
                         (other == nullptr || other->worker().empty());
    const bool may_go_on = is_free && run_id != 0 && run_id <= state_.meta().last_run() &&
                           state_.payer_of(id) != nullptr && !state_.is_draining(peer_);
    const bool has_slot =
        adopted.contains(run_id) || worker.runs.size() + adopted.size() < worker.slots;
    const RunMemory was = memory[run_id], is = with_member(was, *task);
    const std::uint64_t would_be = promised + is.bytes() - was.bytes();
    const bool has_memory =
        worker.memory_bytes == 0 || would_be <= worker.memory_bytes || promised == 0;
    if (may_go_on && has_slot && has_memory) {
      adopted[run_id].push_back(id);
      memory[run_id] = is;
      promised = would_be;
    } else {
      cancel_lease(run_id, id, fence);
    }
  }
  for (const auto& [run_id, tasks] : adopted) {
    auto& again = *event().mutable_run_adopted();
    again.set_run(run_id);
    again.set_worker(peer_);
    again.set_worker_name(worker.name);
    again.set_worker_host(worker.host);
    again.set_now_ns(to_ns(now_));
    for (const std::string& id : tasks) again.add_tasks(id);
  }
}

// What is leased to it and what it does not know. An ASSIGN of ours may still be on its way; one
// of an incarnation before is not.
void Decider::miss(const Worker& worker, const Leases& told) {
  for (const std::uint64_t id : worker.runs) {
    const journal::Run& run = *state_.find_run(id);
    std::vector<const Task*> missing;
    for (const std::string& name : run.tasks()) {
      const Task* task = state_.find_task(name);
      if (!told.contains({name, task->fence()})) missing.push_back(task);
    }
    if (missing.empty()) continue;
    const bool is_on_its_way = missing[0]->has_assigned() && !worker.resyncing &&
                               now_ - from_ns(run.granted_ns()) < kAssignPatience;
    if (is_on_its_way) continue;
    constexpr const char* kWhy = "its worker does not know it";
    if (static_cast<int>(missing.size()) == run.tasks_size()) {
      lose(run, false, kWhy, journal::ENDING_LOST);
      continue;
    }
    for (const Task* task : missing) returned(*task, kWhy, journal::ENDING_LOST);
  }
}

void Decider::hear(const protocol::Bye& bye) {
  if (!state_.workers().contains(peer_)) return;
  lose_runs_of(peer_, fmt::format("its worker left: {}", bye.reason()), journal::ENDING_PREEMPTED);
  forget(peer_);
}

void Decider::forget(const std::string& session) {
  if (state_.is_draining(session)) event().mutable_worker_drained()->set_worker(session);
  event().mutable_worker_left()->set_worker(session);
}

}  // namespace saesweep::scheduler
