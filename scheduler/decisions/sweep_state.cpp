#include "scheduler/decisions/sweep_state.h"

#include <algorithm>
#include <utility>

#include "core/check.h"
#include "scheduler/decisions/standings.h"
#include "scheduler/protocol/running_set.h"

namespace saesweep::scheduler {

using journal::Task;

bool is_finished(const Task& task) {
  switch (task.phase_case()) {
    case Task::kSucceeded:
    case Task::kDiverged:
    case Task::kFailed:
    case Task::kSkipped:
    case Task::kCancelled:
    case Task::kStopped:
      return true;
    default:
      return false;
  }
}

bool is_leased(const Task& task) { return task.has_assigned() || task.has_running(); }

bool is_waiting(const Task& task) { return task.has_ready() || task.has_backoff(); }

bool is_due(const Task& task, TimePoint now) {
  return task.has_ready() || (task.has_backoff() && task.backoff().until_ns() <= to_ns(now));
}

std::uint64_t memory_of(const Task& task) {
  return std::max(task.raised_memory_bytes(), task.spec().memory_bytes());
}

namespace {

RunMemory with(const RunMemory& run, std::uint64_t bytes, std::uint64_t shared) {
  return {run.own + bytes - std::min(bytes, shared), std::max(run.shared, shared)};
}

}  // namespace

RunMemory with_member(const RunMemory& run, const Task& task) {
  return with(run, memory_of(task), task.spec().shared_memory_bytes());
}

RunMemory gpu_with_member(const RunMemory& run, const Task& task) {
  return with(run, task.spec().gpu_memory_bytes(), task.spec().shared_gpu_memory_bytes());
}

bool is_working(const journal::Sweep& sweep) {
  return sweep.active() && !sweep.paused() && !sweep.cancelled();
}

double weight_of(const journal::Sweep& sweep) { return sweep.weight() > 0 ? sweep.weight() : 1; }

bool is_passing(const journal::Event& event) {
  return event.what_case() >= journal::Event::kWorkerJoined;
}

std::vector<std::string> tasks_of(const journal::Sweep& sweep) {
  std::vector<std::string> tasks;
  std::unordered_set<std::string_view> seen;
  seen.reserve(2 * static_cast<std::size_t>(sweep.subjects_size()));
  const auto add = [&](const std::string& task) {
    if (!task.empty() && seen.insert(task).second) tasks.push_back(task);
  };
  add(sweep.lm_task());
  for (const auto& subject : sweep.subjects()) {
    add(subject.train_task());
    for (const auto& task : subject.evaluate_tasks()) add(task);
  }
  return tasks;
}

std::uint64_t to_ns(TimePoint time) {
  return static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(time.time_since_epoch()).count());
}

TimePoint from_ns(std::uint64_t ns) {
  return TimePoint(std::chrono::duration_cast<Duration>(std::chrono::nanoseconds(ns)));
}

// ---- reading ------------------------------------------------------------------------------------

const Task* SweepState::find_task(const std::string& id) const {
  const auto* found = tasks_.find(id);
  return found == nullptr ? nullptr : &found->second.task;
}

const journal::Run* SweepState::find_run(std::uint64_t id) const {
  const auto found = runs_.find(id);
  return found == runs_.end() ? nullptr : &found->second;
}

bool SweepState::is_draining(const std::string& session) const {
  return std::ranges::count(meta_.draining(), session) > 0;
}

const std::vector<SweepState::Want>& SweepState::wants(const std::string& task) const {
  static const std::vector<Want> kNobody;
  const auto* found = tasks_.find(task);
  return found == nullptr ? kNobody : found->second.filed.wants;
}

const journal::Sweep& SweepState::sweep_of(const Want& want) const {
  return sweeps_.at(desks_.at(want.sweep).sweep);
}

bool SweepState::is_wanted(const Want& want) const {
  const journal::Sweep& sweep = sweep_of(want);
  if (sweep.cancelled()) return false;  // rows that were finished by then, and begin again, too
  if (want.subject < 0) return true;
  const journal::Standing* standing = standing_of(want);
  return !sweep.subjects(want.subject).cancelled() &&
         (standing == nullptr || standing->stopped().empty());
}

