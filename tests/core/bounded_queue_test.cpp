// The queue between two threads: its order, its size, its end.
#include "core/bounded_queue.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <thread>
#include <vector>

#include "core/thread.h"

namespace saesweep {
namespace {

using std::chrono::milliseconds;

TEST(BoundedQueueTest, GivesItemsInTheOrderTheyCame) {
  BoundedQueue<int> queue(3);
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(queue.push(i));
  for (int i = 0; i < 3; ++i) EXPECT_EQ(queue.pop(), i);
}

TEST(BoundedQueueTest, RefusesToGrowPastItsSize) {
  BoundedQueue<int> queue(2);
  EXPECT_TRUE(queue.try_push(1));
  EXPECT_TRUE(queue.try_push(2));
  EXPECT_FALSE(queue.try_push(3));
  EXPECT_EQ(queue.pop(), 1);
  EXPECT_TRUE(queue.try_push(3));
}

TEST(BoundedQueueTest, AClosedQueueGivesWhatItHeldAndThenNothing) {
  BoundedQueue<int> queue(2);
  ASSERT_TRUE(queue.push(1));
  queue.close();
  EXPECT_FALSE(queue.push(2));
  EXPECT_FALSE(queue.try_push(2));
  EXPECT_EQ(queue.pop(), 1);
  EXPECT_EQ(queue.pop(), std::nullopt);
  EXPECT_EQ(queue.pop_for(milliseconds(0)), std::nullopt);
}

TEST(BoundedQueueTest, PatienceEndsWithNothing) {
  BoundedQueue<int> queue(1);
  EXPECT_EQ(queue.pop_for(milliseconds(1)), std::nullopt);
  ASSERT_TRUE(queue.push(1));
  EXPECT_EQ(queue.pop_for(milliseconds(0)), 1);
}

TEST(BoundedQueueTest, CarriesWhatCanOnlyBeMoved) {
  BoundedQueue<std::unique_ptr<int>> queue(1);
  ASSERT_TRUE(queue.push(std::make_unique<int>(5)));
  EXPECT_EQ(**queue.pop(), 5);
}

TEST(BoundedQueueTest, ClosingFreesAReaderThatWaits) {
  BoundedQueue<int> queue(1);
  std::optional<int> got = 1;
  {
    const std::jthread reader([&] { got = queue.pop(); });
    queue.close();
  }
  EXPECT_EQ(got, std::nullopt);
}

TEST(BoundedQueueTest, ClosingFreesAWriterThatWaits) {
  BoundedQueue<int> queue(1);
  ASSERT_TRUE(queue.push(1));
  bool pushed = true;
  {
    const std::jthread writer([&] { pushed = queue.push(2); });
    queue.close();
  }
  EXPECT_FALSE(pushed);
  EXPECT_EQ(queue.pop(), 1);
  EXPECT_EQ(queue.pop(), std::nullopt);
}

TEST(BoundedQueueTest, AReaderMakesRoomForAWriterThatWaits) {
  BoundedQueue<int> queue(1);
  constexpr int kItems = 10000;
  std::vector<int> got;
  const std::jthread writer([&] {
    for (int i = 0; i < kItems; ++i) queue.push(i);
    queue.close();
  });
  while (const auto item = queue.pop()) got.push_back(*item);
  std::vector<int> expected(kItems);
  std::iota(expected.begin(), expected.end(), 0);
  EXPECT_EQ(got, expected);
}

TEST(BoundedQueueTest, ManyWritersAndReadersLoseAndRepeatNothing) {
  BoundedQueue<int> queue(4);
  constexpr int kEach = 2000;
  std::atomic<long> sum = 0;
  std::atomic<int> count = 0;
  {
    std::vector<std::jthread> readers;
    for (int i = 0; i < 3; ++i)
      readers.emplace_back([&] {
        while (const auto item = queue.pop()) {
          sum += *item;
          ++count;
        }
      });
    {
      std::vector<std::jthread> writers;
      for (int writer = 0; writer < 3; ++writer)
        writers.emplace_back([&] {
          for (int i = 1; i <= kEach; ++i) queue.push(i);
        });
    }
    queue.close();
  }
  EXPECT_EQ(count, 3 * kEach);
  EXPECT_EQ(sum, 3L * kEach * (kEach + 1) / 2);
}

TEST(ThreadTest, AThreadIsNamedAndStopsByToken) {
  char name[16] = {};
  BoundedQueue<int> named(1);
  {
    const std::jthread thread = run_thread("chunk-reader-number-7", [&](std::stop_token stop) {
      pthread_getname_np(pthread_self(), name, sizeof(name));
      named.push(1);
      while (!stop.stop_requested()) std::this_thread::yield();
    });
    ASSERT_TRUE(named.pop());
  }
  EXPECT_STREQ(name, "chunk-reader-nu");  // the kernel keeps 15 characters
}

TEST(ThreadDeathTest, AnEscapeEndsTheProgramAndSaysWhichThread) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(run_thread("feed", [](std::stop_token) { throw std::runtime_error("spilt"); }),
               "thread.escaped name=feed error=spilt");
}

}  // namespace
}  // namespace saesweep
