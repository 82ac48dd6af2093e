// The sums behind the core scores: batches of 16 documents through model and dictionary.
//
// The first pass is the model's alone (clean, hook at zero, hook at its mean) and is the same for
// all dictionaries of a stream, so it is kept for the next one where it fits. The second splices
// the dictionary's reconstruction in. Deterministic: a batch runs on one thread, batches are added
// in order, in double precision.
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

// What the model does without a dictionary.
struct CoreReference {
  // What it was computed from; the pointers keep their addresses from being used again.
  std::shared_ptr<const Transformer> model;
  std::shared_ptr<const TokenDocuments> tokens;
  std::string hook;
  std::vector<std::uint64_t> documents;

  std::vector<metrics::DocumentSums> sums;  // ce_clean, ce_zero, ce_mean, kl_zero
  // By batch, inputs only; empty where they would not fit.
  std::vector<at::Tensor> x;       // [rows, width]
  std::vector<at::Tensor> logits;  // [rows, vocabulary]
};

Result<metrics::CoreSums> core_sums(const Sae& sae, const EvaluationInputs& inputs,
                                    const Sample& sample,
                                    std::shared_ptr<const CoreReference>& reference);

// Norms and cosines of encoder and decoder rows into `sums`.
void add_weight_statistics(metrics::CoreSums& sums, const Sae& sae, ThreadPool& pool);

}  // namespace saesweep::worker