const journal::Standing* SweepState::standing_of(const Want& want) const {
  const journal::Sweep& sweep = sweep_of(want);
  if (want.subject < 0 || !sweep.has_early_stopping()) return nullptr;
  const journal::Subject& subject = sweep.subjects(want.subject);
  const Task* task = subject.baseline() ? nullptr : find_task(subject.train_task());
  return task == nullptr ? nullptr : scheduler::standing_of(*task, sweep.name());
}

const Contest* SweepState::contest(const std::string& sweep) const {
  const auto found = contests_.find(sweep);
  return found == contests_.end() ? nullptr : &found->second;
}

bool SweepState::is_working(const Want& want) const {
  const journal::Sweep& sweep = sweep_of(want);
  if (!is_wanted(want) || !scheduler::is_working(sweep)) return false;
  if (want.subject < 0) return true;
  const journal::Standing* standing = standing_of(want);
  // A trial that is trained has its scores computed, whatever it waited for.
  const bool waits = standing != nullptr && standing->waits() &&
                     !is_finished(*find_task(sweep.subjects(want.subject).train_task()));
  return !waits && !sweep.subjects(want.subject).paused();
}

bool SweepState::is_wanted(const std::string& task, const std::string& except) const {
  return std::ranges::any_of(wants(task), [&](const Want& want) {
    return desks_[want.sweep].sweep != except && is_wanted(want);
  });
}

const journal::Sweep* SweepState::active_sweep_of(const std::string& task) const {
  const journal::Sweep* newest = nullptr;
  for (const Want& want : wants(task)) {
    const journal::Sweep& sweep = sweep_of(want);
    if (sweep.active() && is_wanted(want) &&
        (newest == nullptr || sweep.submission() > newest->submission()))
      newest = &sweep;
  }
  return newest;
}

const journal::Sweep* SweepState::payer_of(const std::string& task) const {
  return payer_of(wants(task));
}

const journal::Sweep* SweepState::payer_of(const std::vector<Want>& wants) const {
  const journal::Sweep* payer = nullptr;
  const auto rank = [](const journal::Sweep& sweep) {
    return std::pair(sweep.priority(), sweep.submission());
  };
  for (const Want& want : wants) {
    if (!is_working(want)) continue;
    const journal::Sweep& sweep = sweep_of(want);
    if (payer == nullptr || rank(sweep) > rank(*payer)) payer = &sweep;
  }
  return payer;
}

SweepState::Begun SweepState::begun_of(std::uint64_t run) const {
  const auto found = begun_.find(run);
  return found == begun_.end() ? Begun{} : found->second;
}

const std::map<std::string, SweepState::Demand>& SweepState::demand_of(
    const std::string& family) const {
  static const std::map<std::string, Demand> kNone;
  const auto found = demand_.find(family);
  return found == demand_.end() ? kNone : found->second;
}

const SweepState::Desk& SweepState::desk(const std::string& sweep) const {
  return desks_.at(desk_numbers_.at(sweep));
}

// What points to tasks is made anew.
SweepState::SweepState(const SweepState& other)
    : meta_(other.meta_),
      sweeps_(other.sweeps_),
      tasks_(other.tasks_),
      runs_(other.runs_),
      workers_(other.workers_),
      desks_(other.desks_),
      desk_numbers_(other.desk_numbers_),
      passed_over_(other.passed_over_),
      charged_until_(other.charged_until_) {
  settle_indexes();
}

SweepState& SweepState::operator=(const SweepState& other) { return *this = SweepState(other); }

// ---- indexes ------------------------------------------------------------------------------------

std::uint32_t SweepState::number_of(const std::string& sweep) {
  const auto [found, is_new] =
      desk_numbers_.try_emplace(sweep, static_cast<std::uint32_t>(desks_.size()));
  if (is_new) desks_.push_back({.sweep = sweep, .ready = {}});
  return found->second;
}

