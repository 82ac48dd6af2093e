// `train.device`: what it means, and which architectures it is for.
#include <gmock/gmock.h>

#include "sweeps/sweep_plan.h"
#include "tests/sweeps/sweep_words.h"

namespace saesweep::sweeps {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

class DeviceTest : public SweepTest {};

TEST_F(DeviceTest, AutoMeansThisMachinesDevice) {
  EXPECT_EQ(plan(sweep(), {.auto_device = "cuda"}).trials[0].spec.training.device, "cuda");
  EXPECT_EQ(
      plan(sweep("[{arch: topk, d_sae: 8, k: 1}]", "", ", device: cpu"), {.auto_device = "cuda"})
          .trials[0]
          .spec.training.device,
      "cpu");
}

// What a GPU cannot train is said where it stands; `auto` means what all trials can use.
TEST_F(DeviceTest, AGpuIsForTheArchitecturesThatItTrains) {
  constexpr const char* kBoth =
      "[{arch: topk, d_sae: 8, k: 1}, {arch: end_to_end, d_sae: 8, l1: 0.1, sparsity_warmup_steps: "
      "5%}]";
  EXPECT_THAT(
      errors(sweep(kBoth, "", ", device: cuda")),
      ElementsAre(HasSubstr(
          "trials[1].arch: is end_to_end, which is not trained on a GPU; train.device: cpu")));
  const SweepPlan automatic = plan(sweep(kBoth), {.auto_device = "cuda"});
  for (const auto& trial : automatic.trials) EXPECT_EQ(trial.spec.training.device, "cpu");
  EXPECT_TRUE(automatic.device_is_auto);
  EXPECT_THAT(automatic.warnings, Contains(HasSubstr("trials[1] is end_to_end")));
  EXPECT_THAT(plan(sweep(kBoth)).warnings, Not(Contains(HasSubstr("end_to_end"))));
  const SweepPlan none = plan(sweep("[{arch: topk, d_sae: 8, k: 1}]", "", ", device: cpu"));
  EXPECT_FALSE(none.device_is_auto);
}

}  // namespace
}  // namespace saesweep::sweeps
