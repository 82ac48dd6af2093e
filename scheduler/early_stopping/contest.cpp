#include "scheduler/early_stopping/contest.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "core/check.h"

namespace saesweep::scheduler {
namespace {

std::string ordinal(std::size_t number) {
  const std::size_t tens = number % 100, ones = number % 10;
  const bool teens = tens >= 11 && tens <= 13;
  const char* ending = teens || ones == 0 || ones > 3 ? "th"
                       : ones == 1                    ? "st"
                       : ones == 2                    ? "nd"
                                                      : "rd";
  return fmt::format("{}{}", number, ending);
}

std::string value_text(const std::vector<double>& values) {
  std::vector<std::string> words;
  for (const double value : values)
    words.push_back(std::isfinite(value) ? fmt::format("{:.6g}", value) : "not finite");
  return fmt::format("{}", fmt::join(words, ", "));
}

}  // namespace

Contest::Contest(ContestRules rules) : rules_(std::move(rules)) {
  SAE_CHECK(rules_.brackets >= 1 && rules_.brackets <= std::max<std::size_t>(1, rules_.rungs),
            "{} brackets of {} rungs", rules_.brackets, rules_.rungs);
  if (rules_.kind != ContestRules::Kind::kHalving) return;
  for (std::uint32_t bracket = 0; bracket < rules_.brackets; ++bracket)
    ladders_.push_back(ladder(bracket));
}

// Its own rungs and the end.
AshaPromotion Contest::ladder(std::uint32_t bracket) const {
  return {rules_.rungs - bracket + 1, rules_.eta};
}

double Contest::loss_of(double value, std::size_t metric) const {
  return metric < rules_.maximize.size() && rules_.maximize[metric] ? -value : value;
}

bool Contest::operator==(const Contest& other) const {
  return entries_ == other.entries_ && on_the_way_ == other.on_the_way_ &&
         ladders_ == other.ladders_;  // curves are what the entries say
}

bool Contest::Report::operator==(const Report& other) const {
  return tokens == other.tokens && std::ranges::equal(values, other.values, [](double a, double b) {
           return a == b || (std::isnan(a) && std::isnan(b));
         });
}

// ---- facts --------------------------------------------------------------------------------------

void Contest::enter(TrialIndex trial, std::uint32_t bracket) {
  SAE_CHECK(bracket < rules_.brackets, "trial {} in bracket {}", trial, bracket);
  SAE_CHECK(entries_.emplace(trial, Entry{.bracket = bracket}).second, "trial {} twice", trial);
  ++on_the_way_;
}

void Contest::report(TrialIndex trial, std::size_t rung, std::uint64_t tokens,
                     const std::vector<double>& values) {
  Entry& entry = entries_.at(trial);
  SAE_CHECK(rung < rules_.rungs && entry.is_on_the_way() && !values.empty(), "trial {} at rung {}",
            trial, rung);
  entry.waits = true;
  waiting_.insert(trial);
  --on_the_way_;
  SAE_CHECK(entry.reports.emplace(rung, Report{tokens, values}).second, "trial {} twice at rung {}",
            trial, rung);
  if (rules_.kind != ContestRules::Kind::kHalving) {
    const bool as_it_is = rules_.kind == ContestRules::Kind::kThreshold;
    curves_[trial].push_back({tokens, as_it_is ? values[0] : loss_of(values[0], 0)});
  } else if (by_fronts()) {
    rank_anew(entry.bracket);
  } else {
    ladders_[entry.bracket].report(trial, rung - entry.bracket, loss_of(values[0], 0));
  }
}

void Contest::pass(TrialIndex trial, const Entry& entry, std::size_t rung) {
  if (rules_.kind != ContestRules::Kind::kHalving) return;
  ladders_[entry.bracket].promoted({trial, rung - entry.bracket + 1});
}

void Contest::went_on(TrialIndex trial) {
  Entry& entry = entries_.at(trial);
  SAE_CHECK(entry.waits, "trial {} goes on and did not wait", trial);
  const std::size_t rung = entry.reports.rbegin()->first;
  entry.waits = false;
  waiting_.erase(trial);
  ++on_the_way_;
  entry.passed.insert(rung);
  pass(trial, entry, rung);
}

void Contest::finish(TrialIndex trial) {
  const auto found = entries_.find(trial);
  if (found == entries_.end() || found->second.finished || found->second.left) return;
  leave(trial);
  Entry& entry = found->second;
  entry.left = false;
  entry.finished = true;
  if (rules_.kind == ContestRules::Kind::kHalving)
    ladders_[entry.bracket].report(trial, rules_.rungs - entry.bracket, 0);
}

void Contest::leave(TrialIndex trial) {
  const auto found = entries_.find(trial);
  if (found == entries_.end()) return;
  Entry& entry = found->second;
  if (entry.left || entry.finished) return;
  if (entry.waits) {
    const std::size_t rung = entry.reports.rbegin()->first;
    entry.passed.insert(rung);
    pass(trial, entry, rung);
  } else {
    --on_the_way_;
  }
  entry.waits = false;
  waiting_.erase(trial);
  entry.left = true;
}

// Two numbers make no order that a report could be filed into: the place of each among all of its
// rung is its value. O(n^2) for each report.
void Contest::rank_anew(std::uint32_t bracket) {
  AshaPromotion anew = ladder(bracket);
  for (std::size_t rung = bracket; rung < rules_.rungs; ++rung) {
    const std::vector<TrialIndex> order = ranked(bracket, rung);
    for (std::size_t place = 0; place < order.size(); ++place) {
      anew.report(order[place], rung - bracket, static_cast<double>(place));
    }
    for (const TrialIndex trial : order)
      if (entries_.at(trial).passed.contains(rung)) anew.promoted({trial, rung - bracket + 1});
  }
  for (const auto& [trial, entry] : entries_)
    if (entry.bracket == bracket && entry.finished) anew.report(trial, rules_.rungs - bracket, 0);
  ladders_[bracket] = std::move(anew);
}

std::vector<TrialIndex> Contest::ranked(std::uint32_t bracket, std::size_t rung) const {
  std::vector<TrialIndex> trials;
  std::vector<TwoValues> points;
  for (const auto& [trial, entry] : entries_) {
    if (entry.bracket != bracket) continue;
    const auto report = entry.reports.find(rung);
    if (report == entry.reports.end()) continue;
    const std::vector<double>& values = report->second.values;
    trials.push_back(trial);
    points.push_back({loss_of(values.at(0), 0), loss_of(values.at(1), 1)});
  }
  std::vector<TrialIndex> order;
  for (const std::size_t i : rank_by_fronts(points)) order.push_back(trials[i]);
  return order;
}

// ---- questions ----------------------------------------------------------------------------------

bool Contest::is_on_the_way(TrialIndex trial) const {
  const auto found = entries_.find(trial);
  return found != entries_.end() && found->second.is_on_the_way();
}

Contest::Step Contest::step_of(const AshaPromotion& ladder, std::uint32_t bracket,
                               const Promotion& promotion, const std::string& why) const {
  const Rung& rung = ladder.rung(promotion.rung - 1);
  const std::size_t from = promotion.rung - 1 + bracket;
  return {promotion.trial, promotion.rung + bracket,
          fmt::format("{}: {}", place_at(promotion.trial, rung, from).to_string(), why)};
}

std::vector<Contest::Step> Contest::promotions() const {
  std::vector<Step> steps;
  if (!rules_.promotes) return steps;
  for (std::uint32_t bracket = 0; bracket < ladders_.size(); ++bracket) {
    if (!ladders_[bracket].next()) continue;
    AshaPromotion ladder = ladders_[bracket];
    while (const auto promotion = ladder.next()) {
      steps.push_back(step_of(ladder, bracket, *promotion,
                              fmt::format("the best one in {} goes on", rules_.eta)));
      ladder.promoted(*promotion);
    }
  }
  return steps;
}

std::vector<Contest::Step> Contest::promotions_at_the_end() const {
  std::vector<Step> steps;
  if (!rules_.promotes) return steps;
  for (std::uint32_t bracket = 0; bracket < ladders_.size(); ++bracket) {
    const AshaPromotion& ladder = ladders_[bracket];
    if (ladder.reports(ladder.rungs() - 1) > 0) continue;
    for (std::size_t rung = ladder.rungs() - 1; rung-- > 0;)
      if (const auto trial = ladder.rung(rung).best_waiting()) {
        steps.push_back(step_of(ladder, bracket, {*trial, rung + 1},
                                "the best goes on to the end, so that one does"));
        break;
      }
  }
  return steps;
}

Contest::Verdict Contest::judge(TrialIndex trial, std::size_t rung, std::uint64_t tokens,
                                const std::vector<double>& values) const {
  const bool as_it_is = rules_.kind == ContestRules::Kind::kThreshold;
  Curve curve;
  if (const auto found = curves_.find(trial); found != curves_.end()) curve = found->second;
  curve.push_back({tokens, as_it_is ? values[0] : loss_of(values[0], 0)});
  const auto stopped_if = [&](bool stops, std::string reason) {
    return Verdict{!stops, fmt::format("value {} at {} tokens: {}", value_text(values), tokens,
                                       stops ? reason : "it goes on")};
  };
  switch (rules_.kind) {
    case ContestRules::Kind::kHalving:
      return judge_at_rung(trial, rung, tokens, values);
    case ContestRules::Kind::kPercentile:
      return stopped_if(rules_.percentile.stops(curves_, trial, curve),
                        fmt::format("its best is worse than percentile {:g} of the others' means",
                                    rules_.percentile.percentile));
    case ContestRules::Kind::kPatience:
      return stopped_if(rules_.patience.stops(curve),
                        fmt::format("no better in {} reports", rules_.patience.reports));
    case ContestRules::Kind::kThreshold:
      return stopped_if(rules_.threshold.stops(curve), "out of bounds");
  }
  return {};
}

// O(n): a report comes once in minutes of training.
Contest::Verdict Contest::judge_at_rung(TrialIndex trial, std::size_t rung, std::uint64_t tokens,
                                        const std::vector<double>& values) const {
  Contest with = *this;
  with.report(trial, rung, tokens, values);
  const std::uint32_t bracket = entries_.at(trial).bracket;
  const Rung& there = with.ladders_[bracket].rung(rung - bracket);
  const bool goes_on = there.is_good_enough(trial, rules_.min_reports);
  std::string why = fmt::format("the best one in {} goes on", rules_.eta);
  if (there.reports() < rules_.min_reports)
    why = fmt::format("nobody stops before {} came", rules_.min_reports);
  else if (!goes_on)
    why = "only " + why;
  return {goes_on, fmt::format("{}: {}", with.place_of(trial).to_string(), why)};
}

Contest::Place Contest::place_at(TrialIndex trial, const Rung& rung, std::size_t number) const {
  const Report& report = entries_.at(trial).reports.at(number);
  return {.rung = number,
          .tokens = report.tokens,
          .values = report.values,
          .rank = rung.rank_of(trial),
          .of = rung.reports(),
          .go_on = rung.reports() / rules_.eta};
}

Contest::Place Contest::place_of(TrialIndex trial) const {
  const Entry& entry = entries_.at(trial);
  if (entry.reports.empty()) return {};
  const auto& [number, report] = *entry.reports.rbegin();
  if (rules_.kind != ContestRules::Kind::kHalving)
    return {.rung = number, .tokens = report.tokens, .values = report.values};
  return place_at(trial, ladders_[entry.bracket].rung(number - entry.bracket), number);
}

std::string Contest::Place::to_string() const {
  const std::string value = "value " + value_text(values);
  if (of == 0) return fmt::format("{} at {} tokens", value, tokens);
  return fmt::format("{}, {} of {} at rung {} ({} tokens)", value, ordinal(rank), of, rung + 1,
                     tokens);
}

}  // namespace saesweep::scheduler
