#include "sweeps/evaluations.h"

#include <gmock/gmock.h>

#include "sweeps/estimates.h"
#include "tests/sweeps/sweep_words.h"

namespace saesweep::sweeps {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

std::vector<std::string> folders(const SweepPlan& plan) {
  std::vector<std::string> names;
  for (const PlannedBaseline& each : plan.baselines)
    names.push_back(each.spec.hook + "/" + each.spec.folder());
  return names;
}

const PlannedBaseline& named(const SweepPlan& plan, const std::string& name) {
  for (const PlannedBaseline& each : plan.baselines)
    if (each.spec.name == name) return each;
  ADD_FAILURE() << "no " << name;
  return plan.baselines.front();
}

class BaselinesTest : public SweepTest {};

TEST_F(BaselinesTest, RunOncePerHookAndRandomDictionariesPerWidth) {
  const SweepPlan result = plan(
      sweep("[{arch: topk, d_sae: [64, 32, 64], k: [8, 4]}]", "baselines: [random_sae, identity]"),
      {.overrides = {"activations.hooks=[blocks.1.hook_resid_post, hook_embed]"}});
  EXPECT_THAT(
      folders(result),
      ElementsAre("blocks.1.hook_resid_post/random_sae-32",
                  "blocks.1.hook_resid_post/random_sae-64", "blocks.1.hook_resid_post/identity",
                  "hook_embed/random_sae-32", "hook_embed/random_sae-64", "hook_embed/identity"));
  std::set<Sha256> identities;
  for (const PlannedBaseline& each : result.baselines) {
    EXPECT_EQ(each.identity, each.spec.identity());
    EXPECT_TRUE(identities.insert(each.identity).second);
  }
}

TEST_F(BaselinesTest, KIsTheLowerMedianOfTheDistinctOnesAndAtMostTheWidth) {
  const auto k_of = [&](const std::string& trials) {
    std::vector<std::uint64_t> ks;
    for (const PlannedBaseline& each : plan(sweep(trials, "baselines: [random_sae]")).baselines)
      ks.push_back(*each.spec.training->k);
    return ks;
  };
  EXPECT_THAT(k_of("[{arch: topk, d_sae: 64, k: [16, 4, 4, 8]}]"), ElementsAre(8));
  EXPECT_THAT(k_of("[{arch: topk, d_sae: 64, k: [16, 4, 8, 2]}]"), ElementsAre(4));
  EXPECT_THAT(k_of("[{arch: topk, d_sae: 64, k: 7}, {arch: standard, d_sae: 4, l1: 1, "
                   "sparsity_warmup_steps: 5%}]"),
              ElementsAre(4, 7));
  EXPECT_THAT(k_of("[{arch: standard, d_sae: [16, 64], l1: 1, sparsity_warmup_steps: 5%}]"),
              ElementsAre(16, 32));
}

TEST_F(BaselinesTest, NeuronsAreThoseOfTheHooksBlock) {
  const SweepPlan result =
      plan(sweep("[{arch: topk, d_sae: 64, k: 4}]", "baselines: [neurons]"),
           {.overrides = {"activations.hooks=[blocks.1.hook_resid_post, blocks.2.attn.hook_z]"}});
  ASSERT_THAT(result.baselines, SizeIs(2));
  EXPECT_EQ(result.baselines[0].spec.stream.hook, "blocks.1.mlp.hook_post");
  EXPECT_EQ(result.baselines[0].spec.hook, "blocks.1.hook_resid_post");
  EXPECT_EQ(result.baselines[1].spec.stream.hook, "blocks.2.mlp.hook_post");
  EXPECT_THAT(error(sweep("[{arch: topk, d_sae: 8, k: 4}]", "baselines: [neurons]"),
                    {.overrides = {"activations.hooks=[hook_embed]"}}),
              HasSubstr("'hook_embed' lies in no block"));
}

TEST_F(BaselinesTest, TheRandomModelTrainsATopKOfTheSmallestWidthAsTrainSays) {
  const SweepPlan result = plan(
      sweep(
          "[{arch: topk, d_sae: [64, 32], k: [8, 16], lr: 5e-3}, {arch: standard, d_sae: 128, l1: "
          "0.1, sparsity_warmup_steps: 5%}]",
          "baselines: [random_model]", ", lr: [1e-3, 2e-3], warmup_steps: 5%, seed: [4, 5], l1: 3"),
      {.overrides = {"model.seed=11"}});
  const PlannedBaseline& baseline = named(result, "random_model");
  const TrainingSpec& training = *baseline.spec.training;
  EXPECT_EQ(training.architecture, Architecture::kTopK);
  EXPECT_EQ(training.d_sae, 32u);
  EXPECT_EQ(training.k, 8u);
  EXPECT_EQ(training.seed, 0u);
  EXPECT_EQ(training.lr, 1e-3);
  EXPECT_EQ(training.tokens, 1'000'000u);
  EXPECT_EQ(training.batch, 256u);
  EXPECT_EQ(training.l1, std::nullopt);
  EXPECT_TRUE(baseline.spec.stream.model->random_weights);
  EXPECT_EQ(baseline.spec.stream.model->seed, 11u);
  EXPECT_NE(baseline.spec.stream.model->digest, result.trials[0].spec.stream.model->digest);
  EXPECT_EQ(baseline.spec.stream.hook, "blocks.1.hook_resid_post");
  EXPECT_EQ(TrialSpec({baseline.spec.stream, training}).identity().hex().size(), 64u);
}

TEST_F(BaselinesTest, TheRandomModelTakesItsBudgetFromATrialIfTrainHasNone) {
  std::string text =
      sweep("[{arch: topk, d_sae: 64, k: 4, tokens: 600k}]", "baselines: [random_model]");
  text.replace(text.find("tokens: 1M, "), 12, "");
  EXPECT_EQ(named(plan(text), "random_model").spec.training->tokens, 600'000u);
}

TEST_F(BaselinesTest, WithoutTheKeyThereAreNone) {
  EXPECT_THAT(plan(sweep()).baselines, IsEmpty());
}

// ---- evaluations --------------------------------------------------------------------------------

class EvaluationsTest : public SweepTest {};

TEST_F(EvaluationsTest, DefaultsAreTheUsualNumbers) {
  const SweepPlan result = plan(sweep("[{arch: topk, d_sae: 8, k: 2}]", "evaluate: [core, board]"),
                                {.overrides = {"data.games=200k"}});
  ASSERT_THAT(result.evaluations, SizeIs(2));
  EXPECT_EQ(result.evaluations[0].tokens, 40'000u);
  EXPECT_EQ(result.evaluations[1].games, 2000u);
}

TEST_F(EvaluationsTest, DefaultsShrinkToWhatIsSurelyHeldOut) {
  const SweepPlan result =
      plan(sweep("[{arch: topk, d_sae: 8, k: 2}]", "evaluate: [{core: {}}, {board: {}}]"),
           {.overrides = {"data.games=5k", "activations.tokens=50k"}});
  // 250 games are held out on average, 8 standard deviations less are 126.
  EXPECT_EQ(result.evaluations[1].games, 126u);
  EXPECT_EQ(result.evaluations[0].tokens, 126u * 31);
}

TEST_F(EvaluationsTest, UnknownSettingsGetTheNearestKey) {
  EXPECT_THAT(error(sweep("[{arch: topk, d_sae: 8, k: 2}]", "evaluate: [core: {token: 5}]")),
              HasSubstr("evaluate[0].core.token: unknown key 'token'"));
  EXPECT_THAT(error(sweep("[{arch: topk, d_sae: 8, k: 2}]", "evaluate: [{core: {}, board: {}}]")),
              HasSubstr("evaluate[0]: is a map of several"));
  EXPECT_THAT(error(sweep("[{arch: topk, d_sae: 8, k: 2}]", "evaluate: core")),
              HasSubstr("evaluate: is 'core'; a list like"));
}

// ---- estimates and warnings ---------------------------------------------------------------------

class EstimatesTest : public SweepTest {};

TEST_F(EstimatesTest, CountsAddUp) {
  const SweepPlan result = plan(sweep("[{arch: topk, d_sae: 64, k: [2, 4], seed: [0, 1]}]",
                                      "baselines: [identity, random_model]"));
  const SweepEstimate sum = estimate(result);
  EXPECT_EQ(sum.trials, 4u);
  EXPECT_EQ(sum.baselines, 2u);
  EXPECT_EQ(sum.tokens, 5 * (1'000'000 / 256 * 256u));
  // 100k rows of 8 bf16 values are cached.
  EXPECT_GT(sum.disk_bytes, 100'000u * 16);
  EXPECT_LT(sum.disk_bytes, 10u << 20);
  EXPECT_GT(sum.memory_bytes, 100u << 20);
  EXPECT_GT(sum.seconds, 0);
}

TEST_F(EstimatesTest, OnlyTrialsOfAGpuTakeItsMemory) {
  const auto on = [&](const char* trials) {
    return estimate(plan(sweep(trials, "", ", device: cuda"))).gpu_memory_bytes;
  };
  EXPECT_EQ(estimate(plan(sweep("[{arch: topk, d_sae: 64, k: 4}]"))).gpu_memory_bytes, 0U);
  const std::uint64_t narrow = on("[{arch: topk, d_sae: 64, k: 4}]");
  const std::uint64_t wide = on("[{arch: topk, d_sae: 4096, k: 4}, {arch: topk, d_sae: 64, k: 4}]");
  // The largest: weights, their gradients and moments, and the pre-activations of a batch of 256.
  EXPECT_GT(wide, narrow + 4 * 4 * 2 * 8 * 4000U + 4 * 256 * 4000U);
  EXPECT_LT(wide, 2 * narrow);  // beside what a device takes anyway
  EXPECT_GT(on("[{arch: gated, d_sae: 4096, l1: 1, sparsity_warmup_steps: 5%}]"), wide);
}

// Trials of a run take their steps one after another, in the same scratch.
TEST_F(EstimatesTest, OfAGpuTrialsShareAllButWeightsGradientsAndMoments) {
  for (const char* trials : {"[{arch: topk, d_sae: 4096, k: 4}]",
                             "[{arch: gated, d_sae: 4096, l1: 1, sparsity_warmup_steps: 5%}]"}) {
    const auto of = [&](const char* precision) {
      return plan(sweep(trials, "", fmt::format(", device: cuda, precision: {}", precision)))
          .trials.at(0)
          .spec.training;
    };
    const TrainingSpec spec = of("fp32"), rounded = of("bf16");
    const std::uint64_t own = estimated_gpu_memory(spec, 8) - shared_gpu_memory(spec, 8);
    EXPECT_EQ(own, estimated_gpu_memory(rounded, 8) - shared_gpu_memory(rounded, 8));
    EXPECT_GT(own, 4 * 4 * 2 * 8 * 4096U);
    EXPECT_LT(own, 4 * 4 * 2 * 8 * 4096U * 3 / 2);
    EXPECT_GT(shared_gpu_memory(spec, 8), spec.batch * 4096U * 4);
  }
}

TEST_F(EstimatesTest, MoreWorkCostsMore) {
  const auto with = [&](const char* override) {
    return estimate(plan(sweep("[{arch: topk, d_sae: 64, k: 4}]", "evaluate: [core: {tokens: 1k}]"),
                         {.overrides = {override}}));
  };
  const SweepEstimate base = with("name=base");
  EXPECT_GT(with("train.tokens=2M").seconds, base.seconds);
  EXPECT_GT(with("trials[0].d_sae=640").seconds, base.seconds);
  EXPECT_GT(with("trials[0].d_sae=640").memory_bytes, base.memory_bytes);
  EXPECT_GT(with("resources.slots=2").memory_bytes, base.memory_bytes);
  EXPECT_LT(with("activations.cache=0").disk_bytes, base.disk_bytes);
  EXPECT_GT(with("activations.cache=0").seconds, base.seconds);
  EXPECT_GT(with("evaluate=[core: {tokens: 20k}]").seconds, base.seconds);
}

TEST_F(EstimatesTest, HooksOfOneModelCostTheDeepestForwardPassWhereTheCacheHoldsAll) {
  const auto with = [&](const char* hooks, const char* cache) {
    return estimate(plan(sweep("[{arch: topk, d_sae: 64, k: 4}]"),
                         {.overrides = {std::string("activations.hooks=") + hooks,
                                        std::string("activations.cache=") + cache}}))
        .seconds;
  };
  const double both = with("[blocks.0.hook_resid_post, blocks.1.hook_resid_post]", "1GiB");
  const double apart = with("[blocks.0.hook_resid_post, blocks.1.hook_resid_post]", "2MiB");
  const double shallow = with("[blocks.0.hook_resid_post]", "1GiB");
  const double deep = with("[blocks.1.hook_resid_post]", "1GiB");
  ASSERT_LT(shallow, deep);
  EXPECT_LT(both, apart);
  EXPECT_LT(both, shallow + deep);
}

TEST_F(EstimatesTest, ATrainLmJobIsEstimatedToo) {
  const SweepEstimate sum =
      estimate(plan("data: {source: othello, board: 6, games: 2M}\n"
                    "train_lm: {games: 1800000, lr: 0.002}"));
  EXPECT_EQ(sum.trials, 0u);
  EXPECT_EQ(sum.tokens, 1'800'000u * 31);
  // Most of an hour on two cores.
  EXPECT_GT(sum.seconds, 1200);
  EXPECT_LT(sum.seconds, 7200);
}

TEST_F(EstimatesTest, WarningsSayWhatIsProbablyNotMeant) {
  const auto warning = [&](const std::string& more, const char* override) {
    const SweepPlan result =
        plan(sweep("[{arch: topk, d_sae: 64, k: 4}]", more), {.overrides = {override}});
    return fmt::format("{}", fmt::join(result.warnings, "\n"));
  };
  EXPECT_EQ(warning("", "name=fine"), "");
  EXPECT_THAT(warning("", "train.tokens=6M"),
              HasSubstr("passes 60 times over the same activations"));
  EXPECT_THAT(warning("", "activations.cache=1MiB"),
              HasSubstr("activations.cache: 0.00 GiB hold less"));
  EXPECT_EQ(warning("", "activations.cache=0"), "");
  const SweepPlan hooks = plan(
      sweep("[{arch: topk, d_sae: 64, k: 4}]"),
      {.overrides = {"activations.cache=0",
                     "activations.hooks=[blocks.0.hook_resid_post, blocks.1.hook_resid_post]"}});
  EXPECT_THAT(hooks.warnings,
              ElementsAre(HasSubstr("each of the 2 hooks is harvested in forward")));
  EXPECT_THAT(warning("evaluate: [board: {games: 100}]", "name=x"), HasSubstr("100 games are few"));
  EXPECT_THAT(warning("baselines: [always_on]", "name=x"),
              HasSubstr("always_on has board scores only"));
  EXPECT_THAT(warning("", "activations.holdout=0"), HasSubstr("on what they trained on"));
  EXPECT_THAT(warning("", "resources.memory=64MiB"), HasSubstr("resources.memory"));
}

}  // namespace
}  // namespace saesweep::sweeps
