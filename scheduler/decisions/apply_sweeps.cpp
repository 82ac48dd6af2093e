// The process and its sweeps: what their events do.
#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "scheduler/decisions/applier.h"
#include "scheduler/decisions/attempts.h"
#include "scheduler/decisions/decide.h"

namespace saesweep::scheduler {
namespace {

constexpr double kChargeHalfLife = 3600;  // seconds
constexpr double kLongestCharge = 10;     // seconds, at once

}  // namespace

journal::Sweep& Applier::sweep_at(const std::string& name) {
  const auto found = state_.sweeps_.find(name);
  SAE_CHECK(found != state_.sweeps_.end(), "no sweep {}", name);
  changes_.sweeps.insert(name);
  return found->second;
}

void Applier::started(const journal::ProcessStarted& event) {
  state_.meta_.set_epoch(event.epoch());
  changes_.meta = true;
  state_.workers_.clear();
  state_.passed_over_.clear();
  state_.charged_until_.reset();
  std::vector<std::uint64_t> leased;
  for (const auto& [id, run] : state_.runs_)
    if (!run.worker().empty()) leased.push_back(id);
  if (event.adopt()) {
    for (const std::uint64_t id : leased) {
      const journal::Run& run = state_.runs_.at(id);
      Worker& worker = state_.workers_[run.worker()];
      worker.name = run.worker_name();
      worker.host = run.worker_host();
      worker.awaited = true;
      worker.heard = from_ns(event.now_ns());
      ++worker.slots;
      state_.file(run);
    }
  } else {
    for (const std::uint64_t id : leased) {
      end_attempts(run_at(id), journal::ENDING_INTERRUPTED, "the scheduler began anew");
      wait_again(run_at(id), 0);
    }
    for (auto& [name, sweep] : state_.sweeps_) {
      if (!sweep.active()) continue;
      sweep.set_active(false);
      changes_.sweeps.insert(name);
    }
    state_.meta_.clear_draining();
  }
  // A backoff is a moment of the clock of an incarnation before.
  for (auto& named : state_.tasks_) {
    Task& task = named.second.task;
    if (task.has_backoff()) {
      task.mutable_ready();
      changes_.tasks.insert(&named);
    }
    state_.file(named.second);
  }
}

// A sweep that begins to work has no credit from before.
void Applier::enter(const journal::Sweep& sweep) {
  if (!is_working(sweep)) return;
  std::optional<double> least;
  for (const SweepState::Desk& desk : state_.desks_) {
    const auto other = state_.sweeps_.find(desk.sweep);
    if (desk.sweep == sweep.name() || desk.open == 0 || !is_working(other->second)) continue;
    const double share = desk.charge / weight_of(other->second);
    least = std::min(least.value_or(share), share);
  }
  double& charge = state_.desks_[state_.number_of(sweep.name())].charge;
  if (least) charge = std::max(charge, *least * weight_of(sweep));
}

void Applier::submitted(journal::SweepSubmitted& event) {
  state_.meta_.set_last_submission(state_.meta_.last_submission() + 1);
  changes_.meta = true;
  const std::string name = event.sweep().name();
  changes_.sweeps.insert(name);
  const auto before = state_.sweeps_.find(name);
  std::vector<std::string> old_tasks;
  journal::Sweep old;
  old.set_started(time_);
  if (before != state_.sweeps_.end()) {
    old = std::move(before->second);
    old_tasks = tasks_of(old);
    state_.unwant(old);
  }
  journal::Sweep& sweep = state_.sweeps_[name];
  sweep = std::move(*event.mutable_sweep());
  sweep.set_started(old.started());
  sweep.set_submission(state_.meta_.last_submission());
  sweep.set_active(true);
  sweep.set_ended(0);
  if (sweep.priority() == 0) sweep.set_priority(old.priority());
  if (sweep.weight() == 0) sweep.set_weight(old.weight());

  std::uint64_t order = state_.meta_.last_submission() << 32;
  std::vector<SweepState::Tasks::Map::value_type*> added;
  added.reserve(static_cast<std::size_t>(event.tasks_size()));
  state_.tasks_.make_room_for(added.capacity());
  changes_.tasks.reserve(changes_.tasks.size() + added.capacity());
  for (journal::TaskSpec& spec : *event.mutable_tasks()) {
    auto* const named = added.emplace_back(&state_.tasks_.add(spec.id()));
    changes_.tasks.insert(named);
    Task& task = named->second.task;
    *task.mutable_spec() = std::move(spec);
    task.set_order(++order);
    if (const std::string& needs = task.spec().needs(); !needs.empty())
      state_.tasks_.at(needs).filed.dependents.insert(named->first);
  }
  const auto wanted = state_.want(sweep);
  // Filed below, with all that the sweep names; what it does not name nobody wants.
  for (auto* const named : added) enter_phase(named->second.task);
  // Who is no longer named, and who is named by one more.
  for (const std::string& id : old_tasks)
    if (const Task* task = state_.find_task(id)) state_.file(*task);
  take_part(old, sweep);
  for (SweepState::FiledTask* const task : wanted) state_.file(*task);
  for (const std::string& id : event.again()) begin_again(task_at(id));
  if (state_.desk(name).open == 0 && old_tasks == tasks_of(sweep)) sweep.set_ended(old.ended());
  state_.file(sweep);
  enter(sweep);
}

void Applier::reopen_sweeps_of(const std::string& task) {
  for (const SweepState::Want& want : state_.wants(task)) {
    const std::string& name = state_.desks_[want.sweep].sweep;
    if (state_.sweeps_.at(name).ended() == 0 || state_.desks_[want.sweep].open == 0) continue;
    sweep_at(name).set_ended(0);
    state_.file(sweep_at(name));
  }
}

void Applier::sweep_ended(const journal::SweepEnded& event) {
  sweep_at(event.sweep()).set_ended(time_);
  state_.file(sweep_at(event.sweep()));
}

void Applier::sweep_changed(const journal::SweepChanged& event) {
  journal::Sweep& sweep = sweep_at(event.sweep());
  const std::set<std::string> chosen(event.subjects().begin(), event.subjects().end());
  const bool cancels = event.has_cancelled() && event.cancelled();
  if (chosen.empty() && event.has_paused()) sweep.set_paused(event.paused());
  // A sweep of which a row is wanted again is not cancelled as a whole; its other rows stay so.
  if (event.has_cancelled() && (chosen.empty() || !cancels)) sweep.set_cancelled(cancels);
  if (event.has_active()) sweep.set_active(event.active());
  if (event.has_priority()) sweep.set_priority(event.priority());
  if (event.has_weight()) sweep.set_weight(event.weight());
  const auto is_unfinished = [&](const std::string& id) {
    return !id.empty() && !is_finished(state_.tasks_.at(id).task);
  };
  for (journal::Subject& subject : *sweep.mutable_subjects()) {
    if (!chosen.empty() && !chosen.contains(subject.identity())) continue;
    // A word about the whole sweep goes for the rows too.
    if (event.has_paused() && (!chosen.empty() || !event.paused()))
      subject.set_paused(event.paused());
    if (!event.has_cancelled()) continue;
    if (!cancels)
      subject.set_cancelled(false);
    else if (is_unfinished(subject.train_task()) ||
             std::ranges::any_of(subject.evaluate_tasks(), is_unfinished))
      subject.set_cancelled(true);
  }
  const std::vector<std::string> tasks = tasks_of(sweep);
  for (const std::string& id : tasks) state_.file(state_.tasks_.at(id));
  count_anew(sweep.name());
  if (sweep.ended() != 0 && state_.desk(sweep.name()).open > 0) sweep.set_ended(0);
  state_.file(sweep);
  enter(sweep);
}

void Applier::again(const journal::TasksAgain& event) {
  for (const std::string& id : event.tasks()) begin_again(task_at(id));
}

void Applier::cancelled(const journal::TasksCancelled& event) {
  for (const std::string& id : event.tasks()) {
    Task& task = task_at(id);
    if (is_finished(task)) continue;  // skipped, because of another of these
    end_attempt(task, journal::ENDING_CANCELLED, event.reason(), time_);
    leave_run(task);
    task.clear_checkpoint();
    task.mutable_cancelled()->set_reason(event.reason());
    end_standings(task);
    state_.file(task);
    tell_dependents(task);
  }
}

void Applier::wish_granted(const journal::GrantedWish& event) {
  auto& granted = *state_.meta_.mutable_granted();
  *granted.Add() = event;
  if (granted.size() > kWishesKept) granted.DeleteSubrange(0, granted.size() - kWishesKept);
  changes_.meta = true;
}

void Applier::time_passed(const journal::TimePassed& event) {
  const TimePoint now = from_ns(event.now_ns());
  const auto before = state_.charged_until_;
  state_.charged_until_ = now;
  if (!before || now <= *before) return;
  const double passed = std::chrono::duration<double>(now - *before).count();
  for (SweepState::Desk& desk : state_.desks_) desk.charge *= std::exp2(-passed / kChargeHalfLife);
  // After a long look away nobody knows how long what runs now has run.
  const double seconds = std::min(passed, kLongestCharge);
  for (const auto& [session, worker] : state_.workers_)
    for (const std::uint64_t id : worker.runs) {
      const journal::Run& run = state_.runs_.at(id);
      for (const std::string& task : run.tasks())
        if (const journal::Sweep* payer = state_.payer_of(task))
          state_.desks_[state_.number_of(payer->name())].charge +=
              seconds / static_cast<double>(run.tasks_size());
    }
}

}  // namespace saesweep::scheduler
