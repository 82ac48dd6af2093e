#include "scheduler/cli/stopping_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "scheduler/cli/people.h"

namespace saesweep::cli {

Json stopping_json(const sweeps::SweepPlan& plan, const scheduler::Submission& submission) {
  if (!plan.early_stopping) return nullptr;
  const auto& settings = submission.sweep.early_stopping();
  Json metrics = Json::array();
  for (const sweeps::StoppingMetric& metric : plan.early_stopping->metrics)
    metrics.push_back(metric.name);
  return {{"rule", sweeps::to_string(plan.early_stopping->rule)},
          {"mode", settings.promotes() ? "promote" : "stop"},
          {"metrics", std::move(metrics)},
          {"rungs", std::vector<std::uint64_t>(settings.rungs().begin(), settings.rungs().end())},
          {"brackets", settings.brackets()}};
}

std::string stopping_text(const sweeps::SweepPlan& plan, const scheduler::Submission& submission) {
  constexpr int kShown = 6;
  const sweeps::EarlyStoppingSpec& spec = *plan.early_stopping;
  const auto& rungs = submission.sweep.early_stopping().rungs();
  std::string tokens;
  for (int i = 0; i < std::min(rungs.size(), kShown); ++i)
    tokens += fmt::format("{}{}", i == 0 ? "" : ", ", count_text(static_cast<double>(rungs[i])));
  if (rungs.size() > kShown) tokens += fmt::format(", ... ({} in all)", rungs.size());
  std::string metrics;
  for (const sweeps::StoppingMetric& metric : spec.metrics) {
    metrics += metrics.empty() ? metric.name : ", " + metric.name;
    if (spec.rule != sweeps::StoppingRule::kThreshold)
      metrics += metric.maximize ? " (max)" : " (min)";
  }
  const std::string what = spec.halves() ? fmt::format("one in {} goes on", spec.eta) : "looks";
  return fmt::format("{}: {} at {} tokens, by {}", sweeps::to_string(spec.rule), what, tokens,
                     metrics);
}

}  // namespace saesweep::cli
