// Threads for tensor work whose bytes must not depend on how many there are: callers cut the work
// into fixed pieces, each piece runs on one thread with LibTorch's own threading off.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

namespace saesweep::worker {

class ThreadPool {
 public:
  // `threads` >= 1; the calling thread is one of them.
  explicit ThreadPool(unsigned threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  unsigned threads() const;
  // Calls piece(i) for every i in [0, count) and returns when all are done. Pieces are taken in
  // order but run at the same time; they must not touch the same bytes. Not reentrant: a piece runs
  // a nested call on its own thread alone. Gradients are off inside. An exception of a piece is
  // rethrown here after all threads have stopped.
  void run(std::int64_t count, const std::function<void(std::int64_t)>& piece);
  // Any thread: what body() gives to a pool runs on this thread alone, like a nested call.
  static void alone(const std::function<void()>& body);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace saesweep::worker
