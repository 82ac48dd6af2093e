// What gates, thresholds and nested groups are where they are something simpler, and what the
// windows around thresholds make of known distributions.
#include "tests/worker/training/reference.h"

namespace saesweep::worker::test {
namespace {

constexpr std::int64_t kIn = 12, kWidth = 150, kRows = 300;

at::Tensor some_rows() { return sparse_rows(kRows, directions(30, kIn, 9), 4, 10); }

TrainingSpec spec_of(Architecture architecture) {
  return make_spec(architecture, kWidth, kRows, 100);
}

// Weights away from the start; what an architecture has of its own stays as it is.
void displace(SaeTensors& of) {
  of.w_enc.copy_(normal_tensor({kWidth, kIn}, 1) * 0.4);
  of.b_enc.copy_(normal_tensor({kWidth}, 2) * 0.3);
  of.w_dec.copy_(normal_tensor({kWidth, kIn}, 3) * 0.3);
  of.b_dec.copy_(normal_tensor({kIn}, 4) * 0.2);
}

TEST(Matryoshka, OfOneGroupIsBatchTopK) {
  ThreadPool pool(2);
  TrainingSpec nested = make_spec(Architecture::kMatryoshka, kWidth, 100, 40);
  nested.group_fractions = {1};
  nested.dead_after_tokens = 300;
  TrainingSpec flat = make_spec(Architecture::kBatchTopK, kWidth, 100, 40);
  flat.dead_after_tokens = 300;
  const auto a = make_trainer(nested, kIn, pool), b = make_trainer(flat, kIn, pool);
  const at::Tensor rows = some_rows();
  const PassSums x = inside(*a).pass_for_test(rows.narrow(0, 0, 100));
  const PassSums y = inside(*b).pass_for_test(rows.narrow(0, 0, 100));
  EXPECT_NEAR(x.reconstruction, y.reconstruction, 1e-6 * y.reconstruction);
  EXPECT_NEAR(x.loss(), y.loss(), 1e-6 * y.loss());
  train(*a, rows, 40);
  train(*b, rows, 40);
  EXPECT_LT(distance(inside(*a).parameters().w_enc, inside(*b).parameters().w_enc), 1e-4);
  EXPECT_LT(distance(inside(*a).parameters().w_dec, inside(*b).parameters().w_dec), 1e-4);
  EXPECT_LT(distance(inside(*a).parameters().b_dec, inside(*b).parameters().b_dec), 1e-4);
}

TEST(Matryoshka, WeighsThePrefixesByOneOverTheSquareOfTheirNumber) {
  ThreadPool pool(1);
  TrainingSpec spec = spec_of(Architecture::kMatryoshka);
  spec.group_fractions = {0.5, 0.5};
  const auto trainer = make_trainer(spec, kIn, pool);
  SaeTensors& parameters = inside(*trainer).parameters();
  parameters.b_enc.fill_(-100);  // nothing is said: each prefix misses all of x
  const at::Tensor x = some_rows();
  const PassSums sums = inside(*trainer).pass_for_test(x);
  EXPECT_NEAR(sums.loss(), 2 * 0.25 * sums.reconstruction, 1e-9);
  EXPECT_NEAR(sums.reconstruction, squared(x.to(at::kDouble)).item<double>(), 1e-4);
  EXPECT_EQ(trainer->config().at("group_sizes"), (Json{75, 75}));
}

TEST(JumpRelu, WithThresholdsAtZeroIsRelu) {
  ThreadPool pool(1);
  TrainingSpec relu = spec_of(Architecture::kStandardBricken);
  relu.l1 = 0;
  TrainingSpec jump = jumprelu_spec(sweeps::SparsityLoss::kL0, kWidth, kRows, 100);
  jump.l0_coefficient = 0;
  const auto a = make_trainer(relu, kIn, pool), b = make_trainer(jump, kIn, pool);
  for (const auto* each : {&a, &b}) {
    displace(inside(**each).parameters());
    inside(**each).parameters().b_dec.zero_();  // only one of them subtracts it first
  }
  inside(*b).parameters().more.at("threshold").zero_();
  const at::Tensor x = some_rows();
  const double loss = inside(*a).pass_for_test(x).loss();
  EXPECT_NEAR(inside(*b).pass_for_test(x).loss(), loss, 1e-6 * loss);
  const SaeTensors &want = inside(*a).gradients(), &got = inside(*b).gradients();
  EXPECT_LT(relative_distance(got.w_enc, want.w_enc), 1e-5);
  EXPECT_LT(relative_distance(got.b_enc, want.b_enc), 1e-5);
  EXPECT_LT(relative_distance(got.w_dec, want.w_dec), 1e-5);
}

// One latent that reads one number, uniform from 0 to 1, and writes it as it is.
struct Uniform {
  double of_reconstruction, of_l0;
};
Uniform threshold_gradients(sweeps::SparsityLoss loss) {
  constexpr std::int64_t kMany = 400'000;
  ThreadPool pool(2);
  at::Tensor x = at::empty({kMany, 1}, at::kFloat);
  for (std::int64_t i = 0; i < kMany; ++i)
    x.mutable_data_ptr<float>()[i] = static_cast<float>((static_cast<double>(i) + 0.5) / kMany);
  Uniform gradients{};
  for (const bool with_penalty : {false, true}) {
    TrainingSpec spec = jumprelu_spec(loss, 1, kMany, 10);
    spec.bandwidth = 0.1;
    spec.l0_target = 1;
    spec.l0_coefficient = with_penalty ? 1 : 0;
    if (loss == sweeps::SparsityLoss::kL0) spec.l0_target.reset();
    const auto trainer = make_trainer(spec, 1, pool);
    SaeTensors& parameters = inside(*trainer).parameters();
    parameters.w_enc.fill_(1);
    parameters.w_dec.fill_(1);
    parameters.more.at("threshold").fill_(0.5);
    inside(*trainer).pass_for_test(x);
    const double gradient = inside(*trainer).gradients().more.at("threshold").item<float>();
    (with_penalty ? gradients.of_l0 : gradients.of_reconstruction) = gradient;
  }
  gradients.of_l0 -= gradients.of_reconstruction;
  return gradients;
}

// Of L0 it is -1 in expectation, of (f - z)^2 it is t^2 - t eps / 4 where the true slope is t^2.
TEST(JumpRelu, GivesThresholdsTheExpectedGradientOfAUniformDistribution) {
  const Uniform gradients = threshold_gradients(sweeps::SparsityLoss::kL0);
  EXPECT_NEAR(gradients.of_reconstruction, 0.2375, 1e-3);
  EXPECT_NEAR(gradients.of_l0, -1, 1e-3);
}

// (L0 / 1 - 1)^2 at L0 = 1/2 has slope -1 to L0; the half of the window that spoke sees half of it.
TEST(JumpRelu, AimingAtATargetSeesHalfTheWindowAsTheLibraryDoes) {
  EXPECT_NEAR(threshold_gradients(sweeps::SparsityLoss::kL0Target).of_l0, 0.5, 1e-3);
}

TEST(JumpRelu, LossOfTanhDoesNotDependOnTheNormOfDecoderRows) {
  ThreadPool pool(1);
  const auto spec = jumprelu_spec(sweeps::SparsityLoss::kTanh, kWidth, kRows, 100);
  const auto trainer = make_trainer(spec, kIn, pool);
  SaeTensors& parameters = inside(*trainer).parameters();
  displace(parameters);
  const at::Tensor x = some_rows();
  const PassSums before = inside(*trainer).pass_for_test(x);
  parameters.w_dec.mul_(4);
  for (at::Tensor* each : {&parameters.w_enc, &parameters.b_enc, &parameters.more.at("threshold")})
    each->div_(4);
  const PassSums after = inside(*trainer).pass_for_test(x);
  EXPECT_GT(before.sparsity, 0);
  EXPECT_NEAR(after.reconstruction, before.reconstruction, 1e-5 * before.reconstruction);
  EXPECT_NEAR(after.sparsity, before.sparsity, 1e-5 * before.sparsity);
}

TEST(Gated, WithOneBiasForGateAndMagnitudeIsRelu) {
  ThreadPool pool(1);
  TrainingSpec relu = spec_of(Architecture::kStandardBricken);
  relu.l1 = 0;
  TrainingSpec gated = spec_of(Architecture::kGated);
  gated.l1 = 0;
  const auto a = make_trainer(relu, kIn, pool), b = make_trainer(gated, kIn, pool);
  for (const auto* each : {&a, &b}) displace(inside(**each).parameters());
  SaeTensors& parameters = inside(*b).parameters();
  parameters.more.at("b_mag").copy_(parameters.b_enc);
  const at::Tensor x = some_rows();
  const PassSums want = inside(*a).pass_for_test(x), got = inside(*b).pass_for_test(x);
  EXPECT_NEAR(got.reconstruction, want.reconstruction, 1e-6 * want.reconstruction);
  EXPECT_NEAR(got.auxiliary, want.reconstruction, 1e-6 * want.reconstruction);
  EXPECT_EQ(got.l0, want.l0);
  // The decoder hears of the main reconstruction only.
  EXPECT_LT(relative_distance(inside(*b).gradients().w_dec, inside(*a).gradients().w_dec), 1e-5);
}

// f = (e^r u + b_mag) where it exceeds max(0, b_mag - e^r b_gate).
TEST(Gated, IsAJumpReluOfItsMagnitude) {
  ThreadPool pool(1);
  const auto trainer = make_trainer(spec_of(Architecture::kGated), kIn, pool);
  SaeTensors& parameters = inside(*trainer).parameters();
  displace(parameters);
  parameters.more.at("b_mag").copy_(normal_tensor({kWidth}, 6) * 0.3);
  parameters.more.at("r_mag").copy_(normal_tensor({kWidth}, 7) * 0.3);
  const Sae gated = trainer->sae();
  Sae jump = gated;
  const at::Tensor scale = gated.r_mag.exp();
  jump.selection = Sae::Selection::kThreshold;
  jump.w_enc = gated.w_enc * scale.unsqueeze(1);
  jump.b_enc = gated.b_mag;
  jump.threshold = (gated.b_mag - scale * gated.b_gate).clamp_min(0);
  const at::Tensor x = some_rows();
  EXPECT_GT(gated.encode(x).gt(0).sum().item<std::int64_t>(), 1000);
  EXPECT_LT(distance(gated.encode(x), jump.encode(x)), 1e-5);
}

TEST(GatedPAnneal, ThatStaysAtOneIsGated) {
  ThreadPool pool(1);
  const at::Tensor rows = some_rows();
  TrainingSpec plain = make_spec(Architecture::kGated, kWidth, 100, 60);
  TrainingSpec anneal = make_spec(Architecture::kGatedPAnneal, kWidth, 100, 60);
  anneal.p_end = 1;
  const auto a = make_trainer(plain, kIn, pool), b = make_trainer(anneal, kIn, pool);
  train(*a, rows, 60);
  train(*b, rows, 60);
  const Named left = named_parameters(inside(*a).parameters());
  for (const auto& [name, tensor] : named_parameters(inside(*b).parameters()))
    EXPECT_LT(distance(tensor, left.at(name)), 1e-5) << name;
}

}  // namespace
}  // namespace saesweep::worker::test
