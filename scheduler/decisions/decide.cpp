#include "scheduler/decisions/decide.h"

#include <algorithm>

#include "core/log.h"

namespace saesweep::scheduler {
namespace {

using namespace std::chrono_literals;
using journal::Event;
using journal::Task;

constexpr Duration kRefusedWait = 300ms;
constexpr Duration kFirstWait = 1s;  // after a death or a failed try; doubles
constexpr std::uint32_t kDoublings = 5;

Duration wait_after(std::uint32_t times) {
  return kFirstWait * (1u << std::min(times, kDoublings));
}

// What a worker says that it ran out of disk for: no other run would do better.
bool is_disk_full(const protocol::TaskResult& result) {
  return result.reason().starts_with("disk full");
}

bool is_same_result(const protocol::TaskResult& a, const protocol::TaskResult& b) {
  if (a.outcome() != b.outcome() || a.summary() != b.summary() ||
      a.artifacts_size() != b.artifacts_size())
    return false;
  for (int i = 0; i < a.artifacts_size(); ++i)
    if (a.artifacts(i).sha256() != b.artifacts(i).sha256()) return false;
  return true;
}

class Decider {
 public:
  Decider(const SweepState& state, std::string peer, TimePoint now)
      : state_(state), peer_(std::move(peer)), now_(now) {}

  Decision take() { return std::move(decision_); }

  void hear(const ProcessBegins&) {
    event().mutable_process_started()->set_epoch(state_.meta().epoch() + 1);
  }

  void hear(const Submission& submission) {
    auto& event_of = *event().mutable_sweep_submitted();
    *event_of.mutable_sweep() = submission.sweep;
    for (const journal::TaskSpec& spec : submission.tasks) {
      const Task* known = state_.find_task(spec.id());
      if (known == nullptr) {
        *event_of.add_tasks() = spec;
        continue;
      }
      const bool again = (known->has_failed() && known->failed().passing()) ||
                         (known->has_succeeded() && submission.lost.contains(spec.id()));
      if (again) event_of.add_again(spec.id());
    }
    cancel_unwanted(submission.sweep);
  }

  void hear(const StopAsked&) {
    for (const auto& [id, run] : state_.runs())
      if (!run.worker().empty()) control(run.worker(), id, "pause");
  }

  void hear(const Tick& tick) {
    if (tick.stalled > Duration::zero())
      event().mutable_clock_stalled()->set_by_ns(static_cast<std::uint64_t>(
          std::chrono::duration_cast<std::chrono::nanoseconds>(tick.stalled).count()));
    bool somebody_lost = false;
    for (const auto& [session, worker] : state_.workers()) {
      if (worker.lost || now_ - tick.stalled - worker.heard < kLostAfter) continue;
      somebody_lost = true;
      lose_runs_of(session, "nothing was heard from its worker");
      event().mutable_worker_lost()->set_worker(session);
    }
    for (const auto& [name, sweep] : state_.sweeps()) {
      if (!sweep.active() || sweep.ended() != 0) continue;
      const auto tasks = tasks_of(sweep);
      if (std::ranges::all_of(
              tasks, [&](const std::string& id) { return is_finished(*state_.find_task(id)); }))
        event().mutable_sweep_ended()->set_sweep(name);
    }
    // Runs that were just lost are placed at the next tick, when the state says so.
    if (tick.may_place && !somebody_lost) place(state_, now_, decision_);
  }

  void hear(const protocol::Hello& hello) {
    const bool is_known = state_.workers().contains(peer_);
    auto& joined = *event().mutable_worker_joined();
    joined.set_worker(peer_);
    joined.set_name(hello.worker_name());
    joined.set_slots(std::max(1u, hello.slots()));
    joined.set_memory_bytes(hello.memory_bytes());
    joined.set_now_ns(to_ns(now_));
    protocol::Welcome welcome;
    welcome.set_worker_id(static_cast<std::uint32_t>(state_.workers().size()) + (is_known ? 0 : 1));
    welcome.set_epoch(state_.meta().epoch());
    welcome.set_heartbeat_ms(
        static_cast<std::uint32_t>(std::chrono::milliseconds(kHeartbeat).count()));
    welcome.set_lease_ms(static_cast<std::uint32_t>(std::chrono::milliseconds(kLease).count()));
    welcome.set_resume(is_known);
    reply(std::move(welcome));
  }

