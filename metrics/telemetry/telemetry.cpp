#include "metrics/telemetry/telemetry.h"

#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <algorithm>
#include <array>
#include <map>
#include <mutex>

namespace saesweep::metrics {
namespace {

constexpr std::array<std::string_view, kSweepPhases> kSweepPhaseNames{
    "open", "running", "paused", "draining", "done", "failed", "cancelled"};
constexpr std::array<std::string_view, kTaskKinds> kTaskKindNames{"train", "evaluate", "train_lm"};
constexpr std::array<std::string_view, kTaskPhases> kTaskPhaseNames{
    "blocked",  "ready",       "backoff",   "assigned", "running", "pausing",   "paused",
    "stopping", "quarantined", "succeeded", "stopped",  "failed",  "cancelled", "skipped"};
constexpr std::array<std::string_view, kAttemptOutcomes> kAttemptOutcomeNames{
    "done", "diverged", "failed", "lost", "retry"};

template <class Enum>
std::size_t index_of(Enum value) {
  return static_cast<std::size_t>(value);
}

// What came since `before`, if `now` counts on; all of it if it counts from 0 again.
double growth(std::uint64_t before, std::uint64_t now) {
  return static_cast<double>(now >= before ? now - before : now);
}

}  // namespace

std::string_view to_string(SweepPhase value) { return kSweepPhaseNames[index_of(value)]; }
std::string_view to_string(TaskKind value) { return kTaskKindNames[index_of(value)]; }
std::string_view to_string(TaskPhase value) { return kTaskPhaseNames[index_of(value)]; }
std::string_view to_string(AttemptOutcome value) { return kAttemptOutcomeNames[index_of(value)]; }

struct Telemetry::State {
  prometheus::Registry registry;

  // Children of families live as long as the registry, so these may be kept; looking one up anew
  // would lock and allocate.
  std::array<prometheus::Gauge*, kSweepPhases> sweeps{};
  std::array<std::array<prometheus::Gauge*, kTaskPhases>, kTaskKinds> tasks{};
  std::array<std::array<prometheus::Counter*, kAttemptOutcomes>, kTaskKinds> attempts{};

  prometheus::Gauge& workers = gauge("saesweep_workers", "Agents connected.");
  prometheus::Counter& trained_tokens = counter(
      "saesweep_trained_tokens_total", "Tokens trained on, summed over the trials of a cohort.");
  prometheus::Gauge& trained_tokens_per_second = gauge(
      "saesweep_trained_tokens_per_second", "Tokens trained on a second, lately, all trials.");
  prometheus::Counter& harvested_tokens =
      counter("saesweep_harvested_tokens_total", "Tokens run through the subject model.");
  prometheus::Counter& training_seconds =
      counter("saesweep_training_seconds_total", "Seconds in training steps, summed over runs.");
  prometheus::Counter& waiting_seconds =
      counter("saesweep_waiting_seconds_total",
              "Of the seconds in training steps, those spent on waiting for rows of the stream.");
  prometheus::Counter& cache_hits =
      counter("saesweep_cache_hits_total", "Activation chunks read from the cache.");
  prometheus::Counter& cache_misses =
      counter("saesweep_cache_misses_total", "Activation chunks asked for and not in the cache.");
  prometheus::Gauge& cache_bytes =
      gauge("saesweep_cache_bytes", "Bytes of the activation caches on disk.");
  prometheus::Counter& cache_evicted_bytes = counter(
      "saesweep_cache_evicted_bytes_total", "Bytes of activation chunks dropped to make room.");
  prometheus::Counter& cache_corrupt_chunks = counter(
      "saesweep_cache_corrupt_chunks_total", "Activation chunks whose checksum did not match.");
  prometheus::Counter& cache_refused_writes =
      counter("saesweep_cache_refused_writes_total",
              "Activation chunks trained on but not stored: disk or budget full.");
  prometheus::Counter& chunks_fetched =
      counter("saesweep_chunks_fetched_total",
              "Activation chunks that a worker got from the cache of another.");
  prometheus::Counter& chunk_bytes_fetched =
      counter("saesweep_chunk_fetched_bytes_total",
              "Bytes of the activation chunks that workers got from caches of others.");
  prometheus::Counter& chunks_served =
      counter("saesweep_chunks_served_total",
              "Activation chunks that a worker sent from its cache to another.");
  prometheus::Counter& chunk_bytes_served =
      counter("saesweep_chunk_served_bytes_total",
              "Bytes of the activation chunks that workers sent to others.");
  prometheus::Counter& chunk_fetches_failed =
      counter("saesweep_chunk_fetches_failed_total",
              "Activation chunks that another worker was asked for in vain: harvested again.");
  prometheus::Counter& executor_restarts = counter(
      "saesweep_executor_restarts_total", "Executors replaced after they ended unexpectedly.");

  // A forgotten agent is only absent: if it comes back, what it counted before is known.
  struct Agent {
    AgentTotals totals;  // as last heard
    bool present = false;
  };
  std::mutex mutex;
  std::map<std::string, Agent, std::less<>> agents;  // under mutex

