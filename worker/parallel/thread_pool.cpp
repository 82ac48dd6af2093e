#include "worker/parallel/thread_pool.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "core/check.h"
#include "core/thread.h"

namespace saesweep::worker {
namespace {

thread_local bool t_inside_piece = false;

}  // namespace

struct ThreadPool::State {
  std::mutex mutex;
  std::condition_variable wake;
  std::condition_variable idle;
  // Under mutex:
  const std::function<void(std::int64_t)>* piece = nullptr;
  std::int64_t count = 0;
  std::uint64_t generation = 0;
  unsigned working = 0;
  bool closing = false;
  std::exception_ptr escaped;
  // Taken by all threads of a generation.
  std::atomic<std::int64_t> next{0};
  std::vector<std::jthread> threads;  // last: joins before the rest goes

  void take_pieces(const std::function<void(std::int64_t)>& body, std::int64_t total) {
    const at::NoGradGuard no_grad;
    t_inside_piece = true;
    try {
      for (std::int64_t i = next.fetch_add(1); i < total; i = next.fetch_add(1)) body(i);
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (!escaped) escaped = std::current_exception();
      next.store(total);
    }
    t_inside_piece = false;
  }

  void serve() {
    at::set_num_threads(1);
    std::uint64_t seen = 0;
    std::unique_lock lock(mutex);
    while (true) {
      wake.wait(lock, [&] { return closing || generation != seen; });
      if (closing) return;
      seen = generation;
      const auto* body = piece;
      const std::int64_t total = count;
      lock.unlock();
      take_pieces(*body, total);
      lock.lock();
      if (--working == 0) idle.notify_one();
    }
  }
};

ThreadPool::ThreadPool(unsigned threads) : state_(std::make_unique<State>()) {
  SAE_CHECK(threads >= 1, "{} threads", threads);
  at::set_num_threads(1);
  for (unsigned i = 1; i < threads; ++i)
    state_->threads.push_back(
        run_thread("pool " + std::to_string(i),
                   [state = state_.get()](const std::stop_token&) { state->serve(); }));
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->closing = true;
  }
  state_->wake.notify_all();
  state_->threads.clear();
}

unsigned ThreadPool::threads() const { return static_cast<unsigned>(state_->threads.size()) + 1; }

void ThreadPool::alone(const std::function<void()>& body) {
  at::set_num_threads(1);
  const bool nested = std::exchange(t_inside_piece, true);
  try {
    body();
  } catch (...) {
    t_inside_piece = nested;
    throw;
  }
  t_inside_piece = nested;
}

void ThreadPool::run(std::int64_t count, const std::function<void(std::int64_t)>& piece) {
  if (count <= 0) return;
  if (t_inside_piece || state_->threads.empty() || count == 1) {
    const at::NoGradGuard no_grad;
    const bool nested = t_inside_piece;
    t_inside_piece = true;
    try {
      for (std::int64_t i = 0; i < count; ++i) piece(i);
    } catch (...) {
      t_inside_piece = nested;
      throw;
    }
    t_inside_piece = nested;
    return;
  }
  {
    const std::lock_guard lock(state_->mutex);
    state_->piece = &piece;
    state_->count = count;
    state_->next.store(0);
    state_->working = static_cast<unsigned>(state_->threads.size());
    ++state_->generation;
  }
  state_->wake.notify_all();
  state_->take_pieces(piece, count);
  std::exception_ptr escaped;
  {
    std::unique_lock lock(state_->mutex);
    state_->idle.wait(lock, [&] { return state_->working == 0; });
    state_->piece = nullptr;
    escaped = std::exchange(state_->escaped, nullptr);
  }
  if (escaped) std::rethrow_exception(escaped);
}

}  // namespace saesweep::worker
