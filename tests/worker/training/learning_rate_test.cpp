// The learning rate of each step.
#include "worker/training/learning_rate.h"

#include <gtest/gtest.h>

namespace saesweep::worker {
namespace {

sweeps::TrainingSpec spec_of(sweeps::LrSchedule schedule, std::uint64_t decay_start) {
  sweeps::TrainingSpec spec;
  spec.lr = 2;
  spec.batch = 1;
  spec.tokens = 100;
  spec.warmup_steps = 10;
  spec.decay_start = decay_start;
  spec.lr_schedule = schedule;
  return spec;
}

TEST(LearningRate, RisesInALineFromZero) {
  for (const auto schedule : {sweeps::LrSchedule::kLinear, sweeps::LrSchedule::kCosine}) {
    const auto spec = spec_of(schedule, 60);
    EXPECT_EQ(learning_rate(spec, 0), 0);
    EXPECT_DOUBLE_EQ(learning_rate(spec, 5), 1);
    EXPECT_EQ(learning_rate(spec, 10), 2);
    EXPECT_EQ(learning_rate(spec, 59), 2);
  }
}

TEST(LearningRate, FallsInALineToZero) {
  const auto spec = spec_of(sweeps::LrSchedule::kLinear, 60);
  EXPECT_EQ(learning_rate(spec, 60), 2);
  EXPECT_DOUBLE_EQ(learning_rate(spec, 80), 1);
  EXPECT_DOUBLE_EQ(learning_rate(spec, 99), 2.0 / 40);
}

// Values of transformers' get_cosine_schedule_with_warmup with a floor of a tenth, as e2e_sae has
// it: 0.1 + 0.9 (1 + cos(pi (step - 10) / 90)) / 2.
TEST(LearningRate, FallsAlongACosineToATenth) {
  const auto spec = spec_of(sweeps::LrSchedule::kCosine, 10);
  EXPECT_EQ(learning_rate(spec, 10), 2);
  EXPECT_NEAR(learning_rate(spec, 40), 2 * (0.1 + 0.9 * 0.75), 1e-12);
  EXPECT_NEAR(learning_rate(spec, 55), 2 * (0.1 + 0.9 * 0.5), 1e-12);
  EXPECT_NEAR(learning_rate(spec, 70), 2 * (0.1 + 0.9 * 0.25), 1e-12);
  EXPECT_GT(learning_rate(spec, 99), 0.2);
  EXPECT_LT(learning_rate(spec, 99), 0.2006);
}

TEST(LearningRate, WithoutADecayStaysWhereItIs) {
  for (const auto schedule : {sweeps::LrSchedule::kLinear, sweeps::LrSchedule::kCosine})
    EXPECT_EQ(learning_rate(spec_of(schedule, 100), 99), 2);
}

}  // namespace
}  // namespace saesweep::worker
