// From what the journal has of a sweep to what people get: leaderboard rows and the files of --out.
#pragma once

#include <filesystem>
#include <string>

#include "core/json.h"
#include "core/result.h"
#include "scheduler/leaderboard/leaderboard.h"
#include "scheduler/leaderboard/out_directory.h"
#include "scheduler/service/scheduler_service.h"

namespace saesweep::cli {

struct BoardOptions {
  std::string commit;
  bool curves = true;  // read curve.csv and the histograms, which only the report needs
};

// Ranked. A row's parameters are d_sae, the sparsity, and whatever else differs between the trials
// of its architecture; seed and hook are columns of their own.
// Errors: kCorrupted for scores or curves that cannot be read, naming the trial or baseline.
Result<scheduler::Leaderboard> to_leaderboard(const scheduler::SweepResult& sweep,
                                              const BoardOptions& options);

// scores.json of one subject: {"scores": union over its evaluations, "histogram", "details",
// "heldout"}, of which only the first is always there. Empty if nothing was evaluated.
// Errors: kCorrupted; kUnavailable if a file of details cannot be read.
Result<std::string> scores_json(const scheduler::SubjectResult& subject);

// Where and when, for run.json.
struct RunFacts {
  Json host = Json::object();
  Json versions = Json::object();
  std::filesystem::path state, out;
};

// Everything --out holds. Errors: as above.
Result<scheduler::OutContents> to_out_contents(const scheduler::SweepResult& sweep,
                                               const RunFacts& facts, const std::string& commit);

}  // namespace saesweep::cli
