// The hand-written passes against LibTorch's autograd in double, and what must hold between
// architectures.
#include "tests/worker/training/reference.h"
#include "worker/products/isa.h"

namespace saesweep::worker::test {
namespace {

constexpr std::int64_t kIn = 12, kWidth = 150, kRows = 300;  // several tiles and blocks, all ragged

// A trainer away from its start: norms that differ, biases that are not 0.
std::unique_ptr<SaeTrainer> displaced(const TrainingSpec& spec, ThreadPool& pool) {
  auto trainer = make_trainer(spec, kIn, pool);
  SaeTensors& parameters = inside(*trainer).parameters();
  parameters.w_enc.copy_(normal_tensor(parameters.w_enc.sizes(), 1) * 0.4);
  parameters.b_enc.copy_(normal_tensor(parameters.b_enc.sizes(), 2) * 0.3);
  parameters.w_dec.copy_(normal_tensor(parameters.w_dec.sizes(), 3) * 0.3);
  parameters.b_dec.copy_(normal_tensor(parameters.b_dec.sizes(), 4) * 0.2);
  std::uint64_t seed = 5;
  for (auto& [name, tensor] : parameters.more)
    tensor.copy_(name == "threshold" ? normal_tensor(tensor.sizes(), seed++).abs() * 0.3 + 0.2
                                     : normal_tensor(tensor.sizes(), seed++) * 0.3);
  return trainer;
}

at::Tensor some_rows() { return sparse_rows(kRows, directions(30, kIn, 9), 4, 10); }

// Moves biases so that no latent has activations just above 0, where f^(p - 1) would magnify their
// rounding, and at least `silent` rows below it.
void clear_of_zero(SaeTensors& of, const at::Tensor& x, std::int64_t silent = 1) {
  const at::Tensor z = std::get<0>(
      at::addmm(of.b_enc, x - of.b_dec, of.w_enc.t()).t().contiguous().sort(1));  // [d_sae, rows]
  for (std::int64_t i = 0; i < z.size(0); ++i) {
    const float* values = z.const_data_ptr<float>() + i * z.size(1);
    std::int64_t best = silent;
    for (std::int64_t row = silent; row < z.size(1); ++row)
      if ((silent > 1 || std::abs(values[row]) < 0.5F) &&
          values[row] - values[row - 1] > values[best] - values[best - 1])
        best = row;
    of.b_enc[i] -= 0.9 * values[best - 1] + 0.1 * values[best];
  }
}

void expect_gradients(const TrainingSpec& spec, const std::string& what, double tolerance = 1e-5) {
  ThreadPool pool(2);
  const auto trainer = displaced(spec, pool);
  TrainerBase& base = inside(*trainer);
  const at::Tensor x = some_rows();
  if (spec.n_sparsity_updates > 0) clear_of_zero(base.parameters(), x);
  const PassSums sums = base.pass_for_test(x);
  const Reference want = reference(spec, base.parameters(), x);
  EXPECT_NEAR(sums.loss(), want.loss, 1e-5 * std::abs(want.loss)) << what;
  const Named got = named_parameters(base.gradients());
  ASSERT_EQ(got.size(), want.gradients.size());
  for (const auto& [name, gradient] : want.gradients) {
    EXPECT_GT(gradient.abs().max().item<double>(), 0) << what << " " << name;
    EXPECT_LT(relative_distance(got.at(name), gradient), tolerance) << what << " " << name;
  }
  EXPECT_NEAR(sums.l0, want.codes.ne(0).sum(1).to(at::kDouble).mean().item<double>(), 1e-9) << what;
}

TrainingSpec spec_of(Architecture architecture) {
  TrainingSpec spec = make_spec(architecture, kWidth, kRows, 100);
  return spec;
}

TEST(Gradients, OfTheReluFamilyAreThoseOfAutograd) {
  expect_gradients(spec_of(Architecture::kStandard), "standard");
  expect_gradients(spec_of(Architecture::kStandardBricken), "standard_bricken");
  TrainingSpec anneal = spec_of(Architecture::kPAnneal);
  for (const double p : {1.0, 0.5, 0.2}) {
    anneal.p_start = p;
    anneal.sparsity_function = sweeps::SparsityFunction::kLpP;
    expect_gradients(anneal, "lp_p " + std::to_string(p));
    anneal.sparsity_function = sweeps::SparsityFunction::kLp;
    expect_gradients(anneal, "lp " + std::to_string(p));
  }
}

// Dense families with few active latents, each way of penalising them.
std::vector<TrainingSpec> specs_of_few() {
  std::vector<TrainingSpec> specs;
  for (const auto architecture :
       {Architecture::kStandard, Architecture::kStandardBricken, Architecture::kPAnneal,
        Architecture::kGated, Architecture::kGatedPAnneal})
    for (const double p : {1.0, 0.5}) {
      specs.push_back(spec_of(architecture));
      specs.back().p_start = p;
    }
  for (const auto loss :
       {sweeps::SparsityLoss::kL0, sweeps::SparsityLoss::kL0Target, sweeps::SparsityLoss::kTanh}) {
    specs.push_back(jumprelu_spec(loss, kWidth, kRows, 100));
    specs.back().pre_act_weight = 0;  // it would pull on everything
  }
  return specs;
}

// Only what is active, or near it, is decoded and differentiated.
TEST(Gradients, OfDenseFamiliesWithFewActiveAreThoseOfAutogradWhateverWasExpected) {
  ThreadPool pool(2);
  for (const TrainingSpec& spec : specs_of_few()) {
    const std::string what = std::string(to_string(spec.architecture)) + " " +
                             std::string(to_string(spec.sparsity_loss)) + " " +
                             std::to_string(spec.p_start);
    const auto trainer = displaced(spec, pool);
    TrainerBase& base = inside(*trainer);
    // The encoder of jumprelu reads x itself.
    if (spec.architecture == Architecture::kJumpRelu) base.parameters().b_dec.zero_();
    const at::Tensor x = some_rows();
    clear_of_zero(base.parameters(), x, kRows - kRows / 20);
    if (spec.architecture == Architecture::kJumpRelu) base.parameters().b_dec.fill_(0.1);
    const Reference want = reference(spec, base.parameters(), x);
    const double l0 = want.codes.ne(0).sum(1).to(at::kDouble).mean().item<double>();
    ASSERT_GT(l0, 0.2) << what;
    ASSERT_LT(l0, kWidth / 16.0) << what;
    Named first;
    // The first pass expects many active latents, the second few.
    for (int round = 0; round < 2; ++round) {
      const PassSums sums = base.pass_for_test(x);
      EXPECT_NEAR(sums.loss(), want.loss, 1e-5 * std::abs(want.loss)) << what;
      EXPECT_NEAR(sums.l0, l0, 1e-9) << what;
      const Named got = named_parameters(base.gradients());
      for (const auto& [name, gradient] : want.gradients) {
        EXPECT_LT(relative_distance(got.at(name), gradient), 1e-5) << what << " " << name;
        if (round == 0)
          first[name] = got.at(name).clone();
        else
          EXPECT_TRUE(same_bytes(first.at(name), got.at(name))) << what;
      }
    }
  }
}

TEST(Gradients, OfTheGatedFamilyAreThoseOfAutogradWithAStillDecoderBehindTheGate) {
  expect_gradients(spec_of(Architecture::kGated), "gated");
  TrainingSpec anneal = spec_of(Architecture::kGatedPAnneal);
  for (const double p : {1.0, 0.5, 0.2})
    for (const auto function : {sweeps::SparsityFunction::kLpP, sweeps::SparsityFunction::kLp}) {
      anneal.p_start = p;
      anneal.sparsity_function = function;
      expect_gradients(anneal, std::string(to_string(function)) + " " + std::to_string(p));
    }
}

TEST(Gradients, OfJumpReluAreThoseOfTheWindowAroundTheThreshold) {
  for (const auto loss :
       {sweeps::SparsityLoss::kL0, sweeps::SparsityLoss::kL0Target, sweeps::SparsityLoss::kTanh})
    expect_gradients(jumprelu_spec(loss, kWidth, kRows, 100), std::string(to_string(loss)));
}

// A threshold below half the window sees silent rows, and one below 0 counts them: the library
// compares f, not z.
TEST(Gradients, OfThresholdsNearZeroAreThoseOfTheLibraryThatComparesWhatWasSaid) {
  ThreadPool pool(2);
  const auto spec = jumprelu_spec(sweeps::SparsityLoss::kL0Target, kWidth, kRows, 100);
  const auto trainer = displaced(spec, pool);
  TrainerBase& base = inside(*trainer);
  at::Tensor& threshold = base.parameters().more.at("threshold");
  threshold.copy_(at::linspace(-0.2, 0.3, kWidth));
  const at::Tensor x = some_rows();
  const PassSums sums = base.pass_for_test(x);
  const Reference want = reference(spec, base.parameters(), x);
  EXPECT_NEAR(sums.loss(), want.loss, 1e-5 * want.loss);
  EXPECT_LT(
      relative_distance(base.gradients().more.at("threshold"), want.gradients.at("threshold")),
      1e-5);
}

TEST(Gradients, OfTheTopKFamilyAreThoseOfTheDenseFormulas) {
  for (const auto architecture :
       {Architecture::kTopK, Architecture::kBatchTopK, Architecture::kMatryoshka})
    for (const std::uint64_t k : {std::uint64_t{1}, std::uint64_t{5}, std::uint64_t{32},
                                  static_cast<std::uint64_t>(kWidth)}) {
      TrainingSpec spec = spec_of(architecture);
      spec.k = k;
      expect_gradients(spec, std::string(to_string(architecture)) + " k " + std::to_string(k));
    }
}

TEST(Gradients, OfTranscodersAreThoseOfAutogradOfTheUnexplainedVariance) {
  for (const auto architecture : {Architecture::kTranscoder, Architecture::kSkipTranscoder})
    for (const std::uint64_t k :
         {std::uint64_t{1}, std::uint64_t{5}, static_cast<std::uint64_t>(kWidth)}) {
      TrainingSpec spec = spec_of(architecture);
      spec.k = k;
      expect_gradients(spec, std::string(to_string(architecture)) + " k " + std::to_string(k));
      spec.k = 1;
      spec.dead_after_tokens = kRows;
      spec.aux_k_weight = 5;
      expect_gradients(spec, std::string(to_string(architecture)) + " and the dead");
    }
}

// A penalty on the sum of the norms of a latent's rows over the hooks is not that of the norm of
// the joint row.
TEST(Gradients, OfACrosscoderAreThoseOfConcatenatedHooksWithANormEach) {
  expect_gradients(spec_of(Architecture::kCrosscoder), "crosscoder");
  ThreadPool pool(2);
  const auto crosscoder = displaced(spec_of(Architecture::kCrosscoder), pool);
  const auto standard = displaced(spec_of(Architecture::kStandard), pool);
  for (const auto* each : {&crosscoder, &standard}) inside(**each).parameters().b_dec.zero_();
  const at::Tensor x = some_rows();
  const PassSums joint = inside(*crosscoder).pass_for_test(x);
  const PassSums single = inside(*standard).pass_for_test(x);
  EXPECT_NEAR(joint.reconstruction, single.reconstruction, 1e-6 * single.reconstruction);
  EXPECT_GT(joint.sparsity, 1.2 * single.sparsity);
}

TEST(Gradients, OfABatchTopKCrosscoderAreThoseOfAutograd) {
  TrainingSpec spec = spec_of(Architecture::kBatchTopKCrosscoder);
  expect_gradients(spec, "batchtopk_crosscoder");
  spec.k = 1;
  spec.dead_after_tokens = kRows;
  spec.aux_k_weight = 5;
  expect_gradients(spec, "batchtopk_crosscoder and the dead");
}

TEST(Gradients, OfAJumpReluTranscoderAreThoseOfAutograd) {
  for (const auto loss :
       {sweeps::SparsityLoss::kL0, sweeps::SparsityLoss::kL0Target, sweeps::SparsityLoss::kTanh}) {
    TrainingSpec spec = jumprelu_spec(loss, kWidth, kRows, 100);
    spec.architecture = Architecture::kJumpReluTranscoder;
    expect_gradients(spec, "jumprelu_transcoder " + std::string(to_string(loss)));
  }
}

// Central differences of the dense formulas, with what is held still held still.
TEST(Gradients, AreTheSlopesOfTheLoss) {
  ThreadPool pool(1);
  for (const auto architecture : kAllArchitectures) {
    TrainingSpec spec = spec_of(architecture);
    spec.p_start = 0.5;
    const auto trainer = displaced(spec, pool);
    TrainerBase& base = inside(*trainer);
    const at::Tensor x = some_rows();
    if (spec.n_sparsity_updates > 0) clear_of_zero(base.parameters(), x);
    base.pass_for_test(x);
    const Named at_point = in_double(named_parameters(base.parameters()));
    const Named got = named_parameters(base.gradients());
    for (const auto& [name, tensor] : at_point) {
      if (name == "threshold") continue;  // a step has no slope
      const at::Tensor direction = normal_tensor(tensor.sizes(), 77).to(at::kDouble);
      const auto loss_at = [&](double h) {
        Named moved = at_point;
        moved[name] = tensor + h * direction;
        return forward(spec, moved, at_point, x.to(at::kDouble)).loss.item<double>();
      };
      constexpr double kStep = 1e-7;
      const double slope = (loss_at(kStep) - loss_at(-kStep)) / (2 * kStep);
      const double ours = (got.at(name).to(at::kDouble) * direction).sum().item<double>();
      EXPECT_NEAR(ours, slope, 1e-4 * std::max(1.0, std::abs(slope)))
          << to_string(architecture) << " " << name;
    }
  }
}

TEST(Gradients, OfTheAuxiliaryLossAreThoseOfAutograd) {
  for (const auto architecture :
       {Architecture::kTopK, Architecture::kBatchTopK, Architecture::kMatryoshka}) {
    TrainingSpec spec = spec_of(architecture);
    spec.k = 1;
    spec.dead_after_tokens = kRows;  // who is silent in this batch is dead
    spec.aux_k_weight = 5;           // and weighs enough to be seen
    expect_gradients(spec, std::string(to_string(architecture)));
  }
}

TEST(Gradients, AreThoseOfAutogradOnEveryInstructionSet) {
  for (const products::Isa isa : products::runnable_isas()) {
    const products::ForcedIsa forced(isa);
    for (const auto architecture :
         {Architecture::kStandard, Architecture::kTopK, Architecture::kBatchTopK}) {
      const std::string what(to_string(isa));
      expect_gradients(spec_of(architecture), what);
      TrainingSpec rounded = spec_of(architecture);
      rounded.precision = sweeps::Precision::kBFloat16;
      ThreadPool pool(2);
      const auto trainer = displaced(rounded, pool);
      const double want = reference(rounded, inside(*trainer).parameters(), some_rows()).loss;
      EXPECT_NEAR(inside(*trainer).pass_for_test(some_rows()).loss(), want, 2e-2 * want) << what;
    }
  }
}

TEST(Gradients, OfBFloat16ProductsAreNear) {
  ThreadPool pool(2);
  for (const auto architecture : kAllArchitectures) {
    TrainingSpec spec = spec_of(architecture);
    const auto exact = displaced(spec, pool);
    spec.precision = sweeps::Precision::kBFloat16;
    const auto rounded = displaced(spec, pool);
    const at::Tensor x = some_rows();
    const double loss = inside(*exact).pass_for_test(x).loss();
    EXPECT_NEAR(inside(*rounded).pass_for_test(x).loss(), loss, 2e-2 * loss);
    EXPECT_FALSE(same_bytes(inside(*rounded).gradients().w_enc, inside(*exact).gradients().w_enc));
  }
}

// <W_dec_i, dL/dW_dec_i> = sum_b f_bi h_bi with h = g W_dec^T: both are the derivative of the
// reconstruction along the latent's scale.
TEST(Gradients, KeepEulersIdentityOfTheReconstruction) {
  ThreadPool pool(1);
  for (const auto architecture : kAllArchitectures) {
    TrainingSpec spec = spec_of(architecture);
    if (architecture == Architecture::kMatryoshka) continue;  // of each prefix, not of the whole
    if (is_transcoder(architecture)) continue;                // of another row, see autograd
    if (spec.l1) spec.l1 = 0;
    const auto trainer = displaced(spec, pool);
    TrainerBase& base = inside(*trainer);
    const at::Tensor x = some_rows();
    base.pass_for_test(x);
    const SaeTensors& of = base.parameters();
    const at::Tensor f = reference(spec, of, x).codes.to(at::kFloat);
    const at::Tensor g = (at::addmm(of.b_dec, f, of.w_dec) - x) * (2.0 / kRows);
    const at::Tensor right = (f * at::mm(g, of.w_dec.t())).sum(0);
    const at::Tensor left = (of.w_dec * base.gradients().w_dec).sum(1);
    EXPECT_LT(relative_distance(left, right), 1e-5) << to_string(architecture);
  }
}

// A dead latent with something to say gets a gradient in encoder, bias and decoder; one that is
// negative everywhere gets none; the living get nothing from the auxiliary loss.
TEST(AuxiliaryLoss, ReachesDeadLatentsThatHaveSomethingToSayAndNobodyElse) {
  ThreadPool pool(1);
  for (const auto architecture :
       {Architecture::kTopK, Architecture::kBatchTopK, Architecture::kMatryoshka}) {
    TrainingSpec spec = spec_of(architecture);
    spec.k = 2;
    spec.aux_k = kWidth;  // room for all the dead
    spec.dead_after_tokens = kRows;
    const auto with = displaced(spec, pool);
    spec.aux_k_weight = 0;
    const auto without = displaced(spec, pool);
    const at::Tensor x = some_rows();
    // Latent 7 fires often, and never enough to be selected; latent 8 is silent everywhere.
    for (const auto* trainer : {&with, &without}) {
      SaeTensors& parameters = inside(**trainer).parameters();
      parameters.w_enc[7].copy_(parameters.w_enc[0] * 0.01);
      parameters.b_enc[7].fill_(0.01);
      parameters.b_enc[8].fill_(-100);
      inside(**trainer).pass_for_test(x);
    }
    const SaeTensors& a = inside(*with).gradients();
    const SaeTensors& b = inside(*without).gradients();
    const at::Tensor f = reference(spec, inside(*with).parameters(), x).codes;
    const at::Tensor fired = f.gt(0).any(0);
    ASSERT_FALSE(fired[7].item<bool>());
    EXPECT_GT(a.w_enc[7].abs().max().item<float>(), 0);
    EXPECT_GT(std::abs(a.b_enc[7].item<float>()), 0);
    EXPECT_GT(a.w_dec[7].abs().max().item<float>(), 0);
    EXPECT_EQ(a.w_enc[8].abs().max().item<float>(), 0);
    EXPECT_EQ(a.w_dec[8].abs().max().item<float>(), 0);
    for (std::int64_t i = 0; i < kWidth; ++i)
      if (fired[i].item<bool>()) {
        EXPECT_TRUE(same_bytes(a.w_enc[i], b.w_enc[i]));
        EXPECT_TRUE(same_bytes(a.w_dec[i], b.w_dec[i]));
      }
  }
}

// x_hat and the norm-weighted penalty stay when a latent's scale moves between its rows.
TEST(Standard, LossDoesNotDependOnTheNormOfDecoderRows) {
  ThreadPool pool(1);
  const auto trainer = displaced(spec_of(Architecture::kStandard), pool);
  const auto unit = displaced(spec_of(Architecture::kStandardBricken), pool);
  const at::Tensor x = some_rows();
  const PassSums before = inside(*trainer).pass_for_test(x);
  const PassSums plain = inside(*unit).pass_for_test(x);
  for (const auto* each : {&trainer, &unit}) {
    SaeTensors& parameters = inside(**each).parameters();
    parameters.w_dec.mul_(4);
    parameters.w_enc.div_(4);
    parameters.b_enc.div_(4);
  }
  const PassSums after = inside(*trainer).pass_for_test(x);
  EXPECT_NEAR(after.loss(), before.loss(), 1e-5 * before.loss());
  EXPECT_NEAR(after.reconstruction, before.reconstruction, 1e-5 * before.reconstruction);
  const PassSums quarter = inside(*unit).pass_for_test(x);
  EXPECT_NEAR(quarter.sparsity, plain.sparsity / 4, 1e-6 * plain.sparsity);
  EXPECT_NEAR(quarter.reconstruction, plain.reconstruction, 1e-5 * plain.reconstruction);
}

TEST(TopK, OfAllLatentsIsRelu) {
  ThreadPool pool(1);
  TrainingSpec relu = spec_of(Architecture::kStandard);
  relu.l1 = 0;
  const at::Tensor x = some_rows();
  const auto want = displaced(relu, pool);
  const double loss = inside(*want).pass_for_test(x).loss();
  for (const auto architecture : {Architecture::kTopK, Architecture::kBatchTopK}) {
    TrainingSpec spec = spec_of(architecture);
    spec.k = kWidth;
    const auto trainer = displaced(spec, pool);
    EXPECT_NEAR(inside(*trainer).pass_for_test(x).loss(), loss, 1e-6 * loss);
    EXPECT_LT(
        relative_distance(inside(*trainer).gradients().w_enc, inside(*want).gradients().w_enc),
        1e-5);
    EXPECT_LT(
        relative_distance(inside(*trainer).gradients().w_dec, inside(*want).gradients().w_dec),
        1e-5);
  }
}

TEST(BatchTopK, OfBatchesOfOneRowIsTopK) {
  ThreadPool pool(1);
  const at::Tensor rows = some_rows();
  std::vector<std::string> weights;
  for (const auto architecture : {Architecture::kTopK, Architecture::kBatchTopK}) {
    TrainingSpec spec = make_spec(architecture, kWidth, 1, 40);
    const auto trainer = make_trainer(spec, kIn, pool);
    inside(*trainer).parameters().b_enc.copy_(normal_tensor({kWidth}, 2) * 0.1);
    train(*trainer, rows, 40);
    const SaeTensors& of = inside(*trainer).parameters();
    weights.push_back(
        std::string(static_cast<const char*>(of.w_enc.const_data_ptr()), of.w_enc.nbytes()));
  }
  EXPECT_TRUE(weights[0] == weights[1]);
}

TEST(BatchTopK, KeepsExactlyKTimesRowsWhenValuesRepeat) {
  ThreadPool pool(2);
  TrainingSpec spec = spec_of(Architecture::kBatchTopK);
  spec.k = 3;
  const auto trainer = make_trainer(spec, kIn, pool);
  SaeTensors& parameters = inside(*trainer).parameters();
  parameters.w_enc.zero_();
  parameters.b_enc.fill_(0.5);  // every activation is the same
  const PassSums sums = inside(*trainer).pass_for_test(some_rows());
  EXPECT_EQ(sums.l0, 3);
  // The first rows hold them all: ties go by row, then by latent.
  const at::Tensor got = inside(*trainer).gradients().b_enc;
  EXPECT_EQ(got.ne(0).sum().item<std::int64_t>(), kWidth);
}

TEST(TopK, GivesTiesToTheLowestLatents) {
  ThreadPool pool(2);
  TrainingSpec spec = spec_of(Architecture::kTopK);
  spec.k = 3;
  spec.aux_k_weight = 0;
  const auto trainer = make_trainer(spec, kIn, pool);
  SaeTensors& parameters = inside(*trainer).parameters();
  parameters.w_enc.zero_();
  parameters.b_enc.fill_(0.5);
  inside(*trainer).pass_for_test(some_rows());
  const at::Tensor norms = inside(*trainer).gradients().w_dec.abs().sum(1);
  EXPECT_EQ(norms.gt(0).sum().item<std::int64_t>(), 3);
  EXPECT_EQ(norms.narrow(0, 0, 3).gt(0).sum().item<std::int64_t>(), 3);
}

TEST(PAnneal, ThatStaysAtOneIsStandardWithAUnitDecoder) {
  ThreadPool pool(1);
  const at::Tensor rows = some_rows();
  TrainingSpec bricken = make_spec(Architecture::kStandardBricken, kWidth, 100, 60);
  TrainingSpec anneal = make_spec(Architecture::kPAnneal, kWidth, 100, 60);
  anneal.p_end = 1;
  const auto a = make_trainer(bricken, kIn, pool), b = make_trainer(anneal, kIn, pool);
  train(*a, rows, 60);
  train(*b, rows, 60);
  EXPECT_LT(distance(inside(*a).parameters().w_enc, inside(*b).parameters().w_enc), 1e-6);
  EXPECT_LT(distance(inside(*a).parameters().w_dec, inside(*b).parameters().w_dec), 1e-6);
}

}  // namespace
}  // namespace saesweep::worker::test
