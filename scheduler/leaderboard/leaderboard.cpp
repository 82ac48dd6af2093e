#include "scheduler/leaderboard/leaderboard.h"

#include <fmt/format.h>

#include <array>
#include <charconv>
#include <cmath>
#include <limits>
#include <set>

namespace saesweep::scheduler {
namespace {

constexpr std::array<std::string_view, 6> kStateNames{"done",    "diverged",  "failed",
                                                      "stopped", "cancelled", "unfinished"};

Json text_or_null(const std::string& text) { return text.empty() ? Json() : Json(text); }

template <class T>
Json value_or_null(const std::optional<T>& value) {
  return value ? Json(*value) : Json();
}

// RFC 4180.
std::string csv_cell(std::string_view text) {
  if (text.find_first_of(",\"\r\n") == std::string_view::npos) return std::string(text);
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"') quoted += '"';
    quoted += c;
  }
  return quoted + '"';
}

std::string csv_number(std::optional<double> value) {
  return value && std::isfinite(*value) ? fmt::format("{}", *value) : "";
}

std::string csv_param(const Json& params, const std::string& key) {
  const auto found = params.find(key);
  if (found == params.end() || found->is_null()) return "";
  return csv_cell(found->is_string() ? found->get<std::string>() : canonical_json(*found));
}

Result<Score> parse_score(const std::string& name, const Json& json) {
  const auto wrong = [&](const char* what) {
    return fail(ErrorCode::kCorrupted, "score {}: {}", name, what);
  };
  if (!json.is_object()) return wrong("not an object");
  Score score;
  const auto number = [&](const char* key) -> std::optional<double> {
    const auto found = json.find(key);
    if (found == json.end() || !found->is_number()) return std::nullopt;
    return found->get<double>();
  };
  if (!json.contains("value")) return wrong("no value");
  if (!json["value"].is_number() && !json["value"].is_null()) return wrong("value is no number");
  score.value = number("value").value_or(std::numeric_limits<double>::quiet_NaN());
  score.low = number("low");
  score.high = number("high");
  if (score.low.has_value() != score.high.has_value()) return wrong("half an interval");
  if (const auto n = json.find("n"); n != json.end()) {
    if (!n->is_number_unsigned()) return wrong("n is no count");
    score.n = n->get<std::uint64_t>();
  }
  if (const auto version = json.find("version"); version != json.end()) {
    if (!version->is_number_integer()) return wrong("version is no integer");
    score.version = version->get<int>();
  }
  return score;
}

}  // namespace

std::string_view to_string(RowState state) { return kStateNames[static_cast<std::size_t>(state)]; }

std::optional<RowState> parse_row_state(std::string_view text) {
  for (std::size_t i = 0; i < kStateNames.size(); ++i)
    if (kStateNames[i] == text) return static_cast<RowState>(i);
  return std::nullopt;
}

std::string_view quality_metric(const LeaderboardRow& row) {
  // A crosscoder's loss recovered is one of each of its hooks.
  return row.model.empty() || row.arch.ends_with("crosscoder") ? "recon.fve" : "core.ce_loss_score";
}

const Score* find_score(const LeaderboardRow& row, std::string_view name) {
  const auto found = row.scores.find(name);
  return found == row.scores.end() || std::isnan(found->second.value) ? nullptr : &found->second;
}

const Score* quality(const LeaderboardRow& row) { return find_score(row, quality_metric(row)); }

Json scores_to_json(const Scores& scores) {
  Json json = Json::object();
  for (const auto& [name, score] : scores)
    json[name] = {{"value", score.value},
                  {"low", value_or_null(score.low)},
                  {"high", value_or_null(score.high)},
                  {"n", score.n},
                  {"version", score.version}};
  return json;
}

Json row_to_json(const LeaderboardRow& row) {
  Json json{{"trial", text_or_null(row.trial)},
            {"baseline", text_or_null(row.baseline)},
            {"model", text_or_null(row.model)},
            {"hook", row.hook},
            {"arch", text_or_null(row.arch)},
            {"params", row.params},
            {"seed", value_or_null(row.seed)},
            {"state", to_string(row.state)},
            {"tokens", row.tokens},
            {"front", row.front},
            {"tied", row.tied},
            {"scores", scores_to_json(row.scores)}};
  if (row.state != RowState::kDone) json["reason"] = row.reason;
  return json;
}

