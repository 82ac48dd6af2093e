// Successive halving that waits for nobody (ASHA): which of the trials that reached a rung may go
// on to the next. Pure: the same reports in the same order give the same answers, so a journal that
// is read again decides again what was decided.
//
// A rung is a number of tokens, r * eta^k; the top one is the whole budget. Values are loss-like:
// lower is better, whoever reports turns the sign. What is not finite ranks last; of equal values
// the trial of the lower index is better.
//
// Source: Li et al., "A System for Massively Parallel Hyperparameter Tuning", arXiv:1810.05934,
// algorithm 2.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

namespace saesweep::scheduler {

using TrialIndex = std::uint32_t;

// Tokens of each rung: min_tokens * eta^(bracket + k) below max_tokens, then max_tokens itself.
// min_tokens >= 1, eta >= 2. A bracket that begins past the budget has the top rung alone.
std::vector<std::uint64_t> rung_tokens(std::uint64_t min_tokens, std::uint64_t max_tokens,
                                       std::uint32_t eta, std::uint32_t bracket = 0);
// Largest bracket that still has a rung below the top.
std::uint32_t last_bracket(std::uint64_t min_tokens, std::uint64_t max_tokens, std::uint32_t eta);

// A rung: who was here, ranked. A report takes O(log n).
class Rung {
 public:
  explicit Rung(std::uint32_t eta) : eta_(eta) {}

  // Once for each trial.
  void report(TrialIndex trial, double value);
  std::size_t reports() const { return top_.size() + rest_.size(); }
  // The best of those among the best floor(n / eta) that did not go on yet.
  std::optional<TrialIndex> best_to_promote() const;
  // The best that did not go on yet, whatever its rank.
  std::optional<TrialIndex> best_waiting() const;
  void promote(TrialIndex trial);
  bool was_promoted(TrialIndex trial) const { return promoted_.contains(trial); }
  // True if the trial is among the best max(1, floor(n / eta)), or fewer than `min_reports` came.
  bool is_good_enough(TrialIndex trial, std::size_t min_reports) const;
  std::size_t rank_of(TrialIndex trial) const;  // of one that reported; 1 is the best. O(n)
  bool operator==(const Rung&) const = default;

 private:
  using Entry = std::pair<double, TrialIndex>;
  Entry entry_of(TrialIndex trial) const { return {values_.at(trial), trial}; }

  std::uint32_t eta_;
  std::set<Entry> top_, rest_;  // top_: the best floor(n / eta)
  std::set<Entry> top_waiting_, rest_waiting_;
  std::map<TrialIndex, double> values_;
  std::set<TrialIndex> promoted_;
};

struct Promotion {
  TrialIndex trial = 0;
  std::size_t rung = 0;  // that it goes on to
  bool operator==(const Promotion&) const = default;
};

// The promotion form: trials pause at each rung and some go on.
class AshaPromotion {
 public:
  // `rungs`: how many, the top one included; at least 1.
  AshaPromotion(std::size_t rungs, std::uint32_t eta);

  // The trial reached the rung. What is reported at the top is finished.
  void report(TrialIndex trial, std::size_t rung, double value);
  // Who goes on now, the highest rung first; nobody if a new trial should begin. Call promoted()
  // with what was done of it.
  std::optional<Promotion> next() const;
  // When no new trial will begin and next() has nobody: the best of the highest rung that anybody
  // reached, until one has finished the top. Nobody: those that still wait stop.
  std::optional<Promotion> next_at_the_end() const;
  void promoted(const Promotion& promotion);

  std::size_t reports(std::size_t rung) const { return rungs_[rung].reports(); }
  std::size_t rungs() const { return rungs_.size(); }
  const Rung& rung(std::size_t rung) const { return rungs_[rung]; }
  bool operator==(const AshaPromotion&) const = default;

 private:
  std::vector<Rung> rungs_;
};

// The stopping form: a trial that is not good enough at a rung ends there, the others never pause.
class AshaStopping {
 public:
  AshaStopping(std::size_t rungs, std::uint32_t eta, std::size_t min_reports);
  // True: it goes on.
  bool report(TrialIndex trial, std::size_t rung, double value);

 private:
  std::vector<Rung> rungs_;
  std::size_t min_reports_;
};

// Hyperband: several brackets of ASHA with equal shares of the budget. A new trial joins the one
// that used the least. Source: Li et al., "Hyperband", arXiv:1603.06560.
class Brackets {
 public:
  explicit Brackets(std::size_t count) : used_(count, 0) {}
  // For a new trial; of equal ones the first.
  std::size_t next() const;
  void charge(std::size_t bracket, std::uint64_t tokens) { used_[bracket] += tokens; }

 private:
  std::vector<std::uint64_t> used_;
};

}  // namespace saesweep::scheduler
