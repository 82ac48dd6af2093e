// From a sweep file to everything it asks for: trials in order, baselines, evaluations, resources.
// Reading has no side effect besides reading the files it names.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "core/result.h"
#include "sweeps/early_stopping.h"
#include "sweeps/model_shapes.h"
#include "sweeps/spec.h"

namespace saesweep::sweeps {

// One thing wrong with a sweep file. Shown as
// FILE:LINE:COLUMN: key.path: what is wrong, with the value; what would be right
struct SweepFileError {
  std::string file;
  int line = 0, column = 0;  // from 1; 0 when the file as a whole is meant
  std::string key;           // "trials[1].k"; "--set train.tokens" for an override
  std::string message;
  std::string to_string() const;
};

struct PlannedTrial {
  std::uint32_t number = 0;  // in the sweep, from 0, in order of expansion
  TrialSpec spec;
  Sha256 identity;
};

struct PlannedBaseline {
  BaselineSpec spec;
  Sha256 identity;
};

struct ResourceSpec {
  std::uint64_t memory_bytes = std::uint64_t{4} << 30;
  std::uint32_t slots = 1;
};

// One stream that trials read, with what planning knows about it.
struct PlannedStream {
  StreamSpec spec;
  std::uint64_t d_in = 0;               // values of a row, of all its hooks
  std::uint64_t documents = 0;          // of all of `data`
  std::uint64_t rows_per_document = 0;  // at most
  std::uint64_t model_parameters = 0;   // that a forward pass up to the hook multiplies with
  std::optional<ModelShape> shape = std::nullopt;  // of the model, if there is one
};

struct SweepPlan {
  std::string name;
  std::vector<PlannedStream> streams;  // in the order of the sweep's hooks, joint ones last
  std::vector<PlannedTrial> trials;    // equal identities collapse into the first
  std::vector<PlannedBaseline> baselines;
  std::vector<EvaluationSpec> evaluations;
  std::optional<EarlyStoppingSpec> early_stopping;
  std::optional<TrainLmSpec> train_lm;  // then trials and baselines are empty
  ResourceSpec resources;
  std::uint64_t cache_bytes = 0;
  double checkpoint_every_s = 60;
  bool device_is_auto = false;  // train.device says so, or nothing
  std::vector<std::string> warnings;
  std::string effective_yaml;  // the file with overrides applied and `device: auto` resolved
};

struct PlanOptions {
  std::vector<std::string> overrides = {};  // "train.tokens=1M", as --set gives them
  // What `device: auto` means where it will run; cpu all the same if a trial cannot use a GPU.
  std::string auto_device = "cpu";
};

// Either a plan, or all errors of the file at once.
tl::expected<SweepPlan, std::vector<SweepFileError>> plan_sweep(const std::filesystem::path& file,
                                                                const PlanOptions& options = {});

// The same from text, as tests and the fuzz target use it; relative paths are relative to
// `directory`.
tl::expected<SweepPlan, std::vector<SweepFileError>> plan_sweep_text(
    std::string_view text, const std::string& file_name, const std::filesystem::path& directory,
    const PlanOptions& options = {});

}  // namespace saesweep::sweeps
