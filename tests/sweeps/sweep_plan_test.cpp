#include "sweeps/sweep_plan.h"

#include <gmock/gmock.h>

#include <algorithm>

#include "sweeps/yaml_document.h"
#include "tests/sweeps/sweep_words.h"

namespace saesweep::sweeps {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::EndsWith;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;
using testing::StartsWith;

class SweepPlanTest : public SweepTest {};

TEST_F(SweepPlanTest, EveryKeyHasTheDefaultItPromises) {
  const SweepPlan result = plan(sweep());
  ASSERT_THAT(result.trials, SizeIs(1));
  const StreamSpec& stream = result.trials[0].spec.stream;
  EXPECT_EQ(result.name, "sweep");
  EXPECT_EQ(stream.dtype, DType::kBFloat16);
  EXPECT_EQ(stream.normalize, Normalize::kNone);
  EXPECT_EQ(stream.shuffle, Shuffle::kFull);
  EXPECT_EQ(stream.shuffle_rows, 0u);
  EXPECT_EQ(stream.holdout, 0.05);
  EXPECT_EQ(stream.seed, 0u);
  EXPECT_EQ(stream.data.play, "uniform");
  EXPECT_EQ(stream.model->name, "model");
  EXPECT_FALSE(stream.model->random_weights);
  const TrainingSpec& training = result.trials[0].spec.training;
  EXPECT_EQ(training.recipe, "saebench-v1");
  EXPECT_EQ(training.precision, Precision::kFloat32);
  EXPECT_EQ(training.device, "cpu");
  EXPECT_TRUE(training.deterministic);
  EXPECT_EQ(training.seed, 0u);
  EXPECT_EQ(training.lr, 3e-4);
  EXPECT_EQ(result.cache_bytes, std::uint64_t{4} << 30);
  EXPECT_EQ(result.checkpoint_every_s, 60);
  EXPECT_EQ(result.resources.slots, 1u);
  ASSERT_THAT(result.evaluations, SizeIs(1));
  EXPECT_EQ(result.evaluations[0].kind, "core");
  EXPECT_THAT(result.baselines, IsEmpty());
}

TEST_F(SweepPlanTest, EveryKeyOfTheSurfaceIsRead) {
  const SweepPlan result = plan(R"(name: all-keys
model: {path: model, random_weights: true, seed: 7, precision: bf16}
data: {source: othello, board: 6, play: uniform, games: 200k, seed: 3}
activations:
  hooks: [blocks.2.hook_resid_post, blocks.0.mlp.hook_post]
  tokens: 2M
  dtype: fp32
  normalize: sqrt_d
  shuffle: window
  shuffle_rows: 4096
  holdout: 7%
  cache: 1GiB
  seed: 5
train: {tokens: 4M, batch: 2048, recipe: saebench-v1, warmup_steps: 5%, sparsity_warmup_steps: 5%,
        device: cuda, precision: bf16, deterministic: false, checkpoint_every: 2m}
trials:
  - {arch: topk, d_sae: [512, 1024], k: [8, 16, 32], seed: {range: [0, 3]}}
  - {arch: standard, d_sae: 512, l1: {log_uniform: [0.01, 0.3], samples: 6}, hook: blocks.0.mlp.hook_post}
search: {strategy: random, seed: 9}
evaluate: [core: {tokens: 40k}, board: {games: 2000}]
baselines: [identity, pca]
resources: {memory: 2GiB, slots: 2}
)");
  ASSERT_THAT(result.trials, SizeIs(2 * 18 + 6));
  const StreamSpec& stream = result.trials[0].spec.stream;
  EXPECT_EQ(result.name, "all-keys");
  EXPECT_EQ(stream.model->seed, 7u);
  EXPECT_EQ(stream.model->precision, Precision::kBFloat16);
  EXPECT_EQ(stream.data.seed, 3u);
  EXPECT_EQ(stream.dtype, DType::kFloat32);
  EXPECT_EQ(stream.normalize, Normalize::kSqrtD);
  EXPECT_EQ(stream.shuffle, Shuffle::kWindow);
  EXPECT_EQ(stream.shuffle_rows, 4096u);
  EXPECT_EQ(stream.holdout, 0.07);
  EXPECT_EQ(stream.seed, 5u);
  const TrainingSpec& training = result.trials[0].spec.training;
  EXPECT_EQ(training.steps(), 4'000'000u / 2048);
  EXPECT_EQ(training.warmup_steps, 97u);
  EXPECT_EQ(training.device, "cuda");
  EXPECT_EQ(training.precision, Precision::kBFloat16);
  EXPECT_FALSE(training.deterministic);
  EXPECT_EQ(result.checkpoint_every_s, 120);
  EXPECT_EQ(result.cache_bytes, std::uint64_t{1} << 30);
  EXPECT_EQ(result.resources.memory_bytes, std::uint64_t{2} << 30);
  EXPECT_EQ(result.resources.slots, 2u);
  EXPECT_EQ(result.evaluations[1].games, 2000u);
  EXPECT_EQ(result.trials.back().spec.stream.hook, "blocks.0.mlp.hook_post");
  ASSERT_THAT(result.streams, SizeIs(2));
  EXPECT_EQ(result.streams[0].d_in, 8u);
  EXPECT_EQ(result.streams[1].d_in, 16u);
}

TEST_F(SweepPlanTest, TrialsAreNumberedInTheOrderOfExpansion) {
  const SweepPlan result = plan(sweep("[{arch: topk, d_sae: [64, 128], k: [4, 8], seed: [0, 1]}]"));
  ASSERT_THAT(result.trials, SizeIs(8));
  for (std::uint32_t i = 0; i < 8; ++i) {
    SCOPED_TRACE(i);
    EXPECT_EQ(result.trials[i].number, i);
    EXPECT_EQ(result.trials[i].spec.training.d_sae, i < 4 ? 64u : 128u);
    EXPECT_EQ(result.trials[i].spec.training.k, i / 2 % 2 == 0 ? 4u : 8u);
    EXPECT_EQ(result.trials[i].spec.training.seed, i % 2);
    EXPECT_EQ(result.trials[i].identity, result.trials[i].spec.identity());
  }
}

TEST_F(SweepPlanTest, EqualTrialsCollapseIntoTheFirst) {
  const SweepPlan result =
      plan(sweep("[{arch: topk, d_sae: 64, k: [4, 8, 4]}, {arch: topk, d_sae: "
                 "64, k: 8}, {arch: topk, d_sae: 64, k: 16}]"));
  ASSERT_THAT(result.trials, SizeIs(3));
  EXPECT_EQ(result.trials[2].number, 2u);
  EXPECT_EQ(result.trials[2].spec.training.k, 16u);
}

TEST_F(SweepPlanTest, TrainGivesEveryFamilyItsValuesAndAFamilyOverridesThem) {
  const SweepPlan result =
      plan(sweep("[{arch: topk, k: 4}, {arch: standard, l1: 0.1, lr: 2e-3, d_sae: 16, seed: 5, "
                 "sparsity_warmup_steps: 5%}]",
                 "", ", lr: 1e-3, d_sae: 32, seed: [1, 2], k: 9"));
  ASSERT_THAT(result.trials, SizeIs(3));
  EXPECT_EQ(result.trials[0].spec.training.lr, 1e-3);
  EXPECT_EQ(result.trials[0].spec.training.k, 4u);
  EXPECT_EQ(result.trials[1].spec.training.seed, 2u);
  EXPECT_EQ(result.trials[2].spec.training.lr, 2e-3);
  EXPECT_EQ(result.trials[2].spec.training.d_sae, 16u);
  EXPECT_EQ(result.trials[2].spec.training.seed, 5u);
}

TEST_F(SweepPlanTest, AFamilyThatNamesAHookRunsThereAlone) {
  const SweepPlan result =
      plan(sweep("[{arch: topk, d_sae: 8, k: 1}, {arch: topk, d_sae: 8, k: 2, hook: "
                 "blocks.0.hook_resid_pre}]"));
  ASSERT_THAT(result.trials, SizeIs(2));
  EXPECT_EQ(result.trials[0].spec.stream.hook, "blocks.1.hook_resid_post");
  EXPECT_EQ(result.trials[1].spec.stream.hook, "blocks.0.hook_resid_pre");
  EXPECT_THAT(result.streams, SizeIs(2));
}

TEST_F(SweepPlanTest, AHookMayStandInTrain) {
  const SweepPlan result = plan(sweep("[{arch: topk, d_sae: 8, k: 1}]", "", ", hook: hook_embed"));
  ASSERT_THAT(result.trials, SizeIs(1));
  EXPECT_EQ(result.trials[0].spec.stream.hook, "hook_embed");
}

TEST_F(SweepPlanTest, TheEffectiveFilePlansTheSameTrialsFromAnyFolder) {
  const SweepPlan first = plan(
      sweep("[{arch: topk, d_sae: 64, k: [4, 8]}, {arch: standard, d_sae: 8, l1: {uniform: "
            "[0.1, 0.2], samples: 3}}]",
            "evaluate: [core, board: {games: 100}]\nbaselines: [identity, random_sae]\n"
            "search: {strategy: lhs, seed: 4}"),
      {.overrides = {"train.tokens=2M", "trials[0].seed={range: [0, 2]}"}, .auto_device = "cuda"});
  const auto again = plan_sweep_text(first.effective_yaml, "other.yaml", "/", {});
  ASSERT_TRUE(again) << again.error()[0].to_string() << first.effective_yaml;
  EXPECT_EQ(again->name, first.name);
  ASSERT_EQ(again->trials.size(), first.trials.size());
  for (std::size_t i = 0; i < first.trials.size(); ++i)
    EXPECT_EQ(again->trials[i].identity, first.trials[i].identity);
  EXPECT_EQ(again->evaluations, first.evaluations);
  EXPECT_EQ(again->baselines.size(), first.baselines.size());
  EXPECT_EQ(again->effective_yaml, first.effective_yaml);
}

TEST_F(SweepPlanTest, ReadingAFileIsReadingItsTextInItsFolder) {
  write("widths.yaml", sweep());
  const auto from_file = plan_sweep(dir.path() / "widths.yaml");
  ASSERT_TRUE(from_file);
  EXPECT_EQ(from_file->name, "widths");
  EXPECT_EQ(from_file->trials[0].identity, plan(sweep()).trials[0].identity);
}

TEST_F(SweepPlanTest, TheIdentityFollowsTheModelsBytesAndNotItsPlace) {
  const Sha256 before = plan(sweep()).trials[0].identity;
  std::filesystem::copy(dir.path() / "model", dir.path() / "copy");
  std::string moved = sweep();
  moved.replace(moved.find("path: model"), 11, "path: copy/");
  EXPECT_EQ(plan(moved).trials[0].identity, before);
  write("model/model.safetensors", safetensors_of(tiny_shapes(), 0.25F));
  EXPECT_NE(plan(sweep()).trials[0].identity, before);
}

TEST_F(SweepPlanTest, WhatDoesNotChangeBytesDoesNotChangeIdentities) {
  const Sha256 before = plan(sweep()).trials[0].identity;
  for (const char* override :
       {"name=other", "activations.cache=0", "train.checkpoint_every=5s", "resources.slots=3",
        "resources.memory=1GiB", "baselines=[pca]", "evaluate=[board]", "search.seed=8",
        "activations.hooks=[hook_embed, blocks.1.hook_resid_post]"}) {
    SCOPED_TRACE(override);
    const SweepPlan changed = plan(sweep(), {.overrides = {override}});
    EXPECT_EQ(changed.trials.back().identity, before);
  }
}

TEST_F(SweepPlanTest, WhatChangesBytesChangesIdentities) {
  std::vector<Sha256> seen{plan(sweep()).trials[0].identity};
  for (const char* override : {"data.games=30k",
                               "data.seed=1",
                               "activations.tokens=90k",
                               "activations.dtype=fp32",
                               "activations.normalize=sqrt_d",
                               "activations.shuffle=none",
                               "activations.shuffle_rows=512",
                               "activations.holdout=6%",
                               "activations.seed=1",
                               "activations.filters.remove_bos=true",
                               "activations.filters.exclude_special_tokens=[3]",
                               "activations.filters.exclude_special_tokens=[3, 4]",
                               "activations.filters.max_activation_norm_multiple=10",
                               "train.tokens=2M",
                               "train.batch=128",
                               "train.lr=0.1",
                               "train.precision=bf16",
                               "train.deterministic=false",
                               "train.device=cuda",
                               "train.seed=1",
                               "trials[0].k=5",
                               "trials[0].arch=batchtopk",
                               "model.random_weights=true",
                               "activations.hooks=[hook_embed]",
                               "train.warmup_steps=7"}) {
    SCOPED_TRACE(override);
    const SweepPlan changed = plan(sweep(), {.overrides = {override}});
    ASSERT_THAT(changed.trials, SizeIs(1));
    EXPECT_THAT(seen, testing::Not(testing::Contains(changed.trials[0].identity)));
    seen.push_back(changed.trials[0].identity);
  }
}

// ---- errors -------------------------------------------------------------------------------------

TEST_F(SweepPlanTest, AllErrorsOfAFileAreShownAtOnceInItsOrder) {
  const auto lines = errors(R"(model: {path: nowhere}
data: {source: othello, bord: 6, games: -3}
activations: {hooks: [blocks.1.hook_resid_post], tokens: 100k, dtype: fp16}
train: {tokens: 1M, batch: 256, warmup_step: 5%}
trials:
  - {arch: topk, d_sae: 64}
  - {arch: topkk, d_sae: 0, k: 4}
  - {arch: topk, d_sae: 4, k: 5}
baselines: [idenity]
)");
  EXPECT_THAT(
      lines,
      ElementsAre(
          StartsWith("sweep.yaml:1:15: model.path: there is no folder"),
          AllOf(StartsWith("sweep.yaml:2:25: data.bord: unknown key 'bord'"),
                HasSubstr("did you mean 'board'?")),
          AllOf(StartsWith("sweep.yaml:2:41: data.games: '-3' is negative"),
                HasSubstr("would be right")),
          AllOf(StartsWith("sweep.yaml:3:71: activations.dtype: 'fp16' is not one of its values"),
                HasSubstr("fp32")),
          AllOf(StartsWith("sweep.yaml:4:33: train.warmup_step: unknown key"),
                HasSubstr("did you mean 'warmup_steps'?")),
          AllOf(StartsWith("sweep.yaml:6:5: trials[0].k: is missing"), HasSubstr("topk needs it")),
          AllOf(StartsWith("sweep.yaml:7:12: trials[1].arch: 'topkk' is no architecture"),
                HasSubstr("did you mean 'topk'?")),
          StartsWith("sweep.yaml:7:26: trials[1].d_sae: 0 is out of range; 1 to"),
          AllOf(StartsWith("sweep.yaml:9:13: baselines[0]: 'idenity' is no baseline"),
                HasSubstr("did you mean 'identity'?"))));
}

TEST_F(SweepPlanTest, KAboveTheWidthIsRefusedWithBothValues) {
  EXPECT_THAT(error(sweep("[{arch: topk, d_sae: 4, k: [2, 5]}]")),
              AllOf(StartsWith("sweep.yaml:5:36: trials[0].k: 5 is larger than d_sae 4"),
                    HasSubstr("at most 4 would be right")));
}

TEST_F(SweepPlanTest, RepeatedKeysAreRefusedWithBothLines) {
  EXPECT_THAT(error(sweep("[{arch: topk, d_sae: 4, k: 1, k: 2}]")),
              HasSubstr("trials[0].k: stands twice, first in line 5"));
  EXPECT_THAT(error(sweep() + "data: {source: othello, games: 1}\n"),
              HasSubstr("data: stands twice, first in line 2"));
}

TEST_F(SweepPlanTest, AnUnknownHookGetsTheNearestOne) {
  EXPECT_THAT(error(sweep("[{arch: topk, d_sae: 4, k: 1, hook: blocks.1.hook_resid_pos}]")),
              AllOf(HasSubstr("trials[0].hook: 'blocks.1.hook_resid_pos' is no hook"),
                    HasSubstr("did you mean 'blocks.1.hook_resid_pos")));
  EXPECT_THAT(
      error(sweep(), {.overrides = {"activations.hooks=[blocks.3.hook_resid_post]"}}),
      AllOf(
          StartsWith("sweep.yaml: --set activations.hooks: 'blocks.3.hook_resid_post' is no hook"),
          HasSubstr("the model has blocks 0 to 2")));
}

TEST_F(SweepPlanTest, ThingsThatContradictEachOtherAreRefused) {
  struct Case {
    std::string text, expected;
  };
  for (const auto& [text, expected] : {
           Case{sweep("[]"), "trials: is an empty list"},
           Case{sweep("{arch: topk}"), "trials: is a map"},
           Case{"data: {source: othello, games: 10}", "activations: is missing"},
           Case{sweep() + "train_lm: {games: 1M}", "trials: stands beside train_lm"},
           Case{sweep("[{arch: topk, d_sae: 8, l1: 0.1, k: 2}]"),
                "trials[0].l1: does not apply to topk"},
           Case{sweep("[{arch: standard, d_sae: 8, k: 3, l1: 1}]"),
                "trials[0].k: does not apply to standard"},
           Case{sweep("[{arch: end_to_end, d_sae: 8}]"), "end_to_end needs it, here or in train"},
           Case{sweep("[{arch: topk, d_sae: 8, k: []}]"), "trials[0].k: is an empty list"},
           Case{sweep("[{arch: topk, d_sae: 8, k: {int_uniform: [4, 2], samples: 3}}]"),
                "[4, 2] is reversed"},
           Case{sweep("[{arch: topk, d_sae: 8, k: {int_uniform: [4, 4], samples: 3}}]"),
                "[4, 4] is empty"},
           Case{sweep("[{arch: topk, d_sae: 8, k: 2, seed: {range: [3, 3]}}]"),
                "[3, 3] holds no seed"},
           Case{sweep("[{arch: topk, d_sae: 8, k: {int_uniform: [1, 4], samples: 0}}]"),
                "samples: 0 is out of range"},
           Case{sweep("[{arch: topk, d_sae: {choice: [8, 9], samples: 2}, k: {int_uniform: [1, 4], "
                      "samples: 3}}]"),
                "has 3 samples and trials[0].d_sae has 2"},
           Case{sweep("[{arch: topk, d_sae: 99999999999999999999, k: 2}]"),
                "'99999999999999999999' is larger than 9223372036854775807 (64 bits)"},
           Case{sweep("[{arch: topk, d_sae: 8, k: 2, seed: {range: [0, 99999]}}, {arch: batchtopk, "
                      "d_sae: 8, k: 2, seed: {range: [0, 9]}}]"),
                "trials: are more than 100000"},
           Case{sweep("[{arch: topk, d_sae: 8, k: 2}]", "name: ../x"),
                "name: '../x' cannot name a folder"},
           Case{sweep("[{arch: topk, d_sae: 8, k: 2}]", "evaluate: [core: {tokens: 1k}, core]"),
                "'core' stands twice"},
           Case{sweep("[{arch: topk, d_sae: 8, k: 2}]", "evaluate: [cor]"), "did you mean 'core'?"},
           Case{sweep("[{arch: topk, d_sae: 8, k: 2}]", "evaluate: [board: {games: 3}]"),
                "3 cannot be halved"},
           Case{sweep("[{arch: topk, d_sae: 8, k: 2}]", "evaluate: [board: {games: 5k}]"),
                "5000 are more than the held-out documents have"},
           Case{sweep("[{arch: topk, d_sae: 8, k: 2}]", "evaluate: [core: {tokens: 1M}]"),
                "1000000 are more than the held-out documents have"},
           Case{sweep("[{arch: topk, d_sae: 8, k: 2}]", "resources: {memory: 1KiB}"),
                "resources.memory: 1024 bytes are too few"},
           Case{sweep("[{arch: topk, d_sae: 8, k: 2}]", "resources: {slots: 0}"),
                "resources.slots: 0 is out of range"},
           Case{sweep("[{arch: topk, d_sae: 8, k: 2, init: no.safetensors}]"), "there is no file"},
           Case{sweep("[3]"), "trials[0]: is '3'"},
           Case{sweep("[{arch: topk, d_sae: 8, k: 2}]", "baselines: [pca, pca]"),
                "'pca' stands twice"},
           Case{sweep("[{arch: topk, d_sae: 8, k: 2, tokens: 100}]"),
                "100 tokens are less than one batch of 256; at least 256"},
           Case{"[1, 2]", "is a list; a map of name, model"},
           Case{"", "sweep.yaml: is empty"},
       }) {
    SCOPED_TRACE(text);
    EXPECT_THAT(fmt::format("{}", fmt::join(errors(text), "\n")), HasSubstr(expected));
  }
}

TEST_F(SweepPlanTest, MoreTokensThanTheGamesHaveAreRefused) {
  EXPECT_THAT(
      error(sweep(), {.overrides = {"activations.tokens=620001"}}),
      AllOf(HasSubstr("620001 are more than all of data has"), HasSubstr("at most 620000")));
  EXPECT_THAT(plan(sweep(), {.overrides = {"activations.tokens=620000"}}).trials, SizeIs(1));
}

TEST_F(SweepPlanTest, SourcesOfALaterVersionSaySo) {
  for (const char* source : {"chess", "maze", "tokens", "text"})
    EXPECT_THAT(error(sweep(), {.overrides = {std::string("data={source: ") + source + "}"}}),
                AllOf(HasSubstr(fmt::format("'{}' is not available in this version", source)),
                      HasSubstr("othello or activations would be right")));
}

TEST_F(SweepPlanTest, ABoardThatTheModelHasNoWordsForIsRefused) {
  EXPECT_THAT(error(sweep(), {.overrides = {"data.board=8"}}),
              AllOf(HasSubstr("data.board: 8 needs a vocabulary of 61 tokens, the model has 33")));
}

TEST_F(SweepPlanTest, DamagedModelsAreRefusedBeforeAnythingStarts) {
  const std::string whole = safetensors_of(tiny_shapes());
  write("model/model.safetensors", whole.substr(0, whole.size() - 100));
  EXPECT_THAT(error(sweep()), HasSubstr("is truncated"));
  write("model/model.safetensors", whole.substr(0, 5));
  EXPECT_THAT(error(sweep()), HasSubstr("is no safetensors file"));
  std::string lying = whole;
  lying[3] = '\x7f';  // a header of gigabytes
  write("model/model.safetensors", lying);
  EXPECT_THAT(error(sweep()), HasSubstr("is no safetensors file"));
  write("model/model.safetensors", safetensors_of(tiny_shapes(), std::nanf("")));
  EXPECT_THAT(error(sweep()), HasSubstr("has a value that is not finite"));
  Shapes wrong = tiny_shapes();
  wrong["wte.weight"] = {34, 8};
  write("model/model.safetensors", safetensors_of(wrong));
  EXPECT_THAT(error(sweep()), HasSubstr("tensor 'wte.weight' has the shape [34, 8]; [33, 8]"));
  wrong = tiny_shapes();
  wrong.erase("h.1.ln_1.bias");
  write("model/model.safetensors", safetensors_of(wrong));
  EXPECT_THAT(error(sweep()), HasSubstr("has no tensor 'h.1.ln_1.bias'"));
  std::filesystem::remove(dir.path() / "model/model.safetensors");
  EXPECT_THAT(error(sweep()),
              AllOf(HasSubstr("has no model.safetensors"), HasSubstr("random_weights: true")));
  EXPECT_THAT(plan(sweep(), {.overrides = {"model.random_weights=true"}}).trials, SizeIs(1));
  write("model/config.json", "{\"n_layer\": 0}");
  EXPECT_THAT(error(sweep()), HasSubstr("'n_layer' is 0; a whole number from 1"));
}

TEST_F(SweepPlanTest, SchedulesThatDoNotFitNameTheValuesThatWould) {
  // 390 steps, the recipe's warm-up has 1000.
  EXPECT_THAT(error(sweep(), {.overrides = {"train.tokens=100k"}}),
              AllOf(HasSubstr("trials[0].warmup_steps: 1000 steps (recipe saebench-v1) does not "
                              "end before decay_start 312"),
                    HasSubstr("at most 311, e.g. 5% (19 steps), would be right")));
  EXPECT_THAT(
      error(sweep("[{arch: topk, d_sae: 8, k: 2, decay_start: 5000}]")),
      AllOf(HasSubstr("decay_start: 5000 steps lies past the end of the run, which has 3906 steps"),
            HasSubstr("80%")));
  EXPECT_THAT(error(sweep("[{arch: p_anneal, d_sae: 8, l1: 1, sparsity_warmup_steps: 5%, "
                          "anneal_start: 3906, anneal_end: 3906}]")),
              HasSubstr("anneal_start: 3906 steps is not before anneal_end 3906"));
  EXPECT_THAT(error(sweep("[{arch: p_anneal, d_sae: 8, l1: 1, sparsity_warmup_steps: 5%, "
                          "anneal_start: 50%, p_start: 0.5, p_end: 0.7}]")),
              HasSubstr("p_end: 0.7 is above p_start 0.5"));
}

TEST_F(SweepPlanTest, JumpReluTakesItsPenaltyFromTheKeysThatAreThere) {
  const auto training = [&](const std::string& keys) {
    return plan(sweep("[{arch: jumprelu, d_sae: 64, sparsity_warmup_steps: 5%, " + keys + "}]"))
        .trials.at(0)
        .spec.training;
  };
  const TrainingSpec to_target = training("l0_target: 20");
  EXPECT_EQ(to_target.sparsity_loss, SparsityLoss::kL0Target);
  EXPECT_EQ(to_target.l0_target, 20);
  EXPECT_EQ(to_target.l0_coefficient, 1);
  EXPECT_EQ(training("l0_target: 20, l0_coefficient: 0.5").l0_coefficient, 0.5);
  const TrainingSpec l0 = training("l0_coefficient: 0.002, bandwidth: 0.01, init_threshold: 0.02");
  EXPECT_EQ(l0.sparsity_loss, SparsityLoss::kL0);
  EXPECT_EQ(l0.l0_target, std::nullopt);
  EXPECT_EQ(l0.bandwidth, 0.01);
  EXPECT_EQ(l0.init_threshold, 0.02);
  const TrainingSpec tanh = training("l0_coefficient: 5, sparsity_loss: tanh");
  EXPECT_EQ(tanh.sparsity_loss, SparsityLoss::kTanh);
  EXPECT_EQ(tanh.bandwidth, 2);
}

TEST_F(SweepPlanTest, PenaltiesOfJumpReluThatDoNotFitNameTheKeyAndTheWayOut) {
  const auto problem = [&](const std::string& keys) {
    return error(sweep("[{arch: jumprelu, d_sae: 64, sparsity_warmup_steps: 5%" + keys + "}]"));
  };
  EXPECT_THAT(problem(""), HasSubstr("trials[0].l0_target: is missing; jumprelu needs l0_target or "
                                     "l0_coefficient, here or in train"));
  EXPECT_THAT(problem(", l0_coefficient: 1, sparsity_loss: l0_target"),
              HasSubstr("l0_target: is missing; sparsity_loss l0_target needs"));
  EXPECT_THAT(problem(", l0_target: 20, sparsity_loss: tanh"),
              AllOf(HasSubstr("trials[0].l0_target: does not go with sparsity_loss tanh"),
                    HasSubstr("l0_coefficient in its place")));
  EXPECT_THAT(problem(", l0_target: 0"), HasSubstr("more than 0"));
  EXPECT_THAT(problem(", l0_target: 20, sparsity_loss: l0_traget"),
              HasSubstr("did you mean 'l0_target'?"));
  EXPECT_THAT(problem(", l0_target: 20, l1: 0.1"),
              HasSubstr("l1: does not apply to jumprelu; leaving it out would be right, its "
                        "sparsity key is l0_target or l0_coefficient"));
  EXPECT_THAT(problem(", l0_target: 20, bandwidth: 0"), HasSubstr("bandwidth: 0 is out of range"));
}

TEST_F(SweepPlanTest, GroupsAreSharesOfTheWidth) {
  const auto family = [](const std::string& keys) {
    return sweep("[{arch: matryoshka, d_sae: 64, k: 4" + keys + "}]");
  };
  EXPECT_THAT(plan(family("")).trials.at(0).spec.training.group_sizes(),
              testing::ElementsAre(2, 4, 8, 16, 34));
  EXPECT_THAT(
      plan(family(", group_fractions: [1/4, 0.25, 1/2]")).trials.at(0).spec.training.group_sizes(),
      testing::ElementsAre(16, 16, 32));
  EXPECT_THAT(plan(family(", group_fractions: [[1/4, 3/4], [1]], select_scope: step")).trials,
              SizeIs(2));
  EXPECT_THAT(error(family(", group_fractions: [0.5, 0.25]")),
              HasSubstr("trials[0].group_fractions: sums to 0.75; shares that sum to 1"));
  EXPECT_THAT(error(family(", group_fractions: [0.5, -0.5, 1]")),
              HasSubstr("a list of shares of d_sae above 0"));
  EXPECT_THAT(error(family(", group_fractions: [1/0, 1]")), HasSubstr("a list of shares of d_sae"));
  EXPECT_THAT(error(family(", group_fractions: 0.5")), HasSubstr("a list of shares of d_sae"));
  EXPECT_THAT(
      error(family(", group_fractions: [0.01, 0.99]")),
      AllOf(HasSubstr("group 1 of 2 has no latent of d_sae 64"), HasSubstr("d_sae 100 and more")));
  EXPECT_THAT(error(family(", select_scope: microbatch")),
              HasSubstr("trials[0].select_scope: 'microbatch' is not one of its values"));
  EXPECT_THAT(error(sweep("[{arch: topk, d_sae: 64, k: 4, select_scope: step}]")),
              HasSubstr("select_scope: does not apply to topk"));
}

// ---- other people's activations -----------------------------------------------------------------

class ActivationSourceTest : public SweepTest {
 protected:
  ActivationSourceTest() { write("acts.safetensors", safetensors_of({{"x", {5000, 8}}})); }
  static std::string sweep(std::string_view more = "") {
    return fmt::format(
        "data: {{source: activations, path: acts.safetensors, tensor: x}}\n"
        "activations: {{tokens: 3k}}\ntrain: {{tokens: 512k, batch: 256}}\n"
        "trials: [{{arch: topk, d_sae: 16, k: 2}}]\n{}",
        more);
  }
};

TEST_F(ActivationSourceTest, NeedsNoModelAndNoHook) {
  const SweepPlan result =
      plan(sweep("evaluate: [core: {tokens: 1k}]\nbaselines: [identity, pca, random_sae]"));
  ASSERT_THAT(result.trials, SizeIs(1));
  EXPECT_FALSE(result.trials[0].spec.stream.model);
  EXPECT_EQ(result.trials[0].spec.stream.hook, "");
  EXPECT_EQ(result.streams[0].d_in, 8u);
  EXPECT_EQ(result.streams[0].documents, 5u);
  EXPECT_THAT(result.baselines, SizeIs(3));
  EXPECT_EQ(result.baselines[2].spec.folder(), "random_sae-16");
}

TEST_F(ActivationSourceTest, WhatNeedsAModelIsAnErrorThatSaysSo) {
  EXPECT_THAT(error(sweep("evaluate: [board: {games: 100}]")),
              HasSubstr("evaluate[0]: needs a board game and its model"));
  EXPECT_THAT(error(sweep("baselines: [neurons]")), HasSubstr("'neurons' needs a board game"));
  EXPECT_THAT(error(sweep("baselines: [random_model]")), HasSubstr("'random_model' needs a model"));
  EXPECT_THAT(error(sweep("model: {path: model}")),
              HasSubstr("model: stands beside 'source: activations'"));
}

TEST_F(ActivationSourceTest, FilesThatAreWrongAreNamed) {
  EXPECT_THAT(error(sweep(), {.overrides = {"data.tensor=y"}}),
              HasSubstr("has no tensor 'y'; it has x"));
  EXPECT_THAT(error(sweep(), {.overrides = {"data.path=no.safetensors"}}),
              HasSubstr("there is no file or folder"));
  write("acts.safetensors", "hello");
  EXPECT_THAT(error(sweep()), HasSubstr("is no safetensors file"));
}

TEST_F(ActivationSourceTest, TheIdentityFollowsTheFilesContent) {
  const Sha256 before = plan(sweep()).trials[0].identity;
  std::filesystem::create_directory(dir.path() / "shards");
  write("shards/a.safetensors", safetensors_of({{"x", {5000, 8}}}));
  EXPECT_EQ(plan(sweep(), {.overrides = {"data.path=shards"}}).trials[0].identity, before);
  write("acts.safetensors", safetensors_of({{"x", {5000, 8}}}, 0.25F));
  EXPECT_NE(plan(sweep()).trials[0].identity, before);
}

// ---- init ---------------------------------------------------------------------------------------

TEST_F(SweepPlanTest, InitNamesAFileOfTheTrialsShape) {
  write("sae.safetensors", safetensors_of({{"W_enc", {64, 8}}, {"W_dec", {64, 8}}}));
  const SweepPlan result = plan(sweep("[{arch: topk, d_sae: 64, k: 4, init: sae.safetensors}]"));
  ASSERT_THAT(result.trials, SizeIs(1));
  EXPECT_EQ(result.trials[0].spec.training.init_path, (dir.path() / "sae.safetensors").string());
  EXPECT_THAT(result.trials[0].spec.training.init_digest, SizeIs(64));
  EXPECT_NE(result.trials[0].identity, plan(sweep()).trials[0].identity);
  EXPECT_THAT(error(sweep("[{arch: topk, d_sae: 32, k: 4, init: sae.safetensors}]")),
              HasSubstr("is an SAE of d_sae 64 and d_in 8, the trial has 32 and 8"));
}

}  // namespace
}  // namespace saesweep::sweeps
