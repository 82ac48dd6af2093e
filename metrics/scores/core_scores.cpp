#include "metrics/scores/core_scores.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>
#include <string>
#include <utility>

#include "core/check.h"

namespace saesweep::metrics {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr std::size_t kNone = std::numeric_limits<std::size_t>::max();

// log(sum exp) and the largest logit.
std::pair<double, double> log_sum_exp(std::span<const float> logits) {
  const double largest = *std::ranges::max_element(logits);
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - largest);
  return {largest + std::log(sum), largest};
}

void add(DocumentSums& to, const DocumentSums& from) {
  to.tokens += from.tokens;
  for (const auto field :
       {&DocumentSums::ce_clean, &DocumentSums::ce_sae, &DocumentSums::ce_zero,
        &DocumentSums::ce_mean, &DocumentSums::norm_in, &DocumentSums::norm_out,
        &DocumentSums::norm_ratio, &DocumentSums::cosine, &DocumentSums::squared_in,
        &DocumentSums::squared_out, &DocumentSums::dot, &DocumentSums::squared_error,
        &DocumentSums::mse, &DocumentSums::legacy, &DocumentSums::l0, &DocumentSums::l1})
    to.*field += from.*field;
  for (const auto field : {&DocumentSums::kl_sae, &DocumentSums::kl_zero}) {
    (to.*field).value += (from.*field).value;
    (to.*field).legacy += (from.*field).legacy;
  }
}

struct Named {
  std::string name;
  double value;
  std::uint64_t n;
};

// Share of tokens each feature fires on, without one block.
std::vector<double> densities(const CoreSums& sums, std::size_t without, std::uint64_t tokens) {
  std::vector<double> density(sums.d_sae, 0);
  for (std::size_t block = 0; block < sums.fired.size(); ++block) {
    if (block == without) continue;
    for (std::size_t i = 0; i < sums.d_sae; ++i) density[i] += sums.fired[block][i];
  }
  for (double& each : density) each /= static_cast<double>(tokens);
  return density;
}

// What is sampled, computed without one block (kNone: with all).
std::vector<Named> sampled(const CoreSums& sums, std::size_t without) {
  DocumentSums all;
  double squared_in = 0, squared_error = 0, bias = 0, batches = 0;
  for (std::size_t first = 0; first < sums.documents.size(); first += kDocumentsPerBatch) {
    DocumentSums batch;
    const std::size_t end = std::min(sums.documents.size(), first + kDocumentsPerBatch);
    for (std::size_t i = first; i < end; ++i)
      if (block_of(i, sums.documents.size()) != without) add(batch, sums.documents[i]);
    if (batch.tokens == 0) continue;
    const auto tokens = static_cast<double>(batch.tokens);
    squared_in += batch.squared_in / tokens;
    squared_error += batch.squared_error / tokens;
    bias += batch.squared_out / batch.dot;  // of the two means over the batch
    batches += 1;
    add(all, batch);
  }
  const auto tokens = static_cast<double>(all.tokens);
  const std::uint64_t n = all.tokens;
  std::vector<Named> values;
  const auto give = [&](const char* name, double value) { values.push_back({name, value, n}); };

  if (sums.has_model) {
    const double clean = all.ce_clean / tokens, with_sae = all.ce_sae / tokens;
    const double zero = all.ce_zero / tokens, mean = all.ce_mean / tokens;
    give("core.ce_loss_without_sae", clean);
    give("core.ce_loss_with_sae", with_sae);
    give("core.ce_loss_with_ablation", zero);
    give("core.ce_loss_score", (zero - with_sae) / (zero - clean));
    give("recon.loss_recovered_mean", (mean - with_sae) / (mean - clean));
    give("core.kl_div_with_sae", all.kl_sae.legacy / tokens);
    give("core.kl_div_with_ablation", all.kl_zero.legacy / tokens);
    give("core.kl_div_score", (all.kl_zero.legacy - all.kl_sae.legacy) / all.kl_zero.legacy);
    give("recon.kl_score", (all.kl_zero.value - all.kl_sae.value) / all.kl_zero.value);
  }
  give("core.l2_norm_in", all.norm_in / tokens);
  give("core.l2_norm_out", all.norm_out / tokens);
  give("core.l2_ratio", all.norm_ratio / tokens);
  give("core.relative_reconstruction_bias", bias / batches);
  give("core.l0", all.l0 / tokens);
  give("core.l1", all.l1 / tokens);
  give("core.mse", all.mse / tokens);
  give("core.cossim", all.cosine / tokens);
  give("core.explained_variance_legacy", all.legacy / tokens);
  const double mean_square = squared_in / batches;
  const double m = mean_square / static_cast<double>(sums.d_in);
  give("core.explained_variance", 1 - squared_error / batches / (mean_square - m * m));

  double square_of_mean = 0;
  for (std::size_t j = 0; j < sums.d_in; ++j) {
    double sum = 0;
    for (std::size_t block = 0; block < sums.sum_x.size(); ++block)
      if (block != without) sum += sums.sum_x[block][j];
    square_of_mean += sum / tokens * (sum / tokens);
  }
  give("recon.fve", 1 - all.squared_error / tokens / (all.squared_in / tokens - square_of_mean));
  give("recon.mse_sum", all.squared_error / tokens);
  give("recon.gamma", all.squared_out / all.dot);

  const std::vector<double> density = densities(sums, without, n);
  const double total = std::accumulate(density.begin(), density.end(), 0.0);
  const auto features = static_cast<double>(sums.d_sae);
  const auto of_features = [&](const char* name, double value) {
    values.push_back({name, value, sums.d_sae});
  };
  for (const auto& [suffix, bound] : {std::pair{"over_1_percent", .01}, {"over_10_percent", .1}}) {
    double count = 0, share = 0;
    for (const double each : density)
      if (each > bound) {
        count += 1;
        share += each;
      }
    of_features((std::string("core.freq_") + suffix).c_str(), count / features);
    of_features((std::string("core.normalized_freq_") + suffix).c_str(),
                total == 0 ? 0 : share / total);
  }
  const auto alive =
      static_cast<double>(std::ranges::count_if(density, [](double each) { return each > 0; }));
  of_features("core.frac_alive", alive / features);
  of_features("recon.dead_fraction", 1 - alive / features);
  return values;
}

