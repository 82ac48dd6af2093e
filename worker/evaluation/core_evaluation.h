// The sums behind the core scores: batches of 16 documents through model and dictionary.
//
// The first pass is the model's alone (clean, hook at zero, hook at its mean) and is the same for
// all dictionaries of a stream, so it is kept for the next one where it fits. The second splices
// the dictionary's reconstruction in. Deterministic: a batch runs on one thread, batches are added
// in order, in double precision.
//
// Of a joint stream a dictionary is scored on what it makes of one hook at a time (Target): a
// transcoder on the hook it predicts, a crosscoder on each of its hooks in turn.
//
// SAEBench has two passes in another sense (evals/core/main.py of adamkarvonen/SAEBench, at 0.6.0):
// one for the scores that need logits, one for sparsity and variance. `tokens` is asked for each of
// the two, and both read the first held-out documents: every score of a row then has the same n and
// the same blocks for its interval, and a sweep needs no more held-out documents than it asks for.
// There the second pass means to begin anew too; its reset of the token stream has no effect, so it
// goes on behind the first. No definition depends on which documents are read, and published
// numbers come from another text anyway: the version of the metric says the formulas, not the
// sample.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/result.h"
#include "metrics/scores/core_scores.h"
#include "worker/evaluation/evaluate.h"
#include "worker/evaluation/sample.h"
#include "worker/sae/sae.h"

namespace saesweep::worker {

// What of a row is scored: these columns of the stream's rows, and the hook that is replaced by
// what the dictionary makes of them; empty: nothing is replaced, there are no scores of the model's
// behaviour.
struct Target {
  std::int64_t first = 0, width = 0;  // columns
  std::int64_t reconstructed = 0;     // where they begin in what the dictionary writes
  std::string hook;
};

// What the model does without a dictionary.
struct CoreReference {
  // What it was computed from; the pointers keep their addresses from being used again.
  std::shared_ptr<const Transformer> model;
  std::shared_ptr<const TokenDocuments> tokens;
  std::vector<std::string> hooks;  // of the stream
  std::string hook;                // replaced
  std::vector<std::uint64_t> documents;

  std::vector<metrics::DocumentSums> sums;  // ce_clean, ce_zero, ce_mean, kl_zero
  // By batch, inputs only; empty where they would not fit.
  std::vector<at::Tensor> x;       // [rows, values of a row]
  std::vector<at::Tensor> logits;  // [rows, vocabulary]
};

// What there is to score: one target, of a crosscoder one a hook.
// Errors: kInvalidArgument if the dictionary is not of the stream.
Result<std::vector<Target>> targets_of(const Sae& sae, const EvaluationInputs& inputs);
// `reference` is that of the target; what it holds may take `kept_bytes`.
Result<metrics::CoreSums> core_sums(const Sae& sae, const EvaluationInputs& inputs,
                                    const Sample& sample, const Target& target,
                                    std::uint64_t kept_bytes,
                                    std::shared_ptr<const CoreReference>& reference);

// Activations and logits of the sample are kept for the next dictionary up to this many bytes.
inline constexpr std::uint64_t kKeptCoreBytes = std::uint64_t{256} << 20;

// Norms and cosines of encoder and decoder rows into `sums`.
void add_weight_statistics(metrics::CoreSums& sums, const Sae& sae, ThreadPool& pool);

}  // namespace saesweep::worker
