#include "worker/models/train_lm.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>

#include "core/files.h"
#include "storage/formats/safetensors.h"
#include "tests/support/temp_dir.h"
#include "worker/tensor_bytes.h"

namespace saesweep::worker {
namespace {

using testing::HasSubstr;

sweeps::TrainLmSpec small_job() {
  sweeps::TrainLmSpec spec;
  spec.data.source = "othello";
  spec.data.board = 4;
  spec.data.games = 2000;
  spec.layers = 1;
  spec.d_model = 32;
  spec.heads = 4;
  spec.d_mlp = 64;
  spec.context = 11;
  spec.games = 64 * 80;
  spec.batch = 64;
  spec.lr = 1e-2;
  spec.warmup_steps = 8;
  spec.holdout = 0.1;
  spec.seed = 2;
  return spec;
}

std::string bytes_of(const LmTrainer& trainer) {
  std::map<std::string, at::Tensor> tensors;
  for (const auto& [name, weight] : trainer.model().weights()) tensors[name] = weight.detach();
  return serialize_tensors(tensors);
}

LmTrainer make(const sweeps::TrainLmSpec& spec, ThreadPool& pool) {
  return std::move(LmTrainer::create(spec, pool).value());
}

void train(LmTrainer& trainer, int steps) {
  for (int i = 0; i < steps; ++i) {
    const auto step = trainer.train_step();
    ASSERT_TRUE(step) << step.error().message;
  }
}

struct TrainLm : testing::Test {
  ::saesweep::test::TempDir dir;
  ThreadPool pool{1};
};

TEST_F(TrainLm, TheLossFallsTowardsTheOptimum) {
  for (const char* targets : {"sampled", "exact"}) {
    auto spec = small_job();
    spec.targets = targets;
    LmTrainer trainer = make(spec, pool);
    const LmQuality before = trainer.measure(100);
    EXPECT_NEAR(before.cross_entropy, std::log(13.0), 0.1);
    EXPECT_GT(before.illegal_rate, 0.3);
    const LmStep first = trainer.train_step().value();
    EXPECT_NEAR(first.loss, std::log(13.0), 0.1);
    EXPECT_GT(first.tokens, 64u * 4);
    EXPECT_LE(first.tokens, 64u * 11);
    train(trainer, static_cast<int>(trainer.steps()) - 1);
    EXPECT_EQ(trainer.step(), 80u);
    const LmQuality after = trainer.measure(100);
    EXPECT_EQ(after.games, 100u);
    EXPECT_LT(after.cross_entropy, 1.75) << targets;
    EXPECT_GT(after.cross_entropy, after.optimum - 0.05) << "nobody beats uniform play";
    EXPECT_LT(after.illegal_rate, 0.7 * before.illegal_rate);
    EXPECT_EQ(after.optimum, before.optimum);
  }
}

TEST_F(TrainLm, AResumedRunEndsWithTheSameBytes) {
  const auto spec = small_job();
  LmTrainer whole = make(spec, pool);
  train(whole, 20);

  LmTrainer first = make(spec, pool);
  train(first, 9);
  ASSERT_TRUE(first.save(dir.path() / "state.safetensors"));
  LmTrainer second = make(spec, pool);
  ASSERT_TRUE(second.load(dir.path() / "state.safetensors"));
  EXPECT_EQ(second.step(), 9u);
  EXPECT_EQ(second.tokens(), first.tokens());
  train(second, 11);

  EXPECT_EQ(second.tokens(), whole.tokens());
  EXPECT_TRUE(bytes_of(second) == bytes_of(whole));
  // Moments included.
  ASSERT_TRUE(whole.save(dir.path() / "a"));
  ASSERT_TRUE(second.save(dir.path() / "b"));
  EXPECT_TRUE(read_file(dir.path() / "a").value() == read_file(dir.path() / "b").value());
}

TEST_F(TrainLm, AResumedMuonRunInBf16EndsWithTheSameBytes) {
  auto spec = small_job();
  spec.optimizer = "muon";
  spec.precision = sweeps::Precision::kBFloat16;
  LmTrainer whole = make(spec, pool);
  train(whole, 12);
  LmTrainer first = make(spec, pool);
  train(first, 5);
  ASSERT_TRUE(first.save(dir.path() / "state.safetensors"));
  LmTrainer second = make(spec, pool);
  ASSERT_TRUE(second.load(dir.path() / "state.safetensors"));
  train(second, 7);
  EXPECT_TRUE(bytes_of(second) == bytes_of(whole));
}

// Newton-Schulz brings every singular value of a momentum near 1; the step is that times
// rate * 0.2 * sqrt(the longer side).
TEST_F(TrainLm, AMuonStepMovesEveryDirectionOfABlockMatrixAlike) {
  auto spec = small_job();
  spec.optimizer = "muon";
  spec.weight_decay = 0;
  spec.warmup_steps = 0;
  LmTrainer trainer = make(spec, pool);
  std::map<std::string, at::Tensor> before;
  for (const auto& [name, weight] : trainer.model().weights())
    before[name] = weight.detach().clone();
  train(trainer, 1);
  const auto moved = [&](const std::string& name) {
    return trainer.model().weights().at(name).detach() - before.at(name);
  };
  // [d_in, d_out]; queries, keys and values are orthogonalised one by one.
  for (const at::Tensor& step :
       {moved("h.0.mlp.c_fc.weight"), moved("h.0.mlp.c_proj.weight"),
        moved("h.0.attn.c_proj.weight"), moved("h.0.attn.c_attn.weight").chunk(3, 1)[2]}) {
    const auto longer = static_cast<double>(std::max(step.size(0), step.size(1)));
    const at::Tensor values =
        std::get<1>(at::linalg_svd(step)) / (spec.lr * 0.2 * std::sqrt(longer));
    EXPECT_GT(values.median().item<double>(), 0.7);
    EXPECT_LT(values.max().item<double>(), 1.3);
  }
  // What is no block matrix moves as under adamw: by the rate, whatever the gradient.
  const at::Tensor head = moved("lm_head.weight").abs();
  EXPECT_NEAR(head.max().item<double>(), spec.lr, 0.01 * spec.lr);
}

TEST_F(TrainLm, MuonNeedsFewerGamesThanAdamw) {
  auto spec = small_job();
  spec.targets = "exact";
  LmTrainer adamw = make(spec, pool);
  spec.optimizer = "muon";
  LmTrainer muon = make(spec, pool);
  for (LmTrainer* trainer : {&adamw, &muon}) train(*trainer, 80);
  EXPECT_LT(muon.measure(200).cross_entropy, adamw.measure(200).cross_entropy);
}

TEST_F(TrainLm, TheCosineEndsWhereItIsTold) {
  const auto last_move = [&](double fraction) {
    auto spec = small_job();
    spec.final_lr_fraction = fraction;
    spec.weight_decay = 0;
    LmTrainer trainer = make(spec, pool);
    train(trainer, 79);
    const at::Tensor before = trainer.model().weights().at("lm_head.weight").detach().clone();
    train(trainer, 1);
    return (trainer.model().weights().at("lm_head.weight").detach() - before)
        .abs()
        .max()
        .item<double>();
  };
  // One step of 72 before its end the cosine has 0.05 % of its height left.
  EXPECT_LT(last_move(0), 2e-3 * small_job().lr);
  EXPECT_GT(last_move(0.1), 5e-2 * small_job().lr);
}

TEST_F(TrainLm, ProductsInBf16ChangeTheLossLittleAndOnlyInTraining) {
  auto spec = small_job();
  LmTrainer exact = make(spec, pool);
  spec.precision = sweeps::Precision::kBFloat16;
  LmTrainer rounded = make(spec, pool);
  EXPECT_EQ(exact.measure(50).cross_entropy, rounded.measure(50).cross_entropy);
  const double a = exact.train_step().value().loss, b = rounded.train_step().value().loss;
  EXPECT_NE(a, b);
  EXPECT_NEAR(a, b, 1e-2);
}

TEST_F(TrainLm, TheBytesDoNotDependOnThreads) {
  auto spec = small_job();
  spec.batch = 100;  // a last piece that is not full
  spec.optimizer = "muon";
  ThreadPool two(2), three(3);
  LmTrainer a = make(spec, pool), b = make(spec, two), c = make(spec, three);
  for (LmTrainer* trainer : {&a, &b, &c}) train(*trainer, 6);
  EXPECT_TRUE(bytes_of(a) == bytes_of(b));
  EXPECT_TRUE(bytes_of(a) == bytes_of(c));
  EXPECT_EQ(a.measure(77).cross_entropy, b.measure(77).cross_entropy);
}

TEST_F(TrainLm, TheSeedDecidesWeightsAndOrder) {
  auto spec = small_job();
  LmTrainer a = make(spec, pool), same = make(spec, pool);
  spec.seed = 3;
  LmTrainer other = make(spec, pool);
  EXPECT_TRUE(bytes_of(a) == bytes_of(same));
  EXPECT_FALSE(bytes_of(a) == bytes_of(other));
  EXPECT_EQ(a.train_step().value().loss, same.train_step().value().loss);
}

TEST_F(TrainLm, AbsentBiasesStayZero) {
  auto spec = small_job();
  spec.bias = false;
  LmTrainer trainer = make(spec, pool);
  train(trainer, 5);
  int biases = 0;
  for (const auto& [name, weight] : trainer.model().weights()) {
    if (!name.ends_with(".bias") || name.find("ln_") != std::string::npos) continue;
    ++biases;
    EXPECT_EQ(weight.detach().abs().max().item<float>(), 0.0F) << name;
  }
  EXPECT_EQ(biases, 4);
  EXPECT_GT(trainer.model().weights().at("ln_f.bias").detach().abs().max().item<float>(), 0.0F);
}

TEST_F(TrainLm, ATiedModelTrainsToo) {
  auto spec = small_job();
  spec.tied = true;
  LmTrainer trainer = make(spec, pool);
  const double first = trainer.train_step().value().loss;
  train(trainer, 30);
  EXPECT_FALSE(trainer.model().weights().contains("lm_head.weight"));
  EXPECT_LT(trainer.train_step().value().loss, first - 0.3);
}

TEST_F(TrainLm, WhatWasTrainedCanBeSavedAsAModel) {
  LmTrainer trainer = make(small_job(), pool);
  train(trainer, 2);
  ASSERT_TRUE(trainer.model().save(dir.path() / "model"));
  const Transformer loaded = Transformer::load(dir.path() / "model").value();
  for (const auto& [name, weight] : trainer.model().weights())
    EXPECT_TRUE(at::equal(weight.detach(), loaded.weights().at(name))) << name;
}

TEST_F(TrainLm, ALossThatIsNotFiniteIsReportedAndChangesNothing) {
  auto spec = small_job();
  spec.lr = 1e38;
  spec.warmup_steps = 0;
  spec.weight_decay = 0;
  LmTrainer trainer = make(spec, pool);
  ASSERT_TRUE(trainer.train_step());
  std::string before = bytes_of(trainer);
  auto step = trainer.train_step();
  for (int i = 0; step && i < 5; ++i) {
    before = bytes_of(trainer);
    step = trainer.train_step();
  }
  ASSERT_FALSE(step);
  EXPECT_EQ(step.error().code, ErrorCode::kDiverged);
  EXPECT_THAT(step.error().message, HasSubstr("step " + std::to_string(trainer.step())));
  EXPECT_TRUE(bytes_of(trainer) == before);
}

TEST_F(TrainLm, AJobThatCannotBeIsRefused) {
  const auto refused = [&](const sweeps::TrainLmSpec& spec, const char* words) {
    const auto created = LmTrainer::create(spec, pool);
    ASSERT_FALSE(created) << words;
    EXPECT_EQ(created.error().code, ErrorCode::kInvalidArgument);
    EXPECT_THAT(created.error().message, HasSubstr(words));
  };
  auto spec = small_job();
  spec.heads = 5;
  refused(spec, "n_head 5");
  spec = small_job();
  spec.data.board = 7;
  refused(spec, "data.board 7");
  spec = small_job();
  spec.holdout = 1;
  refused(spec, "data.games");
}

// ---- checkpoints that cannot be used ------------------------------------------------------------

struct BadCheckpoint : TrainLm {
  LmTrainer trainer = make(small_job(), pool);
  std::filesystem::path file = dir.path() / "state.safetensors";