void SweepState::unfile(FiledTask& entry) {
  auto& [task, filed] = entry;
  for (const std::uint32_t desk : filed.open_at) --desks_[desk].open;
  filed.open_at.clear();
  if (filed.ready_at) {
    auto& ready = desks_[*filed.ready_at].ready;
    const auto group = ready.find({task.spec().kind(), task.spec().group()});
    group->second.erase(task.order());
    if (group->second.empty()) ready.erase(group);
    filed.ready_at.reset();
  }
  if (filed.backoff_until) {
    backoffs_.erase({*filed.backoff_until, task.order()});
    filed.backoff_until.reset();
  }
  if (filed.is_demand) {
    const auto family = demand_.find(task.spec().stream_family());
    const auto stream = family->second.find(task.spec().stream());
    if (--stream->second.tasks == 0) family->second.erase(stream);
    if (family->second.empty()) demand_.erase(family);
    filed.is_demand = false;
  }
}

void SweepState::file_begun(FiledTask& entry) {
  auto& [task, filed] = entry;
  if (filed.begun_in != 0) {
    const auto begun = begun_.find(filed.begun_in);
    begun->second.hash ^= filed.begun_hash;
    if (--begun->second.tasks == 0) begun_.erase(begun);
    filed.begun_in = filed.begun_hash = 0;
  }
  if (!task.has_running()) return;
  filed.begun_in = task.run();
  filed.begun_hash = protocol::lease_hash(task.spec().id(), task.fence());
  Begun& begun = begun_[task.run()];
  ++begun.tasks;
  begun.hash ^= filed.begun_hash;
}

void SweepState::file(const Task& task) { file(tasks_.at(task.spec().id())); }

void SweepState::file(FiledTask& entry) {
  auto& [task, filed] = entry;
  unfile(entry);
  file_begun(entry);
  const bool open = !is_finished(task);
  for (const Want& want : filed.wants) {
    if (open && is_wanted(want)) {
      ++desks_[want.sweep].open;
      filed.open_at.push_back(want.sweep);
    }
  }
  for (const Want& want : filed.wants) file(sweep_of(want));
  if (!filed.open_at.empty() && task.spec().kind() == protocol::TASK_KIND_TRAIN &&
      !task.spec().stream_family().empty()) {
    Demand& demand = demand_[task.spec().stream_family()][task.spec().stream()];
    ++demand.tasks;
    if (demand.one == nullptr) demand.one = &task.spec();  // tasks stay where they are
    filed.is_demand = true;
  }
  const journal::Sweep* payer =
      is_waiting(task) && task.run() == 0 ? payer_of(filed.wants) : nullptr;
  if (payer == nullptr) {
    if (!passed_over_.empty()) passed_over_.erase(task.spec().id());
  } else if (task.has_backoff()) {
    filed.backoff_until = task.backoff().until_ns();
    backoffs_.emplace(std::pair(*filed.backoff_until, task.order()), &task);
  } else {
    filed.ready_at = number_of(payer->name());
    Ordered& ready = desks_[*filed.ready_at].ready[{task.spec().kind(), task.spec().group()}];
    ready.emplace_hint(ready.end(), task.order(), &task);  // mostly the newest
  }
}

void SweepState::file(const journal::Sweep& sweep) {
  const bool over = desks_[number_of(sweep.name())].open == 0;
  if (over && sweep.ended() == 0 && (sweep.active() || sweep.cancelled()))
    overdue_.insert(sweep.name());
  else
    overdue_.erase(sweep.name());
}

void SweepState::file(const journal::Run& run) {
  if (run.worker().empty()) {
    waiting_runs_.insert(run.id());
    return;
  }
  waiting_runs_.erase(run.id());
  if (const auto worker = workers_.find(run.worker()); worker != workers_.end())
    worker->second.runs.insert(run.id());
}

void SweepState::unfile_run(std::uint64_t run, const std::string& worker) {
  waiting_runs_.erase(run);
  if (const auto found = workers_.find(worker); found != workers_.end())
    found->second.runs.erase(run);
}

