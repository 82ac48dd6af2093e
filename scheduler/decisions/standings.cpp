#include "scheduler/decisions/standings.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

namespace saesweep::scheduler {

using journal::Standing;
using journal::Sweep;
using journal::Task;

const Standing* standing_of(const Task& task, const std::string& sweep) {
  const auto found = std::ranges::find_if(
      task.standings(), [&](const Standing& each) { return each.sweep() == sweep; });
  return found == task.standings().end() ? nullptr : &*found;
}

Standing* standing_of(Task& task, const std::string& sweep) {
  for (Standing& each : *task.mutable_standings())
    if (each.sweep() == sweep) return &each;
  return nullptr;
}

std::optional<std::uint64_t> tokens_at(const Sweep& sweep, const Task& task,
                                       const Standing& standing, std::uint32_t rung) {
  const auto& rungs = sweep.early_stopping().rungs();
  if (rung >= static_cast<std::uint32_t>(rungs.size()) || standing.batch() == 0)
    return std::nullopt;
  const std::uint64_t tokens = rungs[static_cast<int>(rung)] / standing.batch() * standing.batch();
  if (tokens >= task.spec().tokens()) return std::nullopt;
  return tokens;
}

std::optional<std::uint32_t> next_rung(const Sweep& sweep, const Task& task,
                                       const Standing& standing) {
  for (std::uint32_t rung = standing.rung();; ++rung) {
    const auto tokens = tokens_at(sweep, task, standing, rung);
    if (!tokens) return std::nullopt;
    if (*tokens >= task.checkpoint().tokens()) return rung;
  }
}

Leg leg_of(const SweepState& state, const Task& task) {
  Leg leg;
  for (const SweepState::Want& want : state.wants(task.spec().id())) {
    if (!state.is_working(want)) continue;
    const Sweep& sweep = state.sweep_of(want);
    const Standing* standing = standing_of(task, sweep.name());
    if (standing == nullptr) return {};
    const auto rung = next_rung(sweep, task, *standing);
    if (!rung) return {};
    const std::uint64_t tokens = *tokens_at(sweep, task, *standing, *rung);
    if (leg.until_tokens != 0 && tokens > leg.until_tokens) continue;
    if (tokens != leg.until_tokens) leg.evaluations.clear();
    leg.until_tokens = tokens;
    for (const auto& metric : sweep.early_stopping().metrics())
      if (std::ranges::find(leg.evaluations, metric.evaluation()) == leg.evaluations.end())
        leg.evaluations.push_back(metric.evaluation());
  }
  return leg;
}

ContestRules rules_of(const journal::EarlyStopping& settings) {
  ContestRules rules;
  using Kind = ContestRules::Kind;
  rules.kind = settings.rule() == "percentile"  ? Kind::kPercentile
               : settings.rule() == "patience"  ? Kind::kPatience
               : settings.rule() == "threshold" ? Kind::kThreshold
                                                : Kind::kHalving;
  rules.promotes = settings.promotes();
  for (const auto& metric : settings.metrics()) rules.maximize.push_back(metric.maximize());
  rules.rungs = static_cast<std::size_t>(settings.rungs_size());
  rules.eta = std::max(2u, settings.eta());
  rules.min_reports = settings.min_reports();
  rules.brackets = std::max(1u, settings.brackets());
  rules.percentile = {.percentile = settings.percentile(),
                      .warmup = settings.warmup_tokens(),
                      .min_trials = settings.min_trials()};
  rules.patience = {.reports = settings.patience(), .min_delta = settings.min_delta()};
  rules.threshold.warmup = settings.warmup_tokens();
  if (settings.has_low()) rules.threshold.low = settings.low();
  if (settings.has_high()) rules.threshold.high = settings.high();
  return rules;
}

Contest contest_of(const SweepState& state, const Sweep& sweep) {
  Contest contest(rules_of(sweep.early_stopping()));
  for (int row = 0; row < sweep.subjects_size(); ++row) {
    const journal::Subject& subject = sweep.subjects(row);
    const Task* task = state.find_task(subject.train_task());
    const Standing* standing =
        task == nullptr || subject.baseline() ? nullptr : standing_of(*task, sweep.name());
    if (standing == nullptr || standing->row() != static_cast<std::uint32_t>(row)) continue;
    const auto trial = static_cast<TrialIndex>(row);
    contest.enter(trial, standing->bracket());
    for (const journal::RungReport& report : standing->reports()) {
      contest.report(trial, report.rung(), report.tokens(),
                     {report.values().begin(), report.values().end()});
      if (standing->rung() > report.rung()) contest.went_on(trial);
    }
    // Who left stays so, though another sweep may have it trained to its end.
    if (!standing->stopped().empty() || subject.cancelled())
      contest.leave(trial);
    else if (task->has_succeeded())
      contest.finish(trial);
    else if (is_finished(*task))
      contest.leave(trial);
  }
  return contest;
}

std::string wait_text(const SweepState& state, const Task& task, const Sweep& sweep) {
  const Standing* standing = standing_of(task, sweep.name());
  if (standing == nullptr || !standing->waits()) return {};
  const Contest& contest = *state.contest(sweep.name());
  const Contest::Place place = contest.place_of(standing->row());
  std::string text = fmt::format("waits in sweep {}: {}", sweep.name(), place.to_string());
  if (place.of == 0) return text;
  if (place.rank <= place.go_on) return text + "; goes on when a worker has room";
  if (place.go_on == 0)
    return text + fmt::format("; the best one goes on when {} have come",
                              rules_of(sweep.early_stopping()).eta);
  return text + fmt::format("; the best {} go on", place.go_on);
}

}  // namespace saesweep::scheduler
