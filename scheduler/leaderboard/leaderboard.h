// The result of a sweep as rows: what was trained, how it ended, how it scored.
//
// Everything a run leaves for people is made from this one value: leaderboard.json and .csv, the
// table in the terminal, the report. It holds no time, host or path, so equal results give equal
// bytes.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/json.h"
#include "core/result.h"

namespace saesweep::scheduler {

// One number with the 95 % interval of the evaluation sample, where there were enough blocks for
// one.
struct Score {
  double value = 0;
  std::optional<double> low = std::nullopt, high = std::nullopt;
  std::uint64_t n = 0;  // values averaged
  int version = 1;      // of the metric's definition
};
using Scores = std::map<std::string, Score, std::less<>>;

// curve.csv: a header line, then numbers. An empty cell is NaN.
struct Curve {
  std::vector<std::string> columns;       // "step", "tokens", "loss", ...
  std::vector<std::vector<double>> rows;  // each as long as `columns`
};

// How many features fire how often: counts[i] of them in [10^edges[i], 10^edges[i+1]).
struct DensityHistogram {
  std::vector<double> log10_edges;  // one more than counts
  std::vector<std::uint64_t> counts;
  std::uint64_t never = 0;  // features that did not fire at all
};

enum class RowState : std::uint8_t {
  kDone,
  kDiverged,
  kFailed,
  kStopped,
  kCancelled,
  kUnfinished  // only while a sweep runs
};
std::string_view to_string(RowState state);  // "done", "diverged", ..., "unfinished"
std::optional<RowState> parse_row_state(std::string_view text);

struct LeaderboardRow {
  std::optional<std::uint32_t> number;  // of the trial in the sweep; none for baselines
  std::string trial;                    // first 12 hex digits of its identity; empty for baselines
  std::string baseline;                 // "random_sae"; empty for trials
  std::string model;                    // "othello-6x6@3b1c0a77d2e9"; empty without a model
  std::string hook;
  std::string arch;  // empty where there is none
  Json params = Json::object();
  std::optional<std::uint64_t> seed;
  RowState state = RowState::kDone;
  std::string reason;  // of every state but done
  std::uint64_t tokens = 0;
  Scores scores;

  // Set by rank().
  bool front = false;
  bool tied = false;

  // For the report alone.
  Curve curve;
  DensityHistogram density;
  Json details = Json::object();  // shown when a row is opened

  bool is_trial() const { return baseline.empty(); }
};

struct Leaderboard {
  std::string sweep;
  std::string commit;
  std::vector<LeaderboardRow> rows;
};

// The value a row is ranked by: core.ce_loss_score; recon.fve of crosscoders and without a model.
std::string_view quality_metric(const LeaderboardRow& row);
const Score* find_score(const LeaderboardRow& row, std::string_view name);  // null if absent or NaN
const Score* quality(const LeaderboardRow& row);

// The text of leaderboard.json, schema 1. `board` has been ranked.
std::string leaderboard_json(const Leaderboard& board);
Json row_to_json(const LeaderboardRow& row);

// leaderboard.csv: a column for every parameter and every score (value, low, high, n) that any row
// has; an absent value is an empty cell. Numbers read back as the same double.
std::string leaderboard_csv(const Leaderboard& board);

// {"value", "low", "high", "n", "version"} by name, as scores.json and the results of tasks carry
// them; also that object under "scores" of a larger one.
// Errors: kCorrupted, naming the score.
Result<Scores> parse_scores(const Json& json);
Json scores_to_json(const Scores& scores);

// Errors: kCorrupted, naming the line.
Result<Curve> parse_curve_csv(std::string_view text);

}  // namespace saesweep::scheduler
