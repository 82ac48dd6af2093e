#include "sweeps/early_stopping.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "sweeps/nearest.h"
#include "sweeps/section.h"
#include "sweeps/stream_source.h"
#include "sweeps/sweep_plan.h"

namespace saesweep::sweeps {
namespace {

using namespace std::string_view_literals;
using enum StoppingRule;

constexpr std::array kRules{"asha"sv,       "hyperband"sv, "median"sv,
                            "percentile"sv, "patience"sv,  "threshold"sv};
constexpr std::array kModes{"promote"sv, "stop"sv};
constexpr std::array kDirections{"max"sv, "min"sv};
constexpr std::uint64_t kManyTokens = 9'000'000'000'000'000;  // exact as a double

constexpr std::array kModelScores{
    "core.ce_loss_score"sv,        "core.ce_loss_with_ablation"sv,
    "core.ce_loss_with_sae"sv,     "core.ce_loss_without_sae"sv,
    "core.kl_div_score"sv,         "core.kl_div_with_ablation"sv,
    "core.kl_div_with_sae"sv,      "recon.kl_score"sv,
    "recon.loss_recovered_mean"sv,
};
constexpr std::array kCoreScores{
    "core.average_max_decoder_cosine_sim"sv,
    "core.average_max_encoder_cosine_sim"sv,
    "core.cossim"sv,
    "core.explained_variance"sv,
    "core.explained_variance_legacy"sv,
    "core.frac_alive"sv,
    "core.freq_over_10_percent"sv,
    "core.freq_over_1_percent"sv,
    "core.l0"sv,
    "core.l1"sv,
    "core.l2_norm_in"sv,
    "core.l2_norm_out"sv,
    "core.l2_ratio"sv,
    "core.mse"sv,
    "core.normalized_freq_over_10_percent"sv,
    "core.normalized_freq_over_1_percent"sv,
    "core.relative_reconstruction_bias"sv,
    "recon.dead_fraction"sv,
    "recon.fve"sv,
    "recon.gamma"sv,
    "recon.l0_train"sv,
    "recon.mse_sum"sv,
};
constexpr std::array kBoardScores{
    "board.cov_best_t"sv,
    "board.cov_occurring"sv,
    "board.cov_single_t"sv,
    "board.rec_boardmean"sv,
    "board.rec_legacy"sv,
    "board.rec_micro"sv,
    "board.true_mover.cov_best_t"sv,
    "board.true_mover.cov_occurring"sv,
    "board.true_mover.cov_single_t"sv,
    "board.true_mover.rec_boardmean"sv,
    "board.true_mover.rec_legacy"sv,
    "board.true_mover.rec_micro"sv,
    "board.valid_moves.cov_best_t"sv,
    "board.valid_moves.cov_occurring"sv,
    "board.valid_moves.cov_single_t"sv,
    "board.valid_moves.rec_boardmean"sv,
    "board.valid_moves.rec_legacy"sv,
    "board.valid_moves.rec_micro"sv,
};

// Which keys mean something to which rule.
struct KeyUse {
  std::string_view key;
  std::vector<StoppingRule> rules;
};
const std::vector<KeyUse>& uses() {
  static const std::vector<KeyUse> kUses{
      {"direction", {kAsha, kHyperband, kMedian, kPercentile, kPatience}},
      {"mode", {kAsha, kHyperband}},
      {"min_tokens", {kAsha, kHyperband}},
      {"eta", {kAsha, kHyperband}},
      {"min_reports", {kAsha, kHyperband}},
      {"interval", {kMedian, kPercentile, kPatience, kThreshold}},
      {"warmup", {kMedian, kPercentile, kThreshold}},
      {"min_trials", {kMedian, kPercentile}},
      {"percentile", {kPercentile}},
      {"reports", {kPatience}},
      {"min_delta", {kPatience}},
      {"low", {kThreshold}},
      {"high", {kThreshold}},
  };
  return kUses;
}

class Reader {
 public:
  Reader(const Section& section, const StreamSource& source,
         std::span<const EvaluationSpec> evaluations, Problems& problems)
      : section_(section), source_(source), evaluations_(evaluations), problems_(problems) {}

  EarlyStoppingSpec read() {
    if (const auto word = section_.read_word("rule", kRules))
      spec_.rule = static_cast<StoppingRule>(*word);
    refuse_what_has_no_meaning();
    read_metrics();
    if (spec_.rule != kThreshold) read_directions();
    if (spec_.halves())
      read_rungs();
    else
      read_curve();
    return std::move(spec_);
  }

