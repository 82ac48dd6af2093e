// `train_lm`: what is read, what is refused.
#include <gmock/gmock.h>

#include "tests/sweeps/sweep_words.h"

namespace saesweep::sweeps {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

class TrainLmSectionTest : public SweepTest {};

TEST_F(TrainLmSectionTest, IsReadWithItsDefaults) {
  const SweepPlan result = plan(
      "data: {source: othello, board: 6, games: 1k}\ntrain_lm: {games: 64k, lr: 0.002}\n"
      "activations: {holdout: 10%}");
  ASSERT_TRUE(result.train_lm);
  EXPECT_EQ(result.train_lm->layers, 4);
  EXPECT_EQ(result.train_lm->context, 31);
  EXPECT_EQ(result.train_lm->d_mlp, 512);
  EXPECT_EQ(result.train_lm->steps(), 1000u);
  EXPECT_EQ(result.train_lm->warmup_steps, 50u);
  EXPECT_EQ(result.train_lm->holdout, 0.1);
  EXPECT_EQ(result.train_lm->optimizer, "adamw");
  EXPECT_THAT(result.trials, IsEmpty());
  EXPECT_THAT(result.baselines, IsEmpty());
  const auto again = plan_sweep_text(result.effective_yaml, "x.yaml", "/", {});
  ASSERT_TRUE(again);
  EXPECT_EQ(again->train_lm->identity(), result.train_lm->identity());
}

TEST_F(TrainLmSectionTest, WhatCannotBeTrainedIsRefused) {
  const auto with = [](const std::string& keys) {
    return "data: {source: othello, board: 6, games: 1k}\ntrain_lm: {" + keys + "}";
  };
  EXPECT_THAT(error(with("lr: 1")), HasSubstr("train_lm.games: is missing"));
  EXPECT_THAT(error(with("games: 1k, optimizer: sgd")), HasSubstr("one of adamw, muon"));
  EXPECT_THAT(error(with("games: 1k, precision: fp8")), HasSubstr("one of fp32, bf16"));
  EXPECT_THAT(error(with("games: 1k, heads: 3")),
              HasSubstr("train_lm.heads: 3 heads do not divide d_model 128"));
  EXPECT_THAT(error(with("games: 10")), HasSubstr("10 games are less than one batch of 64"));
  EXPECT_THAT(error(with("games: 640, warmup_steps: 10")), HasSubstr("at most 9, e.g. 5%"));
  EXPECT_THAT(error(with("games: 1k, lr: 0")),
              HasSubstr("train_lm.lr: 0 is too small; more than 0"));
  EXPECT_THAT(error(with("games: 1k, learning_rate: 0")), HasSubstr("unknown key 'learning_rate'"));
}

}  // namespace
}  // namespace saesweep::sweeps
