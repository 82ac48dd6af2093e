// Scores: one evaluation of one dictionary or baseline, on held-out documents.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "core/json.h"
#include "core/result.h"
#include "sweeps/spec.h"
#include "worker/activations/row_stream.h"
#include "worker/data/documents.h"
#include "worker/models/transformer.h"
#include "worker/parallel/thread_pool.h"
#include "worker/sae/sae.h"

namespace saesweep::worker {

// What evaluations of one stream have in common (the model's own passes, labels of boards), kept
// from one to the next: give the same to all of a run. One at a time; holds up to about half a
// gigabyte.
class EvaluationCache {
 public:
  EvaluationCache();
  ~EvaluationCache();
  EvaluationCache(const EvaluationCache&) = delete;
  EvaluationCache& operator=(const EvaluationCache&) = delete;

  struct State;
  State& state() { return *state_; }

 private:
  std::unique_ptr<State> state_;
};

// What is evaluated on. `model` and `tokens` are null for `source: activations`, `activations`
// otherwise.
struct EvaluationInputs {
  sweeps::StreamSpec stream;
  std::shared_ptr<const Transformer> model;
  std::shared_ptr<const TokenDocuments> tokens;
  std::shared_ptr<const ActivationDocuments> activations;
  // Opens the training stream (pca and other baselines that are fitted to it).
  std::function<Result<std::unique_ptr<RowStream>>()> open_stream;
  ThreadPool* pool = nullptr;
  EvaluationCache* cache = nullptr;  // may be null: nothing is kept
  std::function<bool()> stop = {};   // true: give up with kUnavailable
  std::function<void(std::uint64_t done, std::uint64_t total)> progress = {};  // tokens
};

// {"scores": {name: {"value","low","high","n","version"}}, "heldout": bool,
//  "details": [...] (core: per feature), "histogram": {"log10_edges","counts","never"} (core),
//  "board": {group: {"t","labels"}} (board: chosen threshold, labels at it)}
// Deterministic: no times, no paths.
// `trained` is what the trainer's summary says ("l0_train" becomes recon.l0_train); may be empty.
// Errors: kInvalidArgument when the evaluation does not apply (board without games; fewer held-out
// documents than asked for, with how many there are).
Result<Json> evaluate_sae(const sweeps::EvaluationSpec& evaluation, const Sae& sae,
                          const Json& trained, const EvaluationInputs& inputs);

// The same for a baseline. `trained_sae` is set for random_model alone. An evaluation that does not
// apply to the baseline gives {"scores": {}}.
Result<Json> evaluate_baseline(const sweeps::EvaluationSpec& evaluation,
                               const sweeps::BaselineSpec& baseline, const Sae* trained_sae,
                               const EvaluationInputs& inputs);

// The bucket kernel of the board scores against a dense product, in one run on one thread:
// {"bench": "board", "positions_per_s", "baseline": {"name", "positions_per_s"}, "ratio",
// "positions",
//  "latents", "l0", "properties", "thresholds", "equal": counts agree}.
Result<Json> bench_board();

// The version of the metrics of an evaluation; part of a score's identity. In metrics/scores so
// that the scheduler knows it without LibTorch: metrics::metric_version(kind).

}  // namespace saesweep::worker
