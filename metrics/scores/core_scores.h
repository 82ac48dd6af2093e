// The core evaluation: what of the activation, and of the model's behaviour, survives a round trip
// through a dictionary, at which sparsity.
//
// Names under core.* are computed as SAEBench 0.6 computes them, its quirks included, so that they
// compare with published numbers; corrected definitions stand under recon.*. Quirks kept:
//   mse                   squared error divided by the tokens of its batch, not by the width
//   l1                    signed
//   explained_variance    1 - R / (S - (S / d)^2): not centred, depends on the scale
//   explained_variance_legacy   per token, against the mean of its batch of 16 documents
//   relative_reconstruction_bias   mean over batches of a ratio
//   kl_div_*              by log(softmax): an underflow makes them NaN (recon.kl_score is sound)
// Source: SAEBench (arXiv 2503.09532), sae_bench/evals/core; relative reconstruction bias:
// "Improving Dictionary Learning with Gated Sparse Autoencoders" (arXiv 2404.16014), eq. 10.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/json.h"
#include "metrics/scores/score_set.h"

namespace saesweep::metrics {

// Documents (rows of a prompt) in a batch: what mse and the means over batches depend on.
inline constexpr std::size_t kDocumentsPerBatch = 16;

// KL(p || q) = sum_v p_v (log p_v - log q_v) of two rows of logits, in nats.
struct Divergence {
  double value = 0;   // by log-softmax
  double legacy = 0;  // by log(softmax) in single precision: NaN or infinite after an underflow
};
Divergence divergence(std::span<const float> p_logits, std::span<const float> q_logits);
// -log softmax(logits)[target]
double cross_entropy(std::span<const float> logits, std::size_t target);

// Sums over the tokens of one document.
struct DocumentSums {
  std::uint64_t tokens = 0;
  // with a model
  double ce_clean = 0, ce_sae = 0, ce_zero = 0, ce_mean = 0;  // nothing, x_hat, 0, mean x put in
  Divergence kl_sae, kl_zero;
  // x and its reconstruction
  double norm_in = 0, norm_out = 0, norm_ratio = 0, cosine = 0;
  double squared_in = 0, squared_out = 0, dot = 0, squared_error = 0;
  double mse = 0;     // squared error / tokens of the batch
  double legacy = 0;  // 1 - |x - x_hat|^2 / |x - mean of the batch|^2
  double l0 = 0, l1 = 0;
};
// Adds the part of one token that needs neither model nor batch.
void add_reconstruction(DocumentSums& sums, std::span<const float> x, std::span<const float> x_hat);

// Everything the scores are computed from.
struct CoreSums {
  std::size_t d_in = 0, d_sae = 0;
  bool has_model = false;
  std::vector<DocumentSums> documents;  // in order; batches of kDocumentsPerBatch
  // By block of documents:
  std::vector<std::vector<double>> sum_x;         // [d_in]
  std::vector<std::vector<std::uint32_t>> fired;  // [d_sae] tokens with f > 0
  std::vector<std::uint64_t> documents_fired;     // [d_sae] documents with such a token
  // Of the weights; empty where a dictionary has none.
  std::vector<double> encoder_bias, encoder_norm, encoder_decoder_cosine;
  std::vector<double> max_encoder_cosine, max_decoder_cosine;
  // What the trainer saw last; NaN where there was none.
  double l0_train = 0;

  CoreSums(std::size_t documents_, std::size_t d_in_, std::size_t d_sae_);
};

Scores core_scores(const CoreSums& sums, int version);

// What is said of hook `index` of a crosscoder beside the scores of all its hooks: as
// recon.hook_<index>.{fve, mse_sum, gamma, ce_loss_score, loss_recovered_mean, kl_score}, computed
// as those without the hook's number. The last three with a model only: that hook alone is
// replaced.
Scores hook_scores(const CoreSums& sums, int version, std::size_t index);

// One object a feature, numbers rounded to 10 decimals as SAEBench writes them.
Json feature_details(const CoreSums& sums);

// Share of tokens each feature fires on, in 50 bins of log10 from -7 to 0; the outer bins take what
// lies beyond: {"log10_edges", "counts", "never"}.
Json density_histogram(const CoreSums& sums);

}  // namespace saesweep::metrics
