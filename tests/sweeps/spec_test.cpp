#include "sweeps/spec.h"

#include <gmock/gmock.h>

#include <functional>
#include <set>

#include "sweeps/recipes.h"

namespace saesweep::sweeps {
namespace {

using testing::HasSubstr;

TrialSpec example() {
  TrialSpec spec;
  spec.stream.model = ModelSpec{.name = "othello-6x6",
                                .path = "/m/othello-6x6",
                                .random_weights = false,
                                .seed = 0,
                                .digest = std::string(64, 'a')};
  spec.stream.data = {.source = "othello",
                      .board = 6,
                      .play = "uniform",
                      .games = 200'000,
                      .seed = 3,
                      .path = "",
                      .tensor = "",
                      .digest = ""};
  spec.stream.hook = "blocks.2.hook_resid_post";
  spec.stream.tokens = 2'000'000;
  spec.stream.holdout = 0.05;
  spec.training = recipe_training("saebench-v1", Architecture::kTopK, 1953);
  spec.training.d_sae = 512;
  spec.training.k = 16;
  spec.training.tokens = 4'000'000;
  spec.training.batch = 2048;
  return spec;
}

TEST(SpecTest, EverySpecComesBackFromItsJson) {
  TrialSpec trial = example();
  EXPECT_EQ(TrialSpec::from_json(trial.to_json()).value(), trial);
  trial.training = recipe_training("saebench-v1", Architecture::kPAnneal, 20'000);
  trial.training.l1 = 0.1;
  trial.training.init_path = "/x";
  trial.training.sparsity_function = SparsityFunction::kLp;
  trial.training.precision = Precision::kBFloat16;
  trial.stream.normalize = Normalize::kSqrtD;
  trial.stream.shuffle = Shuffle::kWindow;
  trial.stream.dtype = DType::kFloat32;
  trial.stream.filters = {
      .remove_bos = true, .exclude_special_tokens = {0, 5}, .max_activation_norm_multiple = 10};
  EXPECT_EQ(TrialSpec::from_json(trial.to_json()).value(), trial);
  for (const auto loss : {SparsityLoss::kL0, SparsityLoss::kL0Target, SparsityLoss::kTanh}) {
    trial.training = recipe_training("saebench-v1", Architecture::kJumpRelu, 20'000, loss);
    trial.training.l0_coefficient = 0.3;
    if (loss == SparsityLoss::kL0Target) trial.training.l0_target = 20.5;
    EXPECT_EQ(TrialSpec::from_json(trial.to_json()).value(), trial);
  }
  trial.training = recipe_training("saebench-v1", Architecture::kMatryoshka, 20'000);
  trial.training.group_fractions = {0.25, 0.75};
  EXPECT_EQ(TrialSpec::from_json(trial.to_json()).value(), trial);
  trial.training = recipe_training("saebench-v1", Architecture::kGatedPAnneal, 20'000);
  trial.training.l1 = 0.1;
  EXPECT_EQ(TrialSpec::from_json(trial.to_json()).value(), trial);
  trial.stream.model.reset();
  trial.stream.data = {.source = "activations",
                       .board = 8,
                       .play = "uniform",
                       .games = 0,
                       .seed = 0,
                       .path = "/acts",
                       .tensor = "x",
                       .digest = "d"};
  EXPECT_EQ(TrialSpec::from_json(trial.to_json()).value(), trial);

  const BaselineSpec baseline{
      .name = "random_sae", .hook = "h", .stream = trial.stream, .training = trial.training};
  EXPECT_EQ(BaselineSpec::from_json(baseline.to_json()).value(), baseline);
  const EvaluationSpec board{.kind = "board", .tokens = 0, .games = 2000};
  EXPECT_EQ(EvaluationSpec::from_json(board.to_json()).value(), board);
  TrainLmSpec lm;
  lm.data = example().stream.data;
  lm.lr = 0.002;
  EXPECT_EQ(TrainLmSpec::from_json(lm.to_json()).value(), lm);
}

TEST(SpecTest, JsonThatIsNoSpecIsRefusedByName) {
  const Json whole = example().to_json();
  Json broken = whole;
  broken["training"].erase("lr");
  EXPECT_THAT(TrialSpec::from_json(broken).error().message, HasSubstr("has no field 'lr'"));
  broken = whole;
  broken["training"]["extra"] = 1;
  EXPECT_THAT(TrialSpec::from_json(broken).error().message, HasSubstr("unknown field 'extra'"));
  broken = whole;
  broken["stream"]["dtype"] = "fp8";
  EXPECT_THAT(TrialSpec::from_json(broken).error().message, HasSubstr("wrong 'dtype'"));
  broken = whole;
  broken["training"]["d_sae"] = -1;
  EXPECT_FALSE(TrialSpec::from_json(broken));
  broken = whole;
  broken["training"]["d_sae"] = 1.5;
  EXPECT_FALSE(TrialSpec::from_json(broken));
  EXPECT_FALSE(TrialSpec::from_json(Json::array()));
  EXPECT_FALSE(EvaluationSpec::from_json({{"kind", "taste"}}));
}

// Results are stored under these: they must never change while the numerics version stays.
TEST(SpecTest, IdentitiesOfKnownSpecsAreTheGoldenOnes) {
  ASSERT_EQ(kNumericsVersion, 4);
  EXPECT_EQ(example().identity().hex(),
            "586b80cac8765231408302423c4ac8a1bd7c4b5eb8baa6b21873b5227d978e44");
  const BaselineSpec pca{.name = "pca",
                         .hook = "blocks.2.hook_resid_post",
                         .stream = example().stream,
                         .training = {}};
  EXPECT_EQ(pca.identity().hex(),
            "509a006726a6147c6042a2e6068d922c2b061369546cf705f3b28b2542d94d1a");
  EXPECT_EQ(
      score_identity(example().identity(), {.kind = "core", .tokens = 40'000, .games = 0}, 1).hex(),
      "0b9dbbb5c3487a3f4bcf79de5d963878923de7f86b13a1e1728a6603ac86d503");
  TrainLmSpec lm;
  lm.data = example().stream.data;
  EXPECT_EQ(lm.identity().hex(),
            "319e43d5c3783d4942bcecea6e79ae47f0e55b0ad24e63aa56a0c444a0215487");
}

TEST(SpecTest, NamesAndPathsAreNotPartOfAnIdentity) {
  TrialSpec moved = example();
  moved.stream.model->name = "other";
  moved.stream.model->path = "/elsewhere";
  moved.stream.model->seed = 9;  // of weights that are not random: in the digest if they are
  moved.stream.data.path = "/x";
  moved.training.init_path = "/y";
  EXPECT_EQ(moved.identity(), example().identity());
}

TEST(SpecTest, EveryOtherFieldIsPartOfAnIdentity) {
  using Change = std::function<void(TrialSpec&)>;
  const std::vector<Change> changes{
      [](TrialSpec& s) { s.stream.model->digest = std::string("b"); },
      [](TrialSpec& s) { s.stream.model->precision = Precision::kBFloat16; },
      [](TrialSpec& s) { s.stream.model.reset(); },
      [](TrialSpec& s) { s.stream.data.games += 1; },
      [](TrialSpec& s) { s.stream.data.board = 8; },
      [](TrialSpec& s) { s.stream.data.seed = 1; },
      [](TrialSpec& s) { s.stream.hook = std::string("hook_embed"); },
      [](TrialSpec& s) { s.stream.tokens += 1; },
      [](TrialSpec& s) { s.stream.dtype = DType::kFloat32; },
      [](TrialSpec& s) { s.stream.normalize = Normalize::kSqrtD; },
      [](TrialSpec& s) { s.stream.shuffle = Shuffle::kNone; },
      [](TrialSpec& s) { s.stream.shuffle_rows = 1; },
      [](TrialSpec& s) { s.stream.holdout = 0.06; },
      [](TrialSpec& s) { s.stream.seed = 1; },
      [](TrialSpec& s) { s.stream.filters.remove_bos = true; },
      [](TrialSpec& s) { s.stream.filters.exclude_special_tokens = {2}; },
      [](TrialSpec& s) { s.stream.filters.max_activation_norm_multiple = 10; },
      [](TrialSpec& s) { s.training.architecture = Architecture::kBatchTopK; },
      [](TrialSpec& s) { s.training.recipe = std::string("other"); },
      [](TrialSpec& s) { s.training.d_sae += 1; },
      [](TrialSpec& s) { s.training.k = 17; },
      [](TrialSpec& s) { s.training.l1 = 1; },
      [](TrialSpec& s) { s.training.tokens += 1; },
      [](TrialSpec& s) { s.training.batch += 1; },
      [](TrialSpec& s) { s.training.lr *= 2; },
      [](TrialSpec& s) { s.training.adam_beta1 = 0.5; },
      [](TrialSpec& s) { s.training.adam_beta2 = 0.5; },
      [](TrialSpec& s) { s.training.adam_epsilon = 1e-6; },
      [](TrialSpec& s) { s.training.warmup_steps += 1; },
      [](TrialSpec& s) { s.training.decay_start += 1; },
      [](TrialSpec& s) { s.training.sparsity_warmup_steps += 1; },
      [](TrialSpec& s) { s.training.grad_clip.reset(); },
      [](TrialSpec& s) { s.training.aux_k = 3; },
      [](TrialSpec& s) { s.training.aux_k_weight = 3; },
      [](TrialSpec& s) { s.training.dead_after_tokens = 3; },
      [](TrialSpec& s) { s.training.threshold_beta = 0.5; },
      [](TrialSpec& s) { s.training.threshold_start_step += 1; },
      [](TrialSpec& s) { s.training.p_start = 2; },
      [](TrialSpec& s) { s.training.p_end = 0.3; },
      [](TrialSpec& s) { s.training.anneal_start = 7; },
      [](TrialSpec& s) { s.training.anneal_end = 7; },
      [](TrialSpec& s) { s.training.n_sparsity_updates = 7; },
      [](TrialSpec& s) { s.training.sparsity_function = SparsityFunction::kLp; },
      [](TrialSpec& s) { s.training.seed = 1; },
      [](TrialSpec& s) { s.training.precision = Precision::kBFloat16; },
      [](TrialSpec& s) { s.training.deterministic = false; },
      [](TrialSpec& s) { s.training.device = std::string("cuda"); },
      [](TrialSpec& s) { s.training.init_digest = std::string("z"); },
  };
  std::set<Sha256> seen{example().identity()};
  for (std::size_t i = 0; i < changes.size(); ++i) {
    TrialSpec changed = example();
    changes[i](changed);
    EXPECT_TRUE(seen.insert(changed.identity()).second) << "change " << i;
  }
}

TEST(SpecTest, TheCacheKeyLeavesOutWhatOnlyOrdersOrScalesRows) {
  const StreamSpec stream = example().stream;
  StreamSpec other = stream;
  other.tokens = 1;
  other.normalize = Normalize::kSqrtD;
  other.shuffle_rows = 5;
  EXPECT_EQ(other.cache_json(), stream.cache_json());
  for (const auto& change : std::vector<std::function<void(StreamSpec&)>>{
           [](StreamSpec& s) { s.seed = 1; }, [](StreamSpec& s) { s.holdout = 0.2; },
           [](StreamSpec& s) { s.shuffle = Shuffle::kNone; },
           [](StreamSpec& s) { s.hook = std::string("x"); },
           [](StreamSpec& s) { s.dtype = DType::kFloat32; },
           [](StreamSpec& s) { s.filters.remove_bos = true; },
           [](StreamSpec& s) { s.model->digest = std::string("x"); }}) {
    other = stream;
    change(other);
    EXPECT_NE(other.cache_json(), stream.cache_json());
  }
}

TEST(SpecTest, AScoresIdentityChangesWithSettingsAndMetricVersion) {
  const Sha256 subject = example().identity();
  const EvaluationSpec core{.kind = "core", .tokens = 40'000, .games = 0};
  const Sha256 before = score_identity(subject, core, 1);
  EXPECT_NE(score_identity(subject, core, 2), before);
  EXPECT_NE(score_identity(subject, {.kind = "core", .tokens = 40'001, .games = 0}, 1), before);
  EXPECT_NE(score_identity(Sha256{}, core, 1), before);
  // `games` means nothing to core.
  EXPECT_EQ(score_identity(subject, {.kind = "core", .tokens = 40'000, .games = 7}, 1), before);
}

TEST(SpecTest, ARandomDictionaryIsItsShapeAlone) {
  BaselineSpec one{.name = "random_sae",
                   .hook = "h",
                   .stream = example().stream,
                   .training = example().training};
  BaselineSpec other = one;
  other.training->lr = 5;
  other.training->tokens = 7;
  EXPECT_EQ(one.identity(), other.identity());
  other.training->d_sae = 8;
  EXPECT_NE(one.identity(), other.identity());
  EXPECT_EQ(one.folder(), "random_sae-512");
  one.name = other.name = "random_model";
  other.training->d_sae = 512;
  EXPECT_NE(one.identity(), other.identity());
  EXPECT_EQ(one.folder(), "random_model");
}

// ---- recipes ------------------------------------------------------------------------------------

TEST(RecipesTest, ABlobNeverChangesUnderItsName) {
  for (const auto architecture : {Architecture::kStandard, Architecture::kTopK})
    EXPECT_EQ(recipe_hash("saebench-v1", architecture),
              "70ec004468afe91cf9f0c4a0e3f63e7ab8c31fcdbc4e644f4ad970093bda0b51");
  for (const auto architecture : {Architecture::kGated, Architecture::kMatryoshka})
    EXPECT_EQ(recipe_hash("saebench-v1", architecture),
              "24535ceb3eb29c3b4c8d096a63c717adefc1848082b109f2a9f83a20b439094c");
  EXPECT_EQ(recipe_hash("saebench-v1", Architecture::kEndToEnd),
            "998c4ae111a8d8983395ab0cb517c1716d113a0a8b56827d0338a02a520a9a4c");
  EXPECT_EQ(recipe_hash("nobody", Architecture::kTopK), "");
  EXPECT_EQ(find_recipe("nobody", Architecture::kTopK), nullptr);
  EXPECT_EQ(recipe_batch("saebench-v1"), 2048u);
}

TEST(RecipesTest, SaebenchDefaultsAreThoseOfThePublishedTrainings) {
  const TrainingSpec topk = recipe_training("saebench-v1", Architecture::kTopK, 100'000);
  EXPECT_EQ(topk.lr, 3e-4);
  EXPECT_EQ(topk.warmup_steps, 1000u);
  EXPECT_EQ(topk.decay_start, 80'000u);
  EXPECT_EQ(topk.aux_k_weight, 1.0 / 32);
  EXPECT_EQ(topk.dead_after_tokens, 10'000'000u);
  EXPECT_EQ(topk.threshold_beta, 0.999);
  EXPECT_EQ(topk.threshold_start_step, 1000u);
  EXPECT_EQ(topk.grad_clip, 1.0);
  const TrainingSpec standard = recipe_training("saebench-v1", Architecture::kStandard, 100'000);
  EXPECT_EQ(standard.sparsity_warmup_steps, 5000u);
  EXPECT_EQ(standard.aux_k_weight, 0);
  EXPECT_EQ(recipe_training("saebench-v1", Architecture::kStandardBricken, 10).grad_clip,
            std::nullopt);
  const TrainingSpec annealed = recipe_training("saebench-v1", Architecture::kPAnneal, 100'000);
  EXPECT_EQ(annealed.p_start, 1);
  EXPECT_EQ(annealed.p_end, 0.2);
  EXPECT_EQ(annealed.anneal_start, 10'000u);
  EXPECT_EQ(annealed.anneal_end, 100'000u);
  EXPECT_EQ(annealed.n_sparsity_updates, 10u);
  EXPECT_EQ(annealed.sparsity_function, SparsityFunction::kLpP);
}

TEST(RecipesTest, SaebenchDefaultsOfGatesThresholdsAndGroupsAreTheLibrarys) {
  for (const auto architecture : {Architecture::kGated, Architecture::kGatedPAnneal}) {
    const TrainingSpec gated = recipe_training("saebench-v1", architecture, 100'000);
    EXPECT_EQ(gated.lr, 3e-4);
    EXPECT_EQ(gated.adam_beta1, 0);
    EXPECT_EQ(gated.adam_beta2, 0.999);
    EXPECT_EQ(gated.sparsity_warmup_steps, 5000u);
    EXPECT_EQ(gated.grad_clip, std::nullopt);
    EXPECT_EQ(gated.p_end, 0.2);
  }
  EXPECT_EQ(recipe_training("saebench-v1", Architecture::kGatedPAnneal, 100'000).anneal_start,
            10'000u);
  const TrainingSpec jump = recipe_training("saebench-v1", Architecture::kJumpRelu, 100'000);
  EXPECT_EQ(jump.sparsity_loss, SparsityLoss::kL0Target);
  EXPECT_EQ(jump.l0_coefficient, 1.0);
  EXPECT_EQ(jump.bandwidth, 0.001);
  EXPECT_EQ(jump.init_threshold, 0.001);
  EXPECT_EQ(jump.adam_beta1, 0);
  EXPECT_EQ(jump.grad_clip, 1.0);
  const TrainingSpec tanh =
      recipe_training("saebench-v1", Architecture::kJumpRelu, 100'000, SparsityLoss::kTanh);
  EXPECT_EQ(tanh.l0_coefficient, std::nullopt);
  EXPECT_EQ(tanh.bandwidth, 2.0);
  EXPECT_EQ(tanh.init_threshold, 0.1);
  EXPECT_EQ(tanh.tanh_scale, 4.0);
  EXPECT_EQ(tanh.pre_act_weight, 3e-6);
  TrainingSpec nested = recipe_training("saebench-v1", Architecture::kMatryoshka, 100'000);
  EXPECT_EQ(nested.group_fractions,
            (std::vector<double>{1. / 32, 1. / 16, 1. / 8, 1. / 4, 17. / 32}));
  EXPECT_EQ(nested.adam_beta1, 0.9);
  EXPECT_EQ(nested.aux_k_weight, 1.0 / 32);
  EXPECT_EQ(nested.threshold_beta, 0.999);
  nested.d_sae = 4096;
  EXPECT_EQ(nested.group_sizes(), (std::vector<std::uint64_t>{128, 256, 512, 1024, 2176}));
  nested.d_sae = 100;  // the last takes what rounding leaves
  EXPECT_EQ(nested.group_sizes(), (std::vector<std::uint64_t>{3, 6, 12, 25, 54}));
}

}  // namespace
}  // namespace saesweep::sweeps