  void hear(const protocol::Heartbeat& beat) {
    if (!note_life(static_cast<std::int64_t>(beat.free_slots()))) return;
    protocol::HeartbeatAck ack;
    ack.set_sent_ns(beat.sent_ns());
    ack.set_epoch(state_.meta().epoch());
    reply(std::move(ack));
  }

  void hear(const protocol::AssignReply& answer) {
    note_life();
    const journal::Run* run = own_run(answer.run_id());
    if (run == nullptr) return;
    if (answer.accepted()) return start(*run);
    const bool counts = answer.reason() != "no room" && answer.reason() != "draining";
    std::uint32_t tries = 0;
    for (const std::string& id : run->tasks())
      tries = std::max(tries, state_.find_task(id)->retries() + 1);
    if (counts && tries > kMostRetries) {
      for (const std::string& id : run->tasks())
        give_up(id, fmt::format("refused {} times; last: {}", tries, answer.reason()));
      return;
    }
    auto& refused = *event().mutable_run_refused();
    refused.set_run(answer.run_id());
    refused.set_counts(counts);
    refused.set_reason(answer.reason());
    refused.set_until_ns(to_ns(now_ + (counts ? wait_after(tries - 1) : kRefusedWait)));
  }

  void hear(const protocol::Started& started) {
    note_life();
    if (const journal::Run* run = own_run(started.run_id())) start(*run);
  }

  void hear(const protocol::Progress& progress) {
    note_life();
    for (const auto& member : progress.members()) {
      const Task* task = state_.find_task(member.task());
      if (task == nullptr || member.fence() >= task->fence()) continue;
      // Somebody else has it, or had it: this one works for nobody.
      protocol::Control cancel;
      cancel.set_run_id(progress.run_id());
      cancel.set_task(member.task());
      cancel.set_fence(member.fence());
      cancel.set_verb("cancel");
      reply(std::move(cancel));
    }
  }

  void hear(const protocol::Checkpointed& heard) {
    note_life();
    const Task* task = state_.find_task(heard.task());
    if (task == nullptr || heard.fence() != task->fence() || is_finished(*task)) return;
    if (task->has_checkpoint() && task->checkpoint().step() > heard.checkpoint().step()) return;
    auto& checkpointed = *event().mutable_task_checkpointed();
    checkpointed.set_task(heard.task());
    *checkpointed.mutable_checkpoint() = heard.checkpoint();
  }

  void hear(const ResultHeard& heard) {
    note_life();
    protocol::ResultAck ack;
    ack.set_task(heard.result.task());
    ack.set_fence(heard.result.fence());
    ack.set_verdict(judge(heard));
    reply(std::move(ack));
  }

  void hear(const protocol::ControlDone& done) {
    note_life();
    if (done.outcome() == "not running") {
      // What it had to say of the run came before this.
      const journal::Run* run = own_run(done.run_id());
      if (run != nullptr && done.task().empty())
        lose(*run, false, "its worker does not know the run");
      return;
    }
    if (done.outcome() != "paused" && done.outcome() != "cancelled") return;
    const Task* task = state_.find_task(done.task());
    if (task == nullptr || done.fence() != task->fence() || !is_leased(*task)) return;
    give_back(*task, done.outcome());
  }

  void hear(const protocol::Bye& bye) {
    if (!state_.workers().contains(peer_)) return;
    lose_runs_of(peer_, fmt::format("its worker left: {}", bye.reason()));
    event().mutable_worker_left()->set_worker(peer_);
  }

