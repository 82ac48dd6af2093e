#include "worker/evaluation/core_evaluation.h"

#include <gmock/gmock.h>

#include <cmath>

#include "tests/worker/evaluation/evaluation_words.h"

namespace saesweep::worker {
namespace {

using testing::HasSubstr;

TEST(CoreEvaluationTest, TheIdentityLosesNothing) {
  Scene scene;
  const Json result = evaluate_sae(core(300), identity(), {}, scene.inputs).value();
  for (const char* name :
       {"core.ce_loss_score", "core.kl_div_score", "recon.kl_score", "recon.loss_recovered_mean",
        "core.cossim", "core.l2_ratio", "core.relative_reconstruction_bias", "recon.gamma",
        "core.explained_variance", "core.explained_variance_legacy", "recon.fve"})
    EXPECT_NEAR(score(result, name), 1, 1e-12) << name;
  EXPECT_EQ(score(result, "core.kl_div_with_sae"), 0);
  EXPECT_EQ(score(result, "core.mse"), 0);
  EXPECT_EQ(score(result, "core.l0"), 16);
  // The hook matters to this model: what is recovered is something.
  EXPECT_GT(score(result, "core.kl_div_with_ablation"), .1);
  EXPECT_EQ(result["heldout"], true);
  EXPECT_EQ(result["details"].size(), 16u);
  EXPECT_EQ(result["details"][3]["encoder_decoder_cosine_sim"], 1.0);
}

TEST(CoreEvaluationTest, AZeroReconstructionIsTheAblation) {
  Scene scene;
  const Sae zero = linear_sae(at::zeros({8, 16}), at::zeros({8, 16}));
  const Json result = evaluate_sae(core(300), zero, {}, scene.inputs).value();
  EXPECT_EQ(score(result, "core.ce_loss_score"), 0);
  EXPECT_EQ(score(result, "core.kl_div_score"), 0);
  EXPECT_EQ(score(result, "core.l0"), 0);
  EXPECT_EQ(score(result, "core.l2_ratio"), 0);
  EXPECT_EQ(score(result, "core.frac_alive"), 0);
  EXPECT_TRUE(result["scores"]["core.cossim"]["value"].is_null());
  EXPECT_TRUE(result["scores"]["core.relative_reconstruction_bias"]["value"].is_null());
  EXPECT_EQ(result["histogram"]["never"], 8);
}

TEST(CoreEvaluationTest, AScaledReconstructionIsMeasuredAsSuch) {
  Scene scene;
  const Sae scaled = linear_sae(at::eye(16), at::eye(16) * .5);
  const Json result = evaluate_sae(core(300), scaled, {}, scene.inputs).value();
  EXPECT_NEAR(score(result, "core.l2_ratio"), .5, 1e-6);
  EXPECT_NEAR(score(result, "core.relative_reconstruction_bias"), .5, 1e-6);
  EXPECT_NEAR(score(result, "core.cossim"), 1, 1e-6);
  const double mean_square = score(result, "recon.mse_sum") / .25;
  EXPECT_NEAR(score(result, "core.l2_norm_out"), score(result, "core.l2_norm_in") / 2, 1e-6);
  EXPECT_GT(mean_square, std::pow(score(result, "core.l2_norm_in"), 2) - 1e-9);  // Jensen
  EXPECT_GT(score(result, "core.kl_div_with_sae"), 0);
  EXPECT_LT(score(result, "core.kl_div_with_sae"), score(result, "core.kl_div_with_ablation"));
}

TEST(CoreEvaluationTest, CrossEntropyIsThatOfEveryInputsNextMove) {
  // Every document alone and unpadded, on the plain model.
  Scene scene;
  const Sae sae = random_relu(16, 24);
  const Json result = evaluate_sae(core(400), sae, {}, scene.inputs).value();
  const auto& documents = *scene.inputs.tokens;
  double clean = 0, spliced = 0, kl = 0, zero = 0, l0 = 0;
  std::uint64_t tokens = 0;
  for (const std::uint64_t document : documents.held_out_documents()) {
    if (tokens >= 400) break;
    const auto sequence = documents.tokens(document);
    const auto length = static_cast<std::int64_t>(documents.rows(document));
    at::Tensor ids = at::zeros({1, length}, at::kLong);
    for (std::int64_t i = 0; i < length; ++i)
      ids[0][i] = static_cast<std::int64_t>(sequence[static_cast<std::size_t>(i)]);
    const auto log_probabilities = [&](const HookReplacement& replacement) {
      ForwardRequest request;
      if (replacement) request.replace_hook = kHook;
      request.replacement = replacement;
      return scene.inputs.model->forward(ids, request).logits[0].to(at::kDouble).log_softmax(-1);
    };
    const at::Tensor p = log_probabilities({});
    const at::Tensor q = log_probabilities([&](const at::Tensor& x) {
      const at::Tensor f = sae.encode(x[0]);
      l0 += f.ne(0).sum().item<double>();
      return sae.decode(f).unsqueeze(0);
    });
    const at::Tensor ablated =
        log_probabilities([](const at::Tensor& x) { return at::zeros_like(x); });
    for (std::int64_t i = 0; i < length; ++i) {
      const std::int64_t target = sequence[static_cast<std::size_t>(i) + 1];
      clean -= p[i][target].item<double>();
      spliced -= q[i][target].item<double>();
      zero -= ablated[i][target].item<double>();
    }
    kl += (p.exp() * (p - q)).sum().item<double>();
    tokens += documents.rows(document);
  }
  const auto n = static_cast<double>(tokens);
  EXPECT_EQ(result["scores"]["core.ce_loss_score"]["n"], tokens);
  EXPECT_EQ(score(result, "core.total_tokens_eval_reconstruction"), n);
  EXPECT_NEAR(score(result, "core.ce_loss_without_sae"), clean / n, 1e-5);
  EXPECT_NEAR(score(result, "core.ce_loss_with_sae"), spliced / n, 1e-5);
  EXPECT_NEAR(score(result, "core.ce_loss_with_ablation"), zero / n, 1e-5);
  EXPECT_NEAR(score(result, "core.kl_div_with_sae"), kl / n, 1e-5);
  EXPECT_NEAR(score(result, "core.l0"), l0 / n, 1e-9);
}

TEST(CoreEvaluationTest, TheMeanAblationPutsTheSamplesMeanIn) {
  // A dictionary that always answers the mean of the sample recovers nothing of it.
  Scene scene;
  const Json first = evaluate_sae(core(300), identity(), {}, scene.inputs).value();
  const Sample sample = first_tokens(*scene.inputs.tokens, .5, 300).value();
  std::shared_ptr<const CoreReference> reference;
  const Target target = targets_of(identity(), scene.inputs).value().front();
  const metrics::CoreSums sums =
      core_sums(identity(), scene.inputs, sample, target, kKeptCoreBytes, reference).value();
  at::Tensor mean = at::zeros({16}, at::kFloat);
  for (const auto& block : sums.sum_x)
    for (std::size_t j = 0; j < 16; ++j)
      mean[static_cast<std::int64_t>(j)] += block[j] / static_cast<double>(sample.tokens);
  Sae constant = linear_sae(at::zeros({4, 16}), at::zeros({4, 16}));
  constant.b_dec = mean;
  const Json result = evaluate_sae(core(300), constant, {}, scene.inputs).value();
  EXPECT_NEAR(score(result, "recon.loss_recovered_mean"), 0, 1e-4);
  EXPECT_NEAR(score(result, "recon.fve"), 0, 1e-5);
}

TEST(CoreEvaluationTest, ThreadsAndCompanyChangeNoByte) {
  const Sae sae = random_relu(16, 200), other = random_relu(16, 40, 2);
  std::string expected;
  for (const unsigned threads : {1u, 2u, 3u}) {
    Scene scene(4, 300, .5, threads);
    const std::string alone = evaluate_sae(core(900), sae, {}, scene.inputs).value().dump();
    EvaluationCache cache;
    scene.inputs.cache = &cache;
    const std::string of_other = evaluate_sae(core(900), other, {}, scene.inputs).value().dump();
    const std::string after = evaluate_sae(core(900), sae, {}, scene.inputs).value().dump();
    EXPECT_EQ(alone, after);
    EXPECT_NE(alone, of_other);
    if (expected.empty()) expected = alone;
    EXPECT_EQ(alone, expected) << threads;
  }
}

TEST(CoreEvaluationTest, IntervalsHoldTheValueAndNeedEightDocuments) {
  Scene scene;
  const Sae sae = random_relu(16, 24);
  const Json many = evaluate_sae(core(300), sae, {}, scene.inputs).value();
  const Json& ce = many["scores"]["core.ce_loss_score"];
  EXPECT_LT(ce["low"].get<double>(), ce["value"].get<double>());
  EXPECT_GT(ce["high"].get<double>(), ce["value"].get<double>());
  EXPECT_TRUE(many["scores"]["core.average_max_decoder_cosine_sim"]["low"].is_null());
  const Json few = evaluate_sae(core(60), sae, {}, scene.inputs).value();
  EXPECT_TRUE(few["scores"]["core.ce_loss_score"]["low"].is_null());
}

TEST(CoreEvaluationTest, SayHowManyTokensThereAreWhenTooManyAreAsked) {
  Scene scene(4, 20);
  const auto result = evaluate_sae(core(100000), identity(), {}, scene.inputs);
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, ErrorCode::kInvalidArgument);
  std::uint64_t tokens = 0;
  for (const auto document : scene.inputs.tokens->held_out_documents())
    tokens += scene.inputs.tokens->rows(document);
  EXPECT_THAT(result.error().message,
              HasSubstr("held-out documents have: " + std::to_string(tokens)));
}

TEST(CoreEvaluationTest, WithNothingHeldOutTheFirstDocumentsAreScored) {
  Scene scene(4, 50, 0);
  const Json result = evaluate_sae(core(100), identity(), {}, scene.inputs).value();
  EXPECT_EQ(result["heldout"], false);
  std::uint64_t tokens = 0;
  for (std::uint64_t document = 0; tokens < 100; ++document)
    tokens += scene.inputs.tokens->rows(document);
  EXPECT_EQ(result["scores"]["core.l0"]["n"], tokens);
}

TEST(CoreEvaluationTest, StopsWhenAsked) {
  Scene scene;
  scene.inputs.stop = [] { return true; };
  const auto result = evaluate_sae(core(300), identity(), {}, scene.inputs);
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, ErrorCode::kUnavailable);
}