  explicit State(const ProcessIdentity& process) {
    prometheus::BuildGauge()
        .Name("saesweep_build_info")
        .Help("Constant 1; the labels say what runs.")
        .Register(registry)
        .Add({{"component", process.component},
              {"version", process.version},
              {"commit", process.commit}})
        .Set(1);
    gauge("process_start_time_seconds", "Start time of the process since the Unix epoch.")
        .Set(process.start_time_s);

    auto& sweep_family = prometheus::BuildGauge()
                             .Name("saesweep_sweeps")
                             .Help("Sweeps by state.")
                             .Register(registry);
    for (std::size_t i = 0; i < kSweepPhases; ++i)
      sweeps[i] = &sweep_family.Add({{"state", std::string(kSweepPhaseNames[i])}});

    auto& task_family = prometheus::BuildGauge()
                            .Name("saesweep_tasks")
                            .Help("Tasks by kind and state.")
                            .Register(registry);
    auto& attempt_family = prometheus::BuildCounter()
                               .Name("saesweep_task_attempts_total")
                               .Help("Attempts at tasks that ended, by kind and outcome.")
                               .Register(registry);
    for (std::size_t kind = 0; kind < kTaskKinds; ++kind) {
      const std::string kind_name(kTaskKindNames[kind]);
      for (std::size_t i = 0; i < kTaskPhases; ++i)
        tasks[kind][i] =
            &task_family.Add({{"kind", kind_name}, {"state", std::string(kTaskPhaseNames[i])}});
      for (std::size_t i = 0; i < kAttemptOutcomes; ++i)
        attempts[kind][i] = &attempt_family.Add(
            {{"kind", kind_name}, {"outcome", std::string(kAttemptOutcomeNames[i])}});
    }
  }

  prometheus::Gauge& gauge(const char* name, const char* help) {
    return prometheus::BuildGauge().Name(name).Help(help).Register(registry).Add({});
  }
  prometheus::Counter& counter(const char* name, const char* help) {
    return prometheus::BuildCounter().Name(name).Help(help).Register(registry).Add({});
  }

  // Called with mutex held, after `agents` changed.
  void refresh_gauges() {
    double bytes = 0;
    double present = 0;
    for (const auto& [worker, agent] : agents) {
      if (!agent.present) continue;
      bytes += static_cast<double>(agent.totals.cache_bytes);
      present += 1;
    }
    cache_bytes.Set(bytes);
    workers.Set(present);
  }
};

Telemetry::Telemetry(const ProcessIdentity& process) : state_(std::make_unique<State>(process)) {}
Telemetry::~Telemetry() = default;

void Telemetry::set_sweeps(SweepPhase phase, std::uint64_t count) {
  state_->sweeps[index_of(phase)]->Set(static_cast<double>(count));
}

void Telemetry::set_tasks(TaskKind kind, TaskPhase phase, std::uint64_t count) {
  state_->tasks[index_of(kind)][index_of(phase)]->Set(static_cast<double>(count));
}

void Telemetry::count_attempt(TaskKind kind, AttemptOutcome outcome) {
  state_->attempts[index_of(kind)][index_of(outcome)]->Increment();
}

void Telemetry::set_trained_tokens_per_second(double rate) {
  state_->trained_tokens_per_second.Set(rate);
}

void Telemetry::observe_agent(std::string_view worker, const AgentTotals& totals) {
  State& state = *state_;
  const std::lock_guard lock(state.mutex);
  auto& [before, present] = state.agents[std::string(worker)];
  const auto add = [&, &before = before](prometheus::Counter& counter,
                                         std::uint64_t AgentTotals::*field, double unit = 1) {
    counter.Increment(unit * growth(before.*field, totals.*field));
  };
  add(state.cache_hits, &AgentTotals::cache_hits);
  add(state.cache_misses, &AgentTotals::cache_misses);
  add(state.cache_evicted_bytes, &AgentTotals::cache_evicted_bytes);
  add(state.cache_corrupt_chunks, &AgentTotals::cache_corrupt_chunks);
  add(state.cache_refused_writes, &AgentTotals::cache_refused_writes);
  add(state.chunks_fetched, &AgentTotals::chunks_fetched);
  add(state.chunk_bytes_fetched, &AgentTotals::chunk_bytes_fetched);
  add(state.chunks_served, &AgentTotals::chunks_served);
  add(state.chunk_bytes_served, &AgentTotals::chunk_bytes_served);
  add(state.chunk_fetches_failed, &AgentTotals::chunk_fetches_failed);
  add(state.executor_restarts, &AgentTotals::executor_restarts);
  add(state.trained_tokens, &AgentTotals::trained_tokens);
  add(state.harvested_tokens, &AgentTotals::harvested_tokens);
  add(state.training_seconds, &AgentTotals::training_us, 1e-6);
  add(state.waiting_seconds, &AgentTotals::waiting_us, 1e-6);
  before = totals;
  present = true;
  state.refresh_gauges();
}

void Telemetry::forget_agent(std::string_view worker) {
  const std::lock_guard lock(state_->mutex);
  if (const auto found = state_->agents.find(worker); found != state_->agents.end())
    found->second.present = false;
  state_->refresh_gauges();
}

std::string Telemetry::expose() const {
  std::vector<prometheus::MetricFamily> families = state_->registry.Collect();
  // The registry keeps series in hash order; sorted, two pages can be compared.
  std::ranges::sort(families, {}, &prometheus::MetricFamily::name);
  for (auto& family : families)
    std::ranges::sort(family.metric,
                      [](const auto& a, const auto& b) { return a.label < b.label; });
  return prometheus::TextSerializer().Serialize(families);
}

}  // namespace saesweep::metrics
