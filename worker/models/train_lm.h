// Trains a decoder-only transformer from scratch on games as text: the job behind `train_lm`.
//
// AdamW (betas .9, .95; weight decay on matrices only), linear warm-up, cosine down to
// `final_lr_fraction` of the rate, global-norm clip. With `optimizer: muon` the matrices inside the
// blocks follow their orthogonalised momentum. Batches are cut into fixed pieces of games, one
// thread a piece, and added in order: the bytes do not depend on threads, and a run resumed from a
// checkpoint ends with the same bytes as one that was never stopped.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>

#include "core/json.h"
#include "core/result.h"
#include "sweeps/spec.h"
#include "worker/data/documents.h"
#include "worker/models/transformer.h"
#include "worker/parallel/thread_pool.h"

namespace saesweep::worker {

struct LmStep {
  std::uint64_t tokens = 0;  // targets of this step
  double loss = 0;           // mean cross entropy of the batch, nats
  double grad_norm = 0;      // before clipping
};

struct LmQuality {
  std::uint64_t games = 0, targets = 0;  // held out
  double cross_entropy = 0;              // nats a target
  double optimum = 0;                    // mean ln(legal moves) over the same targets
  double illegal_rate = 0;               // share of positions whose top-1 prediction is illegal
};

class LmTrainer {
 public:
  // Errors: kInvalidArgument (heads that do not divide d_model, no training games, ...).
  static Result<LmTrainer> create(const sweeps::TrainLmSpec& spec, ThreadPool& pool);
  // A state written by save(). Errors: kNotFound; kCorrupted, after which this is as it was before.
  Result<void> load(const std::filesystem::path& file);
  // Everything a bit-exact resume needs, written atomically.
  Result<void> save(const std::filesystem::path& file) const;

  std::uint64_t step() const { return step_; }
  std::uint64_t steps() const { return spec_.steps(); }
  std::uint64_t tokens() const { return tokens_; }
  const Transformer& model() const { return model_; }

  // One optimiser step. Errors: kDiverged when loss or gradient is not finite.
  Result<LmStep> train_step();
  // On the first `games` held-out games.
  LmQuality measure(std::uint64_t games) const;

 private:
  LmTrainer(sweeps::TrainLmSpec spec, Transformer model, ThreadPool& pool,
            std::shared_ptr<const TokenDocuments> documents);
  double learning_rate() const;
  // Moves weight i of the trainable ones, given its summed gradient. Any thread, one weight each.
  void move_by_adamw(const std::string& name, at::Tensor& weight, const at::Tensor& gradient,
                     double clip);
  void move_by_muon(const std::string& name, at::Tensor& weight, const at::Tensor& gradient,
                    double clip);

  sweeps::TrainLmSpec spec_;
  Transformer model_;
  ThreadPool* pool_;  // outlives this
  std::shared_ptr<const TokenDocuments> documents_;
  std::vector<std::uint64_t> training_games_;
  std::map<std::string, at::Tensor> first_moment_, second_moment_;
  std::uint64_t step_ = 0, tokens_ = 0;
};

}  // namespace saesweep::worker