 private:
  Event& event() { return decision_.events.emplace_back(); }
  template <class Body>
  void reply(Body body) {
    decision_.replies.push_back({peer_, std::move(body)});
  }
  // False for a peer that never said HELLO.
  bool note_life(std::int64_t free_slots = -1) {
    if (!state_.workers().contains(peer_)) return false;
    auto& heard = *event().mutable_worker_heard();
    heard.set_worker(peer_);
    heard.set_now_ns(to_ns(now_));
    heard.set_free_slots(free_slots);
    return true;
  }
  // The run, if it is leased to whom we hear.
  const journal::Run* own_run(std::uint64_t id) const {
    const journal::Run* run = state_.find_run(id);
    return run != nullptr && run->worker() == peer_ && !peer_.empty() ? run : nullptr;
  }
  void start(const journal::Run& run) {
    if (state_.find_task(run.tasks(0))->has_assigned())
      event().mutable_run_started()->set_run(run.id());
  }
  void control(const std::string& worker, std::uint64_t run, const char* verb,
               const Task* task = nullptr) {
    protocol::Control wanted;
    wanted.set_run_id(run);
    wanted.set_verb(verb);
    if (task != nullptr) {
      wanted.set_task(task->spec().id());
      wanted.set_fence(task->fence());
    }
    decision_.replies.push_back({worker, std::move(wanted)});
  }
  // Of the sweep that this one replaces: what runs and nobody wants any more.
  void cancel_unwanted(const journal::Sweep& sweep) {
    const auto before = state_.sweeps().find(sweep.name());
    if (before == state_.sweeps().end()) return;
    const auto tasks = tasks_of(sweep);
    const std::set<std::string> kept(tasks.begin(), tasks.end());
    for (const std::string& id : tasks_of(before->second)) {
      const Task* task = state_.find_task(id);
      if (kept.contains(id) || !is_leased(*task) || state_.wanted_by(id).size() > 1) continue;
      control(state_.find_run(task->run())->worker(), task->run(), "cancel", task);
    }
  }

  Event& returned(const Task& task, const std::string& reason) {
    Event& made = event();
    made.mutable_task_returned()->set_task(task.spec().id());
    made.mutable_task_returned()->set_reason(reason);
    return made;
  }
  void give_back(const Task& task, const std::string& reason) { returned(task, reason); }
  void give_up(const std::string& task, std::string reason) {
    auto& given_up = *event().mutable_task_given_up();
    given_up.set_task(task);
    given_up.set_reason(std::move(reason));
  }
  void retry(const Task& task, const std::string& reason) {
    if (task.retries() + 1 > kMostRetries)
      return give_up(task.spec().id(),
                     fmt::format("tried {} times; last: {}", task.retries() + 1, reason));
    auto& again = *returned(task, reason).mutable_task_returned();
    again.set_retry(true);
    again.set_until_ns(to_ns(now_ + wait_after(task.retries())));
  }

  void lose_runs_of(const std::string& worker, const std::string& reason) {
    for (const auto& [id, run] : state_.runs())
      if (run.worker() == worker) lose(run, false, reason);
  }
  // A death counts if the executor died alone and nothing became durable since the one before.
  void lose(const journal::Run& run, bool died_alone, const std::string& reason) {
    auto& lost = *event().mutable_run_lost();
    lost.set_run(run.id());
    lost.set_reason(reason);
    if (!died_alone || run.checkpointed()) return;
    lost.set_counted(true);
    const std::uint32_t deaths = run.deaths() + 1;
    if (run.tasks_size() == 1 && deaths >= kDeathsOfOne) {
      lost.set_quarantined(true);
      lost.set_reason(fmt::format("its executor died {} times; last: {}", deaths, reason));
    } else if (run.tasks_size() > 1 && deaths >= kDeathsBeforeSplit) {
      lost.set_second_half(state_.meta().last_run() + 1);
    }
    lost.set_until_ns(to_ns(now_ + wait_after(deaths - 1)));
  }