std::vector<SweepState::FiledTask*> SweepState::want(const journal::Sweep& sweep) {
  const std::uint32_t number = number_of(sweep.name());
  std::vector<FiledTask*> wanted;
  const auto add = [&](const std::string& task, std::int32_t subject) {
    if (task.empty()) return;
    auto* named = tasks_.find(task);
    if (named == nullptr) return;
    auto& wants = named->second.filed.wants;
    const Want want{number, subject};
    wants.insert(std::ranges::lower_bound(wants, want), want);
    wanted.push_back(&named->second);
  };
  add(sweep.lm_task(), -1);
  for (int i = 0; i < sweep.subjects_size(); ++i) {
    add(sweep.subjects(i).train_task(), i);
    for (const auto& task : sweep.subjects(i).evaluate_tasks()) add(task, i);
  }
  return wanted;
}

void SweepState::unwant(const journal::Sweep& sweep) {
  const std::uint32_t number = number_of(sweep.name());
  for (const std::string& task : tasks_of(sweep))
    std::erase_if(tasks_.at(task).filed.wants,
                  [&](const Want& want) { return want.sweep == number; });
}

void SweepState::load(journal::Sweep sweep) {
  const std::string name = sweep.name();
  std::size_t tasks = 0;
  for (const auto& subject : sweep.subjects())
    tasks += 1 + static_cast<std::size_t>(subject.evaluate_tasks_size());
  tasks_.make_room_for(tasks);
  sweeps_[name] = std::move(sweep);
}

void SweepState::load(Task task) { tasks_.add(task.spec().id()).second.task = std::move(task); }

void SweepState::load(journal::Run run) {
  const std::uint64_t id = run.id();
  runs_[id] = std::move(run);
}

void SweepState::settle_indexes() {
  for (auto& [id, entry] : tasks_) entry.filed = {};
  contests_.clear();
  overdue_.clear();
  backoffs_.clear();
  waiting_runs_.clear();
  begun_.clear();
  demand_.clear();
  for (Desk& desk : desks_) {
    desk.ready.clear();
    desk.open = 0;
  }
  for (auto& [session, worker] : workers_) worker.runs.clear();
  for (const auto& [name, sweep] : sweeps_) want(sweep);
  for (const auto& [id, entry] : tasks_) {
    const std::string& needs = entry.task.spec().needs();
    if (auto* needed = needs.empty() ? nullptr : tasks_.find(needs); needed != nullptr)
      needed->second.filed.dependents.insert(id);
  }
  for (auto& [id, entry] : tasks_) file(entry);
  for (const auto& [name, sweep] : sweeps_) file(sweep);
  for (const auto& [id, run] : runs_) file(run);
  for (const auto& [name, sweep] : sweeps_)
    if (sweep.has_early_stopping()) contests_.emplace(name, contest_of(*this, sweep));
}

SweepState replay(std::span<const journal::Event> log) {
  SweepState state;
  for (const journal::Event& event : log) state.apply(event);
  return state;
}

// ---- rules --------------------------------------------------------------------------------------

namespace {

std::string broken_rule_of_task(const SweepState& state, const std::string& id, const Task& task) {
  if (task.spec().id() != id) return fmt::format("task {} is filed under {}", task.spec().id(), id);
  if (task.phase_case() == Task::PHASE_NOT_SET) return fmt::format("{} has no phase", id);
  if (task.attempt() > task.fence())
    return fmt::format("{}: attempt {} at fence {}", id, task.attempt(), task.fence());
  const Task* needed = task.spec().needs().empty() ? nullptr : state.find_task(task.spec().needs());
  if (!task.spec().needs().empty() && needed == nullptr)
    return fmt::format("{} needs {}, which is not there", id, task.spec().needs());
  const bool inputs_are_there = needed == nullptr || needed->has_succeeded();
  if (is_waiting(task) && !inputs_are_there)
    return fmt::format("{} is ready without its input", id);
  if (task.has_blocked() && (needed == nullptr || is_finished(*needed)))
    return fmt::format("{} waits for nothing", id);
  if (task.has_skipped() && (needed == nullptr || !is_finished(*needed) || inputs_are_there))
    return fmt::format("{} is skipped for no reason", id);
  if (task.has_succeeded() && task.result().fence() != task.fence())
    return fmt::format("{} succeeded with a result of fence {}, not {}", id, task.result().fence(),
                       task.fence());
  const journal::Run* run = task.run() == 0 ? nullptr : state.find_run(task.run());
  if (task.run() != 0 && run == nullptr)
    return fmt::format("{} is of run {}, which is not there", id, task.run());
  if (run != nullptr && std::ranges::count(run->tasks(), id) != 1)
    return fmt::format("run {} does not know its task {}", task.run(), id);
  if (is_leased(task) != (run != nullptr && !run->worker().empty()))
    return fmt::format("{} is leased without a run, or the other way round", id);
  // What was cancelled and is wanted again has none, and goes on from its beginning.
  for (const journal::Standing& standing : task.standings())
    if (standing.waits() && task.reported_fence() == task.fence() && !task.has_checkpoint() &&
        !is_finished(task))
      return fmt::format("{} waits at a rung without a checkpoint", id);
  if ((is_finished(task) || task.has_blocked()) && run != nullptr)
    return fmt::format("{} is of run {} although nothing is to do", id, task.run());
  return {};
}

}  // namespace

