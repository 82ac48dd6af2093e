// What the emulation of a block must not hide.
#include "tests/worker/device/block_threads.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

namespace saesweep::worker::device::emulation {
namespace {

constexpr int kThreads = 256;
constexpr Order kOrders[] = {Order::kForwards, Order::kBackwards, Order::kShuffled};

struct Block {
  BlockThreads& others;
  int thread;

  template <class Phase>
  void each(const Phase& phase) {
    static char place;
    phase(thread);
    others.meet(&place);
  }
};

class BlockThreadsTest : public testing::Test {
 protected:
  template <class Body>
  std::string run(Order order, const Body& body) {
    return threads_.launch(1, kThreads, order, [&](std::int64_t, int thread) {
      Block block{threads_, thread};
      body(block, thread);
    });
  }
  std::vector<int> results_ = std::vector<int>(kThreads);
  BlockThreads threads_;
};

TEST_F(BlockThreadsTest, AllComeToAMeetingBeforeOneGoesOn) {
  for (const Order order : kOrders)
    for (int block = 0; block < 3; ++block) {
      std::vector<int> values(kThreads, -1);
      EXPECT_EQ(run(order,
                    [&](Block& each, int) {
                      for (int round = 0; round < 4; ++round) {
                        each.each([&](int i) { values[i] = round * i; });
                        each.each([&](int i) { results_[i] = values[(i + 37) % kThreads]; });
                      }
                    }),
                "");
      for (int i = 0; i < kThreads; ++i) EXPECT_EQ(results_[i], 3 * ((i + 37) % kThreads));
    }
}

TEST_F(BlockThreadsTest, LocalsAreOfOneThread) {
  for (const Order order : kOrders) {
    EXPECT_EQ(run(order,
                  [&](Block& block, int) {
                    int found = 0;
                    block.each([&](int i) {
                      if (i == 0) found = 5;
                    });
                    block.each([&](int i) { results_[i] = found; });
                  }),
              "");
    EXPECT_EQ(results_[0], 5);
    EXPECT_EQ(std::count(results_.begin(), results_.end(), 0), kThreads - 1);
  }
}

TEST_F(BlockThreadsTest, ThreadsThatEndBeforeAMeetingAreSaid) {
  for (const Order order : kOrders) {
    EXPECT_EQ(run(order,
                  [](Block& block, int thread) {
                    if (thread >= 30) block.each([](int) {});
                  }),
              "30 threads of a block have ended, 226 wait for them");
    // And harm no later block.
    EXPECT_EQ(run(order, [&](Block& block, int) { block.each([&](int i) { results_[i] = i; }); }),
              "");
    EXPECT_EQ(results_[99], 99);
  }
}

TEST_F(BlockThreadsTest, ThreadsThatMeetAtDifferentPlacesAreSaid) {
  for (const Order order : kOrders)
    EXPECT_EQ(run(order,
                  [](Block& block, int thread) {
                    if (thread == 50)
                      block.each([](int) {});
                    else
                      block.each([](int) {});
                  }),
              "threads of a block meet at different places");
}

TEST_F(BlockThreadsTest, AnOrderHasEachPlaceOnce) {
  for (const Order order : kOrders)
    for (const std::int64_t count : {1, 2, 3, 6, 32, 100, 256}) {
      const Places places(order, count);
      std::vector<std::int64_t> all;
      for (std::int64_t i = 0; i < count; ++i) all.push_back(places[i]);
      EXPECT_EQ(all.front(), order == Order::kBackwards ? count - 1 : 0);
      std::ranges::sort(all);
      for (std::int64_t i = 0; i < count; ++i) EXPECT_EQ(all[static_cast<std::size_t>(i)], i);
    }
}

#if defined(SAE_THREAD_SANITIZER)

// Threads that do not meet, of which one reads what another writes.
TEST_F(BlockThreadsTest, ARaceWithinAPhaseIsReported) {
  testing::GTEST_FLAG(death_test_style) = "threadsafe";
  EXPECT_DEATH(run(Order::kForwards,
                   [&](Block& block, int) {
                     block.each([&](int i) { results_[i] = i; });
                     block.each([&](int i) {
                       if (i > 0) results_[i] = results_[i - 1];
                     });
                   }),
               "data race");
}

TEST_F(BlockThreadsTest, ARaceBetweenBlocksIsReported) {
  testing::GTEST_FLAG(death_test_style) = "threadsafe";
  const auto launch = [&](std::int64_t blocks) {
    return threads_.launch(blocks, kThreads, Order::kForwards, [&](std::int64_t block, int thread) {
      if (thread == 7) ++results_[3];
    });
  };
  EXPECT_DEATH(launch(2), "data race");
  // Two launches are one after the other.
  EXPECT_EQ(launch(1), "");
  EXPECT_EQ(launch(1), "");
  EXPECT_EQ(results_[3], 2);
}

#endif

}  // namespace
}  // namespace saesweep::worker::device::emulation