  void out_of_memory(const Task& task, const std::string& reason) {
    const journal::Run& run = *state_.find_run(task.run());
    if (run.members() > 1) {
      auto& again = *returned(task, reason).mutable_task_returned();
      again.set_most_in_run(run.members() / 2);
      return;
    }
    if (task.out_of_memory_alone() + 1 >= kMostOutOfMemory)
      return give_up(task.spec().id(), fmt::format("out of memory {} times by itself; last: {}",
                                                   task.out_of_memory_alone() + 1, reason));
    auto& again = *returned(task, reason).mutable_task_returned();
    again.set_out_of_memory_alone(true);
    again.set_until_ns(to_ns(now_ + wait_after(task.out_of_memory_alone())));
  }

  // The verdict; events for what follows.
  const char* judge(const ResultHeard& heard) {
    const protocol::TaskResult& result = heard.result;
    const Task* task = state_.find_task(result.task());
    if (task == nullptr || result.fence() < task->fence()) return "stale";
    if (result.fence() > task->fence()) {
      log::error("result.from_the_future task={} fence={} known={}", result.task(), result.fence(),
                 task->fence());
      return "invalid";
    }
    if (is_finished(*task)) {
      if (!task->has_result() || result.outcome() == protocol::OUTCOME_LOST) return "stale";
      if (is_same_result(task->result(), result)) return "duplicate";
      log::error("result.differs task={} fence={}", result.task(), result.fence());
      return "invalid";
    }
    switch (result.outcome()) {
      case protocol::OUTCOME_DONE:
        if (!heard.artifacts_are_there) {
          if (is_leased(*task)) retry(*task, "its artifacts are not there");
          return "invalid";
        }
        [[fallthrough]];
      case protocol::OUTCOME_DIVERGED:
      case protocol::OUTCOME_FAILED:
        *event().mutable_task_finished()->mutable_result() = result;
        return "committed";
      case protocol::OUTCOME_LOST:
        // The first of a run speaks for all: they share the executor.
        if (is_leased(*task))
          lose(*state_.find_run(task->run()), result.executor_died_alone(), result.reason());
        return "committed";
      case protocol::OUTCOME_RETRY:
        if (!is_leased(*task)) return "committed";
        if (result.out_of_memory()) {
          out_of_memory(*task, result.reason());
        } else if (is_disk_full(result)) {
          give_back(*task, result.reason());
          decision_.halt = Error{ErrorCode::kResourceExhausted, result.reason()};
        } else {
          retry(*task, result.reason());
        }
        return "committed";
      default:
        return "invalid";
    }
  }

  const SweepState& state_;
  const std::string peer_;
  const TimePoint now_;
  Decision decision_;
};

}  // namespace

Decision decide(const SweepState& state, const Message& message, TimePoint now) {
  Decider decider(state, message.peer, now);
  std::visit([&](const auto& heard) { decider.hear(heard); }, message.heard);
  return decider.take();
}

SubjectOutcome outcome_of(const SweepState& state, const journal::Subject& subject) {
  if (!subject.train_task().empty()) {
    const Task* train = state.find_task(subject.train_task());
    if (train == nullptr || !is_finished(*train)) return {"unfinished", "not trained yet"};
    if (train->has_diverged()) return {"diverged", train->diverged().reason()};
    if (train->has_failed()) return {"failed", train->failed().reason()};
  }
  SubjectOutcome outcome{"done", ""};
  for (const std::string& id : subject.evaluate_tasks()) {
    const Task* task = state.find_task(id);
    if (task == nullptr || !is_finished(*task)) return {"unfinished", "not scored yet"};
    if (task->has_failed() && outcome.state == "done")
      outcome = {"failed", "evaluation: " + task->failed().reason()};
    if (task->has_diverged() && outcome.state == "done")
      outcome = {"failed", "evaluation: " + task->diverged().reason()};
  }
  return outcome;
}

}  // namespace saesweep::scheduler