 private:
  bool has(std::string_view key) const {
    return section_.node().is_map() && section_.node().find(key) != nullptr;
  }

  void refuse_what_has_no_meaning() {
    for (const KeyUse& use : uses())
      if (has(use.key) && std::ranges::find(use.rules, spec_.rule) == use.rules.end())
        section_.add(use.key, fmt::format("has no meaning for rule {}; leaving it out would be "
                                          "right",
                                          to_string(spec_.rule)));
  }

  // A word, or a list of one or two.
  std::vector<std::pair<const YamlNode*, std::string>> words_of(const YamlNode& node,
                                                                const std::string& path,
                                                                std::string_view right) {
    std::vector<std::pair<const YamlNode*, std::string>> words;
    const auto add = [&](const YamlNode& item) {
      if (auto text = scalar_text(item, path, right, problems_))
        words.emplace_back(&item, std::move(*text));
    };
    if (!node.is_sequence())
      add(node);
    else
      for (const YamlNode& item : node.items) add(item);
    return words;
  }

  void read_metrics() {
    constexpr auto kRight = "a score like core.ce_loss_score would be right"sv;
    const YamlNode* node = section_.require("metric", kRight);
    if (node == nullptr) return;
    const std::string path = section_.path_of("metric");
    if (node->is_sequence() &&
        (node->items.empty() || node->items.size() > (spec_.halves() ? 2u : 1u)))
      problems_.add(*node, path,
                    fmt::format("is a list of {}; one score{} would be right", node->items.size(),
                                spec_.halves() ? ", or two that are ranked by fronts," : ""));
    for (const auto& [item, name] : words_of(*node, path, kRight)) {
      std::vector<std::string_view> known;
      for (const EvaluationSpec& evaluation : evaluations_) {
        const auto names = scores_of(evaluation.kind, source_.model.has_value());
        if (std::ranges::find(names, name) != names.end())
          spec_.metrics.push_back({.name = name, .maximize = true, .evaluation = evaluation});
        known.insert(known.end(), names.begin(), names.end());
      }
      if (std::ranges::find(known, name) == known.end())
        problems_.add(*item, path,
                      fmt::format("'{}' is no score that evaluate of this sweep computes; {}",
                                  name.substr(0, 60), suggestion(name, known)));
    }
    if (spec_.metrics.size() == 2 && spec_.metrics[0].name == spec_.metrics[1].name)
      problems_.add(*node, path,
                    fmt::format("names '{}' twice; once would be right", spec_.metrics[0].name));
  }

  void read_directions() {
    const std::string right = fmt::format("{} would be right", fmt::join(kDirections, " or "));
    const YamlNode* node = section_.require("direction", right);
    if (node == nullptr) return;
    const std::string path = section_.path_of("direction");
    const auto words = words_of(*node, path, right);
    if (words.size() != spec_.metrics.size() && !spec_.metrics.empty() && !words.empty())
      problems_.add(*node, path,
                    fmt::format("has {} words for {} scores; one for each would be right",
                                words.size(), spec_.metrics.size()));
    for (std::size_t i = 0; i < words.size(); ++i) {
      const auto& [item, word] = words[i];
      if (std::ranges::find(kDirections, word) == kDirections.end())
        problems_.add(*item, path,
                      fmt::format("{} is not one of its values; {}", describe(*item),
                                  suggestion(word, kDirections)));
      if (i < spec_.metrics.size()) spec_.metrics[i].maximize = word == "max";
    }
  }

  void read_rungs() {
    if (const auto word = section_.read_word("mode", kModes)) spec_.promotes = *word == 0;
    section_.require("min_tokens", "the tokens of the first rung, like 500k, would be right");
    section_.read_count("min_tokens", spec_.min_tokens, 1, kManyTokens);
    std::uint64_t eta = spec_.eta;
    section_.read_count("eta", eta, 2, 1000);
    spec_.eta = static_cast<std::uint32_t>(eta);
    if (has("min_reports") && spec_.promotes)
      section_.add("min_reports",
                   "has no meaning for mode promote; leaving it out, or mode: stop, "
                   "would be right");
    std::uint64_t reports = spec_.eta;
    section_.read_count("min_reports", reports, 1, 1'000'000);
    spec_.min_reports = static_cast<std::uint32_t>(reports);
  }

