// Which tasks are leased to whom: cohorts that share a stream, cut over the slots that are free,
// sweeps in their turn.
#include "scheduler/decisions/placement.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <list>
#include <optional>

#include "core/check.h"
#include "core/json.h"
#include "scheduler/decisions/decide.h"
#include "scheduler/decisions/standings.h"

namespace saesweep::scheduler {
namespace {

using journal::Task;

// What a run that just began counts in advance, so that sweeps take turns at once.
constexpr double kSecondsInAdvance = 60;

Availability availability_of(const SweepState& state, const std::string& session,
                             const Worker& worker, TimePoint now) {
  if (worker.awaited) return Availability::kAwaited;
  if (worker.lost) return Availability::kLost;
  if (now - worker.heard >= kSuspectAfter) return Availability::kSuspect;
  if (state.is_draining(session)) return Availability::kDraining;
  if (worker.resyncing) return Availability::kResyncing;
  return Availability::kFree;
}

bool is_present(const Room& room) {
  return room.availability != Availability::kLost && room.availability != Availability::kDraining;
}

}  // namespace

std::vector<Room> survey(const SweepState& state, TimePoint now) {
  std::vector<Room> rooms;
  for (const auto& [session, worker] : state.workers()) {
    Room room{.session = session, .worker = &worker};
    room.availability = availability_of(state, session, worker, now);
    room.memory_bytes = room.free_bytes = worker.memory_bytes;
    room.share_bytes = worker.memory_bytes / std::max(1u, worker.slots);
    // A worker says how many slots are free; runs that are on their way to it are taken off.
    std::uint32_t on_their_way = 0;
    for (const std::uint64_t id : worker.runs) {
      const journal::Run& run = *state.find_run(id);
      if (state.find_task(run.tasks(0))->has_assigned()) ++on_their_way;
      room.free_bytes -= std::min(room.free_bytes, run.memory_bytes());
    }
    const auto left = [](std::uint64_t all, std::uint64_t taken) {
      return static_cast<std::uint32_t>(all > taken ? all - taken : 0);
    };
    room.free_slots =
        std::min(left(worker.slots, worker.runs.size()), left(worker.said_free, on_their_way));
    if (room.availability == Availability::kFree && room.free_slots == 0)
      room.availability = Availability::kBusy;
    rooms.push_back(std::move(room));
  }
  std::uint64_t largest_gpu = 0;
  for (const Room& room : rooms)
    if (is_present(room)) largest_gpu = std::max(largest_gpu, room.worker->gpu_memory_bytes);
  for (Room& room : rooms)
    if (const std::uint64_t own = room.worker->gpu_memory_bytes; own != 0 && own < largest_gpu)
      room.gpu_limit = own;
  return rooms;
}

bool has_device_for(const Room& room, const Task& task) {
  return !task.spec().needs_gpu() ||
         (room.worker->gpus > 0 && task.spec().gpu_memory_bytes() <= room.gpu_limit);
}

std::uint64_t largest_memory(const std::vector<Room>& rooms, const Task& task) {
  std::uint64_t largest = 0;
  for (const Room& room : rooms)
    if (has_device_for(room, task) && is_present(room))
      largest = std::max(largest, room.memory_bytes);
  return largest;
}

bool has_memory_for(const Room& room, std::uint64_t bytes, std::uint64_t largest) {
  if (room.memory_bytes == 0 || bytes <= room.free_bytes) return true;
  return bytes > largest && room.memory_bytes == largest && room.free_bytes == room.memory_bytes;
}

const Task* overtaken(const SweepState& state, TimePoint now) {
  const Task* longest = nullptr;
  TimePoint since = now - kReserveAfter;
  for (const auto& [id, when] : state.passed_over())
    if (when <= since) {
      longest = state.find_task(id);
      since = when;
    }
  return longest;
}

const Room* reserved_for(const std::vector<Room>& rooms, const Task& task) {
  const std::uint64_t bytes = memory_of(task), largest = largest_memory(rooms, task);
  const Room* best = nullptr;
  for (const Room& room : rooms) {
    const bool is_there =
        room.availability == Availability::kFree || room.availability == Availability::kBusy;
    const bool is_enough = room.memory_bytes >= std::min(bytes, largest);
    if (is_there && is_enough && has_device_for(room, task) &&
        (best == nullptr || room.free_bytes > best->free_bytes))
      best = &room;
  }
  return best;
}

namespace {

bool is_loopback(std::string_view endpoint) {
  return endpoint.starts_with("tcp://127.") || endpoint.starts_with("tcp://[::1]:") ||
         endpoint.starts_with("ipc://");
}

std::uint64_t bytes_held(const Worker& worker, const std::string& stream) {
  const auto held = worker.streams.find(stream);
  return held == worker.streams.end() ? 0 : held->second;
}

// The oldest of its runs that reads the stream; none: the highest number.
std::uint64_t first_run_of(const SweepState& state, const Worker& worker,
                           const std::string& stream) {
  for (const std::uint64_t id : worker.runs)
    if (state.find_task(state.find_run(id)->tasks(0))->spec().stream() == stream) return id;
  return ~std::uint64_t{0};
}

}  // namespace

const NamedWorker* chunk_source_of(const SweepState& state, const std::string& session,
                                   const std::string& stream, const std::string* begun,
                                   TimePoint now) {
  if (stream.empty()) return nullptr;
  const Worker& own = state.workers().at(session);
  const std::uint64_t own_bytes = bytes_held(own, stream);
  const std::uint64_t own_run = first_run_of(state, own, stream);
  const bool is_own_first = begun != nullptr && *begun == session;
  const NamedWorker* most = nullptr;
  const NamedWorker* first = nullptr;
  std::uint64_t most_bytes = own_bytes;
  std::uint64_t first_run = is_own_first ? 0 : own_run;
  for (const auto& other : state.workers()) {
    const Worker& worker = other.second;
    if (other.first == session || worker.chunks_endpoint.empty() || worker.lost || worker.awaited ||
        now - worker.heard >= kSuspectAfter ||
        (is_loopback(worker.chunks_endpoint) && worker.host != own.host))
      continue;
    if (const std::uint64_t bytes = bytes_held(worker, stream); bytes > most_bytes) {
      most = &other;
      most_bytes = bytes;
    }
    std::uint64_t run = first_run_of(state, worker, stream);
    if (begun != nullptr && *begun == other.first) run = std::min(run, state.meta().last_run() + 1);
    if (run < first_run) {
      first = &other;
      first_run = run;
    }
  }
  return most != nullptr ? most : first;
}

std::vector<double> slots_taken(const SweepState& state) {
  std::map<std::string, double> taken;
  for (const auto& [session, worker] : state.workers())
    for (const std::uint64_t id : worker.runs) {
      const journal::Run& run = *state.find_run(id);
      // The first ones speak for a run: a member or two of other sweeps weigh little.
      const int asked = std::min(run.tasks_size(), 4);
      for (int i = 0; i < asked; ++i)
        if (const journal::Sweep* payer = state.payer_of(run.tasks(i)))
          taken[payer->name()] += 1.0 / asked;
    }
  std::vector<double> all;
  for (const SweepState::Desk& desk : state.desks()) {
    const auto found = taken.find(desk.sweep);
    all.push_back(found == taken.end() ? 0 : found->second);
  }
  return all;
}

Turn turn_of(const SweepState& state, const SweepState::Desk& desk, double taken) {
  const journal::Sweep& sweep = state.sweeps().at(desk.sweep);
  return {-std::int64_t{sweep.priority()},
          (desk.charge + taken * kSecondsInAdvance) / weight_of(sweep), sweep.submission()};
}

namespace {

class Placer {
 public:
  Placer(const SweepState& state, TimePoint now, Decision& decision)
      : state_(state), now_(now), decision_(decision), next_run_(state.meta().last_run() + 1) {}

