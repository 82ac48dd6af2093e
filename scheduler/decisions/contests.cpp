// Early stopping: reports are counted, those that go on are chosen, the others stop.
#include <algorithm>
#include <limits>

#include "core/log.h"
#include "scheduler/decisions/decider.h"
#include "scheduler/decisions/placement.h"
#include "scheduler/decisions/standings.h"

namespace saesweep::scheduler {
namespace {

using journal::Standing;
using journal::Sweep;
using journal::Task;

// What was computed at a rung, by the evaluation that computed it.
using Evaluations = std::map<std::string, Json>;

Result<Evaluations> evaluations_of(const protocol::TaskResult& result) {
  SAE_TRY(const Json summary, parse_json(result.summary()));
  if (!summary.is_object() || !summary.contains("evaluations") ||
      !summary["evaluations"].is_array() ||
      summary.value("tokens", std::uint64_t{0}) != result.checkpoint().tokens() ||
      result.checkpoint().path().empty())
    return fail(ErrorCode::kCorrupted, "a report without checkpoint or evaluations");
  Evaluations evaluations;
  for (const Json& each : summary["evaluations"]) {
    if (!each.is_object() || !each.contains("evaluation") || !each.contains("scores") ||
        !each["scores"].is_object())
      return fail(ErrorCode::kCorrupted, "an evaluation without scores");
    Json scores{{"scores", each["scores"]}};
    if (each.contains("heldout")) scores["heldout"] = each["heldout"];
    evaluations.emplace(canonical_json(each["evaluation"]), std::move(scores));
  }
  return evaluations;
}

double value_of(const Json& scores, const std::string& name) {
  constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
  const auto score = scores["scores"].find(name);
  if (score == scores["scores"].end() || !score->is_object()) return kNone;
  const auto value = score->find("value");
  return value != score->end() && value->is_number() ? value->get<double>() : kNone;
}

// The rung that stands there, from the one that it goes to.
std::optional<std::uint32_t> rung_at(const Sweep& sweep, const Task& task, const Standing& standing,
                                     std::uint64_t tokens) {
  for (std::uint32_t rung = standing.rung();; ++rung) {
    const auto there = tokens_at(sweep, task, standing, rung);
    if (!there || *there > tokens) return std::nullopt;
    if (*there == tokens) return rung;
  }
}

// What the report says to this sweep; nothing if it did not ask.
std::optional<journal::TaskReported::Entry> entry_of(const SweepState& state, const Sweep& sweep,
                                                     const Task& task, std::uint64_t tokens,
                                                     const Evaluations& evaluations) {
  const Standing* standing = standing_of(task, sweep.name());
  if (standing == nullptr || !state.contest(sweep.name())->is_on_the_way(standing->row()))
    return std::nullopt;
  const auto rung = rung_at(sweep, task, *standing, tokens);
  if (!rung) return std::nullopt;
  journal::TaskReported::Entry entry;
  entry.set_sweep(sweep.name());
  entry.mutable_report()->set_rung(*rung);
  entry.mutable_report()->set_tokens(tokens);
  Json scores = Json::array();
  std::set<std::string> seen;
  for (const auto& metric : sweep.early_stopping().metrics()) {
    const auto found = evaluations.find(metric.evaluation());
    if (found == evaluations.end()) return std::nullopt;
    entry.mutable_report()->add_values(value_of(found->second, metric.name()));
    if (seen.insert(found->first).second) scores.push_back(found->second);
  }
  entry.set_scores(canonical_json(scores));
  return entry;
}

}  // namespace

// Committed once: a lease ends at one rung.
const char* Decider::judge_report(const ResultHeard& heard, const Task& task) {
  const protocol::TaskResult& result = heard.result;
  const auto evaluations = evaluations_of(result);
  if (evaluations && !heard.artifacts_are_there && result.travelled()) return "missing";
  if (!evaluations || !heard.artifacts_are_there) {
    const std::string why =
        evaluations ? "its checkpoint is not there" : evaluations.error().message;
    log::error("report.invalid task={} fence={} problem={}", result.task(), result.fence(), why);
    if (is_leased(task)) retry(task, why);
    return "invalid";
  }
  journal::TaskReported reported;
  *reported.mutable_result() = result;
  for (const SweepState::Want& want : state_.wants(result.task())) {
    if (want.subject < 0 || !state_.is_wanted(want)) continue;
    auto entry =
        entry_of(state_, state_.sweep_of(want), task, result.checkpoint().tokens(), *evaluations);
    if (entry) *reported.add_entries() = std::move(*entry);
  }
  *event().mutable_task_reported() = reported;
  std::set<std::string> stopped_in;
  std::string last_reason;
  for (const auto& entry : reported.entries()) {
    const Sweep& sweep = state_.sweeps().at(entry.sweep());
    const Contest& contest = *state_.contest(entry.sweep());
    if (contest.promotes()) continue;
    const TrialIndex row = standing_of(task, entry.sweep())->row();
    const journal::RungReport& report = entry.report();
    const Contest::Verdict verdict = contest.judge(
        row, report.rung(), report.tokens(), {report.values().begin(), report.values().end()});
    if (verdict.goes_on) {
      promote(sweep, {row, report.rung() + 1, verdict.reason});
      continue;
    }
    auto& stopped = *event().mutable_trial_stopped();
    stopped.set_task(result.task());
    stopped.set_sweep(entry.sweep());
    stopped.set_reason(verdict.reason);
    stopped_in.insert(entry.sweep());
    last_reason = verdict.reason;
  }
  const bool is_wanted =
      std::ranges::any_of(state_.wants(result.task()), [&](const SweepState::Want& want) {
        return state_.is_wanted(want) && !stopped_in.contains(state_.sweep_of(want).name());
      });
  if (!stopped_in.empty() && !is_wanted) {
    event().mutable_task_stopped()->set_task(result.task());
    decision_.events.back().mutable_task_stopped()->set_reason(last_reason);
  }
  return "committed";
}

void Decider::promote(const Sweep& sweep, const Contest::Step& step) {
  auto& promoted = *event().mutable_trial_promoted();
  promoted.set_task(sweep.subjects(static_cast<int>(step.trial)).train_task());
  promoted.set_sweep(sweep.name());
  promoted.set_rung(static_cast<std::uint32_t>(step.rung));
  promoted.set_reason(step.reason);
}

// Of a trial that waits.
void Decider::stop(const Sweep& sweep, TrialIndex row, std::string reason) {
  const std::string& id = sweep.subjects(static_cast<int>(row)).train_task();
  auto& stopped = *event().mutable_trial_stopped();
  stopped.set_task(id);
  stopped.set_sweep(sweep.name());
  stopped.set_reason(reason);
  const Task& task = *state_.find_task(id);
  if (state_.is_wanted(id, sweep.name()) || is_leased(task) || is_finished(task)) return;
  event().mutable_task_stopped()->set_task(id);
  decision_.events.back().mutable_task_stopped()->set_reason(std::move(reason));
}

bool Decider::settle_contests() {
  const std::vector<Room> rooms = survey(state_, now_);
  const bool has_room = std::ranges::any_of(
      rooms, [](const Room& room) { return room.availability == Availability::kFree; });
  const std::size_t before = decision_.events.size();
  for (const auto& [name, contest] : state_.contests()) {
    const Sweep& sweep = state_.sweeps().at(name);
    if (!is_working(sweep) || !contest.promotes() || contest.waiting().empty()) continue;
    // Nobody is promoted before a slot asks for work: who comes until then is compared with too.
    std::vector<Contest::Step> steps = contest.promotions();
    if (steps.empty() && contest.is_idle()) {
      steps = contest.promotions_at_the_end();
      if (steps.empty())
        for (const TrialIndex row : contest.waiting())
          stop(sweep, row, contest.place_of(row).to_string() + "; not among those that go on");
    }
    if (has_room)
      for (const Contest::Step& step : steps) promote(sweep, step);
  }
  return decision_.events.size() > before;
}

}  // namespace saesweep::scheduler