double mean_of(const std::vector<double>& values) {
  return values.empty() ? kNaN
                        : std::accumulate(values.begin(), values.end(), 0.0) /
                              static_cast<double>(values.size());
}

// As SAEBench rounds; NaN stays and is written as null.
Json rounded(double value) {
  return std::isfinite(value) ? Json(std::round(value * 1e10) / 1e10) : Json();
}

}  // namespace

Divergence divergence(std::span<const float> p_logits, std::span<const float> q_logits) {
  SAE_CHECK(p_logits.size() == q_logits.size(), "{} logits and {}", p_logits.size(),
            q_logits.size());
  const double p_norm = log_sum_exp(p_logits).first, q_norm = log_sum_exp(q_logits).first;
  Divergence result;
  bool underflow = false;
  for (std::size_t v = 0; v < p_logits.size(); ++v) {
    const double log_p = p_logits[v] - p_norm, log_q = q_logits[v] - q_norm;
    const double p = std::exp(log_p);
    result.value += p * (log_p - log_q);
    // A probability that is 0 in single precision has the logarithm -inf: 0 * -inf, or p * inf.
    underflow = underflow || static_cast<float>(p) == 0 || static_cast<float>(std::exp(log_q)) == 0;
  }
  result.legacy = underflow ? kNaN : result.value;
  return result;
}

double cross_entropy(std::span<const float> logits, std::size_t target) {
  SAE_CHECK(target < logits.size(), "target {} of {}", target, logits.size());
  return log_sum_exp(logits).first - logits[target];
}

void add_reconstruction(DocumentSums& sums, std::span<const float> x,
                        std::span<const float> x_hat) {
  double in = 0, out = 0, dot = 0, error = 0;
  for (std::size_t j = 0; j < x.size(); ++j) {
    const double a = x[j], b = x_hat[j];
    in += a * a;
    out += b * b;
    dot += a * b;
    error += (a - b) * (a - b);
  }
  const double norm_in = std::sqrt(in), norm_out = std::sqrt(out);
  ++sums.tokens;
  sums.norm_in += norm_in;
  sums.norm_out += norm_out;
  sums.norm_ratio += norm_out / (norm_in < 1e-4 ? 1 : norm_in);
  sums.cosine += dot / (norm_in * norm_out);
  sums.squared_in += in;
  sums.squared_out += out;
  sums.dot += dot;
  sums.squared_error += error;
}

CoreSums::CoreSums(std::size_t documents_, std::size_t d_in_, std::size_t d_sae_)
    : d_in(d_in_),
      d_sae(d_sae_),
      documents(documents_),
      sum_x(block_count(documents_), std::vector<double>(d_in_, 0)),
      fired(block_count(documents_), std::vector<std::uint32_t>(d_sae_, 0)),
      documents_fired(d_sae_, 0),
      l0_train(kNaN) {}

