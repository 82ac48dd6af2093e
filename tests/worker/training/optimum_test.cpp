// What training must arrive at, where that is known: closed forms, schedules, planted dictionaries.
#include "tests/worker/training/reference.h"
#include "worker/training/geometric_median.h"

namespace saesweep::worker::test {
namespace {

// Rows a u and -a u, an atom for each: the penalty shrinks what is written by half of it.
double reconstructed_size(Architecture architecture, double size, double l1) {
  ThreadPool pool(1);
  TrainingSpec spec = make_spec(architecture, 2, 2, 2000);
  if (spec.l1) spec.l1 = l1;
  if (spec.k) spec.k = 1;
  spec.lr = 1e-2;
  spec.decay_start = 1000;
  spec.grad_clip.reset();
  const auto trainer = make_trainer(spec, 2, pool);
  const at::Tensor u = at::tensor({0.6F, 0.8F});
  SaeTensors& parameters = inside(*trainer).parameters();
  parameters.w_dec.copy_(at::stack({u, -u}));
  parameters.w_enc.copy_(at::stack({u, -u}) * 0.9);
  parameters.b_enc.zero_();
  const at::Tensor x = at::stack({u, -u}) * size;
  train(*trainer, x, spec.steps());
  const Sae sae = trainer->sae();
  return sae.decode(sae.encode(x))[0].dot(u).item<double>();
}

TEST(Optimum, OfAnL1PenaltyShrinksByHalfTheCoefficient) {
  EXPECT_NEAR(reconstructed_size(Architecture::kStandardBricken, 1.5, 0.4), 1.3, 1e-3);
  EXPECT_NEAR(reconstructed_size(Architecture::kStandard, 1.5, 0.4), 1.3, 1e-3);
  EXPECT_NEAR(reconstructed_size(Architecture::kStandardBricken, 1.5, 0), 1.5, 1e-3);
}

// The penalty of a gate is paid by the gate alone, that of a threshold by the threshold.
TEST(Optimum, OfGatesAndThresholdsShrinksNothing) {
  EXPECT_NEAR(reconstructed_size(Architecture::kGated, 1.5, 0.4), 1.5, 1e-3);
  EXPECT_NEAR(reconstructed_size(Architecture::kJumpRelu, 1.5, 0), 1.5, 1e-3);
  EXPECT_NEAR(reconstructed_size(Architecture::kTopK, 1.5, 0), 1.5, 1e-3);
}

TEST(Optimum, OfASilentDictionaryIsTheMean) {
  ThreadPool pool(1);
  TrainingSpec spec = make_spec(Architecture::kStandardBricken, 8, 64, 1500);
  spec.lr = 1e-2;
  spec.decay_start = 500;
  const auto trainer = make_trainer(spec, 5, pool);
  inside(*trainer).parameters().b_enc.fill_(-100);
  const at::Tensor x = normal_tensor({64, 5}, 3) + 0.7;
  train(*trainer, x, spec.steps());
  EXPECT_LT(distance(inside(*trainer).parameters().b_dec, x.mean(0)), 1e-4);
  EXPECT_NEAR(trainer->summary().at("fve_train").get<double>(), 0, 1e-4);
  EXPECT_EQ(trainer->summary().at("l0_train"), 0);
}

TEST(Start, OfTheTopKFamilyCentresOnTheGeometricMedian) {
  // Of an odd number of points on a line it is the middle one, whatever the outliers.
  const at::Tensor points = at::tensor({-1.0F, 0.0F, 1.0F, 2.0F, 500.0F}).view({5, 1});
  EXPECT_NEAR(geometric_median(points).item<double>(), 1, 1e-2);
  ThreadPool pool(1);
  for (const auto architecture : kSingleArchitectures) {
    const auto trainer = make_trainer(make_spec(architecture, 16, 32, 10), 5, pool);
    const at::Tensor x = normal_tensor({32, 5}, 3);
    const SaeTensors& parameters = inside(*trainer).parameters();
    EXPECT_EQ(parameters.b_dec.abs().max().item<float>(), 0);
    const double norm = starts_at_unit_norm(architecture) ? 1 : 0.1;
    EXPECT_LT(distance(parameters.w_dec.square().sum(1).sqrt(), at::full({16}, norm)), 1e-6);
    EXPECT_TRUE(same_bytes(parameters.w_dec, parameters.w_enc));
    // The first step has learning rate 0 where there is a warm-up, as in the recipe.
    TrainingSpec warm = trainer->spec();
    warm.warmup_steps = 4;
    const auto warming = make_trainer(warm, 5, pool);
    const at::Tensor before = inside(*warming).parameters().w_enc.clone();
    ASSERT_TRUE(warming->train_step(x));
    const SaeTensors& after = inside(*warming).parameters();
    EXPECT_TRUE(same_bytes(before, after.w_enc));
    if (of_topk_family(architecture))
      EXPECT_TRUE(same_bytes(after.b_dec, geometric_median(x)));
    else
      EXPECT_EQ(after.b_dec.abs().max().item<float>(), 0);
  }
}

TEST(Adam, MovesFirstByTheLearningRateAgainstTheSign) {
  ThreadPool pool(1);
  for (const double beta1 : {0.0, 0.9}) {
    TrainingSpec spec = make_spec(Architecture::kStandard, 8, 32, 10);
    spec.adam_beta1 = beta1;
    const auto trainer = make_trainer(spec, 5, pool);
    const at::Tensor before = inside(*trainer).parameters().w_enc.clone();
    ASSERT_TRUE(trainer->train_step(normal_tensor({32, 5}, 3)));
    const at::Tensor moved = inside(*trainer).parameters().w_enc - before;
    const at::Tensor gradient = inside(*trainer).gradients().w_enc;
    const at::Tensor large = gradient.abs().gt(1e-3);
    ASSERT_GT(large.sum().item<std::int64_t>(), 10);
    EXPECT_LT(
        distance(moved.masked_select(large), (gradient.sign() * -spec.lr).masked_select(large)),
        1e-6);
  }
}

TEST(Schedule, RisesStaysAndFallsToZeroAsInTheRecipe) {
  ThreadPool pool(1);
  TrainingSpec spec = make_spec(Architecture::kStandardBricken, 4, 8, 50);
  spec.lr = 1e-3;
  spec.warmup_steps = 10;
  spec.decay_start = 40;
  const auto trainer = make_trainer(spec, 3, pool);
  inside(*trainer).parameters().b_enc.fill_(-1e9F);
  // Far away, b_dec's gradient is constant, and Adam's update is the learning rate itself.
  const at::Tensor x = at::full({8, 3}, 1e6F);
  double before = 0;
  std::vector<double> rates;
  for (int step = 0; step < 50; ++step) {
    ASSERT_TRUE(trainer->train_step(x));
    const double now = inside(*trainer).parameters().b_dec[0].item<float>();
    rates.push_back((now - before) / spec.lr);
    before = now;
  }
  EXPECT_EQ(rates[0], 0);
  EXPECT_NEAR(rates[1], 0.1, 1e-4);
  EXPECT_NEAR(rates[9], 0.9, 1e-4);
  EXPECT_NEAR(rates[10], 1, 1e-4);
  EXPECT_NEAR(rates[39], 1, 1e-4);
  EXPECT_NEAR(rates[40], 1, 1e-4);
  EXPECT_NEAR(rates[41], 0.9, 1e-4);
  EXPECT_NEAR(rates[49], 0.1, 1e-4);
}

TEST(L0Controller, MovesByTwoPercentAtMostAndStandsStillAtBothEnds) {
  TrainingSpec spec = make_spec(Architecture::kStandard, 8, 1, 200'000);
  spec.l0_target = 10;
  spec.sparsity_warmup_steps = 1000;
  L0Controller controller(spec);
  auto run_to = [&, step = std::uint64_t{0}](std::uint64_t until, double l0) mutable {
    while (step < until) controller.note(++step, l0);
  };
  run_to(1000, 500);  // the penalty is still warming up
  EXPECT_EQ(controller.factor(), 1);
  run_to(1099, 500);
  EXPECT_EQ(controller.factor(), 1);
  run_to(1100, 500);
  EXPECT_NEAR(controller.factor(), std::exp(0.02), 1e-12);
  run_to(1200, 10);
  EXPECT_NEAR(controller.factor(), std::exp(0.02), 1e-12);
  run_to(1300, 5);
  EXPECT_NEAR(controller.factor(), std::exp(0.02 - 0.01), 1e-12);
  run_to(160'000, 10);
  run_to(200'000, 500);  // the last fifth
  EXPECT_NEAR(controller.factor(), std::exp(0.01), 1e-12);
  // A short run is steered as often.
  spec.tokens = 500;
  spec.sparsity_warmup_steps = 0;
  L0Controller often(spec);
  often.note(1, 0);
  EXPECT_NEAR(often.factor(), std::exp(-0.02), 1e-12);
  EXPECT_FALSE(often.set_state(Json::object()));
  ASSERT_TRUE(often.set_state(controller.state()));
  EXPECT_EQ(often.factor(), controller.factor());
}

// From either side: a coefficient that is far too small, and one that is far too large.
TEST(L0Controller, BringsTheL0OfATrialToItsTarget) {
  ThreadPool pool(2);
  const at::Tensor x = sparse_rows(4096, directions(48, 24, 1), 5, 2);
  for (const auto architecture : {Architecture::kStandard, Architecture::kGated})
    for (const double l1 : {0.005, 1.0}) {
      TrainingSpec spec = make_spec(architecture, 64, 256, 1500);
      spec.lr = 3e-3;
      spec.l1 = l1;
      spec.decay_start = 1200;
      spec.l0_target = 8;
      const auto steered = make_trainer(spec, 24, pool);
      train(*steered, x, spec.steps());
      EXPECT_NEAR(steered->summary().at("l0_train").get<double>(), 8, 1.6)
          << to_string(architecture) << " from " << l1;
      const double factor = steered->summary().at("l1_factor").get<double>();
      EXPECT_TRUE(l1 < 0.1 ? factor > 1.5 : factor < 0.95) << factor;
    }
}

// What pulls along a row would only make it longer: it is no part of the gradient.
TEST(UnitDecoder, HasRowsOfNormOneAndGradientsAcrossThem) {
  ThreadPool pool(2);
  const at::Tensor x = sparse_rows(300, directions(30, 12, 1), 4, 2);
  for (const auto architecture : kSingleArchitectures) {
    if (architecture == Architecture::kStandard) continue;
    const auto trainer = make_trainer(make_spec(architecture, 150, 300, 10), 12, pool);
    train(*trainer, x, 3);
    const at::Tensor before = inside(*trainer).parameters().w_dec.to(at::kDouble);
    const auto report = trainer->train_step(x);
    ASSERT_TRUE(report);
    double across = 0, whole = 0;
    for (const auto& [name, tensor] : named_parameters(inside(*trainer).gradients())) {
      at::Tensor gradient = tensor.to(at::kDouble);
      whole += gradient.square().sum().item<double>();
      if (name == "W_dec")
        gradient =
            gradient - (gradient * before).sum(1, true) / before.square().sum(1, true) * before;
      across += gradient.square().sum().item<double>();
    }
    EXPECT_NEAR(report->grad_norm, std::sqrt(across), 1e-5 * std::sqrt(across))
        << to_string(architecture);
    EXPECT_GT(std::sqrt(whole), 1.0001 * std::sqrt(across)) << to_string(architecture);
    const at::Tensor norms = inside(*trainer).parameters().w_dec.square().sum(1).sqrt();
    EXPECT_LT(distance(norms, at::ones({150})), 1e-6) << to_string(architecture);
  }
}

TEST(Threshold, TakesItsFirstValueAsItIsAndThenAverages) {
  ThreadPool pool(1);
  TrainingSpec spec = make_spec(Architecture::kBatchTopK, 40, 64, 30);
  spec.lr = 0;  // the batch's smallest selected activation stays what it is
  spec.threshold_start_step = 10;
  const auto trainer = make_trainer(spec, 12, pool);
  const at::Tensor rows = sparse_rows(128, directions(30, 12, 1), 4, 2);
  train(*trainer, rows.narrow(0, 0, 64), 11);
  EXPECT_TRUE(trainer->needs_threshold());  // from step > 10, counted from 0
  train(*trainer, rows.narrow(0, 0, 64), 12);
  EXPECT_FALSE(trainer->needs_threshold());
  const double first = trainer->sae().threshold[0].item<float>();
  EXPECT_GT(first, 0);
  train(*trainer, rows.narrow(0, 0, 64), 20);
  EXPECT_NEAR(trainer->sae().threshold[0].item<float>(), first, 1e-6);
  // Another batch pulls by 1 - beta.
  const at::Tensor b_dec = inside(*trainer).parameters().b_dec.clone();
  train(*trainer, rows.narrow(0, 64, 64) * 3, 21);
  const double second = trainer->sae().threshold[0].item<float>();
  const SaeTensors& of = inside(*trainer).parameters();
  const at::Tensor f =
      at::addmm(of.b_enc, rows.narrow(0, 64, 64) * 3 - b_dec, of.w_enc.t()).clamp_min(0);
  const double smallest = std::get<0>(f.flatten().topk(4 * 64)).min().item<float>();
  EXPECT_NEAR(second, 0.999 * first + 0.001 * smallest, 1e-6);
}

TEST(Threshold, IsCalibratedOnHeldOutRowsToTheTrainingL0) {
  ThreadPool pool(2);
  TrainingSpec spec = make_spec(Architecture::kBatchTopK, 64, 256, 100);
  spec.threshold_start_step = 1000;  // never
  const at::Tensor atoms = directions(40, 16, 1);
  const double factor = 0.25;
  const auto trainer = make_trainer(spec, 16, pool, factor);
  train(*trainer, sparse_rows(2560, atoms, 4, 2) * factor, 100);
  ASSERT_TRUE(trainer->needs_threshold());
  EXPECT_EQ(trainer->config().at("threshold_calibrated"), false);
  const at::Tensor held_out = sparse_rows(3000, atoms, 4, 3);
  EXPECT_TRUE(trainer->calibrate_threshold(held_out * factor));
  EXPECT_FALSE(trainer->needs_threshold());
  EXPECT_FALSE(trainer->calibrate_threshold(held_out * factor));
  EXPECT_EQ(trainer->config().at("threshold_calibrated"), true);
  const Sae sae = trainer->sae();  // of raw rows
  EXPECT_EQ(sae.selection, Sae::Selection::kThreshold);
  const double l0 = sae.encode(held_out).gt(0).sum(1).to(at::kDouble).mean().item<double>();
  EXPECT_NEAR(l0, 4, 0.005 * 4);
  // Nobody else has one.
  EXPECT_FALSE(make_trainer(make_spec(Architecture::kTopK, 64, 256, 100), 16, pool)
                   ->calibrate_threshold(held_out));
}

TEST(DeadLatents, AreThoseSilentForExactlyThatManyTokens) {
  ThreadPool pool(1);
  TrainingSpec spec = make_spec(Architecture::kTopK, 20, 50, 6);
  spec.dead_after_tokens = 200;
  const auto trainer = make_trainer(spec, 6, pool);
  inside(*trainer).parameters().b_enc[3].fill_(-1e6F);
  const at::Tensor x = normal_tensor({50, 6}, 8);
  for (int step = 1; step <= 6; ++step) {
    const auto report = trainer->train_step(x);
    ASSERT_TRUE(report);
    // 50, 100, 150 tokens: alive; 200 and more: dead.
    EXPECT_NEAR(report->dead_fraction, step >= 4 ? 1.0 / 20 : 0.0, 1e-12) << step;
  }
}

// How well true directions are found: mean over them of the largest cosine with an atom.
double mean_max_cosine(const at::Tensor& atoms, const at::Tensor& found) {
  const at::Tensor unit = found / found.square().sum(1, true).sqrt().clamp_min(1e-9);
  return std::get<0>(at::mm(atoms, unit.t()).max(1)).mean().item<double>();
}

// A planted dictionary at reduced cost (seconds): d 64, 128 directions, 4 at a time, sizes 0.5 to
// 1.5, no noise, no bias; half the batch and half the steps that find it to 0.9996.
struct Recovery {
  double before, after, dead, l0;
};
Recovery recover(TrainingSpec spec) {
  ThreadPool pool(2);
  const at::Tensor atoms = directions(128, 64, 77);
  spec.lr = 3e-3;
  spec.warmup_steps = spec.steps() / 50;
  spec.decay_start = spec.steps() * 8 / 10;
  if (of_topk_family(spec.architecture))
    spec.dead_after_tokens = 100 * spec.batch;
  else
    spec.sparsity_warmup_steps = spec.steps() / 10;
  const auto trainer = make_trainer(spec, 64, pool);
  const double before = mean_max_cosine(atoms, trainer->sae().w_dec);
  train(*trainer, sparse_rows(static_cast<std::int64_t>(spec.batch) * 100, atoms, 4, 5),
        spec.steps());
  return {before, mean_max_cosine(atoms, trainer->sae().w_dec),
          trainer->summary().at("dead_fraction").get<double>(),
          trainer->summary().at("l0_train").get<double>()};
}

TEST(PlantedDictionary, IsFoundByABatchTopKOfTwiceItsWidthAndTheRestDies) {
  const Recovery found = recover(make_spec(Architecture::kBatchTopK, 256, 512, 1500));
  EXPECT_LT(found.before, 0.5);
  EXPECT_GT(found.after, 0.99);
  EXPECT_GT(found.dead, 0.2);
  EXPECT_LT(found.dead, 0.52);
}

TEST(PlantedDictionary, IsFoundByNestedGroupsAlmostAsWell) {
  TrainingSpec spec = make_spec(Architecture::kMatryoshka, 256, 512, 1500);
  spec.group_fractions = {1. / 8, 1. / 8, 1. / 4, 1. / 2};  // prefixes of 32, 64, 128, 256
  const Recovery found = recover(spec);
  EXPECT_LT(found.before, 0.5);
  EXPECT_GT(found.after, 0.96);
  EXPECT_GT(found.dead, 0.1);
}

TEST(PlantedDictionary, IsFoundByThresholdsThatAimAtItsSparsity) {
  TrainingSpec spec = make_spec(Architecture::kJumpRelu, 256, 512, 1500);
  spec.l0_target = 4;
  spec.l0_coefficient = 1;
  spec.bandwidth = 0.03;
  spec.init_threshold = 0.03;
  const Recovery found = recover(spec);
  EXPECT_LT(found.before, 0.5);
  EXPECT_GT(found.after, 0.97);
  EXPECT_NEAR(found.l0, 4, 0.6);
}

TEST(PlantedDictionary, IsFoundByL1OfTheRightSizeAndNotByTooLittle) {
  TrainingSpec spec = make_spec(Architecture::kStandardBricken, 128, 512, 1500);
  spec.l1 = 0.2;
  const double right = recover(spec).after;
  spec = make_spec(Architecture::kStandardBricken, 128, 512, 600);
  spec.l1 = 0.02;
  const double little = recover(spec).after;
  EXPECT_GT(right, 0.98);
  EXPECT_LT(little, 0.8);
}

// The penalty on a gate shrinks no reconstruction, so that it takes about four times as much of it
// as of an L1 that shrinks: what is right there is too little here.
TEST(PlantedDictionary, IsFoundByGatesUnderAPenaltyLargerThanThatOfL1) {
  TrainingSpec spec = make_spec(Architecture::kGated, 128, 512, 1500);
  spec.l1 = 0.8;
  const Recovery right = recover(spec);
  EXPECT_GT(right.after, 0.97);
  EXPECT_NEAR(right.l0, 4.5, 0.7);
  spec = make_spec(Architecture::kGated, 128, 512, 600);
  spec.l1 = 0.2;
  EXPECT_LT(recover(spec).after, 0.7);
}

}  // namespace
}  // namespace saesweep::worker::test
