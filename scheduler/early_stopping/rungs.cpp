#include "scheduler/early_stopping/rungs.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>

#include "core/check.h"

namespace saesweep::scheduler {

std::vector<std::uint64_t> rung_tokens(std::uint64_t min_tokens, std::uint64_t max_tokens,
                                       std::uint32_t eta, std::uint32_t bracket) {
  SAE_CHECK(min_tokens >= 1 && eta >= 2, "rungs from {} by {}", min_tokens, eta);
  std::vector<std::uint64_t> rungs;
  std::uint64_t tokens = min_tokens;
  for (std::uint32_t step = 0; tokens < max_tokens; ++step) {
    if (step >= bracket) rungs.push_back(tokens);
    if (tokens > max_tokens / eta) break;  // the next one is past the top, or past 64 bits
    tokens *= eta;
  }
  rungs.push_back(max_tokens);
  return rungs;
}

std::uint32_t last_bracket(std::uint64_t min_tokens, std::uint64_t max_tokens, std::uint32_t eta) {
  const std::size_t rungs = rung_tokens(min_tokens, max_tokens, eta).size();
  return rungs < 2 ? 0 : static_cast<std::uint32_t>(rungs - 2);
}

// ---- one rung -----------------------------------------------------------------------------------

void Rung::report(TrialIndex trial, double value) {
  const double worst = std::numeric_limits<double>::infinity();
  SAE_CHECK(values_.emplace(trial, std::isfinite(value) ? value : worst).second,
            "trial {} reported before", trial);
  const Entry entry = entry_of(trial);
  rest_.insert(entry);
  rest_waiting_.insert(entry);
  // The best of the rest moves up while there is room, or when it is better than the worst above.
  const auto move = [](std::set<Entry>& from, std::set<Entry>& to, const Entry& what) {
    if (from.erase(what) > 0) to.insert(what);
  };
  const auto up = [&](const Entry& what) {
    move(rest_, top_, what);
    move(rest_waiting_, top_waiting_, what);
  };
  const auto down = [&](const Entry& what) {
    move(top_, rest_, what);
    move(top_waiting_, rest_waiting_, what);
  };
  const std::size_t room = reports() / eta_;
  if (!top_.empty() && *rest_.begin() < *top_.rbegin()) {
    up(Entry(*rest_.begin()));
    if (top_.size() > room) down(Entry(*top_.rbegin()));
  }
  if (top_.size() < room) up(Entry(*rest_.begin()));
}

std::optional<TrialIndex> Rung::best_to_promote() const {
  if (top_waiting_.empty()) return std::nullopt;
  return top_waiting_.begin()->second;
}

std::optional<TrialIndex> Rung::best_waiting() const {
  if (!top_waiting_.empty()) return top_waiting_.begin()->second;
  if (!rest_waiting_.empty()) return rest_waiting_.begin()->second;
  return std::nullopt;
}

void Rung::promote(TrialIndex trial) {
  SAE_CHECK(promoted_.insert(trial).second, "trial {} was promoted before", trial);
  top_waiting_.erase(entry_of(trial));
  rest_waiting_.erase(entry_of(trial));
}

bool Rung::is_good_enough(TrialIndex trial, std::size_t min_reports) const {
  if (reports() < min_reports) return true;
  return top_.empty() ? rest_.begin()->second == trial : top_.contains(entry_of(trial));
}

std::size_t Rung::rank_of(TrialIndex trial) const {
  const Entry entry = entry_of(trial);
  const auto before = [&](const std::set<Entry>& entries) {
    return static_cast<std::size_t>(std::distance(entries.begin(), entries.lower_bound(entry)));
  };
  return before(top_) + before(rest_) + 1;
}

// ---- forms --------------------------------------------------------------------------------------

AshaPromotion::AshaPromotion(std::size_t rungs, std::uint32_t eta) : rungs_(rungs, Rung(eta)) {
  SAE_CHECK(rungs >= 1 && eta >= 2, "{} rungs by {}", rungs, eta);
}

void AshaPromotion::report(TrialIndex trial, std::size_t rung, double value) {
  rungs_[rung].report(trial, value);
}

std::optional<Promotion> AshaPromotion::next() const {
  for (std::size_t rung = rungs_.size() - 1; rung-- > 0;)
    if (const auto trial = rungs_[rung].best_to_promote()) return Promotion{*trial, rung + 1};
  return std::nullopt;
}

std::optional<Promotion> AshaPromotion::next_at_the_end() const {
  if (rungs_.back().reports() > 0) return std::nullopt;
  for (std::size_t rung = rungs_.size() - 1; rung-- > 0;) {
    if (rungs_[rung].reports() == 0) continue;
    if (const auto trial = rungs_[rung].best_waiting()) return Promotion{*trial, rung + 1};
    return std::nullopt;  // everybody here is on the way up
  }
  return std::nullopt;
}

void AshaPromotion::promoted(const Promotion& promotion) {
  rungs_[promotion.rung - 1].promote(promotion.trial);
}

AshaStopping::AshaStopping(std::size_t rungs, std::uint32_t eta, std::size_t min_reports)
    : rungs_(rungs, Rung(eta)), min_reports_(min_reports) {
  SAE_CHECK(rungs >= 1 && eta >= 2, "{} rungs by {}", rungs, eta);
}

bool AshaStopping::report(TrialIndex trial, std::size_t rung, double value) {
  rungs_[rung].report(trial, value);
  return rung + 1 == rungs_.size() || rungs_[rung].is_good_enough(trial, min_reports_);
}

std::size_t Brackets::next() const {
  return static_cast<std::size_t>(std::ranges::min_element(used_) - used_.begin());
}

}  // namespace saesweep::scheduler