  void place() {
    lease();
    for (const FamilyRun& granted : family_runs_) add_siblings(granted);
  }

 private:
  using GroupKey = SweepState::GroupKey;
  // A run of a stream with siblings that is granted now.
  struct FamilyRun {
    std::string session;
    const journal::TaskSpec* task;
    std::size_t reply;  // its number in the decision
  };

  void lease() {
    rooms_ = survey(state_, now_);
    if (const Task* task = overtaken(state_, now_)) {
      overtaken_ = task;
      if (const Room* room = reserved_for(rooms_, *task)) reserved_ = room->session;
    }
    for (const Room& room : rooms_)
      if (room.availability == Availability::kFree) free_ += room.free_slots;
    if (free_ == 0) return;
    for (const std::uint64_t id : state_.waiting_runs())
      if (free_ > 0) place_again(*state_.find_run(id));
    make_queues();
    // Alone, a sweep has every turn.
    if (is_anybody_else())
      taken_ = slots_taken(state_);
    else
      taken_.assign(state_.desks().size(), 0);
    while (free_ > 0)
      if (!place_next()) return;
  }

  // Tasks of one group that one sweep pays for, in order.
  struct Queue {
    std::uint32_t desk = 0;
    GroupKey key;
    const SweepState::Ordered* ready = nullptr;
    SweepState::Ordered::const_iterator next;
    std::vector<const Task*> late;  // their backoff is over; in order
    std::size_t next_late = 0;
    std::size_t left = 0;
    bool stuck = false;  // no room for its first task