  void read_curve() {
    spec_.promotes = false;
    section_.require("interval",
                     "the tokens from one report to the next, like 500k, would be "
                     "right");
    section_.read_count("interval", spec_.interval, 1, kManyTokens);
    section_.read_count("warmup", spec_.warmup, 0, kManyTokens);
    read_small("min_trials", spec_.min_trials);
    read_small("reports", spec_.reports);
    section_.read_real("min_delta", spec_.min_delta, 0);
    if (spec_.rule == kPercentile) {
      section_.require("percentile", "a number from 0 (the best) to 100 would be right");
      section_.read_real("percentile", spec_.percentile, 0);
      if (spec_.percentile > 100)
        section_.add(
            "percentile",
            fmt::format("{:g} is too large; 0 (the best) to 100 would be right", spec_.percentile));
    }
    if (spec_.rule != kThreshold) return;
    read_bound("low", spec_.low);
    read_bound("high", spec_.high);
    if (!has("low") && !has("high"))
      section_.add("low", "and high are both missing; one of them, or both, would be right");
    if (spec_.low && spec_.high && *spec_.low >= *spec_.high)
      section_.add("low", fmt::format("{:g} is not below high, {:g}; less would be right",
                                      *spec_.low, *spec_.high));
  }

  void read_small(std::string_view key, std::uint32_t& out) {
    std::uint64_t count = out;
    section_.read_count(key, count, 1, 1'000'000);
    out = static_cast<std::uint32_t>(count);
  }

  void read_bound(std::string_view key, std::optional<double>& out) {
    constexpr double kAnyReal = 1e30;
    if (!has(key)) return;
    double bound = 0;
    section_.read_real(key, bound, -kAnyReal);
    out = bound;
  }

  const Section& section_;
  const StreamSource& source_;
  std::span<const EvaluationSpec> evaluations_;
  Problems& problems_;
  EarlyStoppingSpec spec_;
};

}  // namespace

std::string_view to_string(StoppingRule rule) { return kRules[static_cast<std::size_t>(rule)]; }

std::vector<std::string_view> scores_of(std::string_view evaluation, bool has_model) {
  std::vector<std::string_view> names;
  if (evaluation == "board") return {kBoardScores.begin(), kBoardScores.end()};
  if (has_model) names.assign(kModelScores.begin(), kModelScores.end());
  names.insert(names.end(), kCoreScores.begin(), kCoreScores.end());
  return names;
}

std::optional<EarlyStoppingSpec> read_early_stopping(const Section& top, const StreamSource& source,
                                                     std::span<const EvaluationSpec> evaluations,
                                                     Problems& problems) {
  const YamlNode* node = top.find("early_stopping");
  if (node == nullptr) return std::nullopt;
  const std::size_t before = problems.size();
  const Section section(*node, "early_stopping", known_keys(KeySet::kEarlyStopping), problems);
  if (!node->is_map()) return std::nullopt;
  EarlyStoppingSpec spec = Reader(section, source, evaluations, problems).read();
  if (problems.size() != before) return std::nullopt;
  return spec;
}

void check_rungs(const EarlyStoppingSpec& spec, std::span<const PlannedTrial> trials,
                 const Section& top, Problems& problems) {
  const YamlNode* node = top.node().find("early_stopping");
  const std::string_view key = spec.halves() ? "min_tokens" : "interval";
  const std::uint64_t first = spec.halves() ? spec.min_tokens : spec.interval;
  const auto complain = [&](std::string message) {
    problems.add(*node->find(key), join_path("early_stopping", key), std::move(message));
  };
  std::uint64_t most_batch = 0, least_tokens = kManyTokens, most_tokens = 0;
  for (const PlannedTrial& trial : trials) {
    const TrainingSpec& training = trial.spec.training;
    most_batch = std::max(most_batch, training.batch);
    least_tokens = std::min(least_tokens, training.steps() * training.batch);
    most_tokens = std::max(most_tokens, training.steps() * training.batch);
  }
  if (trials.empty()) return;
  if (first < most_batch)
    complain(fmt::format("{} tokens are less than a step of {}; at least that many would be right",
                         first, most_batch));
  else if (first >= least_tokens)
    complain(
        fmt::format("{} tokens are no less than the {} that a trial trains on, so nothing "
                    "would be stopped; at most {} would be right",
                    first, least_tokens, least_tokens - 1));
  else if (!spec.halves() && most_tokens / first > kMostRungs)
    complain(
        fmt::format("{} tokens make {} reports of a trial; at least {}, for {}, would be right",
                    first, most_tokens / first, most_tokens / kMostRungs + 1, kMostRungs));
}

}  // namespace saesweep::sweeps
