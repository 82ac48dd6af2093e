// Two hundred clusters that have a bad quarter of an hour, each twice.
#include <gtest/gtest.h>

#include "tests/sim/cluster.h"
#include "tests/support/sanitizers.h"

namespace saesweep::sim {
namespace {

constexpr int kPrograms = 8;
constexpr std::uint64_t kSeedsOfEach = test::kSanitized ? 2 : 25;

class Clusters : public testing::TestWithParam<int> {};

TEST_P(Clusters, KeepEveryPromiseAndFinishAndDoTheSameTwice) {
  for (std::uint64_t i = 0; i < kSeedsOfEach; ++i) {
    const std::uint64_t seed = static_cast<std::uint64_t>(GetParam()) * kSeedsOfEach + i;
    const Outcome once = simulate(seed);
    ASSERT_EQ(once.violation, "") << "saesweep-sim --seeds 1 --first-seed " << seed;
    EXPECT_GT(once.events, 0u);
    EXPECT_TRUE(simulate(seed) == once) << "seed " << seed << " is not the same twice";
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, Clusters, testing::Range(0, kPrograms));

}  // namespace
}  // namespace saesweep::sim
