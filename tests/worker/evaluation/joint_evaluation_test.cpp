// Scores of dictionaries that read several hooks: a transcoder is scored on the hook it predicts, a
// crosscoder on each of its hooks.
#include "tests/worker/evaluation/evaluation_words.h"
#include "worker/evaluation/core_evaluation.h"

namespace saesweep::worker {
namespace {

constexpr const char* kRead = "blocks.0.mlp.hook_post";      // 32 wide
constexpr const char* kPredicted = "blocks.0.hook_mlp_out";  // 16 wide
constexpr const char* kSecond = "blocks.1.hook_resid_mid";

Sae transcoder(std::int64_t d_sae, std::uint64_t seed = 1) {
  Sae sae = linear_sae(normal({d_sae, 32}, seed) * .2, normal({d_sae, 16}, seed + 1) * .2,
                       Sae::Selection::kTopK);
  sae.k = 5;
  sae.predicts = true;
  sae.apply_b_dec_to_input = false;
  sae.b_dec = normal({16}, seed + 2);
  return sae;
}

// x and y of each document, and the logits with y replaced.
struct Replayed {
  at::Tensor x, y, logits;
};
Replayed replay(const Scene& scene, const at::Tensor& ids, const Sae& sae) {
  ForwardRequest look;
  look.capture = {kRead, kPredicted};
  const ForwardResult clean = scene.inputs.model->forward(ids, look);
  Replayed replayed{clean.captured.at(kRead)[0], clean.captured.at(kPredicted)[0], {}};
  ForwardRequest request;
  request.replace_hook = kPredicted;
  request.replacement = [&](const at::Tensor&) {
    return sae.reconstruct(replayed.x, sae.encode(replayed.x)).unsqueeze(0);
  };
  replayed.logits = scene.inputs.model->forward(ids, request).logits[0].to(at::kDouble);
  return replayed;
}

TEST(TranscoderEvaluation, ScoresThePredictionInPlaceOfWhatIsPredicted) {
  Scene scene(4, 200, .5);
  scene.inputs.stream.hook = kRead;
  scene.inputs.stream.joined = {kPredicted};
  Sae sae = transcoder(24);
  sae.w_skip = normal({16, 32}, 9) * .1;
  const Json result = evaluate_sae(core(300), sae, {{"l0_train", 5.5}}, scene.inputs).value();
  const auto& documents = *scene.inputs.tokens;
  double spliced = 0, error = 0, l0 = 0;
  std::uint64_t tokens = 0;
  std::vector<at::Tensor> ys;
  for (const std::uint64_t document : documents.held_out_documents()) {
    if (tokens >= 300) break;
    const auto sequence = documents.tokens(document);
    const auto length = static_cast<std::int64_t>(documents.rows(document));
    at::Tensor ids = at::zeros({1, length}, at::kLong);
    for (std::int64_t i = 0; i < length; ++i)
      ids[0][i] = static_cast<std::int64_t>(sequence[static_cast<std::size_t>(i)]);
    const Replayed replayed = replay(scene, ids, sae);
    const at::Tensor codes = sae.encode(replayed.x);
    l0 += codes.ne(0).sum().item<double>();
    error += (sae.reconstruct(replayed.x, codes) - replayed.y)
                 .to(at::kDouble)
                 .square()
                 .sum()
                 .item<double>();
    ys.push_back(replayed.y);
    const at::Tensor log_q = replayed.logits.log_softmax(-1);
    for (std::int64_t i = 0; i < length; ++i)
      spliced -= log_q[i][static_cast<std::int64_t>(sequence[static_cast<std::size_t>(i) + 1])]
                     .item<double>();
    tokens += documents.rows(document);
  }
  const auto n = static_cast<double>(tokens);
  const at::Tensor y = at::cat(ys, 0).to(at::kDouble);
  const double variance = (y - y.mean(0)).square().sum().item<double>();
  EXPECT_NEAR(score(result, "core.ce_loss_with_sae"), spliced / n, 1e-5);
  EXPECT_NEAR(score(result, "recon.fve"), 1 - error / variance, 1e-5);
  EXPECT_NEAR(score(result, "recon.mse_sum"), error / n, 1e-4 * error / n);
  EXPECT_NEAR(score(result, "core.l0"), l0 / n, 1e-9);
  EXPECT_EQ(score(result, "recon.l0_train"), 5.5);
  EXPECT_TRUE(result["details"][0]["encoder_decoder_cosine_sim"].is_null());
}

// The MLP's output is a linear map of what its neurons say: the map itself recovers all.
TEST(TranscoderEvaluation, OfTheMapItselfRecoversEverything) {
  Scene scene(4, 200, .5);
  scene.inputs.stream.hook = kRead;
  scene.inputs.stream.joined = {kPredicted};
  Sae sae = transcoder(24);
  const auto& weights = scene.inputs.model->weights();
  sae.w_dec = at::zeros_like(sae.w_dec);  // latents that are never heard
  sae.w_skip = weights.at("h.0.mlp.c_proj.weight").t().contiguous();
  sae.b_dec = weights.at("h.0.mlp.c_proj.bias");
  const Json result = evaluate_sae(core(300), sae, {}, scene.inputs).value();
  EXPECT_NEAR(score(result, "core.ce_loss_score"), 1, 1e-4);
  EXPECT_NEAR(score(result, "recon.fve"), 1, 1e-5);
  EXPECT_EQ(score(result, "core.average_max_decoder_cosine_sim"), 0);
  sae.w_skip.reset();
  sae.b_dec = at::zeros({16});
  const Json silent = evaluate_sae(core(300), sae, {}, scene.inputs).value();
  EXPECT_NEAR(score(silent, "core.ce_loss_score"), 0, 1e-5);
  EXPECT_LT(score(silent, "recon.fve"), 1e-9);
}

struct CrosscoderEvaluation : testing::Test {
  CrosscoderEvaluation() { scene.inputs.stream.joined = {kSecond}; }
  Scene scene{4, 200, .5};