  void SetUp() override {
    train(trainer, 2);
    ASSERT_TRUE(trainer.save(file));
  }
  // Loading fails and leaves the trainer as it was.
  void expect_refused(ErrorCode code, const char* words) {
    LmTrainer fresh = make(small_job(), pool);
    const std::string before = bytes_of(fresh);
    const auto loaded = fresh.load(file);
    ASSERT_FALSE(loaded);
    EXPECT_EQ(loaded.error().code, code) << loaded.error().message;
    EXPECT_THAT(loaded.error().message, HasSubstr(words));
    EXPECT_THAT(loaded.error().message, HasSubstr(file.string()));
    EXPECT_EQ(fresh.step(), 0u);
    EXPECT_TRUE(bytes_of(fresh) == before);
  }
  // The checkpoint with some tensors replaced (an undefined one is left out) and other metadata.
  void rewrite(const std::map<std::string, at::Tensor>& changes,
               const std::map<std::string, std::string>& words = {}) {
    std::map<std::string, at::Tensor> tensors;
    std::map<std::string, std::string> metadata;
    {
      const auto old = storage::Safetensors::open(file).value();
      metadata = old.metadata();
      for (const auto& [name, view] : old.tensors()) tensors[name] = to_tensor(view, name).value();
    }
    for (const auto& [key, word] : words) metadata[key] = word;
    for (const auto& [name, tensor] : changes) {
      tensors.erase(name);
      if (tensor.defined()) tensors[name] = tensor;
    }
    ASSERT_TRUE(write_file_atomically(file, serialize_tensors(tensors, metadata)));
  }
};

TEST_F(BadCheckpoint, OfAnotherJobIsRefused) {
  auto spec = small_job();
  spec.lr = 1e-3;
  LmTrainer other = make(spec, pool);
  const auto loaded = other.load(file);
  ASSERT_FALSE(loaded);
  EXPECT_EQ(loaded.error().code, ErrorCode::kCorrupted);
  EXPECT_THAT(loaded.error().message, HasSubstr("another job"));
}

TEST_F(BadCheckpoint, ThatIsMissingOrTruncatedIsRefused) {
  const std::string bytes = read_file(file).value();
  ASSERT_TRUE(write_file_atomically(file, bytes.substr(0, bytes.size() - 4)));
  expect_refused(ErrorCode::kCorrupted, "safetensors");
  std::filesystem::remove(file);
  expect_refused(ErrorCode::kNotFound, "state.safetensors");
}

TEST_F(BadCheckpoint, WithoutATensorOrWithAWrongOneIsRefusedWhole) {
  rewrite({{"v/wte.weight", at::Tensor()}});
  expect_refused(ErrorCode::kCorrupted, "\"v/wte.weight\"");
  ASSERT_TRUE(trainer.save(file));
  rewrite({{"m/wpe.weight", at::zeros({11, 31})}});
  expect_refused(ErrorCode::kCorrupted, "\"m/wpe.weight\"");
}

TEST_F(BadCheckpoint, WithoutAStepIsRefused) {
  rewrite({}, {{"step", "soon"}});
  expect_refused(ErrorCode::kCorrupted, "step is \"soon\"");
  ASSERT_TRUE(trainer.save(file));
  rewrite({}, {{"tokens", ""}});
  expect_refused(ErrorCode::kCorrupted, "tokens");
}

}  // namespace
}  // namespace saesweep::worker
