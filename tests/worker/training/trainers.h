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

// Of one hook.
inline const std::vector<Architecture> kSingleArchitectures = {
    Architecture::kStandard,  Architecture::kStandardBricken, Architecture::kTopK,
    Architecture::kBatchTopK, Architecture::kPAnneal,         Architecture::kGated,
    Architecture::kJumpRelu,  Architecture::kMatryoshka,      Architecture::kGatedPAnneal};
inline const std::vector<Architecture> kAllArchitectures = [] {
  std::vector<Architecture> all = kSingleArchitectures;
  all.insert(all.end(),
             {Architecture::kTranscoder, Architecture::kSkipTranscoder, Architecture::kCrosscoder,
              Architecture::kBatchTopKCrosscoder, Architecture::kJumpReluTranscoder});
  return all;
}();

inline bool of_topk_family(Architecture architecture) {
  return architecture == Architecture::kTopK || architecture == Architecture::kBatchTopK ||
         architecture == Architecture::kMatryoshka ||
         architecture == Architecture::kBatchTopKCrosscoder;
}
inline bool has_k(Architecture architecture) {
  return of_topk_family(architecture) || architecture == Architecture::kTranscoder ||
         architecture == Architecture::kSkipTranscoder;
}
inline bool is_gated(Architecture architecture) {
  return architecture == Architecture::kGated || architecture == Architecture::kGatedPAnneal;
}
inline bool is_annealed(Architecture architecture) {
  return architecture == Architecture::kPAnneal || architecture == Architecture::kGatedPAnneal;
}
// A threshold found by training stands for the selection over a batch.
inline bool over_batch(Architecture architecture) {
  return of_topk_family(architecture) && architecture != Architecture::kTopK;
}

inline bool starts_at_unit_norm(Architecture architecture) {
  return of_topk_family(architecture) || is_gated(architecture) ||
         architecture == Architecture::kJumpRelu;
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
  if (has_k(architecture)) {
    spec.k = 4;
    if (!is_transcoder(architecture)) spec.grad_clip = 1.0;
    spec.dead_after_tokens = 10'000'000;
    spec.threshold_beta = 0.999;
    spec.aux_k_weight = 1.0 / 32;
  } else if (sweeps::is_jumprelu(architecture)) {
    spec.l0_target = 5;
    spec.l0_coefficient = 0.2;
    spec.bandwidth = 0.1;
    spec.init_threshold = 0.1;
    spec.grad_clip = 1.0;
  } else {
    spec.l1 = 0.05;
  }
  if (architecture == Architecture::kMatryoshka) spec.group_fractions = {0.1, 0.2, 0.7};
  if (architecture == Architecture::kStandard || architecture == Architecture::kCrosscoder)
    spec.grad_clip = 1.0;
  if (sweeps::is_jumprelu(architecture) || is_gated(architecture)) spec.adam_beta1 = 0;
  if (is_annealed(architecture)) {
    spec.anneal_start = steps / 3;
    spec.anneal_end = steps;
    spec.n_sparsity_updates = 4;
  }
  return spec;
}

// Everything that is state moves within two dozen steps.
inline TrainingSpec lively_spec(Architecture architecture, std::uint64_t batch,
                                std::uint64_t steps) {
  TrainingSpec spec = make_spec(architecture, 150, batch, steps);
  spec.warmup_steps = steps / 8;
  spec.decay_start = steps * 3 / 4;
  if (has_k(architecture)) {
    spec.k = 2;
    spec.dead_after_tokens = 2 * batch;
    spec.threshold_start_step = 2;
    spec.threshold_beta = 0.9;
  } else {
    spec.sparsity_warmup_steps = 5;
  }
  if (is_gated(architecture) || architecture == Architecture::kCrosscoder) spec.l0_target = 5;
  if (is_annealed(architecture)) {
    spec.anneal_start = 4;
    spec.n_sparsity_updates = 5;
  }
  return spec;
}

inline TrainingSpec jumprelu_spec(sweeps::SparsityLoss loss, std::uint64_t d_sae,
                                  std::uint64_t batch, std::uint64_t steps) {
  TrainingSpec spec = make_spec(Architecture::kJumpRelu, d_sae, batch, steps);
  spec.sparsity_loss = loss;
  if (loss != sweeps::SparsityLoss::kL0Target) spec.l0_target.reset();
  if (loss == sweeps::SparsityLoss::kTanh) {
    spec.bandwidth = 0.6;
    spec.tanh_scale = 4;
    spec.pre_act_weight = 0.01;
  }
  return spec;
}

// Rows of this many values as the architecture sees them: of transcoders a little more is read than
// predicted, a crosscoder has two hooks.
inline std::vector<RowPart> parts_of(const TrainingSpec& spec, std::int64_t width,
                                     double norm_factor = 1) {
  if (!is_joint(spec.architecture)) return {{width, norm_factor}};
  const std::int64_t first = is_transcoder(spec.architecture) ? width / 2 + 1 : width / 2;
  return {{first, norm_factor}, {width - first, norm_factor}};
}

inline std::unique_ptr<SaeTrainer> make_trainer(const TrainingSpec& spec, std::int64_t width,
                                                ThreadPool& pool, double norm_factor = 1) {
  auto trainer = SaeTrainer::create(spec, parts_of(spec, width, norm_factor), pool);
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
