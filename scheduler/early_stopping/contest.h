// The trials of one sweep with early stopping, and what its rule says of them. Pure: facts go in,
// questions are answered; nothing is decided before somebody asks.
//
// A trial takes part from the start, reports at rungs, and waits where it reported until it goes on
// or leaves. In the promotion form those that go on are chosen among all that wait; in the others
// the rule judges a report when it comes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "scheduler/early_stopping/curve_rules.h"
#include "scheduler/early_stopping/rungs.h"

namespace saesweep::scheduler {

struct ContestRules {
  enum class Kind : std::uint8_t { kHalving, kPercentile, kPatience, kThreshold };
  Kind kind = Kind::kHalving;
  bool promotes = true;        // the promotion form; of kHalving alone
  std::vector<bool> maximize;  // of each metric; two are ranked by fronts (kHalving alone)
  std::size_t rungs = 0;       // below a trial's own end
  // kHalving
  std::uint32_t eta = 4;
  std::size_t min_reports = 4;  // the stopping form stops nobody before
  std::uint32_t brackets = 1;   // bracket b begins at rung b
  // The others.
  PercentileRule percentile;
  PatienceRule patience;
  ThresholdRule threshold;
};

class Contest {
 public:
  explicit Contest(ContestRules rules);

  // ---- facts

  // Takes part, and is on the way to its first rung.
  void enter(TrialIndex trial, std::uint32_t bracket);
  // It waits at a rung where it did not report before. `values`: of each metric, as they are; NaN
  // ranks last.
  void report(TrialIndex trial, std::size_t rung, std::uint64_t tokens,
              const std::vector<double>& values);
  void went_on(TrialIndex trial);  // from where it reported last
  void finish(TrialIndex trial);   // it is trained to its end
  void leave(TrialIndex trial);    // diverged, failed, cancelled, stopped: what it reported stays

  // ---- questions

  bool is_on_the_way(TrialIndex trial) const;
  bool waits(TrialIndex trial) const { return waiting_.contains(trial); }
  // Nobody is on the way: all that take part wait, are finished or left.
  bool is_idle() const { return on_the_way_ == 0; }
  const std::set<TrialIndex>& waiting() const { return waiting_; }

  // `rung`: that it goes on to; as many as there are: to its end.
  struct Step {
    TrialIndex trial = 0;
    std::size_t rung = 0;
    std::string reason;  // for people
    bool operator==(const Step&) const = default;
  };
  // The promotion form: all that may go on now, in the order in which they may. Of each bracket the
  // highest rung first.
  std::vector<Step> promotions() const;
  // The promotion form, when it is idle and promotions() has nobody: of each bracket in which
  // nobody is finished yet the best of the highest rung. Empty: those that wait stop.
  std::vector<Step> promotions_at_the_end() const;

  struct Verdict {
    bool goes_on = true;
    std::string reason;
  };
  // The other forms, before the report is made a fact.
  Verdict judge(TrialIndex trial, std::size_t rung, std::uint64_t tokens,
                const std::vector<double>& values) const;

  // Where one that reported stands at its last rung.
  struct Place {
    std::size_t rung = 0;
    std::uint64_t tokens = 0;
    std::vector<double> values;
    // kHalving
    std::size_t rank = 0, of = 0;
    std::size_t go_on = 0;  // the best so many may
    // "value 0.913, 7th of 12 at rung 1 (500000 tokens)"; people count rungs from 1.
    std::string to_string() const;
  };
  Place place_of(TrialIndex trial) const;

  bool promotes() const { return rules_.promotes; }
  bool operator==(const Contest& other) const;

 private:
  struct Report {
    std::uint64_t tokens = 0;
    std::vector<double> values;
    bool operator==(const Report& other) const;  // NaN equals NaN
  };
  struct Entry {
    std::uint32_t bracket = 0;
    bool waits = false, finished = false, left = false;
    std::map<std::size_t, Report> reports = {};  // by rung
    std::set<std::size_t> passed = {};           // rungs that it is past, or left at
    bool operator==(const Entry&) const = default;
    bool is_on_the_way() const { return !waits && !finished && !left; }
  };
  double loss_of(double value, std::size_t metric) const;
  bool by_fronts() const { return rules_.maximize.size() > 1; }
  void pass(TrialIndex trial, const Entry& entry, std::size_t rung);
  void rank_anew(std::uint32_t bracket);
  std::vector<TrialIndex> ranked(std::uint32_t bracket, std::size_t rung) const;
  AshaPromotion ladder(std::uint32_t bracket) const;
  Step step_of(const AshaPromotion& ladder, std::uint32_t bracket, const Promotion& promotion,
               const std::string& why) const;
  Place place_at(TrialIndex trial, const Rung& rung, std::size_t number) const;
  Verdict judge_at_rung(TrialIndex trial, std::size_t rung, std::uint64_t tokens,
                        const std::vector<double>& values) const;

  ContestRules rules_;
  std::map<TrialIndex, Entry> entries_;
  std::set<TrialIndex> waiting_;
  std::size_t on_the_way_ = 0;
  std::vector<AshaPromotion> ladders_;  // of each bracket, from its own first rung
  std::map<TrialIndex, Curve> curves_;  // losses; kThreshold: values as they are
};

}  // namespace saesweep::scheduler
