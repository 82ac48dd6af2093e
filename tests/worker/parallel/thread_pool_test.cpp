#include "worker/parallel/thread_pool.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

namespace saesweep::worker {
namespace {

class ThreadPoolOf : public testing::TestWithParam<unsigned> {};
INSTANTIATE_TEST_SUITE_P(Threads, ThreadPoolOf, testing::Values(1, 2, 3, 4));

TEST_P(ThreadPoolOf, RunsEachPieceOnce) {
  ThreadPool pool(GetParam());
  EXPECT_EQ(pool.threads(), GetParam());
  for (const std::int64_t count : {0, 1, 2, 3, 7, 100, 1000}) {
    std::vector<std::atomic<int>> runs(static_cast<std::size_t>(count));
    pool.run(count, [&](std::int64_t i) { ++runs.at(static_cast<std::size_t>(i)); });
    for (const auto& times : runs) EXPECT_EQ(times.load(), 1);
  }
}

TEST_P(ThreadPoolOf, IsDoneWhenRunReturnsHoweverOftenItIsCalled) {
  ThreadPool pool(GetParam());
  std::vector<std::int64_t> sums(8, 0);
  for (int round = 0; round < 2000; ++round)
    pool.run(8, [&](std::int64_t i) { sums[static_cast<std::size_t>(i)] += i; });
  for (std::int64_t i = 0; i < 8; ++i) EXPECT_EQ(sums[static_cast<std::size_t>(i)], 2000 * i);
}

TEST_P(ThreadPoolOf, RethrowsAnExceptionAndGoesOnWorking) {
  ThreadPool pool(GetParam());
  for (int round = 0; round < 20; ++round) {
    try {
      pool.run(50, [&](std::int64_t i) {
        if (i == round) throw std::runtime_error("piece " + std::to_string(i));
      });
      FAIL() << "the exception is lost";
    } catch (const std::runtime_error& error) {
      EXPECT_EQ(error.what(), "piece " + std::to_string(round));
    }
    std::atomic<int> runs = 0;
    pool.run(50, [&](std::int64_t) { ++runs; });
    EXPECT_EQ(runs.load(), 50);
  }
}

TEST_P(ThreadPoolOf, AnExceptionLeavesTheRestUndone) {
  ThreadPool pool(GetParam());
  std::atomic<int> begun = 0;
  EXPECT_THROW(pool.run(1'000'000,
                        [&](std::int64_t) {
                          ++begun;
                          throw std::runtime_error("at once");
                        }),
               std::runtime_error);
  EXPECT_LE(begun.load(), static_cast<int>(GetParam()));
}

TEST_P(ThreadPoolOf, ANestedCallRunsOnTheThreadOfItsPiece) {
  ThreadPool pool(GetParam());
  std::vector<std::vector<std::thread::id>> inner(20);
  std::vector<std::thread::id> outer(20);
  pool.run(20, [&](std::int64_t i) {
    const auto at = static_cast<std::size_t>(i);
    outer[at] = std::this_thread::get_id();
    pool.run(5, [&](std::int64_t) { inner[at].push_back(std::this_thread::get_id()); });
  });
  for (std::size_t i = 0; i < 20; ++i)
    EXPECT_EQ(inner[i], std::vector<std::thread::id>(5, outer[i]));
}

TEST_P(ThreadPoolOf, ANestedExceptionReachesTheOuterCall) {
  ThreadPool pool(GetParam());
  EXPECT_THROW(pool.run(4,
                        [&](std::int64_t) {
                          pool.run(4, [](std::int64_t i) {
                            if (i == 2) throw std::logic_error("inner");
                          });
                        }),
               std::logic_error);
  // Not inside a piece any more: all threads may take part again.
  std::atomic<int> runs = 0;
  pool.run(64, [&](std::int64_t) { ++runs; });
  EXPECT_EQ(runs.load(), 64);
}

TEST_P(ThreadPoolOf, PiecesRunWithoutGradientsAndWithoutLibTorchsOwnThreads) {
  ThreadPool pool(GetParam());
  std::atomic<int> wrong = 0;
  const auto look = [&](std::int64_t) {
    if (at::GradMode::is_enabled() || at::get_num_threads() != 1) ++wrong;
  };
  for (const std::int64_t count : {1, 100}) pool.run(count, look);
  EXPECT_EQ(wrong.load(), 0);
  EXPECT_TRUE(at::GradMode::is_enabled()) << "only inside";
}

// While another thread has the pool at work, as a reader ahead of the trainer does.
TEST(ThreadPool, AloneRunsEverythingOnItsOwnThreadBesideThePool) {
  ThreadPool pool(2);
  std::atomic<int> wrong = 0, pieces = 0;
  std::atomic<bool> beside = false;
  std::jthread other([&] {
    ThreadPool::alone([&] {
      const std::thread::id self = std::this_thread::get_id();
      pool.run(100, [&](std::int64_t) {
        if (std::this_thread::get_id() != self || at::get_num_threads() != 1 ||
            at::GradMode::is_enabled())
          ++wrong;
        ++pieces;
      });
    });
    beside = true;
  });
  // Until it is done, the pool's own call goes on: neither waits for the other.
  pool.run(2, [&](std::int64_t) {
    while (!beside.load()) std::this_thread::yield();
  });
  EXPECT_EQ(wrong.load(), 0);
  EXPECT_EQ(pieces.load(), 100);
}

TEST(ThreadPool, UsesItsThreads) {
  ThreadPool pool(3);
  std::atomic<int> inside = 0;
  std::vector<std::thread::id> ids(3);
  // Each piece waits for the others: this ends only if three threads are at work.
  pool.run(3, [&](std::int64_t i) {
    ids[static_cast<std::size_t>(i)] = std::this_thread::get_id();
    ++inside;
    while (inside.load() < 3) std::this_thread::yield();
  });
  EXPECT_EQ(std::set<std::thread::id>(ids.begin(), ids.end()).size(), 3u);
}

}  // namespace
}  // namespace saesweep::worker
