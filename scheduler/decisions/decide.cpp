#include "scheduler/decisions/decide.h"

#include <algorithm>
#include <array>

#include "core/log.h"
#include "scheduler/decisions/decider.h"
#include "scheduler/decisions/standings.h"

namespace saesweep::scheduler {
namespace {

using namespace std::chrono_literals;
using journal::Ending;
using journal::Task;

constexpr Duration kRefusedWait = 300ms;
constexpr Duration kFirstWait = 1s;  // after a death or a failed try; doubles
constexpr std::uint32_t kDoublings = 5;
constexpr Duration kChargeEvery = 1s;

Duration wait_after(std::uint32_t times) {
  return kFirstWait * (1u << std::min(times, kDoublings));
}

// Refusals that say nothing about the run: the worker's slots are not what we think.
bool is_about_room(const std::string& reason) {
  constexpr std::array kWords{"no room", "draining", "no free slot", "the agent stops"};
  return std::ranges::any_of(kWords, [&](const char* word) { return reason == word; });
}

// What a worker says that it ran out of disk for: no other run would do better.
bool is_disk_full(const protocol::TaskResult& result) {
  return result.reason().starts_with("disk full");
}

// It was stopped early, and the sweep does not know of that: by other rules, or without any.
bool is_wanted_on(const SweepState& state, const Task& task, const journal::Sweep& sweep) {
  if (!task.has_stopped()) return false;
  const auto before = state.sweeps().find(sweep.name());
  const journal::Standing* standing = standing_of(task, sweep.name());
  return standing == nullptr || standing->stopped().empty() || before == state.sweeps().end() ||
         before->second.early_stopping().SerializeAsString() !=
             sweep.early_stopping().SerializeAsString();
}

bool is_same_result(const protocol::TaskResult& a, const protocol::TaskResult& b) {
  if (a.outcome() != b.outcome() || a.summary() != b.summary() ||
      a.artifacts_size() != b.artifacts_size())
    return false;
  for (int i = 0; i < a.artifacts_size(); ++i)
    if (a.artifacts(i).sha256() != b.artifacts(i).sha256()) return false;
  return true;
}

}  // namespace

Decision decide(const SweepState& state, Message message, TimePoint now) {
  Decider decider(state, std::move(message.peer), now);
  std::visit([&](auto& heard) { decider.hear(std::move(heard)); }, message.heard);
  return decider.take();
}

// ---- process, sweeps, time ----------------------------------------------------------------------

void Decider::hear(const ProcessBegins& begins) {
  auto& started = *event().mutable_process_started();
  started.set_epoch(state_.meta().epoch() + 1);
  started.set_adopt(begins.adopt);
  started.set_now_ns(to_ns(now_));
}

void Decider::hear(Submission&& submission) {
  auto& submitted = *event().mutable_sweep_submitted();
  submitted.mutable_tasks()->Reserve(static_cast<int>(submission.tasks.size()));
  for (journal::TaskSpec& spec : submission.tasks) {
    const Task* known = state_.find_task(spec.id());
    if (known == nullptr) {
      *submitted.add_tasks() = std::move(spec);
      continue;
    }
    const bool again = (known->has_failed() && known->failed().passing()) ||
                       known->has_cancelled() || is_wanted_on(state_, *known, submission.sweep) ||
                       (known->has_succeeded() && submission.lost.contains(spec.id()));
    if (again) submitted.add_again(spec.id());
  }
  cancel_unwanted(submission.sweep);
  *submitted.mutable_sweep() = std::move(submission.sweep);
}

void Decider::cancel_unwanted(const journal::Sweep& sweep) {
  const auto before = state_.sweeps().find(sweep.name());
  if (before == state_.sweeps().end()) return;
  const auto tasks = tasks_of(sweep);
  const std::set<std::string> kept(tasks.begin(), tasks.end());
  for (const std::string& id : tasks_of(before->second)) {
    const Task* task = state_.find_task(id);
    if (!kept.contains(id) && is_leased(*task) && !state_.is_wanted(id, sweep.name()))
      control(*task, "cancel");
  }
}

void Decider::hear(const StopAsked&) {
  for (const auto& [session, worker] : state_.workers())
    for (const std::uint64_t id : worker.runs) control(session, id, "pause");
}

void Decider::hear(const Tick& tick) {
  if (tick.stalled > Duration::zero())
    event().mutable_clock_stalled()->set_by_ns(static_cast<std::uint64_t>(
        std::chrono::duration_cast<std::chrono::nanoseconds>(tick.stalled).count()));
  bool somebody_lost = false;
  for (const auto& [session, worker] : state_.workers()) {
    const Duration silence = now_ - tick.stalled - worker.heard;
    if (worker.lost && silence >= kForgottenAfter) forget(session);
    if (worker.lost || silence < (worker.awaited ? Duration(kReadoption) : Duration(kLostAfter)))
      continue;
    somebody_lost = true;
    lose_runs_of(session,
                 worker.awaited ? "its worker did not come back after a restart"
                                : "nothing was heard from its worker",
                 journal::ENDING_LOST);
    event().mutable_worker_lost()->set_worker(session);
  }
  for (const std::string& name : state_.overdue()) event().mutable_sweep_ended()->set_sweep(name);
  const auto charged = state_.charged_until();
  if (!state_.workers().empty() && (!charged || now_ - *charged >= kChargeEvery))
    event().mutable_time_passed()->set_now_ns(to_ns(now_));
  // Runs that were just lost are placed at the next tick, when the state says so.
  if (!tick.may_place || somebody_lost) return;
  decision_.again = settle_contests();
  if (!decision_.again) place(state_, now_, decision_);
}

// ---- what workers say of runs -------------------------------------------------------------------

void Decider::hear(const protocol::AssignReply& answer) {
  note_life();
  const journal::Run* run = own_run(answer.run_id());
  if (run == nullptr) return;
  if (answer.accepted()) return start(*run);
  const bool counts = !is_about_room(answer.reason());
  std::uint32_t tries = 0;
  for (const std::string& id : run->tasks())
    tries = std::max(tries, state_.find_task(id)->retries() + 1);
  if (counts && tries > kMostRetries) {
    for (const std::string& id : run->tasks())
      give_up(id, fmt::format("refused {} times; last: {}", tries, answer.reason()),
              journal::ENDING_REFUSED);
    return;
  }
  auto& refused = *event().mutable_run_refused();
  refused.set_run(answer.run_id());
  refused.set_counts(counts);
  refused.set_reason(answer.reason());
  refused.set_until_ns(to_ns(now_ + (counts ? wait_after(tries - 1) : kRefusedWait)));
}

void Decider::hear(const protocol::Started& started) {
  note_life();
  if (const journal::Run* run = own_run(started.run_id())) start(*run);
}

void Decider::hear(const protocol::Progress& progress) {
  note_life();
  for (const auto& member : progress.members()) {
    const Task* task = state_.find_task(member.task());
    if (task == nullptr) continue;
    // Somebody else has it, had it, or nobody wants it: this one works for nobody.
    const bool is_over = task->has_cancelled() || task->has_stopped();
    if (member.fence() < task->fence() || is_over)
      cancel_lease(progress.run_id(), member.task(), member.fence());
  }
}

void Decider::hear(const protocol::Checkpointed& heard) {
  note_life();
  const Task* task = state_.find_task(heard.task());
  if (task == nullptr || heard.fence() != task->fence() || is_finished(*task)) return;
  if (task->has_checkpoint() && task->checkpoint().step() > heard.checkpoint().step()) return;
  auto& checkpointed = *event().mutable_task_checkpointed();
  checkpointed.set_task(heard.task());
  *checkpointed.mutable_checkpoint() = heard.checkpoint();
}

void Decider::hear(const ResultHeard& heard) {
  note_life();
  protocol::ResultAck ack;
  ack.set_task(heard.result.task());
  ack.set_fence(heard.result.fence());
  ack.set_verdict(judge(heard));
  reply(std::move(ack));
}

void Decider::hear(const protocol::ControlDone& done) {
  note_life();
  if (done.outcome() == "not running") {
    // What it had to say of the run came before this.
    if (const journal::Run* run = own_run(done.run_id()))
      lose(*run, false, "its worker does not know the run", journal::ENDING_LOST);
    return;
  }
  if (done.outcome() != "paused" && done.outcome() != "cancelled") return;
  const Task* task = state_.find_task(done.task());
  if (task == nullptr || done.fence() != task->fence() || !is_leased(*task)) return;
  Ending ending = journal::ENDING_PREEMPTED;
  if (done.outcome() == "cancelled")
    ending = journal::ENDING_CANCELLED;
  else if (state_.is_draining(state_.find_run(task->run())->worker()))
    ending = journal::ENDING_DRAINED;
  else if (state_.payer_of(done.task()) == nullptr)
    ending = journal::ENDING_PAUSED;
  returned(*task, done.outcome(), ending);
}

const char* Decider::judge(const ResultHeard& heard) {
  const protocol::TaskResult& result = heard.result;
  const Task* task = state_.find_task(result.task());
  if (task == nullptr || result.fence() < task->fence()) return "stale";
  if (result.fence() > task->fence()) {
    log::error("result.from_the_future task={} fence={} known={}", result.task(), result.fence(),
               task->fence());
    return "invalid";
  }
  if (result.outcome() == protocol::OUTCOME_AT_RUNG && result.fence() == task->reported_fence())
    return "duplicate";
  if (is_finished(*task)) {
    if (!task->has_result() || result.outcome() == protocol::OUTCOME_LOST) return "stale";
    if (is_same_result(task->result(), result)) return "duplicate";
    log::error("result.differs task={} fence={}", result.task(), result.fence());
    return "invalid";
  }
  switch (result.outcome()) {
    case protocol::OUTCOME_DONE:
      if (!heard.artifacts_are_there && result.travelled()) return "missing";
      if (!heard.artifacts_are_there) {
        if (is_leased(*task)) retry(*task, "its artifacts are not there");
        return "invalid";
      }
      [[fallthrough]];
    case protocol::OUTCOME_DIVERGED:
    case protocol::OUTCOME_FAILED:
      *event().mutable_task_finished()->mutable_result() = result;
      return "committed";
    case protocol::OUTCOME_AT_RUNG:
      return judge_report(heard, *task);
    case protocol::OUTCOME_LOST:
      // The first of a run speaks for all: they share the executor.
      if (is_leased(*task))
        lose(*state_.find_run(task->run()), result.executor_died_alone(), result.reason(),
             result.out_of_memory()         ? journal::ENDING_OUT_OF_MEMORY
             : result.executor_died_alone() ? journal::ENDING_CRASHED
                                            : journal::ENDING_LOST);
      return "committed";
    case protocol::OUTCOME_RETRY:
      if (!is_leased(*task)) return "committed";
      if (result.out_of_memory()) {
        out_of_memory(*task, result.reason());
      } else if (is_disk_full(result)) {
        returned(*task, result.reason(), journal::ENDING_TROUBLE);
        decision_.halt = Error{ErrorCode::kResourceExhausted, result.reason()};
      } else {
        retry(*task, result.reason());
      }
      return "committed";
    default:
      return "invalid";
  }
}

// ---- what follows -------------------------------------------------------------------------------

bool Decider::note_life(std::int64_t free_slots) {
  if (!state_.workers().contains(peer_)) return false;
  auto& heard = *event().mutable_worker_heard();
  heard.set_worker(peer_);
  heard.set_now_ns(to_ns(now_));
  heard.set_free_slots(free_slots);
  return true;
}

const journal::Run* Decider::own_run(std::uint64_t id) const {
  const journal::Run* run = state_.find_run(id);
  return run != nullptr && run->worker() == peer_ && !peer_.empty() ? run : nullptr;
}

void Decider::start(const journal::Run& run) {
  if (state_.find_task(run.tasks(0))->has_assigned())
    event().mutable_run_started()->set_run(run.id());
}

void Decider::control(const std::string& worker, std::uint64_t run, const char* verb,
                      const Task* task) {
  protocol::Control wanted;
  wanted.set_run_id(run);
  wanted.set_verb(verb);
  if (task != nullptr) {
    wanted.set_task(task->spec().id());
    wanted.set_fence(task->fence());
  }
  decision_.replies.push_back({worker, std::move(wanted)});
}

void Decider::control(const Task& task, const char* verb) {
  control(state_.find_run(task.run())->worker(), task.run(), verb, &task);
}

void Decider::cancel_lease(std::uint64_t run, const std::string& task, std::uint64_t fence) {
  protocol::Control cancel;
  cancel.set_run_id(run);
  cancel.set_task(task);
  cancel.set_fence(fence);
  cancel.set_verb("cancel");
  reply(std::move(cancel));
}

journal::TaskReturned& Decider::returned(const Task& task, const std::string& reason,
                                         Ending ending) {
  auto& made = *event().mutable_task_returned();
  made.set_task(task.spec().id());
  made.set_reason(reason);
  made.set_ending(ending);
  return made;
}

void Decider::give_up(const std::string& task, std::string reason, Ending ending) {
  auto& given_up = *event().mutable_task_given_up();
  given_up.set_task(task);
  given_up.set_reason(std::move(reason));
  given_up.set_ending(ending);
}

void Decider::retry(const Task& task, const std::string& reason) {
  if (task.retries() + 1 > kMostRetries)
    return give_up(task.spec().id(),
                   fmt::format("tried {} times; last: {}", task.retries() + 1, reason),
                   journal::ENDING_TROUBLE);
  auto& again = returned(task, reason, journal::ENDING_TROUBLE);
  again.set_retry(true);
  again.set_until_ns(to_ns(now_ + wait_after(task.retries())));
}

void Decider::lose_runs_of(const std::string& worker, const std::string& reason, Ending ending) {
  for (const std::uint64_t id : state_.workers().at(worker).runs)
    lose(*state_.find_run(id), false, reason, ending);
}

// A death counts if the executor died alone and nothing became durable since the one before.
void Decider::lose(const journal::Run& run, bool died_alone, const std::string& reason,
                   Ending ending) {
  auto& lost = *event().mutable_run_lost();
  lost.set_run(run.id());
  lost.set_reason(reason);
  lost.set_ending(ending);
  if (!died_alone || run.checkpointed()) return;
  lost.set_counted(true);
  const std::uint32_t deaths = run.deaths() + 1;
  if (run.tasks_size() == 1 && deaths >= kDeathsOfOne) {
    lost.set_quarantined(true);
    lost.set_reason(fmt::format("its executor died {} times; last: {}", deaths, reason));
  } else if (run.tasks_size() > 1 && deaths >= kDeathsBeforeSplit) {
    std::uint64_t highest = state_.meta().last_run();
    for (const journal::Event& other : decision_.events)
      if (other.has_run_lost()) highest = std::max(highest, other.run_lost().second_half());
    lost.set_second_half(highest + 1);
  }
  lost.set_until_ns(to_ns(now_ + wait_after(deaths - 1)));
}

void Decider::out_of_memory(const Task& task, const std::string& reason) {
  const journal::Run& run = *state_.find_run(task.run());
  if (run.members() > 1) {
    returned(task, reason, journal::ENDING_OUT_OF_MEMORY).set_most_in_run(run.members() / 2);
    return;
  }
  if (task.out_of_memory_alone() + 1 >= kMostOutOfMemory)
    return give_up(task.spec().id(),
                   fmt::format("out of memory {} times by itself; last: {}",
                               task.out_of_memory_alone() + 1, reason),
                   journal::ENDING_OUT_OF_MEMORY);
  auto& again = returned(task, reason, journal::ENDING_OUT_OF_MEMORY);
  again.set_out_of_memory_alone(true);
  again.set_until_ns(to_ns(now_ + wait_after(task.out_of_memory_alone())));
}

// ---- rows ---------------------------------------------------------------------------------------

std::optional<SubjectOutcome> settled_outcome_of(const SweepState& state,
                                                 const journal::Sweep& sweep,
                                                 const journal::Subject& subject) {
  const Task* train =
      subject.train_task().empty() ? nullptr : state.find_task(subject.train_task());
  const journal::Standing* standing =
      train == nullptr || subject.baseline() ? nullptr : standing_of(*train, sweep.name());
  if (standing != nullptr && !standing->stopped().empty())
    return SubjectOutcome{"stopped", standing->stopped()};
  if (!subject.train_task().empty()) {
    const bool is_over = train != nullptr && is_finished(*train);
    if (is_over && train->has_diverged())
      return SubjectOutcome{"diverged", train->diverged().reason()};
    if (is_over && train->has_failed()) return SubjectOutcome{"failed", train->failed().reason()};
    if (subject.cancelled()) return SubjectOutcome{"cancelled", "by a person"};
    if (is_over && train->has_cancelled())
      return SubjectOutcome{"cancelled", train->cancelled().reason()};
    if (is_over && train->has_stopped())
      return SubjectOutcome{"stopped", train->stopped().reason()};
    if (!is_over) return std::nullopt;
  }
  if (subject.cancelled()) return SubjectOutcome{"cancelled", "by a person"};
  SubjectOutcome outcome{"done", ""};
  for (const std::string& id : subject.evaluate_tasks()) {
    const Task* task = state.find_task(id);
    if (task == nullptr || !is_finished(*task)) return std::nullopt;
    if (outcome.state != "done") continue;
    if (task->has_failed()) outcome = {"failed", "evaluation: " + task->failed().reason()};
    if (task->has_diverged()) outcome = {"failed", "evaluation: " + task->diverged().reason()};
    if (task->has_cancelled()) outcome = {"cancelled", task->cancelled().reason()};
  }
  return outcome;
}

SubjectOutcome outcome_of(const SweepState& state, const journal::Sweep& sweep,
                          const journal::Subject& subject) {
  if (auto settled = settled_outcome_of(state, sweep, subject)) return std::move(*settled);
  const auto is_paused = [&](const Task& task) { return state_of(state, task) == "paused"; };
  const Task* train = state.find_task(subject.train_task());
  if (!subject.train_task().empty() && (train == nullptr || !is_finished(*train))) {
    const journal::Standing* standing =
        train == nullptr || subject.baseline() ? nullptr : standing_of(*train, sweep.name());
    if (standing != nullptr && standing->waits() && !is_leased(*train))
      return {"unfinished", wait_text(state, *train, sweep)};
    return {"unfinished", train != nullptr && is_paused(*train) ? "paused" : "not trained yet"};
  }
  for (const std::string& id : subject.evaluate_tasks())
    if (const Task* task = state.find_task(id); task == nullptr || !is_finished(*task))
      return {"unfinished", task != nullptr && is_paused(*task) ? "paused" : "not scored yet"};
  return {"unfinished", ""};
}

}  // namespace saesweep::scheduler