    bool is_late_first() const {
      if (next_late == late.size()) return false;
      return ready == nullptr || next == ready->end() || late[next_late]->order() < next->first;
    }
    const Task& head() const { return is_late_first() ? *late[next_late] : *next->second; }
    void pop() {
      if (is_late_first())
        ++next_late;
      else
        ++next;
      --left;
    }
  };
  struct Group {
    std::vector<Queue*> queues;
    std::size_t parts = 0;  // runs that its tasks are still cut into
    std::size_t left() const {
      std::size_t sum = 0;
      for (const Queue* queue : queues) sum += queue->left;
      return sum;
    }
  };

  Queue& queue_of(std::uint32_t desk, const GroupKey& key) {
    Group& group = groups_[key];
    for (Queue* queue : group.queues)
      if (queue->desk == desk) return *queue;
    Queue& queue = queues_.emplace_back();
    queue.desk = desk;
    queue.key = key;
    group.queues.push_back(&queue);
    return queue;
  }

  void make_queues() {
    std::map<std::string, std::uint32_t> numbers;
    for (std::uint32_t i = 0; i < state_.desks().size(); ++i) {
      numbers[state_.desks()[i].sweep] = i;
      for (const auto& [key, ready] : state_.desks()[i].ready) {
        Queue& queue = queue_of(i, key);
        queue.ready = &ready;
        queue.next = ready.begin();
        queue.left = ready.size();
      }
    }
    const std::uint64_t now_ns = to_ns(now_);
    for (const auto& [when, task] : state_.backoffs()) {
      if (when.first > now_ns) break;
      Queue& queue = queue_of(numbers.at(state_.payer_of(task->spec().id())->name()),
                              {task->spec().kind(), task->spec().group()});
      queue.late.push_back(task);
      ++queue.left;
    }
    for (Queue& queue : queues_) std::ranges::sort(queue.late, {}, &Task::order);
  }

  // Tasks of more than one sweep wait.
  bool is_anybody_else() const {
    return std::ranges::any_of(
        queues_, [&](const Queue& queue) { return queue.desk != queues_.front().desk; });
  }

  void place_again(const journal::Run& run) {
    std::vector<const Task*> members;
    for (const std::string& id : run.tasks()) {
      const Task* task = state_.find_task(id);
      if (state_.payer_of(id) == nullptr) continue;
      if (!is_due(*task, now_)) return;
      members.push_back(task);
    }
    if (members.empty()) return;
    if (Room* room = find_room(*members[0], memory_of(*members[0])))
      grant(*room, members, run.id(), budget_at(*room, *members[0]));
  }

  // The sweep whose turn it is, and of its groups the one with the oldest task: what was begun is
  // finished before the next begins. False: nothing more can be placed.
  bool place_next() {
    std::optional<std::pair<Turn, std::uint64_t>> best;
    Queue* chosen = nullptr;
    for (Queue& queue : queues_) {
      if (queue.left == 0 || queue.stuck) continue;
      const std::pair order{turn_of(state_, state_.desks()[queue.desk], taken_[queue.desk]),
                            queue.head().order()};
      if (best && !(order < *best)) continue;
      best = order;
      chosen = &queue;
    }
    if (chosen == nullptr) return false;
    const Task& first = chosen->head();
    if (Room* room = find_room(first, memory_of(first)))
      place_group(*room, *chosen);
    else
      pass_over(*chosen, first);
    return true;
  }

  void pass_over(Queue& queue, const Task& first) {
    queue.stuck = true;
    if (state_.passed_over().contains(first.spec().id())) return;
    auto& passed = *decision_.events.emplace_back().mutable_passed_over();
    passed.set_task(first.spec().id());
    passed.set_now_ns(to_ns(now_));
  }

