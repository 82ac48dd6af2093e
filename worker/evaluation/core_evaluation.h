// The sums behind the core scores: batches of 16 documents through model and dictionary.
//
// The first pass is the model's alone (clean, hook at zero, hook at its mean) and is the same for
// all dictionaries of a stream, so it is kept for the next one where it fits. The second splices
// the dictionary's reconstruction in. Both read the same documents. Deterministic: a batch runs on
// one thread, batches are added in order, in double precision.
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
