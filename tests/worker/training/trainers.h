// Small trainers and rows for the tests of worker/training.
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "core/philox.h"
#include "worker/activations/row_stream.h"
#include "worker/training/trainer_base.h"

namespace saesweep::worker::test {

using sweeps::Architecture;
using sweeps::TrainingSpec;

inline const std::vector<Architecture> kAllArchitectures = {
    Architecture::kStandard, Architecture::kStandardBricken, Architecture::kTopK,
    Architecture::kBatchTopK, Architecture::kPAnneal};

inline bool of_topk_family(Architecture architecture) {
  return architecture == Architecture::kTopK || architecture == Architecture::kBatchTopK;
}

// As saebench-v1 sets what is not about time; all schedules off.
inline TrainingSpec make_spec(Architecture architecture, std::uint64_t d_sae, std::uint64_t batch,
                              std::uint64_t steps) {
  TrainingSpec spec;
  spec.architecture = architecture;
  spec.recipe = "saebench-v1";
  spec.d_sae = d_sae;
  spec.batch = batch;
  spec.tokens = batch * steps;
  spec.lr = 1e-3;
  spec.decay_start = steps;
  if (of_topk_family(architecture)) {
    spec.k = 4;
    spec.grad_clip = 1.0;
    spec.dead_after_tokens = 10'000'000;
    spec.threshold_beta = 0.999;
    spec.aux_k_weight = 1.0 / 32;
  } else {
    spec.l1 = 0.05;
  }
  if (architecture == Architecture::kStandard) spec.grad_clip = 1.0;
  if (architecture == Architecture::kPAnneal) {
    spec.anneal_start = steps / 3;
    spec.anneal_end = steps;
    spec.n_sparsity_updates = 4;
  }
  return spec;
}

inline std::unique_ptr<SaeTrainer> make_trainer(const TrainingSpec& spec, std::int64_t d_in,
                                                ThreadPool& pool, double norm_factor = 1) {
  auto trainer = SaeTrainer::create(spec, d_in, norm_factor, pool);
  EXPECT_TRUE(trainer) << trainer.error().message;
  return std::move(*trainer);
}

inline TrainerBase& inside(SaeTrainer& trainer) { return dynamic_cast<TrainerBase&>(trainer); }

inline at::Tensor normal_tensor(at::IntArrayRef shape, std::uint64_t seed) {
  at::Tensor tensor = at::empty(shape, at::kFloat);
  Rng rng(seed, "test.normal");
  for (std::int64_t i = 0; i < tensor.numel(); ++i)
    tensor.mutable_data_ptr<float>()[i] = static_cast<float>(rng.normal());
  return tensor;
}

// Unit rows in random directions.
inline at::Tensor directions(std::int64_t count, std::int64_t d, std::uint64_t seed) {
  const at::Tensor rows = normal_tensor({count, d}, seed);
  return rows / rows.square().sum(1, true).sqrt();
}

// Sums of a few of `atoms`, each there with chance active / atoms and of size 0.5 to 1.5.
inline at::Tensor sparse_rows(std::int64_t rows, const at::Tensor& atoms, double active,
                              std::uint64_t seed) {
  at::Tensor codes = at::zeros({rows, atoms.size(0)}, at::kFloat);
  Rng rng(seed, "test.sparse");
  const double chance = active / static_cast<double>(atoms.size(0));
  for (std::int64_t i = 0; i < codes.numel(); ++i)
    if (rng.uniform() < chance)
      codes.mutable_data_ptr<float>()[i] = static_cast<float>(0.5 + rng.uniform());
  return at::mm(codes, atoms);
}

inline at::Tensor step_rows(const at::Tensor& rows, std::uint64_t step, std::uint64_t batch) {
  const auto first = static_cast<std::int64_t>(step * batch) % rows.size(0);
  return rows.narrow(0, first, static_cast<std::int64_t>(batch));
}

// Goes on to `until` steps over `rows`, round and round; a multiple of the batch.
inline void train(SaeTrainer& trainer, const at::Tensor& rows, std::uint64_t until) {
  while (trainer.step() < until) {
    const auto report = trainer.train_step(step_rows(rows, trainer.step(), trainer.spec().batch));
    ASSERT_TRUE(report) << report.error().message;
  }
}

// Everything a trainer leaves behind, as bytes.
inline std::string result_bytes(const SaeTrainer& trainer) {
  return serialize_sae(trainer.sae()) + trainer.curve_csv() + trainer.config().dump() +
         trainer.summary().dump();
}

inline double distance(const at::Tensor& a, const at::Tensor& b) {
  return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

// Largest difference relative to the largest value.
inline double relative_distance(const at::Tensor& a, const at::Tensor& b) {
  return distance(a, b) / std::max(1e-30, b.abs().max().item<double>());
}

inline bool same_bytes(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor left = a.contiguous(), right = b.contiguous();
  return left.nbytes() == right.nbytes() &&
         std::memcmp(left.const_data_ptr(), right.const_data_ptr(), left.nbytes()) == 0;
}

// Rows in memory, round and round.
class TensorStream final : public RowStream {
 public:
  explicit TensorStream(at::Tensor rows) : rows_(std::move(rows)) {}
  std::int64_t d_in() const override { return rows_.size(1); }
  std::uint64_t rows_per_pass() const override { return static_cast<std::uint64_t>(rows_.size(0)); }
  double norm_factor() const override { return 1; }
  Result<void> read(std::uint64_t first, std::uint64_t count, float* out) override {
    ++reads;
    if (fail_at && first >= *fail_at) return fail(ErrorCode::kUnavailable, "stopping");
    const auto width = static_cast<std::size_t>(rows_.size(1));
    for (std::uint64_t i = 0; i < count; ++i)
      std::memcpy(out + i * width,
                  rows_.const_data_ptr<float>() + (first + i) % rows_per_pass() * width,
                  width * sizeof(float));
    return {};
  }

  int reads = 0;
  std::optional<std::uint64_t> fail_at;

 private:
  at::Tensor rows_;
};

}  // namespace saesweep::worker::test
