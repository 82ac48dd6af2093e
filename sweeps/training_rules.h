// From an assignment of parameters to a training spec without open ends: the recipe's defaults,
// shares of the run turned into steps, and the rules a schedule must obey.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "sweeps/expansion.h"
#include "sweeps/spec.h"
#include "sweeps/values.h"

namespace saesweep::sweeps {

// What `train` says once for all trials.
struct TrainSettings {
  std::string recipe = "saebench-v1";
  Precision precision = Precision::kFloat32;
  bool deterministic = true;
  std::string device = "cpu";
  // How often trials are scored on held-out rows, in tokens; 0 never, nothing the default rule.
  std::optional<StepCount> eval_every = std::nullopt;
  bool holds_out = true;           // something is held out
  const YamlNode* node = nullptr;  // of `train`; nullptr if the file has none
};

struct InitFile {
  std::string path;  // absolute
  std::string digest;
};
using InitFiles = std::map<std::string, InitFile>;  // by the path as written

// Without `eval_every`: so many times in a run, but not so often that the rows looked at are more
// than a sixty-fourth of those trained on.
inline constexpr std::uint64_t kUsualEvaluations = 20;
inline constexpr std::uint64_t kLeastEvalEvery = 64 * kHeldOutRows;

// Nothing if the trial cannot be trained as it stands, which is reported at the key that is wrong,
// or at the family if the value came from the recipe.
std::optional<TrainingSpec> resolve_training(const Family& family, const Assignment& assignment,
                                             const TrainSettings& settings, const InitFiles& inits,
                                             Problems& problems);

}  // namespace saesweep::sweeps
