// Keys of end_to_end trials, and the schedule that is theirs unless another one is named.
#include <gmock/gmock.h>

#include "sweeps/estimates.h"
#include "sweeps/recipes.h"
#include "tests/sweeps/sweep_words.h"

namespace saesweep::sweeps {
namespace {

using testing::AllOf;
using testing::HasSubstr;

class EndToEndPlan : public SweepTest {
 protected:
  static std::string with(std::string_view keys) {
    return sweep(fmt::format("[{{arch: end_to_end, d_sae: 64, l1: 1{}}}]", keys));
  }
  TrainingSpec training(std::string_view keys) {
    const SweepPlan result = plan(with(keys));
    return result.trials.empty() ? TrainingSpec{} : result.trials[0].spec.training;
  }
};

TEST_F(EndToEndPlan, TheRateFallsAlongACosineFromTheEndOfTheWarmup) {
  const TrainingSpec usual = training("");
  EXPECT_EQ(usual.lr_schedule, LrSchedule::kCosine);
  EXPECT_EQ(usual.warmup_steps, 195u);  // 5% of 3906
  EXPECT_EQ(usual.decay_start, 195u);
  EXPECT_EQ(training(", warmup_steps: 10%").decay_start, 390u);
  EXPECT_EQ(training(", decay_start: 50%").decay_start, 1953u);
  EXPECT_EQ(training(", warmup_steps: 0").decay_start, 0u);
  const TrainingSpec line = training(", lr_schedule: linear");
  EXPECT_EQ(line.lr_schedule, LrSchedule::kLinear);
  EXPECT_EQ(line.decay_start, 3124u);
}

TEST_F(EndToEndPlan, OthersMayHaveACosineToo) {
  const auto of = [&](std::string_view keys) {
    return plan(sweep(fmt::format("[{{arch: topk, d_sae: 64, k: 4{}}}]", keys))).trials.at(0);
  };
  const auto usual = of(""), line = of(", lr_schedule: linear"),
             cosine = of(", lr_schedule: cosine");
  EXPECT_EQ(usual.identity, line.identity);
  EXPECT_NE(usual.identity, cosine.identity);
  EXPECT_EQ(cosine.spec.training.decay_start, 1000u);
  EXPECT_FALSE(usual.spec.training.to_json().contains("lr_schedule"));
  EXPECT_EQ(TrialSpec::from_json(cosine.spec.to_json()).value(), cosine.spec);
}

TEST_F(EndToEndPlan, ACosineThatDoesNotFitIsRefused) {
  EXPECT_THAT(error(with(", warmup_steps: 4000")),
              HasSubstr("warmup_steps: 4000 steps lies past the end of the run, which has 3906"));
  EXPECT_THAT(error(with(", sparsity_warmup_steps: 4000")),
              HasSubstr("sparsity_warmup_steps: 4000"));
  EXPECT_THAT(error(with(", warmup_steps: 500, decay_start: 400")),
              HasSubstr("warmup_steps: 500 steps does not end by decay_start 400 steps"));
  EXPECT_THAT(error(with(", lr_schedule: step")), HasSubstr("lr_schedule"));
}

TEST_F(EndToEndPlan, DownstreamAndLocalErrorsAreOffUnlessNamed) {
  EXPECT_EQ(training("").in_to_orig, 0);
  EXPECT_EQ(training("").out_to_in, 0);
  const auto trial = plan(with(", in_to_orig: 2.5, out_to_in: 0.1")).trials.at(0);
  EXPECT_EQ(trial.spec.training.in_to_orig, 2.5);
  EXPECT_EQ(trial.spec.training.out_to_in, 0.1);
  EXPECT_EQ(TrialSpec::from_json(trial.spec.to_json()).value(), trial.spec);
  EXPECT_NE(trial.identity, plan(with("")).trials.at(0).identity);
  EXPECT_THAT(error(sweep("[{arch: topk, d_sae: 64, k: 4, in_to_orig: 1}]")),
              HasSubstr("in_to_orig: does not apply to topk"));
  // The model of these tests has three blocks.
  EXPECT_THAT(error(with(", in_to_orig: [0, 1], hook: blocks.2.hook_resid_post")),
              AllOf(HasSubstr("trials[0].in_to_orig: is 1, and no block lies behind"),
                    HasSubstr("an earlier hook")));
  EXPECT_EQ(plan(with(", in_to_orig: 1, hook: blocks.2.hook_mlp_out")).trials.size(), 1u);
}

TEST_F(EndToEndPlan, IsLookedAtLikeAllOthers) { EXPECT_EQ(training("").eval_every, 131'072u); }

// Of GPT-2's vocabulary the logits weigh most.
TEST_F(EndToEndPlan, MemoryFollowsFromTheShapeOfTheModel) {
  ModelShape model;
  model.layers = 12;
  model.d_model = 768;
  model.d_mlp = 3072;
  model.heads = 12;
  model.context = 128;
  model.vocabulary = 50'257;
  const SpliceShape one{.hook = "blocks.8.hook_resid_pre", .batch = 2048, .rows_per_document = 128};
  const std::uint64_t bytes = estimated_splice_memory(model, one, 2);
  const std::uint64_t logits = std::uint64_t{2048} * 50'257 * 4;
  EXPECT_GT(bytes, 7 * logits) << "kept of two pieces, and on the way of each";
  EXPECT_LT(bytes, 20 * logits);
  const auto of = [&](const SpliceShape& shape, unsigned threads = 2) {
    return estimated_splice_memory(model, shape, threads);
  };
  auto other = one;
  other.batch = 8192;
  EXPECT_GT(of(other), bytes + 3 * logits);
  other = one;
  other.downstream = true;
  EXPECT_GT(of(other), bytes);
  other = one;
  other.hook = "blocks.2.hook_resid_pre";
  EXPECT_GT(of(other), bytes);
  EXPECT_LT(of(one, 1), bytes);
  EXPECT_EQ(of(one, 64), bytes) << "there are two pieces";
}

TEST_F(EndToEndPlan, TheEstimateOfASweepHoldsItOnceForAStream) {
  const auto memory = [&](std::string_view keys) {
    return estimate(plan(with(keys))).memory_bytes;
  };
  const std::uint64_t one = memory(""), of_two = memory(", seed: [0, 1]");
  const std::uint64_t training_bytes = estimated_training_memory(training(""), 8);
  EXPECT_EQ(of_two - one, training_bytes);
  EXPECT_GT(memory(", batch: 65536"), one);
}

}  // namespace
}  // namespace saesweep::sweeps
