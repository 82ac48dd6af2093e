// `early_stopping` of a sweep file: which trials are not trained to their end. It is in no
// identity: a trial that is trained to its end has the bytes of one that nobody could have stopped.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "sweeps/spec.h"

namespace saesweep::sweeps {

class Problems;
class Section;
struct PlannedTrial;
struct StreamSource;

enum class StoppingRule : std::uint8_t {
  kAsha,
  kHyperband,
  kMedian,
  kPercentile,
  kPatience,
  kThreshold,
};
std::string_view to_string(StoppingRule rule);  // as the sweep file spells it: "asha"

struct StoppingMetric {
  std::string name;           // of a score: "core.ce_loss_score"
  bool maximize = true;       // kThreshold: of no meaning
  EvaluationSpec evaluation;  // that computes it
};

struct EarlyStoppingSpec {
  StoppingRule rule = StoppingRule::kAsha;
  // Trials wait at a rung until they are chosen; else each goes on or stops at once. Of kAsha and
  // kHyperband.
  bool promotes = true;
  std::vector<StoppingMetric> metrics;  // one; of kAsha and kHyperband also two, ranked by fronts
  // kAsha, kHyperband: rungs at min_tokens * eta^k below a trial's own end.
  std::uint64_t min_tokens = 0;
  std::uint32_t eta = 4;
  std::uint32_t min_reports = 4;  // at a rung, before which the form that stops stops nobody
  // The others: a report every so many tokens.
  std::uint64_t interval = 0;
  std::uint64_t warmup = 0;      // tokens before which nobody is stopped
  std::uint32_t min_trials = 5;  // kMedian, kPercentile
  double percentile = 50;
  std::uint32_t reports = 5;  // kPatience
  double min_delta = 0;
  std::optional<double> low, high;  // kThreshold

  bool halves() const { return rule == StoppingRule::kAsha || rule == StoppingRule::kHyperband; }
};

// Reports of one trial, at most.
inline constexpr std::uint64_t kMostRungs = 1000;

// The scores that an evaluation of a trained dictionary computes.
std::vector<std::string_view> scores_of(std::string_view evaluation, bool has_model);

// Nothing without the key, or if something in it is wrong, which is reported.
std::optional<EarlyStoppingSpec> read_early_stopping(const Section& top, const StreamSource& source,
                                                     std::span<const EvaluationSpec> evaluations,
                                                     Problems& problems);

// Every trial has a rung below its end, of at least one step.
void check_rungs(const EarlyStoppingSpec& spec, std::span<const PlannedTrial> trials,
                 const Section& top, Problems& problems);

}  // namespace saesweep::sweeps