  // Reads both hooks and writes what it read, times a factor each.
  static Sae copier(double first, double second) {
    at::Tensor decoder = at::eye(32, at::kFloat);
    decoder.narrow(1, 0, 16).mul_(first);
    decoder.narrow(1, 16, 16).mul_(second);
    Sae sae = linear_sae(at::eye(32, at::kFloat), decoder);
    sae.sources = 2;
    sae.apply_b_dec_to_input = false;
    return sae;
  }
};

TEST_F(CrosscoderEvaluation, SaysOfEachHookWhatItsReconstructionRecovers) {
  const Json whole = evaluate_sae(core(300), copier(1, 1), {}, scene.inputs).value();
  for (const char* hook : {"recon.hook_0.", "recon.hook_1."}) {
    EXPECT_NEAR(score(whole, hook + std::string("ce_loss_score")), 1, 1e-5);
    EXPECT_NEAR(score(whole, hook + std::string("fve")), 1, 1e-6);
    EXPECT_NEAR(score(whole, hook + std::string("kl_score")), 1, 1e-5);
  }
  EXPECT_NEAR(score(whole, "recon.fve"), 1, 1e-6);
  // What is about one hook's place in the model is not said of several.
  EXPECT_FALSE(whole["scores"].contains("core.ce_loss_score"));

  const Json half = evaluate_sae(core(300), copier(1, 0), {}, scene.inputs).value();
  EXPECT_NEAR(score(half, "recon.hook_0.ce_loss_score"), 1, 1e-5);
  EXPECT_NEAR(score(half, "recon.hook_1.ce_loss_score"), 0, 1e-5);
  EXPECT_LT(score(half, "recon.hook_1.fve"), 1e-9);
  // Variances add up.
  const double joint = score(half, "recon.fve");
  EXPECT_GT(joint, score(half, "recon.hook_1.fve"));
  EXPECT_LT(joint, 1);
  EXPECT_NEAR(score(half, "recon.mse_sum"),
              score(half, "recon.hook_0.mse_sum") + score(half, "recon.hook_1.mse_sum"), 1e-3);
  EXPECT_EQ(half["details"][20]["decoder_norms"], (Json{0.0, 0.0}));
  EXPECT_EQ(half["details"][3]["decoder_norms"], (Json{1.0, 0.0}));
}

TEST_F(CrosscoderEvaluation, OfAHookIsWhatADictionaryOfThatHookAloneScores) {
  Sae sae = linear_sae(normal({40, 32}, 1) * .2, normal({40, 32}, 2) * .2, Sae::Selection::kRelu);
  sae.sources = 2;
  sae.apply_b_dec_to_input = false;
  const Json result = evaluate_sae(core(300), sae, {}, scene.inputs).value();
  Sae alone = sae;
  alone.sources = 1;
  sae.w_enc.narrow(1, 16, 16).zero_();  // it sees the first hook only
  const Json blind = evaluate_sae(core(300), sae, {}, scene.inputs).value();
  alone.w_enc = sae.w_enc.narrow(1, 0, 16).contiguous();
  alone.w_dec = sae.w_dec.narrow(1, 0, 16).contiguous();
  alone.b_dec = at::zeros({16});
  Scene single(4, 200, .5);
  const Json want = evaluate_sae(core(300), alone, {}, single.inputs).value();
  EXPECT_NEAR(score(blind, "recon.hook_0.ce_loss_score"), score(want, "core.ce_loss_score"), 1e-5);
  EXPECT_NEAR(score(blind, "recon.hook_0.fve"), score(want, "recon.fve"), 1e-5);
  EXPECT_NEAR(score(blind, "core.l0"), score(want, "core.l0"), 1e-9);
  EXPECT_NE(score(blind, "core.l0"), score(result, "core.l0"));
}

TEST_F(CrosscoderEvaluation, ThreadsAndCompanyChangeNoByte) {
  Sae sae = linear_sae(normal({40, 32}, 1) * .2, normal({40, 32}, 2) * .2, Sae::Selection::kRelu);
  sae.sources = 2;
  std::string expected;
  for (const unsigned threads : {1u, 2u}) {
    Scene other(4, 200, .5, threads);
    other.inputs.stream.joined = {kSecond};
    EvaluationCache cache;
    other.inputs.cache = &cache;
    for (int round = 0; round < 2; ++round) {
      const std::string got = evaluate_sae(core(300), sae, {}, other.inputs).value().dump();
      if (expected.empty()) expected = got;
      EXPECT_EQ(got, expected);
      // Another dictionary of one hook in between.
      sweeps::StreamSpec stream = other.inputs.stream;
      other.inputs.stream.joined.clear();
      ASSERT_TRUE(evaluate_sae(core(300), random_relu(16, 24), {}, other.inputs));
      other.inputs.stream = stream;
    }
  }
}

TEST(JointEvaluation, BoardsAreAskedOfWhatIsRead) {
  Scene scene(4, 200, .5);
  scene.inputs.stream.hook = kRead;
  scene.inputs.stream.joined = {kPredicted};
  const Json joint = evaluate_sae(board(40), transcoder(24), {}, scene.inputs).value();
  Sae alone = transcoder(24);
  alone.predicts = false;
  alone.w_dec = normal({24, 32}, 3);
  alone.b_dec = at::zeros({32});
  scene.inputs.stream.joined.clear();
  const Json want = evaluate_sae(board(40), alone, {}, scene.inputs).value();
  EXPECT_EQ(joint["scores"].dump(), want["scores"].dump());
}

TEST(JointEvaluation, ADictionaryOfAnotherStreamIsRefused) {
  Scene scene(4, 200, .5);
  const auto refused = [&](const Sae& sae) {
    const auto result = evaluate_sae(core(300), sae, {}, scene.inputs);
    return !result && result.error().code == ErrorCode::kInvalidArgument;
  };
  EXPECT_TRUE(refused(transcoder(24)));
  scene.inputs.stream.joined = {kSecond};
  EXPECT_TRUE(refused(random_relu(16, 24)));
  EXPECT_TRUE(refused(random_relu(32, 24)));  // of the width, but of one hook
  EXPECT_TRUE(refused(transcoder(24)));       // 48 values
}

}  // namespace
}  // namespace saesweep::worker
