#include "scheduler/leaderboard/table.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <optional>
#include <vector>

#include "scheduler/leaderboard/ranking.h"

namespace saesweep::scheduler {
namespace {

constexpr std::size_t kWidth = 100;
constexpr std::size_t kReasonWidth = 64;

// Control characters from a message must not reach the terminal.
std::string printable(std::string_view text, std::size_t limit) {
  std::string clean;
  for (const char c : text) clean += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? ' ' : c;
  if (clean.size() <= limit) return clean;
  clean.resize(limit - 3);
  // Not in the middle of a character of several bytes.
  while (!clean.empty() && (static_cast<unsigned char>(clean.back()) & 0xc0) == 0x80)
    clean.pop_back();
  if (!clean.empty() && static_cast<unsigned char>(clean.back()) >= 0xc0) clean.pop_back();
  return clean + "...";
}

std::size_t columns_of(std::string_view text) {  // bytes of UTF-8 that begin a character
  return static_cast<std::size_t>(std::ranges::count_if(
      text, [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; }));
}

// ".9812"; without the zero, because every score of the table is about one.
std::string share(double value, int digits) {
  std::string text = fmt::format("{:.{}f}", value, digits);
  if (text.starts_with("0.")) return text.substr(1);
  if (text.starts_with("-0.")) return fmt::format("-{}", text.substr(2));
  return text;
}

std::string score_share(const LeaderboardRow& row, std::string_view name) {
  const Score* score = find_score(row, name);
  return score == nullptr ? "" : share(score->value, 3);
}

std::string with_interval(const Score* score) {
  if (score == nullptr) return "";
  if (!score->low || !score->high) return share(score->value, 4);
  return fmt::format("{}±{}", share(score->value, 4), share((*score->high - *score->low) / 2, 4));
}

std::string sparsity(const Json& params) {
  for (const char* key : {"k", "l1", "l0_target", "l0_coefficient"}) {
    const auto found = params.find(key);
    if (found == params.end() || !found->is_number()) continue;
    std::string_view name = key;
    if (name == "l0_target") name = "l0";
    if (name == "l0_coefficient") name = "c";
    return fmt::format("{}={:.3g}", name, found->get<double>());
  }
  return "";
}

std::string integer_param(const Json& params, const char* key) {
  const auto found = params.find(key);
  return found != params.end() && found->is_number_integer() ? found->dump() : "";
}

struct RowView {
  const LeaderboardRow& row;
  const std::optional<SeedSpread>& spread;
};

struct Column {
  std::string_view title;
  bool right;     // aligned
  bool optional;  // left out if no row fills it
  std::string (*cell)(const RowView&);
};

// Alternatives of one column stand side by side: "loss rec." is empty where there is no model, and
// the interval is shown on FVE then.
constexpr Column kColumns[] = {
    {"", false, false,
     [](const RowView& view) {
       return fmt::format("{}{}", view.row.front ? "*" : " ", view.row.tied ? "~" : "");
     }},
    {"#", true, true,
     [](const RowView& view) {
       return view.row.number ? fmt::format("{}", *view.row.number) : std::string();
     }},
    {"id", false, false,
     [](const RowView& view) {
       return view.row.is_trial() ? printable(view.row.trial, 12) : std::string("-");
     }},
    {"arch", false, false,
     [](const RowView& view) {
       return printable(view.row.is_trial() ? view.row.arch : view.row.baseline, 16);
     }},
    {"d_sae", true, true,
     [](const RowView& view) { return integer_param(view.row.params, "d_sae"); }},
    {"sparsity", false, true, [](const RowView& view) { return sparsity(view.row.params); }},
    {"seed", true, true,
     [](const RowView& view) {
       return view.row.seed && view.row.is_trial() ? fmt::format("{}", *view.row.seed)
                                                   : std::string();
     }},
    {"L0", true, true,
     [](const RowView& view) {
       const Score* l0 = find_score(view.row, "core.l0");
       return l0 == nullptr ? "" : fmt::format("{:.{}f}", l0->value, l0->value < 1000 ? 1 : 0);
     }},
    {"loss rec.", false, true,
     [](const RowView& view) {
       const bool ranks = quality_metric(view.row) == "core.ce_loss_score";
       return ranks ? with_interval(quality(view.row)) : std::string();
     }},
    {"FVE", true, true,
     [](const RowView& view) {
       const bool ranks = quality_metric(view.row) == "recon.fve";
       return ranks ? with_interval(quality(view.row)) : score_share(view.row, "recon.fve");
     }},
    {"seeds", true, true,
     [](const RowView& view) {
       const bool several = view.spread && view.spread->seeds > 1;
       return several ? fmt::format("±{}", share(view.spread->deviation, 4)) : std::string();
     }},
    {"cover", true, true,
     [](const RowView& view) { return score_share(view.row, "board.cov_occurring"); }},
    {"recon", true, true,
     [](const RowView& view) { return score_share(view.row, "board.rec_micro"); }},
    {"dead", true, true,
     [](const RowView& view) { return score_share(view.row, "recon.dead_fraction"); }},
    {"state", false, false,
     [](const RowView& view) { return std::string(to_string(view.row.state)); }},
};
constexpr std::size_t kColumnCount = std::size(kColumns);
constexpr std::size_t kId = 2, kArch = 3, kFve = 9, kDead = 13;
using Cells = std::array<std::string, kColumnCount>;
using Widths = std::array<std::size_t, kColumnCount>;  // 0: left out

std::string line_of(const Cells& cells, const Widths& widths) {
  std::string line;
  for (std::size_t i = 0; i < kColumnCount; ++i) {
    if (widths[i] == 0) continue;
    if (!line.empty()) line += ' ';
    const std::string padding(widths[i] - std::min(widths[i], columns_of(cells[i])), ' ');
    line += kColumns[i].right ? padding + cells[i] : cells[i] + padding;
  }
  line.erase(line.find_last_not_of(' ') + 1);
  return line;
}

Widths fit(std::vector<Cells>& rows) {
  Widths widths{};
  for (std::size_t i = 0; i < kColumnCount; ++i) {
    std::size_t widest = 0;
    for (const Cells& cells : rows) widest = std::max(widest, columns_of(cells[i]));
    if (widest == 0 && kColumns[i].optional) continue;
    widths[i] = std::max({widest, kColumns[i].title.size(), i == 0 ? std::size_t{2} : 1});
  }
  const auto total = [&] {
    const auto shown = std::ranges::count_if(widths, [](std::size_t width) { return width > 0; });
    return std::accumulate(widths.begin(), widths.end(), static_cast<std::size_t>(shown) - 1);
  };
  const auto shorten = [&](std::size_t column, std::size_t least) {
    if (total() <= kWidth || widths[column] <= least) return;
    widths[column] = std::max(least, widths[column] - std::min(widths[column], total() - kWidth));
    for (Cells& cells : rows)
      if (columns_of(cells[column]) > widths[column]) cells[column].resize(widths[column]);
  };
  // Every score at once, beside long names, is too wide: what leaderboard.csv shows as well goes.
  shorten(kArch, 9);
  shorten(kId, 8);  // still selects the trial, as id:
  for (const std::size_t column : {kDead, kFve})
    if (total() > kWidth) widths[column] = 0;
  return widths;
}

std::string painted(const std::string& text, std::string_view code, bool color) {
  return color ? fmt::format("\x1b[{}m{}\x1b[0m", code, text) : text;
}

}  // namespace

std::string leaderboard_table(const Leaderboard& board, const TableOptions& options) {
  const auto spreads = seed_spreads(board.rows);
  std::vector<Cells> rows(board.rows.size());
  for (std::size_t r = 0; r < rows.size(); ++r)
    for (std::size_t i = 0; i < kColumnCount; ++i)
      rows[r][i] = kColumns[i].cell({board.rows[r], spreads[r]});
  const Widths widths = fit(rows);

  Cells titles;
  for (std::size_t i = 0; i < kColumnCount; ++i) titles[i] = kColumns[i].title;
  std::string text;
  bool any_front = false, any_tied = false, any_spread = false;
  for (std::size_t r = 0; r < rows.size(); ++r) {
    const LeaderboardRow& row = board.rows[r];
    if (r == 0 || row.hook != board.rows[r - 1].hook) {
      if (r > 0) text += '\n';
      std::string where = row.hook.empty() ? "stored activations" : row.hook;
      if (!row.model.empty()) where += "  of  " + row.model;
      text += painted(printable(where, kWidth), "1", options.color) + '\n';
      text += painted(line_of(titles, widths), "2", options.color) + '\n';
    }
    const std::string line = line_of(rows[r], widths);
    const bool bad = row.state == RowState::kDiverged || row.state == RowState::kFailed;
    text += row.front         ? painted(line, "32", options.color)
            : bad             ? painted(line, "31", options.color)
            : !row.is_trial() ? painted(line, "2", options.color)
                              : line;
    text += '\n';
    any_front |= row.front;
    any_tied |= row.tied;
    any_spread |= spreads[r] && spreads[r]->seeds > 1;
  }
  if (rows.empty()) text += "no rows\n";

  for (const LeaderboardRow& row : board.rows) {
    if (row.state == RowState::kDone || row.reason.empty()) continue;
    text += fmt::format("  {} {}: {}\n", row.is_trial() ? row.trial : row.baseline,
                        to_string(row.state), printable(row.reason, kReasonWidth));
  }
  if (any_front)
    text += "  * on the front: no other trial has both a lower L0 and a higher quality\n";
  if (any_tied) text += "  ~ not to be told from the row above: their 95 % intervals overlap\n";
  if (any_spread) text += "  seeds: standard deviation over trials that differ in the seed alone\n";
  return text;
}

}  // namespace saesweep::scheduler
