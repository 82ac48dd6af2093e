#include "scheduler/leaderboard/ranking.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <tuple>
#include <utility>

namespace saesweep::scheduler {
namespace {

// The width of a baseline that has one, so that random_sae-512 comes before random_sae-1024.
double width_of(const LeaderboardRow& row) {
  const auto found = row.params.find("d_sae");
  return found != row.params.end() && found->is_number() ? found->get<double>() : 0;
}

// Trials of equal key compete for one front: those with both numbers, sorted by L0 (then quality,
// best first). A row is on the front if it beats the best quality at a lower L0, or equals a row
// that does.
void mark_front(std::vector<LeaderboardRow>& rows) {
  struct Candidate {
    double l0;
    double quality;
    LeaderboardRow* row;
  };
  std::map<std::pair<std::string, std::string>, std::vector<Candidate>> groups;
  for (LeaderboardRow& row : rows) {
    row.front = false;
    const Score* l0 = find_score(row, "core.l0");
    const Score* q = quality(row);
    if (row.is_trial() && row.state == RowState::kDone && l0 != nullptr && q != nullptr)
      groups[{row.model, row.hook}].push_back({l0->value, q->value, &row});
  }
  for (auto& [key, group] : groups) {
    std::ranges::sort(group, [](const Candidate& a, const Candidate& b) {
      return std::tuple(a.l0, -a.quality) < std::tuple(b.l0, -b.quality);
    });
    double best = -std::numeric_limits<double>::infinity();
    double best_l0 = 0;
    for (const Candidate& candidate : group) {
      if (candidate.quality > best) {
        best = candidate.quality;
        best_l0 = candidate.l0;
        candidate.row->front = true;
      } else if (candidate.quality == best && candidate.l0 == best_l0) {
        candidate.row->front = true;
      }
    }
  }
}

bool overlap(const Score* a, const Score* b) {
  if (a == nullptr || b == nullptr || !a->low || !a->high || !b->low || !b->high) return false;
  return *a->low <= *b->high && *b->low <= *a->high;
}

}  // namespace

void rank(std::vector<LeaderboardRow>& rows) {
  mark_front(rows);
  const auto key = [](const LeaderboardRow& row) {
    const Score* q = quality(row);
    const double down = q == nullptr ? 0 : -q->value;
    return std::tuple(std::string_view(row.hook), !row.is_trial(), !row.front, q == nullptr, down,
                      std::string_view(row.is_trial() ? row.trial : row.baseline), width_of(row));
  };
  std::ranges::stable_sort(rows, [&](const auto& a, const auto& b) { return key(a) < key(b); });
  for (std::size_t i = 0; i < rows.size(); ++i)
    rows[i].tied = i > 0 && rows[i].hook == rows[i - 1].hook &&
                   overlap(quality(rows[i]), quality(rows[i - 1]));
}

std::vector<std::optional<SeedSpread>> seed_spreads(const std::vector<LeaderboardRow>& rows) {
  const auto key = [](const LeaderboardRow& row) {
    Json params = row.params;
    params.erase("seed");
    return std::tuple(row.model, row.hook, row.arch, canonical_json(params));
  };
  std::map<decltype(key(rows.front())), std::vector<double>> groups;
  for (const LeaderboardRow& row : rows)
    if (row.is_trial() && quality(row) != nullptr) groups[key(row)].push_back(quality(row)->value);

  std::vector<std::optional<SeedSpread>> spreads(rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (!rows[i].is_trial() || quality(rows[i]) == nullptr) continue;
    const std::vector<double>& values = groups[key(rows[i])];
    SeedSpread& spread = spreads[i].emplace();
    spread.seeds = values.size();
    for (const double value : values) spread.mean += value / static_cast<double>(values.size());
    double squares = 0;
    for (const double value : values) squares += (value - spread.mean) * (value - spread.mean);
    if (values.size() > 1)
      spread.deviation = std::sqrt(squares / static_cast<double>(values.size() - 1));
  }
  return spreads;
}

}  // namespace saesweep::scheduler