  // Best: one that has the stream already, then the one that is left with the least.
  Room* find_room(const Task& task, std::uint64_t bytes) {
    Room* best = nullptr;
    const std::uint64_t largest = largest_memory(rooms_, task);
    const auto worth = [&](const Room& room) {
      const auto held = room.worker->streams.find(task.spec().stream());
      const bool is_asked = !task.spec().stream().empty();
      return std::pair(is_asked && held != room.worker->streams.end() ? held->second : 0,
                       -static_cast<std::int64_t>(room.free_bytes));
    };
    for (Room& room : rooms_) {
      if (room.availability != Availability::kFree || room.free_slots == 0) continue;
      if (room.session == reserved_ && overtaken_ != &task) continue;
      if (!has_device_for(room, task) || !has_memory_for(room, bytes, largest)) continue;
      if (best == nullptr || worth(room) > worth(*best)) best = &room;
    }
    return best;
  }

  // What a run that begins with this task is promised: the share of a slot, more if the task needs
  // it, never what others were promised. 0: nobody knows what the worker has.
  static std::uint64_t budget_at(const Room& room, const Task& first) {
    if (room.memory_bytes == 0) return 0;
    const std::uint64_t needed = memory_of(first);
    return std::max(needed, std::min(room.share_bytes, room.free_bytes));
  }

  // Several groups share the free slots between them.
  void place_group(Room& room, Queue& first) {
    Group& group = groups_.at(first.key);
    if (group.parts == 0) {
      std::size_t groups = 0;
      for (const auto& [key, other] : groups_) groups += other.left() > 0 && other.parts == 0;
      group.parts = std::max<std::size_t>(1, free_ / std::max<std::size_t>(1, groups));
    }
    const protocol::TaskKind kind = first.key.kind;
    const std::size_t most = kind == protocol::TASK_KIND_TRAIN      ? kMostTrainTasks
                             : kind == protocol::TASK_KIND_EVALUATE ? kMostEvaluateTasks
                                                                    : 1;
    std::size_t limit = std::min(most, (group.left() + group.parts - 1) / group.parts);
    --group.parts;
    const Task& oldest = first.head();
    const std::uint64_t promised = budget_at(room, oldest);
    const std::uint64_t budget =
        promised == 0 ? state_.payer_of(oldest.spec().id())->memory_bytes() : promised;
    const std::uint64_t gpu_budget = room.worker->gpu_memory_bytes;
    std::vector<const Task*> members;
    RunMemory used, used_gpu;
    // Those of its own sweep, then those of others that read the same.
    std::vector<Queue*> sources{&first};
    for (Queue* queue : group.queues)
      if (queue != &first) sources.push_back(queue);
    for (Queue* queue : sources)
      while (queue->left > 0 && members.size() < limit) {
        const Task& task = queue->head();
        const std::size_t own = task.most_in_run() == 0 ? limit : task.most_in_run();
        const RunMemory with = with_member(used, task), with_gpu = gpu_with_member(used_gpu, task);
        const bool fits = (budget == 0 || with.bytes() <= budget) &&
                          (gpu_budget == 0 || with_gpu.bytes() <= gpu_budget);
        if (members.size() >= own || !(fits || members.empty())) break;
        limit = std::min(limit, own);
        used = with;
        used_gpu = with_gpu;
        members.push_back(&task);
        queue->pop();
      }
    for (const Task* task : members) {
      const std::string& payer = state_.payer_of(task->spec().id())->name();
      for (std::uint32_t i = 0; i < taken_.size(); ++i)
        if (state_.desks()[i].sweep == payer)
          taken_[i] += 1.0 / static_cast<double>(members.size());
    }
    grant(room, members, 0, promised);
  }

  void grant(Room& room, const std::vector<const Task*>& members, std::uint64_t instead_of,
             std::uint64_t memory_bytes) {
    --room.free_slots;
    --free_;
    room.free_bytes -= std::min(room.free_bytes, memory_bytes);
    const journal::Sweep& sweep = *state_.active_sweep_of(members[0]->spec().id());
    auto& granted = *decision_.events.emplace_back().mutable_run_granted();
    granted.set_run(next_run_);
    granted.set_worker(room.session);
    granted.set_worker_name(room.worker->name);
    granted.set_worker_host(room.worker->host);
    granted.set_memory_bytes(memory_bytes);
    granted.set_now_ns(to_ns(now_));
    granted.set_instead_of(instead_of);
    protocol::Assign assign;
    protocol::Run& run = *assign.add_runs();
    run.set_run_id(next_run_++);
    run.set_checkpoint_every_s(sweep.checkpoint_every_s());
    run.set_lease_ms(static_cast<std::uint64_t>(std::chrono::milliseconds(kLease).count()));
    run.set_memory_bytes(memory_bytes);
    run.set_cache_bytes(sweep.cache_bytes());
    add_chunk_source(room.session, members[0]->spec().stream(), run);
    if (!members[0]->spec().stream_family().empty())
      family_runs_.push_back({room.session, &members[0]->spec(), decision_.replies.size()});
    for (const Task* task : members) {
      auto& one = *granted.add_grants();
      one.set_task(task->spec().id());
      one.set_fence(task->fence() + 1);
      *run.add_members() = to_member(*task);
    }
    decision_.replies.push_back({room.session, std::move(assign)});
  }