std::string leaderboard_json(const Leaderboard& board) {
  Json rows = Json::array();
  for (const LeaderboardRow& row : board.rows) rows.push_back(row_to_json(row));
  return pretty_json(
      {{"schema", 1}, {"sweep", board.sweep}, {"commit", board.commit}, {"rows", std::move(rows)}});
}

std::string leaderboard_csv(const Leaderboard& board) {
  std::set<std::string> params;
  std::set<std::string> metrics;
  for (const LeaderboardRow& row : board.rows) {
    for (const auto& [key, value] : row.params.items()) params.insert(key);
    for (const auto& [name, score] : row.scores) metrics.insert(name);
  }
  std::string text = "number,trial,baseline,model,hook,arch,seed,state,reason,tokens,front,tied";
  for (const std::string& key : params)
    text += fmt::format(",{}", csv_cell(fmt::format("params.{}", key)));
  for (const std::string& name : metrics) {
    const std::string cell = csv_cell(name);
    text += fmt::format(",{0},{0}.low,{0}.high,{0}.n", cell);
  }
  text += "\n";
  for (const LeaderboardRow& row : board.rows) {
    text += fmt::format(
        "{},{},{},{},{},{},{},{},{},{},{},{}", row.number ? fmt::format("{}", *row.number) : "",
        row.trial, csv_cell(row.baseline), csv_cell(row.model), csv_cell(row.hook),
        csv_cell(row.arch), row.seed ? fmt::format("{}", *row.seed) : "", to_string(row.state),
        csv_cell(row.reason), row.tokens, row.front, row.tied);
    for (const std::string& key : params) text += fmt::format(",{}", csv_param(row.params, key));
    for (const std::string& name : metrics) {
      const Score* score = find_score(row, name);
      text += score == nullptr
                  ? ",,,,"
                  : fmt::format(",{},{},{},{}", csv_number(score->value), csv_number(score->low),
                                csv_number(score->high), score->n);
    }
    text += "\n";
  }
  return text;
}

Result<Scores> parse_scores(const Json& json) {
  if (!json.is_object()) return fail(ErrorCode::kCorrupted, "scores are not an object");
  if (const auto nested = json.find("scores"); nested != json.end()) return parse_scores(*nested);
  Scores scores;
  for (const auto& [name, value] : json.items()) {
    SAE_TRY(const Score score, parse_score(name, value));
    scores.emplace(name, score);
  }
  return scores;
}

Result<Curve> parse_curve_csv(std::string_view text) {
  Curve curve;
  std::size_t line_number = 0;
  while (!text.empty()) {
    const std::size_t end = text.find('\n');
    std::string_view line = text.substr(0, end);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    ++line_number;
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty()) continue;
    std::vector<std::string_view> cells;
    for (std::size_t from = 0;;) {
      const std::size_t comma = line.find(',', from);
      cells.push_back(line.substr(from, comma - from));
      if (comma == std::string_view::npos) break;
      from = comma + 1;
    }
    if (curve.columns.empty()) {
      curve.columns.assign(cells.begin(), cells.end());
      continue;
    }
    if (cells.size() != curve.columns.size())
      return fail(ErrorCode::kCorrupted, "curve, line {}: {} cells under {} names", line_number,
                  cells.size(), curve.columns.size());
    std::vector<double>& row = curve.rows.emplace_back();
    for (const std::string_view cell : cells) {
      double value = std::numeric_limits<double>::quiet_NaN();
      const auto [stop, problem] = std::from_chars(cell.data(), cell.data() + cell.size(), value);
      if (!cell.empty() &&
          (problem == std::errc::invalid_argument || stop != cell.data() + cell.size()))
        return fail(ErrorCode::kCorrupted, "curve, line {}: \"{}\" is no number", line_number,
                    cell);
      row.push_back(value);
    }
  }
  return curve;
}

}  // namespace saesweep::scheduler