TEST(CoreEvaluationTest, ReportsTokensUpToAll) {
  Scene scene;
  std::uint64_t last = 0, total = 0;
  scene.inputs.progress = [&](std::uint64_t done, std::uint64_t of) {
    EXPECT_GE(done, last);
    last = done;
    total = of;
  };
  ASSERT_TRUE(evaluate_sae(core(300), identity(), {}, scene.inputs));
  EXPECT_EQ(last, total);
  EXPECT_GE(total, 300u);
}

TEST(CoreEvaluationTest, ADictionaryOfAnotherWidthIsRefused) {
  Scene scene;
  const auto result = evaluate_sae(core(300), random_relu(8, 24), {}, scene.inputs);
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, ErrorCode::kInvalidArgument);
}

TEST(CoreEvaluationTest, TheTrainersL0IsPassedOn) {
  Scene scene;
  const Json result =
      evaluate_sae(core(300), identity(), {{"l0_train", 12.5}}, scene.inputs).value();
  EXPECT_EQ(score(result, "recon.l0_train"), 12.5);
}

TEST(CoreEvaluationTest, ActivationsWithoutAModelHaveTheModelFreePart) {
  const test::TempDir folder;
  ThreadPool pool(2);
  EvaluationInputs inputs;
  inputs.pool = &pool;
  at::Tensor x = at::zeros({3000, 3}, at::kFloat);
  x.select(1, 0).fill_(1);
  x.select(1, 1).fill_(-1);
  inputs.activations = activations(folder.path(), x, 0);
  const Json result = evaluate_sae(core(2000), identity(), {}, inputs).value();
  EXPECT_EQ(score(result, "core.l0"), 2);  // not zero, whatever the sign
  EXPECT_EQ(score(result, "core.l1"), 0);  // signed
  EXPECT_NEAR(score(result, "core.frac_alive"), 1.0 / 3, 1e-12);
  EXPECT_EQ(result["scores"]["core.l0"]["n"], 2048);  // two documents of 1024 rows
  EXPECT_FALSE(result["scores"].contains("core.ce_loss_score"));
  EXPECT_EQ(result["heldout"], false);
}

TEST(WeightStatisticsTest, TheNearestNeighbourHasASign) {
  ThreadPool pool(1);
  const auto largest = [&](const at::Tensor& rows) {
    metrics::CoreSums sums(1, static_cast<std::size_t>(rows.size(1)),
                           static_cast<std::size_t>(rows.size(0)));
    add_weight_statistics(sums, linear_sae(rows, rows * 2), pool);
    EXPECT_EQ(sums.max_encoder_cosine, sums.max_decoder_cosine);
    for (const double each : sums.encoder_decoder_cosine) EXPECT_NEAR(each, 1, 1e-6);
    return sums.max_encoder_cosine;
  };
  EXPECT_THAT(largest(at::tensor({3.f, 0.f, 5.f, 0.f, 0.f, 2.f}).view({3, 2})),
              testing::ElementsAre(1, 1, 0));
  EXPECT_THAT(largest(at::tensor({3.f, 0.f, -5.f, 0.f}).view({2, 2})),
              testing::ElementsAre(-1, -1));
}

}  // namespace
}  // namespace saesweep::worker
