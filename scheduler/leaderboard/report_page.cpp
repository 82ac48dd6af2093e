#include "scheduler/leaderboard/report_page.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "core/check.h"
#include "scheduler/leaderboard/ranking.h"
#include "scheduler/web/embedded_files.h"

namespace saesweep::scheduler {
namespace {

// Points of all curves together; about 4 MB of text.
constexpr std::size_t kCurvePoints = 40'000;
constexpr std::size_t kLeastPoints = 24;
constexpr std::size_t kMostPoints = 200;

constexpr std::string_view kScripts[] = {
    "report/palette.js", "report/data.js",    "report/state.js", "report/scatter.js",
    "report/curves.js",  "report/density.js", "report/table.js", "report/main.js"};

// Five digits are more than a screen shows.
Json rounded(double value) {
  if (!std::isfinite(value)) return nullptr;
  return std::strtod(fmt::format("{:.5g}", value).c_str(), nullptr);
}

// Every so manyth point, the last one always.
Json thinned(const Curve& curve, std::size_t points) {
  Json rows = Json::array();
  const std::size_t count = curve.rows.size();
  const std::size_t kept = std::min(count, points);
  for (std::size_t i = 0; i < kept; ++i) {
    const std::size_t at = kept < 2 ? count - 1 : i * (count - 1) / (kept - 1);
    Json row = Json::array();
    for (const double value : curve.rows[at]) row.push_back(rounded(value));
    rows.push_back(std::move(row));
  }
  return {{"columns", curve.columns}, {"rows", std::move(rows)}};
}

// What is said of held-out rows stands at few points of a curve: a curve of its own, whose columns
// have the names of those of training, so that thinning loses no more of it.
Json curve_json(const Curve& curve, std::size_t points) {
  constexpr std::string_view kHeldOut = "heldout_";
  Curve training, held_out;
  std::vector<std::size_t> of_training, of_held_out;
  for (std::size_t i = 0; i < curve.columns.size(); ++i) {
    const std::string& name = curve.columns[i];
    const bool is_held_out = name.starts_with(kHeldOut), is_place = name == "tokens";
    if (is_held_out || is_place) {
      of_held_out.push_back(i);
      held_out.columns.push_back(is_held_out ? name.substr(kHeldOut.size()) : name);
    }
    if (is_held_out) continue;
    of_training.push_back(i);
    training.columns.push_back(name);
  }
  for (const std::vector<double>& row : curve.rows) {
    const auto values_of = [&row](const std::vector<std::size_t>& columns) {
      std::vector<double> values;
      values.reserve(columns.size());
      for (const std::size_t column : columns) values.push_back(row[column]);
      return values;
    };
    training.rows.push_back(values_of(of_training));
    if (std::ranges::any_of(of_held_out, [&](std::size_t column) {
          return curve.columns[column] != "tokens" && std::isfinite(row[column]);
        }))
      held_out.rows.push_back(values_of(of_held_out));
  }
  Json json = thinned(training, points);
  if (!held_out.rows.empty()) json["held_out"] = thinned(held_out, points);
  return json;
}

void replace_marker(std::string& page, std::string_view marker, std::string_view text) {
  const std::size_t at = page.find(marker);
  SAE_CHECK(at != std::string::npos, "no {} in report.html", marker);
  page.replace(at, marker.size(), text);
}

}  // namespace

std::string script_safe_json(const Json& value) {
  const std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  std::string safe;
  safe.reserve(text.size());
  for (const char c : text) {
    switch (c) {
      case '<':
        safe += "\\u003c";
        break;
      case '>':
        safe += "\\u003e";
        break;
      case '&':
        safe += "\\u0026";
        break;
      default:
        safe += c;
    }
  }
  return safe;
}

Json report_data(const Leaderboard& board) {
  const auto spreads = seed_spreads(board.rows);
  const std::size_t points = std::clamp(kCurvePoints / std::max<std::size_t>(board.rows.size(), 1),
                                        kLeastPoints, kMostPoints);
  Json rows = Json::array();
  for (std::size_t i = 0; i < board.rows.size(); ++i) {
    const LeaderboardRow& row = board.rows[i];
    Json json = row_to_json(row);
    json["number"] = row.number ? Json(*row.number) : Json();
    json["details"] = row.details;
    if (!row.curve.rows.empty()) json["curve"] = curve_json(row.curve, points);
    if (!row.density.counts.empty())
      json["density"] = {{"log10_edges", row.density.log10_edges},
                         {"counts", row.density.counts},
                         {"never", row.density.never}};
    if (spreads[i])
      json["spread"] = {{"seeds", spreads[i]->seeds},
                        {"mean", spreads[i]->mean},
                        {"deviation", spreads[i]->deviation}};
    rows.push_back(std::move(json));
  }
  return {{"sweep", board.sweep}, {"commit", board.commit}, {"rows", std::move(rows)}};
}

std::string report_page(const Leaderboard& board) {
  std::string script;
  for (const std::string_view name : kScripts) script.append(embedded_file(name)).append("\n");
  std::string page(embedded_file("report/report.html"));
  replace_marker(page, "/*@STYLE@*/", embedded_file("report/report.css"));
  replace_marker(page, "/*@CHART_JS@*/", embedded_file("vendor/chart.umd.min.js"));
  replace_marker(page, "/*@SCRIPT@*/", script);
  // Last, so that no text of the data is taken for a marker.
  replace_marker(page, "/*@DATA@*/", script_safe_json(report_data(board)));
  return page;
}

}  // namespace saesweep::scheduler
