// End-to-end dictionaries against autograd, with a "model" whose divergence is a square.
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <limits>
#include <utility>

#include "tests/support/temp_dir.h"
#include "tests/worker/training/trainers.h"
#include "worker/activations/spliced_model.h"

namespace saesweep::worker::test {
namespace {

constexpr std::int64_t kIn = 12;
constexpr std::uint64_t kBatch = 300, kSteps = 12;

// "KL" = mean over rows of |x_hat A - target|^2 / 2, "downstream" that of |x_hat|^2, whatever the
// rows are.
class SquareModel final : public SplicedModel {
 public:
  Said splice(std::uint64_t first, const at::Tensor& reconstruction, double in_to_orig) override {
    asked.push_back(first);
    return say(reconstruction, target, in_to_orig);
  }
  Said splice_held_out(std::int64_t first, const at::Tensor& reconstruction,
                       double in_to_orig) override {
    asked_apart.push_back(first);
    return say(reconstruction, apart.narrow(0, first, reconstruction.size(0)), in_to_orig);
  }
  std::vector<std::int64_t> held_out_documents_end() const override { return ends; }

  Said say(const at::Tensor& reconstruction, const at::Tensor& wanted, double in_to_orig) const {
    const at::Tensor error = at::mm(reconstruction, a) - wanted;
    const auto rows = static_cast<double>(reconstruction.size(0));
    Said said;
    said.kl = error.square().sum(at::kDouble).item<double>() / (2 * rows);
    said.downstream = reconstruction.square().sum(at::kDouble).item<double>() / (2 * rows);
    said.gradient = at::mm(error, a.t()) / rows + reconstruction * (in_to_orig / rows);
    if (is_broken) said.kl = std::numeric_limits<double>::quiet_NaN();
    return said;
  }