std::string SweepState::broken_invariant() const {
  for (const auto& [id, entry] : tasks_)
    if (auto broken = broken_rule_of_task(*this, id, entry.task); !broken.empty()) return broken;
  for (const auto& [id, run] : runs_) {
    if (run.id() != id || id == 0 || id > meta_.last_run())
      return fmt::format("run {} is filed under {}", run.id(), id);
    if (run.tasks().empty()) return fmt::format("run {} is empty", id);
    for (const std::string& name : run.tasks())
      if (const Task* task = find_task(name); task == nullptr || task->run() != id)
        return fmt::format("run {} names {}, which is not its own", id, name);
    if (!run.worker().empty() && !workers_.contains(run.worker()))
      return fmt::format("run {} is leased to nobody", id);
  }
  for (const auto& [session, worker] : workers_)
    if (worker.runs.size() > worker.slots)
      return fmt::format("more runs than slots at worker {}", worker.name);
  for (const auto& [name, sweep] : sweeps_)
    for (const std::string& id : tasks_of(sweep)) {
      const Task* task = find_task(id);
      if (task == nullptr) return fmt::format("sweep {} names {}, which is not there", name, id);
      if (sweep.ended() != 0 && desk(name).open != 0)
        return fmt::format("sweep {} ended before {} of its tasks", name, desk(name).open);
    }
  return broken_index();
}

std::string SweepState::broken_index() const {
  const SweepState anew = *this;  // indexes and all
  const auto is_key_same = [](const auto& a, const auto& b) { return a.first == b.first; };
  const auto is_same = [&](const Desk& one, const Desk& other) {
    return one.sweep == other.sweep && one.open == other.open && one.charge == other.charge &&
           std::ranges::equal(one.ready, other.ready, [&](const auto& a, const auto& b) {
             return a.first == b.first && std::ranges::equal(a.second, b.second, is_key_same);
           });
  };
  if (!std::ranges::equal(anew.desks_, desks_, is_same))
    return "the desks of sweeps are not what the tasks say";
  for (const auto& [id, entry] : tasks_)
    if (anew.tasks_.at(id).filed != entry.filed)
      return fmt::format("{} is not filed as it should be", id);
  if (anew.contests_ != contests_) return "the contests of sweeps are not what the tasks say";
  if (anew.overdue_ != overdue_) return "the sweeps that are over are not what the desks say";
  if (!std::ranges::equal(anew.backoffs_, backoffs_, is_key_same))
    return "the index of backoffs is not what the tasks say";
  if (anew.waiting_runs_ != waiting_runs_) return "the index of runs is not what the runs say";
  const auto is_demand_same = [&](const auto& a, const auto& b) {
    return a.first == b.first &&
           std::ranges::equal(a.second, b.second, [](const auto& one, const auto& other) {
             return one.first == other.first && one.second.tasks == other.second.tasks;
           });
  };
  if (!std::ranges::equal(anew.demand_, demand_, is_demand_same))
    return "the demand for streams is not what the tasks say";
  if (anew.begun_ != begun_) return "what runs have begun is not what their tasks say";
  for (const auto& [session, worker] : workers_)
    if (anew.workers_.at(session).runs != worker.runs)
      return fmt::format("the runs of worker {} are not what the runs say", worker.name);
  return {};
}

}  // namespace saesweep::scheduler