  void add_chunk_source(const std::string& session, const std::string& stream, protocol::Run& run) {
    const auto begun = begun_.find(stream);
    const auto* source = chunk_source_of(state_, session, stream,
                                         begun == begun_.end() ? nullptr : &begun->second, now_);
    begun_.try_emplace(stream, session);
    if (source == nullptr) return;
    protocol::ChunkSource& named = *run.mutable_chunk_source();
    named.set_stream(stream);
    named.set_endpoint(source->second.chunks_endpoint);
    named.set_server_key(source->second.chunks_key);
  }

  // Those that no other worker runs, has more of or makes: who runs a stream harvests it itself, so
  // that all are busy.
  void add_siblings(const FamilyRun& granted) {
    protocol::Run& run =
        *std::get<protocol::Assign>(decision_.replies[granted.reply].body).mutable_runs(0);
    for (const auto& [stream, demand] : state_.demand_of(granted.task->stream_family())) {
      if (stream == granted.task->stream()) continue;
      const auto begun = begun_.find(stream);
      if (chunk_source_of(state_, granted.session, stream,
                          begun == begun_.end() ? nullptr : &begun->second, now_) != nullptr)
        continue;
      const auto spec = parse_json(demand.one->spec());
      if (!spec || !spec->contains("stream")) continue;  // no sweep file says such a thing
      begun_.try_emplace(stream, granted.session);
      run.add_siblings(canonical_json((*spec)["stream"]));
    }
  }

  protocol::Member to_member(const Task& task) const {
    protocol::Member member;
    member.set_task(task.spec().id());
    member.set_fence(task.fence() + 1);
    member.set_attempt(task.attempt() + 1);
    member.set_kind(task.spec().kind());
    member.set_spec(task.spec().spec());
    member.set_trial_directory(task.spec().directory());
    if (task.has_checkpoint()) *member.mutable_resume() = task.checkpoint();
    if (task.standings_size() > 0) {
      const Leg leg = leg_of(state_, task);
      member.set_until_tokens(leg.until_tokens);
      if (leg.until_tokens != 0)
        member.set_rung_evaluations(fmt::format("[{}]", fmt::join(leg.evaluations, ",")));
    }
    if (task.spec().kind() == protocol::TASK_KIND_EVALUATE) add_inputs(task, member);
    return member;
  }

  // An evaluation is told what training said, and where the dictionary is.
  void add_inputs(const Task& task, protocol::Member& member) const {
    auto spec = parse_json(task.spec().spec());
    SAE_CHECK(spec && spec->is_object(), "{}: its spec is no object", task.spec().id());
    (*spec)["trained"] = Json::object();
    if (!task.spec().needs().empty()) {
      const protocol::TaskResult& result = state_.find_task(task.spec().needs())->result();
      if (auto summary = parse_json(result.summary())) (*spec)["trained"] = std::move(*summary);
      for (const auto& artifact : result.artifacts())
        if (artifact.name() == "sae.safetensors" || artifact.name() == "config.json")
          *member.add_inputs() = artifact;
    }
    member.set_spec(canonical_json(*spec));
  }

  const SweepState& state_;
  const TimePoint now_;
  Decision& decision_;
  std::uint64_t next_run_;
  std::vector<Room> rooms_;
  std::size_t free_ = 0;             // slots
  const Task* overtaken_ = nullptr;  // for whom `reserved_` is kept free
  std::string reserved_;
  std::list<Queue> queues_;  // addresses stay
  std::map<GroupKey, Group> groups_;
  std::vector<double> taken_;                 // slots, by desk
  std::map<std::string, std::string> begun_;  // by stream: whose run of it is the first granted now
  std::vector<FamilyRun> family_runs_;
};

}  // namespace

void place(const SweepState& state, TimePoint now, Decision& decision) {
  Placer(state, now, decision).place();
}

}  // namespace saesweep::scheduler
