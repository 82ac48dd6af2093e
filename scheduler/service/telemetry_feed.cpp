#include "scheduler/service/telemetry_feed.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <utility>

#include "metrics/telemetry/telemetry.h"

namespace saesweep::scheduler {
namespace {

using namespace std::chrono_literals;
using journal::Task;
using metrics::TaskPhase;

constexpr Duration kShowEvery = 200ms;
constexpr Duration kRateOver = 3s;
constexpr std::size_t kIdDigits = 12;
constexpr double kMostTokens = 9007199254740992;  // that a double counts
constexpr int kOfTheTime = 50;  // looking at every task takes at most one part of so many

// When to look again after a look that took from `begin` to now.
TimePoint due_after(TimePoint now, TimePoint begin) {
  const Duration took = std::chrono::steady_clock::now() - begin;
  return now + std::max<Duration>(kShowEvery, kOfTheTime * took);
}

metrics::TaskKind kind_of(protocol::TaskKind kind) {
  if (kind == protocol::TASK_KIND_EVALUATE) return metrics::TaskKind::kEvaluate;
  return kind == protocol::TASK_KIND_TRAIN_LM ? metrics::TaskKind::kTrainLm
                                              : metrics::TaskKind::kTrain;
}

TaskPhase phase_of(const Task& task) {
  switch (task.phase_case()) {
    case Task::kBlocked:
    case Task::PHASE_NOT_SET:
      return TaskPhase::kBlocked;
    case Task::kReady:
      return TaskPhase::kReady;
    case Task::kBackoff:
      return TaskPhase::kBackoff;
    case Task::kAssigned:
      return TaskPhase::kAssigned;
    case Task::kRunning:
      return TaskPhase::kRunning;
    case Task::kSucceeded:
    case Task::kDiverged:  // it ended as it should; the row says how
      return TaskPhase::kSucceeded;
    case Task::kFailed:
      return TaskPhase::kFailed;
    case Task::kSkipped:
      return TaskPhase::kSkipped;
    case Task::kCancelled:
      return TaskPhase::kCancelled;
    case Task::kStopped:
      return TaskPhase::kStopped;
  }
  return TaskPhase::kBlocked;
}

// Null: it is no trial's.
const journal::Subject* trial_of(const SweepState& state, const std::string& task) {
  for (const SweepState::Want& want : state.wants(task)) {
    if (want.subject < 0) continue;
    const journal::Subject& subject = state.sweep_of(want).subjects(want.subject);
    if (!subject.baseline()) return &subject;
  }
  return nullptr;
}

}  // namespace

void TelemetryFeed::show_if_due(const SweepState& state, TimePoint now) {
  if (now < due_) return;
  const TimePoint begin = std::chrono::steady_clock::now();
  show(state);
  due_ = due_after(now, begin);
}

void TelemetryFeed::show(const SweepState& state) {
  if (telemetry_ == nullptr) return;
  std::array<std::array<std::uint64_t, metrics::kTaskPhases>, metrics::kTaskKinds> tasks{};
  for (const auto& [id, entry] : state.tasks())
    ++tasks[static_cast<std::size_t>(kind_of(entry.task.spec().kind()))]
           [static_cast<std::size_t>(phase_of(entry.task))];
  for (std::size_t kind = 0; kind < metrics::kTaskKinds; ++kind)
    for (std::size_t phase = 0; phase < metrics::kTaskPhases; ++phase)
      telemetry_->set_tasks(static_cast<metrics::TaskKind>(kind), static_cast<TaskPhase>(phase),
                            tasks[kind][phase]);
  std::array<std::uint64_t, metrics::kSweepPhases> sweeps{};
  for (const auto& [name, sweep] : state.sweeps()) {
    const auto phase = sweep.ended() != 0 ? metrics::SweepPhase::kDone
                       : sweep.active()   ? metrics::SweepPhase::kRunning
                                          : metrics::SweepPhase::kPaused;
    ++sweeps[static_cast<std::size_t>(phase)];
  }
  for (std::size_t phase = 0; phase < metrics::kSweepPhases; ++phase)
    telemetry_->set_sweeps(static_cast<metrics::SweepPhase>(phase), sweeps[phase]);
}

void TelemetryFeed::observe(const std::string& worker, const protocol::AgentCounters& counters,
                            TimePoint now) {
  if (telemetry_ == nullptr) return;
  telemetry_->observe_agent(worker, {.cache_hits = counters.cache_hits(),
                                     .cache_misses = counters.cache_misses(),
                                     .cache_bytes = counters.cache_bytes(),
                                     .cache_evicted_bytes = counters.cache_evicted_bytes(),
                                     .cache_corrupt_chunks = counters.cache_corrupt_chunks(),
                                     .cache_refused_writes = counters.cache_refused_writes(),
                                     .chunks_fetched = counters.chunks_fetched(),
                                     .chunk_bytes_fetched = counters.chunk_bytes_fetched(),
                                     .chunks_served = counters.chunks_served(),
                                     .chunk_bytes_served = counters.chunk_bytes_served(),
                                     .chunk_fetches_failed = counters.chunk_fetches_failed(),
                                     .executor_restarts = counters.executor_restarts(),
                                     .trained_tokens = counters.tokens_trained(),
                                     .harvested_tokens = counters.tokens_harvested(),
                                     .training_us = counters.training_us(),
                                     .waiting_us = counters.waiting_us()});
  const auto [found, is_new] = tokens_.try_emplace(worker);
  Tokens& tokens = found->second;
  if (is_new || counters.tokens_trained() < tokens.trained) {
    tokens = {counters.tokens_trained(), now, 0};
    return;
  }
  if (now - tokens.when < kRateOver) return;
  const std::chrono::duration<double> elapsed = now - tokens.when;
  tokens.rate = static_cast<double>(counters.tokens_trained() - tokens.trained) / elapsed.count();
  tokens.trained = counters.tokens_trained();
  tokens.when = now;
  double rate = 0;
  for (const auto& [name, each] : tokens_) rate += each.rate;
  telemetry_->set_trained_tokens_per_second(rate);
}

void TelemetryFeed::forget(const std::string& worker) {
  tokens_.erase(worker);
  if (telemetry_ != nullptr) telemetry_->forget_agent(worker);
}

void TelemetryFeed::count(protocol::TaskKind kind, protocol::Outcome outcome) {
  if (outcome == protocol::OUTCOME_AT_RUNG) return;  // the task is not over
  if (telemetry_ == nullptr) return;
  using metrics::AttemptOutcome;
  const auto ended = outcome == protocol::OUTCOME_DONE       ? AttemptOutcome::kDone
                     : outcome == protocol::OUTCOME_DIVERGED ? AttemptOutcome::kDiverged
                     : outcome == protocol::OUTCOME_LOST     ? AttemptOutcome::kLost
                     : outcome == protocol::OUTCOME_RETRY    ? AttemptOutcome::kRetry
                                                             : AttemptOutcome::kFailed;
  telemetry_->count_attempt(kind_of(kind), ended);
}

// ---- progress -----------------------------------------------------------------------------------

std::optional<Json> ProgressFeed::hear(const SweepState& state, const protocol::Progress& progress,
                                       TimePoint now) {
  const journal::Run* run = state.find_run(progress.run_id());
  if (run == nullptr || run->worker().empty()) return std::nullopt;
  runs_[progress.run_id()] = progress;
  TimePoint& due = due_[progress.stage()];
  if (now < due) return std::nullopt;
  const TimePoint begin = std::chrono::steady_clock::now();
  std::erase_if(runs_, [&](const auto& entry) {
    const journal::Run* other = state.find_run(entry.first);
    return other == nullptr || other->worker().empty();
  });
  Json event = progress.stage() == "train"      ? train(state)
               : progress.stage() == "evaluate" ? evaluate(state)
                                                : sum_of_runs(progress.stage());
  event["event"] = "stage.progress";
  event["stage"] = progress.stage();
  if (const journal::Sweep* sweep = state.active_sweep_of(run->tasks(0)); sweep != nullptr)
    event["sweep"] = sweep->name();
  due = due_after(now, begin);
  return event;
}

double ProgressFeed::rate_of(const std::string& stage) const {
  double rate = 0;
  for (const auto& [id, progress] : runs_)
    if (progress.stage() == stage) rate += progress.rate();
  return rate;
}

Json ProgressFeed::sum_of_runs(const std::string& stage) const {
  std::uint64_t done = 0, total = 0;
  std::string unit;
  for (const auto& [id, progress] : runs_) {
    if (progress.stage() != stage) continue;
    done += progress.done();
    total += progress.total();
    unit = progress.unit();
  }
  return {{"done", done}, {"total", total}, {"unit", unit}, {"rate", rate_of(stage)}};
}

// Tokens over all trials of the active sweeps.
Json ProgressFeed::train(const SweepState& state) {
  std::map<std::string, std::uint64_t> running;
  for (const auto& [id, progress] : runs_)
    for (const auto& member : progress.members()) running[member.task()] = member.tokens();
  std::uint64_t done = 0, total = 0;
  for (const auto& [id, entry] : state.tasks()) {
    const Task& task = entry.task;
    if (task.spec().kind() != protocol::TASK_KIND_TRAIN || state.active_sweep_of(id) == nullptr)
      continue;
    total += task.spec().tokens();
    const auto found = running.find(id);
    if (is_finished(task))
      done += task.spec().tokens();
    else
      done += std::max(found == running.end() ? 0 : found->second, task.checkpoint().tokens());
  }
  double waiting = 0;
  int training = 0;
  for (const auto& [id, progress] : runs_) {
    if (progress.stage() != "train") continue;
    waiting += progress.waiting();
    ++training;
  }
  Json event{{"done", done}, {"total", total}, {"unit", "tokens"}, {"rate", rate_of("train")}};
  if (training > 0) event["waiting"] = waiting / training;
  if (Json looks = new_looks(state); !looks.empty()) event["heldout"] = std::move(looks);
  return event;
}

Json ProgressFeed::new_looks(const SweepState& state) {
  Json looks = Json::array();
  std::map<std::string, double> told;
  for (const auto& [id, progress] : runs_)
    for (const auto& member : progress.members()) {
      const auto& metrics = member.metrics();
      const auto tokens = metrics.find("heldout_tokens");
      if (tokens == metrics.end() || !(tokens->second >= 0 && tokens->second <= kMostTokens))
        continue;
      told[member.task()] = tokens->second;
      const auto before = told_.find(member.task());
      if (before != told_.end() && before->second == tokens->second) continue;
      const journal::Subject* trial = trial_of(state, member.task());
      if (trial == nullptr) continue;
      Json look{{"trial", trial->identity().substr(0, kIdDigits)},
                {"tokens", static_cast<std::uint64_t>(tokens->second)}};
      for (const char* name : {"loss", "mse", "fve", "l0", "dead_fraction"})
        if (const auto found = metrics.find(std::string("heldout_") + name);
            found != metrics.end() && std::isfinite(found->second))
          look[name] = found->second;
      looks.push_back(std::move(look));
    }
  told_ = std::move(told);
  return looks;
}

// How many are there, counting those under way by what they have behind them.
Json ProgressFeed::evaluate(const SweepState& state) const {
  std::uint64_t total = 0;
  double done = 0;
  for (const auto& [id, entry] : state.tasks()) {
    const Task& task = entry.task;
    if (task.spec().kind() != protocol::TASK_KIND_EVALUATE || state.active_sweep_of(id) == nullptr)
      continue;
    ++total;
    done += is_finished(task) ? 1 : 0;
  }
  for (const auto& [id, progress] : runs_)
    for (const auto& member : progress.members()) {
      const Task* task = state.find_task(member.task());
      if (progress.stage() == "evaluate" && task != nullptr && is_leased(*task) &&
          member.steps() > 0)
        done +=
            std::min(1.0, static_cast<double>(member.step()) / static_cast<double>(member.steps()));
    }
  return {{"done", done}, {"total", total}, {"unit", "evaluations"}};
}

}  // namespace saesweep::scheduler
