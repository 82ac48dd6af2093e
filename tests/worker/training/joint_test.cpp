// Dictionaries of several hooks: how transcoders and crosscoders start, what they are where they
// are something simpler, what they must arrive at, and what they leave to others.
#include "core/files.h"
#include "tests/support/temp_dir.h"
#include "tests/worker/training/reference.h"

namespace saesweep::worker::test {
namespace {

constexpr std::int64_t kWidth = 150, kRows = 300;

TrainingSpec spec_of(Architecture architecture) {
  return make_spec(architecture, kWidth, kRows, 100);
}

std::unique_ptr<SaeTrainer> make(const TrainingSpec& spec, const std::vector<RowPart>& parts,
                                 ThreadPool& pool) {
  auto trainer = SaeTrainer::create(spec, parts, pool);
  EXPECT_TRUE(trainer) << trainer.error().message;
  return std::move(*trainer);
}

at::Tensor some_rows(std::int64_t d) { return sparse_rows(kRows, directions(30, d, 9), 4, 10); }

void displace(SaeTensors& of) {
  of.w_enc.copy_(normal_tensor(of.w_enc.sizes(), 1) * 0.4);
  of.b_enc.copy_(normal_tensor(of.b_enc.sizes(), 2) * 0.3);
  of.w_dec.copy_(normal_tensor(of.w_dec.sizes(), 3) * 0.3);
}

TEST(Transcoder, BeginsWithASilentDecoderThatTheFirstStepTeachesAlone) {
  ThreadPool pool(1);
  for (const auto architecture : {Architecture::kTranscoder, Architecture::kSkipTranscoder}) {
    const auto trainer = make(spec_of(architecture), {{7}, {5}}, pool);
    const at::Tensor rows = some_rows(12) + 0.3;
    ASSERT_TRUE(trainer->train_step(rows));
    const SaeTensors& gradients = inside(*trainer).gradients();
    EXPECT_EQ(gradients.w_enc.abs().max().item<float>(), 0);
    EXPECT_EQ(gradients.b_enc.abs().max().item<float>(), 0);
    EXPECT_GT(gradients.w_dec.abs().max().item<float>(), 1e-6);
    // What a first step of rate lr moved is no more than lr away from where it began.
    const SaeTensors& of = inside(*trainer).parameters();
    EXPECT_LT(distance(of.w_dec, at::zeros_like(of.w_dec)), 1.01e-3);
    EXPECT_LT(distance(of.b_dec, rows.mean(0).narrow(0, 7, 5)), 1.01e-3);
    EXPECT_LT(distance(of.b_enc, -at::mv(of.w_enc, rows.mean(0).narrow(0, 0, 7))), 1.01e-3);
    EXPECT_LT(distance(of.w_enc.square().sum(1).sqrt(), at::full({kWidth}, 1 / std::sqrt(3.0))),
              1e-6);
    EXPECT_EQ(of.more.contains("W_skip"), architecture == Architecture::kSkipTranscoder);
  }
}

// Of y = x it is a TopK dictionary that does not subtract b_dec first, up to the loss's scale.
TEST(Transcoder, ThatPredictsWhatItReadsIsATopKDictionary) {
  ThreadPool pool(2);
  constexpr std::int64_t d = 12;
  const auto sae = make(spec_of(Architecture::kTopK), {{d}}, pool);
  const auto transcoder = make(spec_of(Architecture::kTranscoder), {{d}, {d}}, pool);
  for (const auto* each : {&sae, &transcoder}) displace(inside(**each).parameters());
  const at::Tensor x = some_rows(d);
  const PassSums want = inside(*sae).pass_for_test(x);
  const PassSums got = inside(*transcoder).pass_for_test(at::cat({x, x}, 1));
  EXPECT_NEAR(got.reconstruction, want.reconstruction, 1e-5 * want.reconstruction);
  EXPECT_NEAR(got.fve, want.fve, 1e-6);
  EXPECT_NEAR(got.loss(), 1 - want.fve, 1e-6);
  EXPECT_EQ(got.l0, want.l0);
  const double scale = got.loss() / want.loss();
  EXPECT_LT(relative_distance(inside(*transcoder).gradients().w_enc,
                              inside(*sae).gradients().w_enc * scale),
            1e-4);
  EXPECT_LT(relative_distance(inside(*transcoder).gradients().w_dec,
                              inside(*sae).gradients().w_dec * scale),
            1e-4);
}

// Slices of 16 columns in which one of the two matrices has nothing left.
TEST(Transcoder, HasTheGradientsOfAutogradWhateverTheTwoWidths) {
  ThreadPool pool(2);
  for (const auto& [d_in, d_out] : {std::pair{5, 40}, std::pair{40, 5}, std::pair{16, 33}}) {
    TrainingSpec spec = spec_of(Architecture::kSkipTranscoder);
    spec.dead_after_tokens = kRows;
    const auto trainer = make(spec, {{d_in}, {d_out}}, pool);
    displace(inside(*trainer).parameters());
    const at::Tensor rows = some_rows(d_in + d_out);
    const PassSums sums = inside(*trainer).pass_for_test(rows);
    const Reference want = reference(spec, inside(*trainer).parameters(), rows);
    EXPECT_NEAR(sums.loss(), want.loss, 1e-5 * want.loss);
    const Named got = named_parameters(inside(*trainer).gradients());
    for (const auto& [name, gradient] : want.gradients)
      EXPECT_LT(relative_distance(got.at(name), gradient), 1e-5) << name << " " << d_in;
  }
}

// y is a turned x: an atom of each direction predicts it whole, without shrinkage.
TEST(Transcoder, LearnsWhatAnAtomBecomes) {
  ThreadPool pool(1);
  TrainingSpec spec = make_spec(Architecture::kTranscoder, 2, 2, 2000);
  spec.k = 1;
  spec.lr = 1e-2;
  spec.decay_start = 1000;
  const auto trainer = make(spec, {{2}, {3}}, pool);
  const at::Tensor u = at::tensor({0.6F, 0.8F}), v = at::tensor({2.0F, 0.0F, -1.0F});
  inside(*trainer).parameters().w_enc.copy_(at::stack({u, -u}) * 0.9);
  const at::Tensor x = at::stack({u, -u}) * 1.5, y = at::stack({v, -v});
  train(*trainer, at::cat({x, y}, 1), spec.steps());
  const Sae sae = trainer->sae();
  EXPECT_LT(distance(sae.reconstruct(x, sae.encode(x)), y), 1e-3);
}

TEST(SkipTranscoder, LearnsALinearMapWhileItsLatentsAreSilent) {
  ThreadPool pool(1);
  TrainingSpec spec = make_spec(Architecture::kSkipTranscoder, 4, 64, 3000);
  spec.k = 1;
  spec.lr = 3e-3;
  spec.decay_start = 1500;
  const auto trainer = make(spec, {{5}, {4}}, pool);
  const at::Tensor x = normal_tensor({640, 5}, 1), map = normal_tensor({4, 5}, 2);
  const at::Tensor rows = at::cat({x, at::mm(x, map.t())}, 1);
  train(*trainer, rows, 1);
  inside(*trainer).parameters().b_enc.fill_(-100);
  train(*trainer, rows, spec.steps());
  EXPECT_EQ(trainer->summary().at("l0_train"), 0);
  EXPECT_GT(trainer->summary().at("fve_train").get<double>(), 0.9999);
  const Sae sae = trainer->sae();
  EXPECT_LT(distance(sae.w_skip, map), 0.02);
}

TEST(Crosscoder, OfOneHookIsStandard) {
  ThreadPool pool(2);
  constexpr std::int64_t d = 12;
  const auto crosscoder = make(spec_of(Architecture::kCrosscoder), {{d}}, pool);
  const auto standard = make(spec_of(Architecture::kStandard), {{d}}, pool);
  for (const auto* each : {&crosscoder, &standard}) displace(inside(**each).parameters());
  const at::Tensor x = some_rows(d);
  const PassSums got = inside(*crosscoder).pass_for_test(x);
  const PassSums want = inside(*standard).pass_for_test(x);
  EXPECT_NEAR(got.loss(), want.loss(), 1e-6 * want.loss());
  const SaeTensors &a = inside(*crosscoder).gradients(), &b = inside(*standard).gradients();
  EXPECT_LT(relative_distance(a.w_enc, b.w_enc), 1e-6);
  EXPECT_LT(relative_distance(a.b_enc, b.b_enc), 1e-6);
  EXPECT_LT(relative_distance(a.w_dec, b.w_dec), 1e-6);
}

TEST(Crosscoder, BeginsWithRowsOfEqualNormOnEveryHookAndTheEncoderTheSame) {
  ThreadPool pool(1);
  const auto trainer = make(spec_of(Architecture::kCrosscoder), {{4}, {4}, {4}}, pool);
  const SaeTensors& of = inside(*trainer).parameters();
  EXPECT_TRUE(same_bytes(of.w_enc, of.w_dec));
  EXPECT_LT(distance(of.w_dec.view({kWidth, 3, 4}).norm(2, {2}), at::full({kWidth, 3}, 0.08)),
            1e-7);
  EXPECT_EQ(of.b_enc.abs().max().item<float>() + of.b_dec.abs().max().item<float>(), 0);
}

// What its encoder reads apart.
TEST(BatchTopKCrosscoder, OfOneHookWithoutABiasIsBatchTopK) {
  ThreadPool pool(2);
  constexpr std::int64_t d = 12;
  const auto crosscoder = make(spec_of(Architecture::kBatchTopKCrosscoder), {{d}}, pool);
  const auto batchtopk = make(spec_of(Architecture::kBatchTopK), {{d}}, pool);
  for (const auto* each : {&crosscoder, &batchtopk}) displace(inside(**each).parameters());
  const at::Tensor x = some_rows(d);
  const PassSums got = inside(*crosscoder).pass_for_test(x);
  const PassSums want = inside(*batchtopk).pass_for_test(x);
  EXPECT_DOUBLE_EQ(got.loss(), want.loss());
  const SaeTensors &a = inside(*crosscoder).gradients(), &b = inside(*batchtopk).gradients();
  EXPECT_TRUE(same_bytes(a.w_enc, b.w_enc));
  EXPECT_TRUE(same_bytes(a.w_dec, b.w_dec));
  EXPECT_GT(distance(a.b_dec, b.b_dec), 1e-6) << "nothing comes back through the encoder";
}

TEST(BatchTopKCrosscoder, KeepsDecodersOfUnitNormOverAllHooks) {
  ThreadPool pool(1);
  const auto trainer = make(spec_of(Architecture::kBatchTopKCrosscoder), {{4}, {4}, {4}}, pool);
  const SaeTensors& of = inside(*trainer).parameters();
  EXPECT_TRUE(same_bytes(of.w_enc, of.w_dec));
  EXPECT_LT(distance(of.w_dec.view({kWidth, 3, 4}).norm(2, {2}),
                     at::full({kWidth, 3}, 1 / std::sqrt(3.0))),
            1e-6);
  train(*trainer, some_rows(12), 5);
  EXPECT_LT(distance(of.w_dec.norm(2, {1}), at::ones({kWidth})), 1e-5);
}

// Of y = x it is JumpReLU.
TEST(JumpReluTranscoder, ThatPredictsWhatItReadsIsJumpRelu) {
  ThreadPool pool(2);
  constexpr std::int64_t d = 12;
  const auto sae = make(spec_of(Architecture::kJumpRelu), {{d}}, pool);
  const auto transcoder = make(spec_of(Architecture::kJumpReluTranscoder), {{d}, {d}}, pool);
  for (const auto* each : {&sae, &transcoder}) displace(inside(**each).parameters());
  const at::Tensor x = some_rows(d);
  const PassSums want = inside(*sae).pass_for_test(x);
  const PassSums got = inside(*transcoder).pass_for_test(at::cat({x, x}, 1));
  EXPECT_DOUBLE_EQ(got.loss(), want.loss());
  EXPECT_DOUBLE_EQ(got.fve, want.fve);
  const SaeTensors &a = inside(*transcoder).gradients(), &b = inside(*sae).gradients();
  EXPECT_TRUE(same_bytes(a.w_enc, b.w_enc));
  EXPECT_TRUE(same_bytes(a.w_dec, b.w_dec));
  EXPECT_TRUE(same_bytes(a.more.at("threshold"), b.more.at("threshold")));
}

// Few active, so that only what is there is decoded, and many: of widths that differ.
TEST(JumpReluTranscoder, HasTheGradientsOfAutogradWhateverTheTwoWidths) {
  ThreadPool pool(2);
  for (const float bias : {0.0F, -1.5F})
    for (const auto& [d_in, d_out] : {std::pair{5, 40}, std::pair{40, 5}, std::pair{16, 33}}) {
      const TrainingSpec spec = spec_of(Architecture::kJumpReluTranscoder);
      const auto trainer = make(spec, {{d_in}, {d_out}}, pool);
      displace(inside(*trainer).parameters());
      inside(*trainer).parameters().b_enc.add_(bias);
      const at::Tensor rows = some_rows(d_in + d_out);
      const Reference want = reference(spec, inside(*trainer).parameters(), rows);
      for (int round = 0; round < 2; ++round) {
        const PassSums sums = inside(*trainer).pass_for_test(rows);
        EXPECT_NEAR(sums.loss(), want.loss, 1e-5 * want.loss);
        const Named got = named_parameters(inside(*trainer).gradients());
        for (const auto& [name, gradient] : want.gradients)
          EXPECT_LT(relative_distance(got.at(name), gradient), 1e-4) << name << " " << d_in;
      }
    }
}

// Each hook is shrunk as if it were alone.
TEST(Crosscoder, ShrinksWhatItWritesToEachHookByHalfTheCoefficient) {
  ThreadPool pool(1);
  TrainingSpec spec = make_spec(Architecture::kCrosscoder, 2, 2, 2000);
  spec.l1 = 0.4;
  spec.lr = 1e-2;
  spec.decay_start = 1000;
  spec.grad_clip.reset();
  const auto trainer = make(spec, {{2}, {2}}, pool);
  const at::Tensor u = at::tensor({0.6F, 0.8F}), v = at::tensor({0.0F, 1.0F});
  const at::Tensor both = at::cat({u, v});
  SaeTensors& parameters = inside(*trainer).parameters();
  parameters.w_dec.copy_(at::stack({both, -both}));
  parameters.w_enc.copy_(at::stack({both, -both}) * 0.45);
  const at::Tensor x = at::stack({both, -both}) * 1.5;
  train(*trainer, x, spec.steps());
  const Sae sae = trainer->sae();
  const at::Tensor written = sae.decode(sae.encode(x))[0];
  EXPECT_NEAR(written.narrow(0, 0, 2).dot(u).item<double>(), 1.3, 1e-3);
  EXPECT_NEAR(written.narrow(0, 2, 2).dot(v).item<double>(), 1.3, 1e-3);
}

// The dictionary for raw rows says of x what the trained one says of x times the factors.
TEST(JointDictionary, HasTheFactorOfEachHookFoldedIn) {
  ThreadPool pool(2);
  saesweep::test::TempDir folder;
  const double first = 0.37, second = 2.5;
  for (const auto architecture :
       {Architecture::kTranscoder, Architecture::kSkipTranscoder, Architecture::kCrosscoder,
        Architecture::kBatchTopKCrosscoder, Architecture::kJumpReluTranscoder}) {
    TrainingSpec spec = spec_of(architecture);
    spec.threshold_start_step = 2;
    const bool predicts = is_transcoder(architecture);
    const std::int64_t d = predicts ? 7 : 6, rest = 12 - d;
    const auto trainer = make(spec, {{d, first}, {rest, second}}, pool);
    const at::Tensor raw = some_rows(12);
    at::Tensor x = raw.clone();
    x.narrow(1, 0, d).mul_(first);
    x.narrow(1, d, rest).mul_(second);
    train(*trainer, x, 20);
    const SaeTensors& of = inside(*trainer).parameters();
    const at::Tensor read = predicts ? x.narrow(1, 0, d) : x;
    at::Tensor f = at::addmm(of.b_enc, read, of.w_enc.t()).clamp_min(0);
    if (predicts && spec.k) f = f * keep(f, static_cast<std::int64_t>(*spec.k));
    if (of.more.contains("threshold")) f = f * f.gt(of.more.at("threshold"));
    if (architecture == Architecture::kBatchTopKCrosscoder) {
      // One threshold of all latents, which are in units of what they write.
      const Sae own = trainer->sae();
      at::Tensor written = of.w_dec.clone();
      written.narrow(1, 0, d).div_(first);
      written.narrow(1, d, rest).div_(second);
      const at::Tensor norms = written.view({kWidth, 2, 6}).norm(2, {2}).sum(1);
      const at::Tensor thresholds = own.threshold / norms;
      EXPECT_GT(thresholds[0].item<float>(), 0);
      EXPECT_LT(relative_distance(thresholds, thresholds[0].expand_as(thresholds)), 1e-5);
      f = f * f.gt(thresholds[0]);
    }
    at::Tensor want = at::addmm(of.b_dec, f, of.w_dec);
    if (of.more.contains("W_skip")) want = want + at::mm(read, of.more.at("W_skip").t());
    if (!predicts) want.narrow(1, 0, d).div_(first);
    (predicts ? want : want.narrow(1, d, rest)).div_(second);

    const Sae sae = trainer->sae();
    const at::Tensor raw_read = predicts ? raw.narrow(1, 0, d) : raw;
    EXPECT_LT(distance(sae.reconstruct(raw_read, sae.encode(raw_read)), want), 1e-4)
        << to_string(architecture);
    if (!predicts) {
      const at::Tensor norms = sae.w_dec.view({kWidth, 2, 6}).norm(2, {2}).sum(1);
      EXPECT_LT(distance(norms, at::ones({kWidth})), 1e-5);
    }
    const Json config = trainer->config();
    EXPECT_EQ(config.at("apply_b_dec_to_input"), false);
    if (predicts) {
      EXPECT_EQ(config.at("normalization_factor"), first);
      EXPECT_EQ(config.at("normalization_factor_out"), second);
      EXPECT_EQ(config.at("d_in"), d);
      EXPECT_EQ(config.at("d_out"), rest);
    } else {
      EXPECT_EQ(config.at("normalization_factors"), (Json{first, second}));
      EXPECT_FALSE(config.contains("normalization_factor"));
    }

    // Whoever reads the file has the same function.
    const auto path = folder.path() / (std::string(to_string(architecture)) + ".safetensors");
    ASSERT_TRUE(write_file_atomically(path, serialize_sae(sae)));
    const auto loaded = load_sae(path, config);
    ASSERT_TRUE(loaded) << loaded.error().message;
    EXPECT_EQ(loaded->d_in(), predicts ? d : 12);
    EXPECT_EQ(loaded->d_out(), predicts ? rest : 12);
    EXPECT_EQ(loaded->sources, predicts ? 1 : 2);
    EXPECT_TRUE(same_bytes(loaded->reconstruct(raw_read, loaded->encode(raw_read)),
                           sae.reconstruct(raw_read, sae.encode(raw_read))));
  }
}

TEST(JointDictionary, OfTensorsThatDoNotFitTogetherIsRefused) {
  ThreadPool pool(1);
  saesweep::test::TempDir folder;
  for (const auto architecture : {Architecture::kSkipTranscoder, Architecture::kCrosscoder}) {
    const auto trainer = make(spec_of(architecture), {{6}, {6}}, pool);
    const Sae good = trainer->sae();
    const auto refused = [&](const Sae& sae, Json config) {
      const auto path = folder.path() / "sae.safetensors";
      EXPECT_TRUE(write_file_atomically(path, serialize_sae(sae)));
      const auto loaded = load_sae(path, config);
      return !loaded && loaded.error().code == ErrorCode::kInvalidArgument;
    };
    const Json config = trainer->config();
    EXPECT_FALSE(refused(good, config));
    Sae sae = good;
    sae.b_enc = at::zeros({kWidth + 1});
    EXPECT_TRUE(refused(sae, config));
    Json of_another = config;
    of_another["architecture"] = is_transcoder(architecture) ? "crosscoder" : "transcoder";
    EXPECT_TRUE(refused(good, of_another));
    if (!is_transcoder(architecture)) continue;
    sae = good;
    sae.w_skip.reset();
    EXPECT_TRUE(refused(sae, config));
    sae.w_skip = at::zeros({5, 6});
    EXPECT_TRUE(refused(sae, config));
    sae = good;
    sae.w_dec = at::zeros({kWidth, 7});
    EXPECT_TRUE(refused(sae, config));
  }
}

TEST(JointDictionary, GoesOnWithTheFactorsItWasTrainedWith) {
  ThreadPool pool(1);
  saesweep::test::TempDir folder;
  for (const auto architecture : {Architecture::kSkipTranscoder, Architecture::kCrosscoder}) {
    const TrainingSpec spec = spec_of(architecture);
    const auto trainer = make(spec, {{6, 0.5}, {6, 3}}, pool);
    train(*trainer, some_rows(12), 4);
    const auto at = folder.path() / std::string(to_string(architecture));
    ASSERT_TRUE(trainer->save(at));
    const auto again = make(spec, {{6, 1}, {6, 1}}, pool);
    ASSERT_TRUE(again->restore(at));
    EXPECT_TRUE(result_bytes(*again) == result_bytes(*trainer));
    // Another cut of the same row is another trial.
    if (!is_transcoder(architecture)) continue;
    EXPECT_EQ(make(spec, {{7}, {5}}, pool)->restore(at).error().code, ErrorCode::kInvalidArgument);
  }
}

TEST(JointDictionary, IsNotMadeOfHooksThatAreNotItsOwn) {
  ThreadPool pool(1);
  const auto refused = [&](Architecture architecture, const std::vector<RowPart>& parts) {
    const auto trainer = SaeTrainer::create(spec_of(architecture), parts, pool);
    return !trainer && trainer.error().code == ErrorCode::kInvalidArgument;
  };
  EXPECT_TRUE(refused(Architecture::kTranscoder, {{6}}));
  EXPECT_TRUE(refused(Architecture::kTranscoder, {{6}, {6}, {6}}));
  EXPECT_TRUE(refused(Architecture::kCrosscoder, {{6}, {7}}));
  EXPECT_TRUE(refused(Architecture::kTopK, {{6}, {6}}));
}

}  // namespace
}  // namespace saesweep::worker::test
