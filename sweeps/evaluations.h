// `evaluate` and `baselines` of a sweep file.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "sweeps/expansion.h"
#include "sweeps/stream_source.h"
#include "sweeps/sweep_plan.h"
#include "sweeps/training_rules.h"

namespace saesweep::sweeps {

// Without the key, or without its numbers, what the held-out documents surely have, at most 40k
// tokens and 2000 games.
std::vector<EvaluationSpec> read_evaluations(const Section& top, const StreamSource& source,
                                             Problems& problems);

// The names under `baselines`, in the order written.
std::vector<std::string> read_baseline_names(const Section& top, const StreamSource& source,
                                             Problems& problems);

// What random_model trains with, and what random_sae and random_model take their size from.
struct BaselineSettings {
  const SharedParameters* shared = nullptr;
  const TrainSettings* train = nullptr;
  Search search;
};

// One row per hook and name, per distinct d_sae for random_sae, in this order; none of joint
// streams.
std::vector<PlannedBaseline> plan_baselines(std::span<const std::string> names,
                                            const StreamSource& source,
                                            std::span<const PlannedStream> streams,
                                            std::span<const PlannedTrial> trials,
                                            const BaselineSettings& settings, const Section& top,
                                            Problems& problems);

}  // namespace saesweep::sweeps