Scores core_scores(const CoreSums& sums, int version) {
  const std::vector<Named> whole = sampled(sums, kNone);
  const std::size_t blocks = sums.sum_x.size();
  std::vector<std::vector<double>> without(whole.size());
  if (blocks >= kFewestBlocks)
    for (std::size_t block = 0; block < blocks; ++block) {
      const std::vector<Named> values = sampled(sums, block);
      for (std::size_t i = 0; i < values.size(); ++i) without[i].push_back(values[i].value);
    }
  Scores scores;
  for (std::size_t i = 0; i < whole.size(); ++i)
    scores[whole[i].name] = with_interval(whole[i].value, without[i], whole[i].n, version);

  // What is not sampled has no interval.
  const auto give = [&](const char* name, double value, std::uint64_t n) {
    scores[name] = {value, std::nullopt, std::nullopt, n, version};
  };
  std::uint64_t tokens = 0;
  for (const DocumentSums& document : sums.documents) tokens += document.tokens;
  if (sums.has_model)
    give("core.total_tokens_eval_reconstruction", static_cast<double>(tokens), tokens);
  give("core.total_tokens_eval_sparsity_variance", static_cast<double>(tokens), tokens);
  if (!sums.max_encoder_cosine.empty())
    give("core.average_max_encoder_cosine_sim", mean_of(sums.max_encoder_cosine), sums.d_sae);
  if (!sums.max_decoder_cosine.empty())
    give("core.average_max_decoder_cosine_sim", mean_of(sums.max_decoder_cosine), sums.d_sae);
  if (std::isfinite(sums.l0_train)) give("recon.l0_train", sums.l0_train, 1);
  return scores;
}

Scores hook_scores(const CoreSums& sums, int version, std::size_t index) {
  constexpr std::array kNames{std::pair{"recon.fve", "fve"},
                              std::pair{"recon.mse_sum", "mse_sum"},
                              std::pair{"recon.gamma", "gamma"},
                              std::pair{"core.ce_loss_score", "ce_loss_score"},
                              std::pair{"recon.loss_recovered_mean", "loss_recovered_mean"},
                              std::pair{"recon.kl_score", "kl_score"}};
  const Scores all = core_scores(sums, version);
  Scores scores;
  for (const auto& [name, own] : kNames)
    if (const auto found = all.find(name); found != all.end())
      scores["recon.hook_" + std::to_string(index) + "." + own] = found->second;
  return scores;
}

Json feature_details(const CoreSums& sums) {
  std::uint64_t tokens = 0;
  for (const DocumentSums& document : sums.documents) tokens += document.tokens;
  const std::vector<double> density = densities(sums, kNone, tokens);
  const auto at = [](const std::vector<double>& values, std::size_t i) {
    return i < values.size() ? rounded(values[i]) : Json();
  };
  Json details = Json::array();
  for (std::size_t i = 0; i < sums.d_sae; ++i) {
    std::uint64_t fired = 0;
    for (const auto& block : sums.fired) fired += block[i];
    const auto documents = static_cast<double>(sums.documents_fired[i]);
    details.push_back({{"index", i},
                       {"feature_density", rounded(density[i])},
                       {"consistent_activation_heuristic",
                        rounded(static_cast<double>(fired) / documents)},  // null if it never fires
                       {"encoder_bias", at(sums.encoder_bias, i)},
                       {"encoder_norm", at(sums.encoder_norm, i)},
                       {"encoder_decoder_cosine_sim", at(sums.encoder_decoder_cosine, i)},
                       {"max_decoder_cosine_sim", at(sums.max_decoder_cosine, i)},
                       {"max_encoder_cosine_sim", at(sums.max_encoder_cosine, i)}});
  }
  return details;
}

Json density_histogram(const CoreSums& sums) {
  constexpr int kBins = 50;
  constexpr double kLowest = -7;
  std::uint64_t tokens = 0;
  for (const DocumentSums& document : sums.documents) tokens += document.tokens;
  std::vector<double> edges;
  for (int i = 0; i <= kBins; ++i) edges.push_back(kLowest * (kBins - i) / kBins);
  std::vector<std::uint64_t> counts(kBins, 0);
  std::uint64_t never = 0;
  for (const double density : densities(sums, kNone, tokens)) {
    if (!(density > 0)) {
      ++never;
      continue;
    }
    const double place = (std::log10(density) - kLowest) / -kLowest * kBins;
    ++counts[static_cast<std::size_t>(std::clamp(place, 0.0, kBins - 1.0))];
  }
  return {{"log10_edges", edges}, {"counts", counts}, {"never", never}};
}

}  // namespace saesweep::metrics
