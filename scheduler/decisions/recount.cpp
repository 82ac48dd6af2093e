#include "scheduler/decisions/recount.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "scheduler/decisions/standings.h"

namespace saesweep::scheduler {
namespace {

using journal::Standing;
using journal::Task;

// A trial as the objects have it.
struct Trial {
  TrialIndex row = 0;
  const Standing* standing = nullptr;
  bool finished = false, gone = false;
  bool waits() const { return standing->waits() && !finished && !gone; }
  bool on_the_way() const { return !standing->waits() && !finished && !gone; }
};

class Recount {
 public:
  Recount(const SweepState& state, const journal::Sweep& sweep)
      : settings_(sweep.early_stopping()), rules_(rules_of(settings_)) {
    for (int row = 0; row < sweep.subjects_size(); ++row) {
      const Task* task = state.find_task(sweep.subjects(row).train_task());
      const Standing* standing = task == nullptr || sweep.subjects(row).baseline()
                                     ? nullptr
                                     : standing_of(*task, sweep.name());
      if (standing == nullptr) continue;
      const bool gone = (is_finished(*task) && !task->has_succeeded()) ||
                        !standing->stopped().empty() || sweep.subjects(row).cancelled();
      trials_.push_back(
          {static_cast<TrialIndex>(row), standing, task->has_succeeded() && !gone, gone});
    }
  }

  std::string promoted(const Standing& standing, std::uint32_t to) const {
    if (!standing.waits()) return "it did not wait";
    const std::uint32_t from = standing.rung();
    if (to != from + 1) return fmt::format("it went from rung {} to {}", from, to);
    if (!rules_.promotes) return judged(standing, true);
    const auto first = candidate(standing.bracket());
    if (first) return *first == standing.row() ? "" : fmt::format("row {} is better", *first);
    const auto last = at_the_end(standing.bracket());
    if (last && *last == standing.row()) return {};
    return "the rule has nobody go on";
  }

  std::string stopped(const Standing& standing) const {
    if (!rules_.promotes) return standing.waits() ? judged(standing, false) : "it did not wait";
    for (const Trial& trial : trials_)
      if (trial.on_the_way()) return fmt::format("row {} is on the way", trial.row);
    for (std::uint32_t bracket = 0; bracket < rules_.brackets; ++bracket)
      if (candidate(bracket) || at_the_end(bracket)) return "somebody may go on";
    return {};
  }

 private:
  static double at_worst(double value) {
    return std::isfinite(value) ? value : std::numeric_limits<double>::infinity();
  }
  double loss(double value, std::size_t metric) const {
    return at_worst(rules_.maximize[metric] ? -value : value);
  }

  // Those that reported there, the best first.
  std::vector<const Trial*> ranked(std::uint32_t bracket, std::uint32_t rung) const {
    std::vector<const Trial*> there;
    std::vector<TwoValues> values;
    for (const Trial& trial : trials_) {
      if (trial.standing->bracket() != bracket) continue;
      for (const auto& report : trial.standing->reports()) {
        if (report.rung() != rung) continue;
        there.push_back(&trial);
        values.push_back(
            {loss(report.values(0), 0), report.values_size() > 1 ? loss(report.values(1), 1) : 0});
      }
    }
    std::vector<std::size_t> order(there.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
    if (rules_.maximize.size() > 1)
      order = rank_by_fronts(values);
    else
      std::ranges::stable_sort(order, {}, [&](std::size_t i) { return values[i].first; });
    std::vector<const Trial*> sorted;
    for (const std::size_t i : order) sorted.push_back(there[i]);
    return sorted;
  }
  static bool waits_at(const Trial& trial, std::uint32_t rung) {
    return trial.waits() && trial.standing->rung() == rung;
  }

  // Of the highest rung that has one, the best among the best floor(n / eta) that waits.
  std::optional<TrialIndex> candidate(std::uint32_t bracket) const {
    for (auto rung = static_cast<std::uint32_t>(rules_.rungs); rung-- > bracket;) {
      const auto order = ranked(bracket, rung);
      for (std::size_t i = 0; i < order.size() / rules_.eta; ++i)
        if (waits_at(*order[i], rung)) return order[i]->row;
    }
    return std::nullopt;
  }
  std::optional<TrialIndex> at_the_end(std::uint32_t bracket) const {
    for (const Trial& trial : trials_)
      if (trial.standing->bracket() == bracket && (trial.finished || trial.on_the_way()))
        return std::nullopt;
    for (auto rung = static_cast<std::uint32_t>(rules_.rungs); rung-- > bracket;)
      for (const Trial* trial : ranked(bracket, rung))
        if (waits_at(*trial, rung)) return trial->row;
    return std::nullopt;
  }

  static Curve curve_of(const Standing& standing, double sign) {
    Curve curve;
    for (const auto& report : standing.reports())
      curve.push_back({report.tokens(), sign * report.values(0)});
    return curve;
  }
  bool goes_on(const Standing& standing) const {
    const double sign = rules_.maximize[0] && settings_.rule() != "threshold" ? -1 : 1;
    if (settings_.rule() == "patience") return !rules_.patience.stops(curve_of(standing, sign));
    if (settings_.rule() == "threshold") return !rules_.threshold.stops(curve_of(standing, sign));
    if (settings_.rule() == "percentile") {
      std::map<TrialIndex, Curve> curves;
      for (const Trial& trial : trials_) curves[trial.row] = curve_of(*trial.standing, sign);
      return !rules_.percentile.stops(curves, standing.row());
    }
    const auto order = ranked(standing.bracket(), standing.rung());
    if (order.size() < rules_.min_reports) return true;
    const std::size_t room = std::max<std::size_t>(1, order.size() / rules_.eta);
    for (std::size_t i = 0; i < room; ++i)
      if (order[i]->row == standing.row()) return true;
    return false;
  }
  std::string judged(const Standing& standing, bool went_on) const {
    if (goes_on(standing) == went_on) return {};
    return went_on ? "the rule stops it" : "the rule lets it go on";
  }

  const journal::EarlyStopping& settings_;
  ContestRules rules_;
  std::vector<Trial> trials_;
};

}  // namespace

std::string broken_decision(const SweepState& before, const journal::Event& event) {
  const auto find = [&](const auto& decision, const auto& check) -> std::string {
    const auto sweep = before.sweeps().find(decision.sweep());
    const Task* task = before.find_task(decision.task());
    const Standing* standing = task == nullptr ? nullptr : standing_of(*task, decision.sweep());
    if (sweep == before.sweeps().end() || standing == nullptr)
      return fmt::format("{} does not take part in {}", decision.task(), decision.sweep());
    const std::string wrong = check(Recount(before, sweep->second), *standing);
    return wrong.empty() ? wrong
                         : fmt::format("{} in {}, decided by \"{}\": {}", decision.task(),
                                       decision.sweep(), decision.reason(), wrong);
  };
  if (event.has_trial_promoted() && !event.trial_promoted().by_person())
    return find(event.trial_promoted(), [&](const Recount& recount, const Standing& standing) {
      return recount.promoted(standing, event.trial_promoted().rung());
    });
  if (event.has_trial_stopped())
    return find(event.trial_stopped(), [](const Recount& recount, const Standing& standing) {
      return recount.stopped(standing);
    });
  return {};
}

}  // namespace saesweep::scheduler
