#include "worker/evaluation/baselines.h"

#include <gmock/gmock.h>

#include "tests/worker/evaluation/evaluation_words.h"
#include "worker/activations/harvest.h"
#include "worker/data/othello.h"
#include "worker/evaluation/board_evaluation.h"
#include "worker/evaluation/linear_probe.h"
#include "worker/evaluation/sample.h"

namespace saesweep::worker {
namespace {

using testing::IsEmpty;

// Rows with a mean and unequal variances.
at::Tensor sloped_rows(std::int64_t rows = 6000) {
  const at::Tensor mixing = normal({6, 6}, 11);
  return (at::mm(normal({rows, 6}, 10), mixing) + 2).contiguous();
}

TEST(PcaTest, WhatIsLeftOutAreTheSmallEigenvalues) {
  ThreadPool pool(2);
  const at::Tensor x = sloped_rows();
  TensorStream stream(x);
  const RowMoments moments = row_moments(stream, pool).value();
  const at::Tensor eigenvalues = at::linalg_eigvalsh(moments.covariance);  // ascending
  for (const std::int64_t components : {1, 3, 6}) {
    const Sae sae = principal_components(moments, components);
    const at::Tensor residual = (x - sae.decode(sae.encode(x))).to(at::kDouble);
    const double error = residual.square().sum(1).mean().item<double>();
    const double left_out = eigenvalues.narrow(0, 0, 6 - components).sum().item<double>();
    EXPECT_NEAR(error, left_out, 1e-4 * eigenvalues.sum().item<double>()) << components;
  }
}

TEST(PcaTest, CodesArePrincipalScores) {
  ThreadPool pool(1);
  const at::Tensor x = sloped_rows();
  TensorStream stream(x);
  const RowMoments moments = row_moments(stream, pool).value();
  const Sae sae = principal_components(moments, 6);
  const at::Tensor f = sae.encode(x).to(at::kDouble);
  const at::Tensor covariance = at::mm(f.t(), f) / static_cast<double>(f.size(0));
  const at::Tensor expected = at::diag(at::linalg_eigvalsh(moments.covariance).flip({0}));
  EXPECT_LT((covariance - expected).abs().max().item<double>(),
            1e-4 * expected.max().item<double>());
}

TEST(PcaTest, MomentsAreInRawUnitsAndOfAnyNumberOfThreads) {
  const at::Tensor x = sloped_rows(20000);
  ThreadPool one(1), three(3);
  TensorStream raw(x), scaled(x, .5);
  const RowMoments a = row_moments(raw, one).value(), b = row_moments(raw, three).value();
  EXPECT_TRUE(at::equal(a.covariance, b.covariance));
  EXPECT_TRUE(at::equal(a.mean, b.mean));
  const RowMoments c = row_moments(scaled, one).value();
  EXPECT_LT((a.covariance - c.covariance).abs().max().item<double>(), 1e-5);
  EXPECT_EQ(a.rows, 20000u);
}

TEST(RandomDictionaryTest, HasUnitRowsTiedWeightsAndKCodes) {
  sweeps::TrainingSpec shape;
  shape.d_sae = 40;
  shape.k = 5;
  const Sae sae = random_dictionary(shape, 12);
  EXPECT_TRUE(at::equal(sae.w_enc, sae.w_dec));
  EXPECT_LT((sae.w_dec.norm(2, {1}) - 1).abs().max().item<double>(), 1e-6);
  const at::Tensor active = sae.encode(normal({100, 12}, 3)).gt(0).sum(1);
  EXPECT_LE(active.max().item<std::int64_t>(), 5);
  EXPECT_EQ(active.median().item<std::int64_t>(), 5);
  EXPECT_TRUE(at::equal(sae.w_dec, random_dictionary(shape, 12).w_dec));
}

TEST(BaselinesTest, OnlyScoresThatApplyAreThere) {
  Scene scene(4, 200);
  for (const char* name : {"neurons", "linear_probe", "always_on", "placement"}) {
    sweeps::BaselineSpec baseline;
    baseline.name = name;
    const Json result = evaluate_baseline(core(100), baseline, nullptr, scene.inputs).value();
    EXPECT_THAT(result["scores"], IsEmpty()) << name;
    if (std::string(name) == "neurons") scene.inputs.stream.hook = "blocks.0.mlp.hook_post";
    EXPECT_EQ(
        evaluate_baseline(board(40), baseline, nullptr, scene.inputs).value()["scores"].size(), 18u)
        << name;
    scene.inputs.stream.hook = kHook;
  }
}

TEST(BaselinesTest, IdentityAndPcaReconstructExactly) {
  Scene scene(4, 200);
  const at::Tensor rows = [&] {
    std::vector<std::uint64_t> all;
    for (std::uint64_t i = 0; i < 200; ++i) all.push_back(i);
    return activations_of(*scene.inputs.model, kHook, *scene.inputs.tokens, all, scene.pool);
  }();
  scene.inputs.open_stream = [&]() -> Result<std::unique_ptr<RowStream>> {
    return std::make_unique<TensorStream>(rows);
  };
  for (const char* name : {"identity", "pca"}) {
    sweeps::BaselineSpec baseline;
    baseline.name = name;
    const Json result = evaluate_baseline(core(200), baseline, nullptr, scene.inputs).value();
    EXPECT_NEAR(score(result, "recon.fve"), 1, 1e-6) << name;
    EXPECT_NEAR(score(result, "core.ce_loss_score"), 1, 1e-4) << name;
    EXPECT_EQ(score(result, "core.l0"), 16) << name;
  }
}

TEST(BaselinesTest, TheRandomModelIsItsTrainedDictionary) {
  Scene scene(4, 200);
  const Sae trained = random_relu(16, 24);
  sweeps::BaselineSpec baseline;
  baseline.name = "random_model";
  EXPECT_EQ(evaluate_baseline(core(100), baseline, &trained, scene.inputs).value(),
            evaluate_sae(core(100), trained, Json::object(), scene.inputs).value());
  EXPECT_FALSE(evaluate_baseline(core(100), baseline, nullptr, scene.inputs));
}

// An embedding says which square was just played, and that square is the mover's.
TEST(LinearProbeTest, FindsWhatTheActivationsSayLinearlyOnAnyNumberOfThreads) {
  std::vector<std::uint64_t> expected;
  for (const unsigned threads : {1u, 3u}) {
    Scene scene(4, 1000, .2, threads);
    const auto& documents = *scene.inputs.tokens;
    const Sample sample = first_documents(documents, .2, 100).value();
    const BoardHalf half = label_games(documents, sample.documents, scene.pool);
    const auto predicted = probe_predictions(*scene.inputs.model, "hook_embed", documents, half,
                                             scene.pool, {}, {.games = 700, .steps = 400})
                               .value();
    if (expected.empty()) expected = predicted;
    EXPECT_EQ(predicted, expected);
    const othello::Rules rules(4);
    for (std::size_t game = 0; game < half.games(); ++game)
      for (std::size_t row = half.first_row[game]; row < half.first_row[game + 1]; ++row) {
        const int token = documents.tokens(half.documents[game])[row - half.first_row[game]];
        const auto played = static_cast<std::size_t>(rules.square_of_token(token));
        ASSERT_TRUE(predicted[row * half.words] >> played & 1) << row;
      }
    const metrics::Scores scores = score_predictions(half, predicted, 1);
    EXPECT_GT(scores.at("board.rec_micro").value, .5);
    EXPECT_LT(scores.at("board.rec_micro").value, .9);  // the rest of the board is not there
  }
}

}  // namespace
}  // namespace saesweep::worker