  const at::Tensor a = normal_tensor({kIn, 5}, 21);
  const at::Tensor target = normal_tensor({static_cast<std::int64_t>(kBatch), 5}, 22);
  const at::Tensor apart = normal_tensor({467, 5}, 23);
  std::vector<std::int64_t> ends{150, 290, 310, 400, 467};
  bool is_broken = false;
  std::vector<std::uint64_t> asked;
  std::vector<std::int64_t> asked_apart;
};

TrainingSpec spec_of(std::uint64_t steps = kSteps) {
  TrainingSpec spec = make_spec(Architecture::kEndToEnd, 150, kBatch, steps);
  spec.lr_schedule = sweeps::LrSchedule::kCosine;
  spec.warmup_steps = spec.decay_start = steps / 6;
  spec.l1 = 0.3;
  spec.grad_clip = 10;
  spec.lr = 5e-3;
  return spec;
}

std::unique_ptr<SaeTrainer> trainer_of(const TrainingSpec& spec, SplicedModel& model,
                                       ThreadPool& pool) {
  auto trainer = SaeTrainer::create(spec, {{kIn, 1}}, pool, &model);
  EXPECT_TRUE(trainer) << trainer.error().message;
  return std::move(*trainer);
}

at::Tensor rows() {
  return sparse_rows(7 * static_cast<std::int64_t>(kBatch), directions(30, kIn, 1), 4, 2);
}

TEST(EndToEnd, GradientsAreThoseOfAutograd) {
  ThreadPool pool(2);
  SquareModel model;
  TrainingSpec spec = spec_of();
  spec.in_to_orig = 0.4;
  spec.out_to_in = 0.7;
  const auto trainer = trainer_of(spec, model, pool);
  TrainerBase& base = inside(*trainer);
  SaeTensors& parameters = base.parameters();
  parameters.w_dec.copy_(normal_tensor(parameters.w_dec.sizes(), 3) * 0.7);
  parameters.b_dec.copy_(normal_tensor(parameters.b_dec.sizes(), 4) * 0.2);
  const at::Tensor x = step_rows(rows(), 0, kBatch).contiguous();
  const PassSums sums = base.pass_for_test(x);

  const c10::AutoGradMode with_gradients(true);
  std::vector<at::Tensor> leaves;
  for (const at::Tensor* each :
       {&parameters.w_enc, &parameters.b_enc, &parameters.w_dec, &parameters.b_dec})
    leaves.push_back(each->to(at::kDouble).detach().requires_grad_(true));
  const at::Tensor f = at::addmm(leaves[1], x.to(at::kDouble), leaves[0].t()).relu();
  const at::Tensor w = leaves[2] / leaves[2].square().sum(1, true).sqrt();
  const at::Tensor x_hat = at::addmm(leaves[3], f, w);
  const at::Tensor error = at::mm(x_hat, model.a.to(at::kDouble)) - model.target.to(at::kDouble);
  const at::Tensor loss = error.square().sum() / (2.0 * kBatch) +
                          f.sum() * (*spec.l1 / (kBatch * double{kIn})) +
                          x_hat.square().sum() * (spec.in_to_orig / (2.0 * kBatch)) +
                          (x_hat - x.to(at::kDouble)).square().mean() * spec.out_to_in;
  const auto want = torch::autograd::grad({loss}, leaves);

  EXPECT_NEAR(sums.loss(), loss.item<double>(), 1e-5 * loss.item<double>());
  EXPECT_NEAR(sums.l0, f.gt(0).sum(1).to(at::kDouble).mean().item<double>(), 1e-9);
  const SaeTensors& got = base.gradients();
  EXPECT_LT(relative_distance(got.w_enc, want[0]), 1e-5);
  EXPECT_LT(relative_distance(got.b_enc, want[1]), 1e-5);
  EXPECT_LT(relative_distance(got.w_dec, want[2]), 1e-5);
  EXPECT_LT(relative_distance(got.b_dec, want[3]), 1e-5);
}

// torch.nn.init.orthogonal_ of the decoder, and torch.nn.Linear's uniform draws.
TEST(EndToEnd, BeginsWithOrthonormalColumnsOrRowsOfTheDecoder) {
  ThreadPool pool(2);
  SquareModel model;
  for (const std::uint64_t d_sae : {150, 12, 7}) {
    TrainingSpec spec = spec_of();
    spec.d_sae = d_sae;
    const auto trainer = trainer_of(spec, model, pool);
    const SaeTensors& drawn = inside(*trainer).parameters();
    const at::Tensor v = drawn.w_dec.to(at::kDouble);
    const at::Tensor products = d_sae >= kIn ? at::mm(v.t(), v) : at::mm(v, v.t());
    EXPECT_LT(distance(products, at::eye(products.size(0), at::kDouble)), 1e-6) << d_sae;
    const auto bound_of = [](double inputs) { return 1 / std::sqrt(inputs); };
    for (const auto& [values, bound] :
         {std::pair(drawn.w_enc, bound_of(kIn)), std::pair(drawn.b_enc, bound_of(kIn)),
          std::pair(drawn.b_dec, bound_of(double(d_sae)))}) {
      const double largest = values.abs().max().item<double>();
      EXPECT_LE(largest, bound);
      EXPECT_GT(largest, bound / 2);
    }
  }
}

// A factorisation alone would give the first value one sign always.
TEST(EndToEnd, TheDecoderIsDrawnUniformlyAmongOrthonormalOnes) {
  ThreadPool pool(1);
  SquareModel model;
  at::Tensor sum = at::zeros({150, kIn}, at::kDouble);
  constexpr std::uint64_t kSeeds = 64;
  int positive = 0;
  for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
    TrainingSpec spec = spec_of();
    spec.seed = seed;
    const auto trainer = trainer_of(spec, model, pool);
    const at::Tensor& v = inside(*trainer).parameters().w_dec;
    sum += v;
    positive += v[0][0].item<double>() > 0 ? 1 : 0;
  }
  EXPECT_GT(positive, 16);
  EXPECT_LT(positive, 48);
  // Of 1800 means of 64 draws of variance 1/150.
  EXPECT_LT((sum / kSeeds).abs().max().item<double>(), 5 / std::sqrt(150.0 * kSeeds));
}

TEST(EndToEnd, TheModelIsAskedAboutTheRowsOfEachStep) {
  ThreadPool pool(1);
  SquareModel model;
  const auto trainer = trainer_of(spec_of(3), model, pool);
  train(*trainer, rows(), 3);
  EXPECT_EQ(model.asked, (std::vector<std::uint64_t>{0, kBatch, 2 * kBatch}));
}

TEST(EndToEnd, TheLossFallsAndIsNotThatOfTheReconstruction) {
  ThreadPool pool(2);
  SquareModel model;
  const auto trainer = trainer_of(spec_of(60), model, pool);
  const auto first = trainer->train_step(step_rows(rows(), 0, kBatch).contiguous()).value();
  train(*trainer, rows(), 59);
  const auto last = trainer->train_step(step_rows(rows(), 59, kBatch).contiguous()).value();
  EXPECT_LT(last.loss, 0.8 * first.loss);
  EXPECT_GT(last.mse, 0);
  EXPECT_NE(last.loss, last.mse);
}

TEST(EndToEnd, WhatIsNotFiniteIsSkippedAndChangesNothing) {
  ThreadPool pool(1);
  SquareModel model;
  const auto trainer = trainer_of(spec_of(), model, pool);
  train(*trainer, rows(), 2);
  const std::string before = serialize_sae(trainer->sae());
  model.is_broken = true;
  const auto report = trainer->train_step(step_rows(rows(), 2, kBatch).contiguous());
  ASSERT_TRUE(report);
  EXPECT_FALSE(report->applied);
  EXPECT_TRUE(serialize_sae(trainer->sae()) == before);
}

TEST(EndToEnd, LooksAtHeldOutDocumentsInBatchesOfWholeOnesAndChangeNoByte) {
  ThreadPool pool(2);
  SquareModel model, unseen;
  TrainingSpec spec = spec_of();
  const auto plain = trainer_of(spec, unseen, pool);
  train(*plain, rows(), kSteps);
  spec.eval_every = kBatch * 4;
  const auto trainer = trainer_of(spec, model, pool);
  const at::Tensor apart = sparse_rows(467, directions(30, kIn, 1), 4, 3);
  for (std::uint64_t step = 1; step <= kSteps; ++step) {
    train(*trainer, rows(), step);
    EXPECT_EQ(trainer->held_out_is_due(), step % 4 == 0);
    if (!trainer->held_out_is_due()) continue;
    const HeldOutReport look = trainer->score_held_out(apart).value();
    EXPECT_FALSE(trainer->held_out_is_due());
    const SaeTensors& own = inside(*trainer).parameters();
    const at::Tensor f = at::addmm(own.b_enc, apart, own.w_enc.t()).relu();
    const at::Tensor w = own.w_dec / own.w_dec.square().sum(1, true).sqrt();
    const at::Tensor x_hat = at::addmm(own.b_dec, f, w);
    const double loss = model.say(x_hat, model.apart, 0).kl +
                        *spec.l1 * f.sum(1).mean().item<double>() / double{kIn};
    EXPECT_NEAR(look.loss, loss, 1e-4 * loss);
    EXPECT_NEAR(look.l0, f.gt(0).sum(1).to(at::kDouble).mean().item<double>(), 1e-2);
    const double error = (x_hat - apart).square().sum(at::kDouble).item<double>();
    const double variance = (apart - apart.mean(0)).square().sum(at::kDouble).item<double>();
    EXPECT_NEAR(look.fve, 1 - error / variance, 1e-4);
  }
  // 290 rows are as many documents as fit a batch of 300.
  EXPECT_EQ(model.asked_apart, (std::vector<std::int64_t>{0, 290, 0, 290, 0, 290}));
  EXPECT_EQ(model.asked, unseen.asked);
  EXPECT_TRUE(serialize_sae(trainer->sae()) == serialize_sae(plain->sae()));
}

TEST(EndToEnd, BytesDependOnNeitherThreadsNorStops) {
  const saesweep::test::TempDir dir;
  const auto trained = [](unsigned threads) {
    ThreadPool pool(threads);
    SquareModel model;
    const auto trainer = trainer_of(spec_of(), model, pool);
    train(*trainer, rows(), kSteps);
    return result_bytes(*trainer);
  };
  const std::string one = trained(1);
  EXPECT_TRUE(trained(3) == one);
  ThreadPool pool(2);
  SquareModel model;
  {
    const auto trainer = trainer_of(spec_of(), model, pool);
    train(*trainer, rows(), 5);
    ASSERT_TRUE(trainer->save(dir.path() / "step-5"));
  }
  const auto trainer = trainer_of(spec_of(), model, pool);
  ASSERT_TRUE(trainer->restore(dir.path() / "step-5"));
  train(*trainer, rows(), kSteps);
  EXPECT_TRUE(result_bytes(*trainer) == one);
}

TEST(EndToEnd, TheDictionaryReconstructsAsItWasTrained) {
  ThreadPool pool(1);
  SquareModel model;
  const auto trainer = trainer_of(spec_of(), model, pool);
  train(*trainer, rows(), kSteps);
  const Sae sae = trainer->sae();
  EXPECT_LT(distance(sae.w_dec.square().sum(1), at::ones({150})), 1e-5);
  EXPECT_EQ(trainer->config()["apply_b_dec_to_input"], false);
  const SaeTensors& own = inside(*trainer).parameters();
  const at::Tensor x = step_rows(rows(), 0, kBatch);
  const at::Tensor f = at::addmm(own.b_enc, x, own.w_enc.t()).relu();
  const at::Tensor w = own.w_dec / own.w_dec.square().sum(1, true).sqrt();
  EXPECT_LT(distance(sae.encode(x), f), 1e-5);
  EXPECT_LT(distance(sae.reconstruct(x, sae.encode(x)), at::addmm(own.b_dec, f, w)), 1e-4);
}

TEST(EndToEnd, WithoutAModelThereIsNoTrainer) {
  ThreadPool pool(1);
  const auto trainer = SaeTrainer::create(spec_of(), {{kIn, 1}}, pool);
  ASSERT_FALSE(trainer);
  EXPECT_EQ(trainer.error().code, ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace saesweep::worker::test
