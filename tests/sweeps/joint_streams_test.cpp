// Families that read several hooks at once: transcoders and crosscoders in a sweep file.
#include <gmock/gmock.h>

#include "sweeps/estimates.h"
#include "sweeps/recipes.h"
#include "tests/sweeps/sweep_words.h"

namespace saesweep::sweeps {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

// Recipes ask for longer runs.
constexpr std::string_view kShort =
    ", warmup_steps: 5%, sparsity_warmup_steps: 5%, threshold_start_step: 20%";

class JointStreamsTest : public SweepTest {
 protected:
  static std::string joint(std::string_view trials, std::string_view more = "") {
    return sweep(trials, more, kShort);
  }
};

TEST_F(JointStreamsTest, EachFamilyHasTheStreamItReads) {
  const SweepPlan result = plan(joint(R"([
  {arch: topk, d_sae: 64, k: 4},
  {arch: transcoder, d_sae: 64, k: 4, hook: blocks.1.hook_resid_mid, hook_out: blocks.1.mlp.hook_post},
  {arch: skip_transcoder, d_sae: 64, k: [4, 8], hook: blocks.1.hook_resid_mid, hook_out: blocks.1.mlp.hook_post},
  {arch: crosscoder, d_sae: 64, l1: 0.1, hooks: [blocks.0.hook_resid_post, blocks.2.hook_resid_post]}])"));
  ASSERT_THAT(result.streams, SizeIs(3));
  EXPECT_THAT(result.streams[0].spec.joined, IsEmpty());
  EXPECT_THAT(result.streams[1].spec.hooks(),
              ElementsAre("blocks.1.hook_resid_mid", "blocks.1.mlp.hook_post"));
  EXPECT_THAT(result.streams[2].spec.hooks(),
              ElementsAre("blocks.0.hook_resid_post", "blocks.2.hook_resid_post"));
  EXPECT_EQ(result.streams[1].d_in, 8u + 16);
  EXPECT_EQ(result.streams[2].d_in, 8u + 8);
  // A pass goes up to the deepest hook.
  EXPECT_GT(result.streams[2].model_parameters, result.streams[0].model_parameters);
  ASSERT_THAT(result.trials, SizeIs(5));
  EXPECT_EQ(result.trials[1].spec.stream, result.streams[1].spec);
  EXPECT_EQ(result.trials[3].spec.stream, result.streams[1].spec);
  EXPECT_EQ(result.trials[4].spec.stream, result.streams[2].spec);
  EXPECT_GT(estimate(result).memory_bytes, 0u);
}

TEST_F(JointStreamsTest, HooksBesideEachOtherAreOneTranscoderEach) {
  const SweepPlan result = plan(joint(
      "[{arch: transcoder, d_sae: 64, k: 4, hook: [blocks.0.hook_resid_mid, "
      "blocks.1.hook_resid_mid], hook_out: [blocks.0.hook_mlp_out, blocks.1.hook_mlp_out]}]"));
  ASSERT_THAT(result.trials, SizeIs(2));
  EXPECT_THAT(result.trials[1].spec.stream.hooks(),
              ElementsAre("blocks.1.hook_resid_mid", "blocks.1.hook_mlp_out"));
}

TEST_F(JointStreamsTest, TheRecipeIsThatOfTheirLibraries) {
  const TrainingSpec transcoder = recipe_training("saebench-v1", Architecture::kTranscoder, 20'000);
  EXPECT_EQ(transcoder.lr, 3e-4);
  EXPECT_EQ(transcoder.aux_k_weight, 0);
  EXPECT_EQ(transcoder.dead_after_tokens, 10'000'000u);
  EXPECT_FALSE(transcoder.grad_clip);
  EXPECT_EQ(transcoder.decay_start, 16'000u);
  const TrainingSpec crosscoder = recipe_training("saebench-v1", Architecture::kCrosscoder, 20'000);
  EXPECT_EQ(crosscoder.lr, 5e-5);
  EXPECT_EQ(crosscoder.warmup_steps, 0u);
  EXPECT_EQ(crosscoder.sparsity_warmup_steps, 1000u);
  EXPECT_EQ(crosscoder.grad_clip, 1.0);
  EXPECT_EQ(crosscoder.adam_beta1, 0.9);
}

TEST_F(JointStreamsTest, OtherActivationsHaveTheKeysThatAreTheirs) {
  const auto first = [&](const std::string& trial) {
    return plan(joint("[{" + trial + ", d_sae: 16}]")).trials.at(0).spec;
  };
  const TrialSpec crosscoder =
      first("arch: batchtopk_crosscoder, k: 4, hooks: [hook_embed, hook_pos_embed]");
  EXPECT_EQ(crosscoder.stream.hooks().size(), 2u);
  EXPECT_EQ(crosscoder.training.k, 4u);
  EXPECT_EQ(crosscoder.training.threshold_beta, 0.999);
  EXPECT_EQ(TrialSpec::from_json(crosscoder.to_json()).value(), crosscoder);
  const TrialSpec transcoder =
      first("arch: jumprelu_transcoder, l0_target: 4, hook: hook_embed, hook_out: hook_pos_embed");
  EXPECT_EQ(transcoder.stream.hooks().size(), 2u);
  EXPECT_EQ(transcoder.training.sparsity_loss, SparsityLoss::kL0Target);
  EXPECT_EQ(transcoder.training.bandwidth, 0.001);
  EXPECT_EQ(TrialSpec::from_json(transcoder.to_json()).value(), transcoder);
}

TEST_F(JointStreamsTest, IdentityIsTheListOfHooksAndSingleStreamsKeepTheirs) {
  const StreamSpec one = plan(sweep()).streams[0].spec;
  EXPECT_FALSE(one.to_json().contains("joined"));
  StreamSpec two = one;
  two.joined = {"blocks.2.hook_resid_post"};
  EXPECT_NE(two.identity_json(), one.identity_json());
  EXPECT_NE(two.cache_json(), one.cache_json());
  EXPECT_EQ(StreamSpec::from_json(two.to_json()).value(), two);
  StreamSpec swapped = two;
  std::swap(swapped.hook, swapped.joined[0]);
  EXPECT_NE(swapped.identity_json(), two.identity_json());
  Json wrong = two.to_json();
  wrong["joined"] = "blocks.2.hook_resid_post";
  EXPECT_FALSE(StreamSpec::from_json(wrong));
}

TEST_F(JointStreamsTest, WhatDoesNotFitIsSaidWithWhatWould) {
  struct Case {
    std::string trial, expected;
  };
  for (const auto& [trial, expected] : {
           Case{"arch: transcoder, k: 4, hook_out: blocks.1.hook_mlp_out",
                "trials[0].hook: is missing; transcoder needs the hook it reads"},
           Case{"arch: transcoder, k: 4, hook: blocks.1.hook_resid_mid",
                "trials[0].hook_out: is missing; transcoder needs the hook it predicts"},
           Case{"arch: transcoder, k: 4, hook: blocks.1.hook_resid_mid, hook_out: "
                "blocks.1.hook_mlp_ot",
                "trials[0].hook_out: 'blocks.1.hook_mlp_ot' is no hook"},
           Case{"arch: transcoder, k: 4, hook: blocks.1.hook_mlp_out, hook_out: "
                "blocks.1.hook_mlp_out",
                "is what is read; another hook"},
           Case{"arch: transcoder, k: 4, hook: [hook_embed, blocks.1.hook_resid_mid], hook_out: "
                "blocks.1.hook_mlp_out",
                "trials[0].hook_out: names 1 hooks and hook 2"},
           Case{"arch: skip_transcoder, l1: 0.1, hook: hook_embed, hook_out: blocks.1.hook_mlp_out",
                "trials[0].l1: does not apply to skip_transcoder"},
           Case{"arch: transcoder, k: 4, init: x, hook: hook_embed, hook_out: "
                "blocks.1.hook_mlp_out",
                "trials[0].init: does not apply to transcoder"},
           Case{"arch: transcoder, k: 4, threshold_beta: 0.9, hook: hook_embed, hook_out: "
                "blocks.1.hook_mlp_out",
                "trials[0].threshold_beta: does not apply to transcoder"},
           Case{"arch: batchtopk_crosscoder, l1: 0.1, hooks: [hook_embed, hook_pos_embed]",
                "trials[0].l1: does not apply to batchtopk_crosscoder"},
           Case{"arch: batchtopk_crosscoder, k: 4, hooks: [hook_embed, blocks.1.mlp.hook_post]",
                "'blocks.1.mlp.hook_post' is 16 wide and 'hook_embed' 8"},
           Case{"arch: jumprelu_transcoder, k: 4, hook: hook_embed, hook_out: hook_pos_embed",
                "trials[0].k: does not apply to jumprelu_transcoder"},
           Case{"arch: crosscoder, l1: 0.1", "trials[0].hooks: is missing; crosscoder needs"},
           Case{"arch: crosscoder, l1: 0.1, hooks: [hook_embed]", "is one hook; two or more"},
           Case{"arch: crosscoder, l1: 0.1, hooks: [hook_embed, hook_embed]",
                "trials[0].hooks[1]: 'hook_embed' stands twice"},
           Case{"arch: crosscoder, l1: 0.1, hooks: [hook_embed, blocks.1.mlp.hook_post]",
                "'blocks.1.mlp.hook_post' is 16 wide and 'hook_embed' 8"},
           Case{"arch: crosscoder, l1: 0.1, hook: hook_embed, hooks: [hook_embed, hook_pos_embed]",
                "trials[0].hook: does not apply to crosscoder; hooks, a list, would be right"},
           Case{"arch: topk, k: 4, hook_out: hook_embed",
                "trials[0].hook_out: does not apply to topk"},
           Case{"arch: topk, k: 4, hooks: [hook_embed, hook_pos_embed]",
                "trials[0].hooks: does not apply to topk; hook would be right"},
       }) {
    SCOPED_TRACE(trial);
    const auto lines = errors(joint("[{" + trial + ", d_sae: 16}]"));
    ASSERT_THAT(lines, testing::Not(IsEmpty()));
    EXPECT_THAT(fmt::format("{}", fmt::join(lines, "\n")), HasSubstr(expected));
  }
}

TEST_F(JointStreamsTest, AnL0TargetBesideL1SteersItAndIsPartOfTheIdentity) {
  const auto first = [&](const std::string& more) {
    return plan(joint("[{arch: gated, d_sae: 16, l1: 0.1" + more + "}]")).trials.at(0);
  };
  const PlannedTrial plain = first(""), steered = first(", l0_target: 20");
  EXPECT_FALSE(plain.spec.training.l0_target);
  EXPECT_EQ(steered.spec.training.l0_target, 20);
  EXPECT_NE(plain.identity, steered.identity);
  EXPECT_EQ(TrialSpec::from_json(steered.spec.to_json()).value(), steered.spec);
  EXPECT_THAT(error(joint("[{arch: standard, d_sae: 16, l0_target: 20}]")),
              HasSubstr("trials[0].l1: is missing; standard needs it"));
  EXPECT_THAT(error(joint("[{arch: standard, d_sae: 16, l1: 0, l0_target: 20}]")),
              HasSubstr("trials[0].l1: 0 stays 0"));
  EXPECT_THAT(error(joint("[{arch: topk, d_sae: 16, k: 2, l0_target: 20}]")),
              HasSubstr("trials[0].l0_target: does not apply to topk"));
}

TEST_F(JointStreamsTest, BaselinesStandBesideSingleHooksOnly) {
  constexpr std::string_view kTrial =
      "[{arch: transcoder, d_sae: 64, k: 4, hook: blocks.1.hook_resid_mid, hook_out: "
      "blocks.1.hook_mlp_out}]";
  const SweepPlan result = plan(joint(kTrial, "baselines: [identity, random_sae]"));
  ASSERT_THAT(result.baselines, SizeIs(2));
  EXPECT_EQ(result.baselines[0].spec.hook, "blocks.1.hook_resid_post");
  EXPECT_EQ(result.baselines[1].spec.training->d_sae, 64u);
  const std::string text = joint(kTrial, "baselines: [identity]");
  const std::string without =
      std::string(text).replace(text.find("hooks: [blocks.1.hook_resid_post], "), 35, "");
  EXPECT_THAT(error(without), HasSubstr("baselines: are of single hooks"));
}

TEST_F(JointStreamsTest, StoredActivationsAreOneStream) {
  write("acts.safetensors", safetensors_of({{"x", {4096, 8}}}));
  EXPECT_THAT(error("data: {source: activations, path: acts.safetensors, tensor: x}\n"
                    "activations: {tokens: 2k}\ntrain: {tokens: 200k, batch: 128" +
                    std::string(kShort) +
                    "}\ntrials: [{arch: crosscoder, d_sae: 16, l1: 0.1, hooks: [a, b]}]"),
              HasSubstr("crosscoder reads several hooks of a model"));
}

}  // namespace
}  // namespace saesweep::sweeps
