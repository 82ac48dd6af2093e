#include "scheduler/early_stopping/curve_rules.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace saesweep::scheduler {
namespace {

constexpr double kWorst = std::numeric_limits<double>::infinity();

double or_worst(double value) { return std::isfinite(value) ? value : kWorst; }

double best_of(const Curve& curve, std::size_t from, std::size_t to) {
  double best = kWorst;
  for (std::size_t i = from; i < to; ++i) best = std::min(best, or_worst(curve[i].value));
  return best;
}

// Over the points up to `tokens`; nothing if the curve does not reach that far.
std::optional<double> running_mean(const Curve& curve, std::uint64_t tokens) {
  if (curve.empty() || curve.back().tokens < tokens) return std::nullopt;
  double sum = 0;
  std::size_t count = 0;
  for (const CurvePoint& point : curve) {
    if (point.tokens > tokens) break;
    sum += or_worst(point.value);
    ++count;
  }
  if (count == 0) return std::nullopt;
  return sum / static_cast<double>(count);
}

// Linear between the two nearest; infinite where one of them is.
double percentile_of(std::vector<double> values, double percentile) {
  std::ranges::sort(values);
  const double place = percentile / 100 * static_cast<double>(values.size() - 1);
  const auto below = static_cast<std::size_t>(std::floor(place));
  const auto above = std::min(below + 1, values.size() - 1);
  const double share = place - static_cast<double>(below);
  if (share == 0 || values[below] == values[above]) return values[below];
  return values[below] + share * (values[above] - values[below]);
}

bool dominates(const TwoValues& a, const TwoValues& b) {
  return a.first <= b.first && a.second <= b.second && (a.first < b.first || a.second < b.second);
}

// Of the members of one front, in their order.
std::vector<double> crowding(const std::vector<TwoValues>& points,
                             const std::vector<std::size_t>& front) {
  std::vector<double> distance(front.size(), 0);
  for (double TwoValues::*value : {&TwoValues::first, &TwoValues::second}) {
    std::vector<std::size_t> order(front.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::ranges::stable_sort(order, {}, [&](std::size_t i) { return points[front[i]].*value; });
    const double low = points[front[order.front()]].*value;
    const double high = points[front[order.back()]].*value;
    distance[order.front()] = distance[order.back()] = kWorst;
    if (!(high > low) || !std::isfinite(high - low)) continue;
    for (std::size_t i = 1; i + 1 < order.size(); ++i)
      distance[order[i]] +=
          (points[front[order[i + 1]]].*value - points[front[order[i - 1]]].*value) / (high - low);
  }
  return distance;
}

}  // namespace

bool PercentileRule::stops(const std::map<TrialIndex, Curve>& curves, TrialIndex trial) const {
  const auto own = curves.find(trial);
  return own != curves.end() && stops(curves, trial, own->second);
}

bool PercentileRule::stops(const std::map<TrialIndex, Curve>& curves, TrialIndex trial,
                           const Curve& own) const {
  if (own.empty()) return false;
  const std::uint64_t tokens = own.back().tokens;
  if (tokens < warmup) return false;
  std::vector<double> others;
  for (const auto& [index, curve] : curves) {
    if (index == trial) continue;
    if (const auto mean = running_mean(curve, tokens)) others.push_back(*mean);
  }
  if (others.size() < std::max<std::size_t>(1, min_trials)) return false;
  return best_of(own, 0, own.size()) > percentile_of(std::move(others), percentile);
}

bool PatienceRule::stops(const Curve& curve) const {
  if (reports == 0 || curve.size() <= reports) return false;
  const std::size_t before = curve.size() - reports;
  const double old_best = best_of(curve, 0, before);
  const double new_best = best_of(curve, before, curve.size());
  if (old_best == kWorst) return new_best == kWorst;
  return !(new_best < old_best && old_best - new_best >= min_delta);
}

bool ThresholdRule::stops(const Curve& curve) const {
  if (curve.empty() || curve.back().tokens < warmup) return false;
  const double value = curve.back().value;
  return !std::isfinite(value) || (low && value < *low) || (high && value > *high);
}

std::vector<std::size_t> rank_by_fronts(const std::vector<TwoValues>& given) {
  std::vector<TwoValues> points;
  for (const TwoValues& point : given)
    points.push_back({or_worst(point.first), or_worst(point.second)});
  std::vector<std::size_t> dominated_by(points.size(), 0), ranked, front;
  std::vector<std::vector<std::size_t>> dominated(points.size());
  for (std::size_t i = 0; i < points.size(); ++i)
    for (std::size_t j = 0; j < points.size(); ++j)
      if (dominates(points[i], points[j])) {
        dominated[i].push_back(j);
        ++dominated_by[j];
      }
  for (std::size_t i = 0; i < points.size(); ++i)
    if (dominated_by[i] == 0) front.push_back(i);
  while (!front.empty()) {
    const std::vector<double> distance = crowding(points, front);
    std::vector<std::size_t> order(front.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::ranges::stable_sort(order, std::greater<>(), [&](std::size_t i) { return distance[i]; });
    std::vector<std::size_t> next;
    for (const std::size_t i : order) ranked.push_back(front[i]);
    for (const std::size_t i : front)
      for (const std::size_t j : dominated[i])
        if (--dominated_by[j] == 0) next.push_back(j);
    std::ranges::sort(next);
    front = std::move(next);
  }
  return ranked;
}

}  // namespace saesweep::scheduler
