// The checked longjmp() of glibc takes a jump to another stack for a mistake.
#undef _FORTIFY_SOURCE

#include "tests/worker/device/block_threads.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstddef>
#include <cstdlib>
#include <numeric>

#if defined(__SANITIZE_ADDRESS__)
#define SAE_ADDRESS_SANITIZER
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SAE_ADDRESS_SANITIZER
#endif
#endif

#if defined(SAE_ADDRESS_SANITIZER)
#include <sanitizer/common_interface_defs.h>
#elif defined(SAE_THREAD_SANITIZER)
#include <sanitizer/tsan_interface.h>
#endif

// What is done to take turns is none of a kernel's doing: ThreadSanitizer looks away.
#if defined(SAE_THREAD_SANITIZER)
#define SAE_UNSEEN __attribute__((noinline, no_sanitize("thread")))
#else
#define SAE_UNSEEN __attribute__((noinline))
#endif

namespace saesweep::worker::device::emulation {
namespace {

constexpr int kMostThreads = 1024;
constexpr std::int64_t kBlocksApart = 4096;
constexpr std::size_t kStackBytes = std::size_t{64} << 10;
// Stacks that began at the same place of a page would push each other out of the caches.
constexpr std::size_t kStagger = 192, kStaggers = 64;

// A stack that is left and come back to.
struct Side {
#if defined(SAE_THREAD_SANITIZER)
  ucontext_t context;
  void* fiber = nullptr;
#else
  jmp_buf at;
#endif
#if defined(SAE_ADDRESS_SANITIZER)
  void* fake = nullptr;
  const void* bottom = nullptr;
  std::size_t bytes = 0;
#endif
};

struct Thread {
  Side side;
  const void* place = nullptr;  // where it waits
  bool has_begun = false, has_ended = false;
};

void arrive([[maybe_unused]] char& token) {
#if defined(SAE_THREAD_SANITIZER)
  __tsan_release(&token);
#endif
}

void go_on([[maybe_unused]] char& token) {
#if defined(SAE_THREAD_SANITIZER)
  __tsan_acquire(&token);
#endif
}

#if defined(SAE_THREAD_SANITIZER)
SAE_UNSEEN void change(Side& from, Side& to, const ucontext_t* beginning) {
  __tsan_switch_to_fiber(to.fiber, __tsan_switch_to_fiber_no_sync);
  swapcontext(&from.context, beginning != nullptr ? beginning : &to.context);
}
#else
SAE_UNSEEN void change(Side& from, Side& to, const ucontext_t* beginning) {
  if (_setjmp(from.at) == 0) {
#if defined(SAE_ADDRESS_SANITIZER)
    __sanitizer_start_switch_fiber(&from.fake, to.bottom, to.bytes);
#endif
    if (beginning != nullptr) setcontext(beginning);
    _longjmp(to.at, 1);
  }
#if defined(SAE_ADDRESS_SANITIZER)
  __sanitizer_finish_switch_fiber(from.fake, &to.bottom, &to.bytes);
#endif
}
#endif

}  // namespace

struct BlockThreads::State {
  Side main;
  Thread threads[kMostThreads];
  char* stacks = nullptr;
  Body body = nullptr;
  const void* what = nullptr;
  std::int64_t block = 0;
  int current = 0;
  // Of a block and its meetings by turns, so that who comes late to one does not know what others
  // did after it, nor what other blocks did; and of the end.
  char tokens[2 * kBlocksApart], done;
  char* token = nullptr;
#if defined(SAE_THREAD_SANITIZER)
  static constexpr int kFibers = 61;
  void *fibers[kFibers] = {}, *fibers_before[kFibers] = {};
#endif
  static inline thread_local State* entered = nullptr;

  static void enter();
  void turn(int thread);
  std::string run(std::int64_t block, int count, const Places& places);
  void begin_fibers(int count);
};

// A thread's stack begins here, and is used again for those of later blocks.
SAE_UNSEEN void BlockThreads::State::enter() {
  State& state = *entered;
  const int own = state.current;
  Thread& thread = state.threads[own];
#if defined(SAE_ADDRESS_SANITIZER)
  __sanitizer_finish_switch_fiber(nullptr, &state.main.bottom, &state.main.bytes);
#endif
  for (;;) {
    state.body(state.what, state.block, own);
    thread.has_ended = true;
    arrive(state.done);
    change(thread.side, state.main, nullptr);
  }
}

// Until it waits or ends.
SAE_UNSEEN void BlockThreads::State::turn(int number) {
  Thread& thread = threads[number];
  current = number;
  if (thread.has_begun) return change(main, thread.side, nullptr);
  thread.has_begun = true;
  char* const stack = stacks + static_cast<std::size_t>(number) * kStackBytes;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = kStackBytes - static_cast<std::size_t>(number) % kStaggers * kStagger;
  context.uc_link = nullptr;
  makecontext(&context, enter, 0);
  entered = this;
#if defined(SAE_ADDRESS_SANITIZER)
  thread.side.bottom = stack;
  thread.side.bytes = kStackBytes;
#endif
  change(main, thread.side, &context);
}

SAE_UNSEEN void BlockThreads::meet(const void* place) {
  State& state = *state_.get();
  Thread& thread = state.threads[state.current];
  thread.place = place;
  char& token = *state.token;
  arrive(token);
  arrive(state.done);
  change(thread.side, state.main, nullptr);
  go_on(token);
}

// ThreadSanitizer tells 256 threads apart, of which a block of ours has some; threads of one
// remainder are one to it. Those of the block before stay while it may have to tell what they did.
SAE_UNSEEN void BlockThreads::State::begin_fibers([[maybe_unused]] int count) {
#if defined(SAE_THREAD_SANITIZER)
  for (int i = 0; i < kFibers; ++i) {
    if (fibers_before[i] != nullptr) __tsan_destroy_fiber(fibers_before[i]);
    fibers_before[i] = fibers[i];
    fibers[i] = count > 0 ? __tsan_create_fiber(0) : nullptr;
  }
  for (int i = 0; i < count; ++i) threads[i].side.fiber = fibers[i % kFibers];
#endif
}

SAE_UNSEEN std::string BlockThreads::State::run(std::int64_t number, int count,
                                                const Places& places) {
  block = number;
  for (int i = 0; i < count; ++i) threads[i].has_ended = false;
  begin_fibers(count);
  std::string problem;
  bool waits = true;
  for (int meetings = 0; waits && problem.empty(); ++meetings) {
    token = &tokens[2 * (number % kBlocksApart) + meetings % 2];
    int ended = 0;
    const void* place = nullptr;
    for (int i = 0; i < count; ++i) {
      const auto which = static_cast<int>(places[i]);
      turn(which);
      const Thread& thread = threads[which];
      if (thread.has_ended)
        ++ended;
      else if (place != nullptr && place != thread.place)
        problem = "threads of a block meet at different places";
      else
        place = thread.place;
    }
    waits = ended < count;
    if (waits && ended > 0)
      problem = std::to_string(ended) + " threads of a block have ended, " +
                std::to_string(count - ended) + " wait for them";
  }
  // Whoever still waits is left where it is.
  for (Thread& thread : threads) thread.has_begun &= problem.empty() && !kWatchesRaces;
  return problem;
}

std::string BlockThreads::launch(std::int64_t blocks, int threads, Order order, Body body,
                                 const void* what) {
  if (threads > kMostThreads) return std::to_string(threads) + " threads in a block";
  State& state = *state_;
  state.body = body;
  state.what = what;
#if defined(SAE_THREAD_SANITIZER)
  state.main.fiber = __tsan_get_current_fiber();
#endif
  const Places places(order, blocks), in_block(order, threads);
  std::string problem;
  for (std::int64_t i = 0; i < blocks && problem.empty(); ++i)
    problem = state.run(places[i], threads, in_block);
  go_on(state.done);
  for (int i = 0; i < 2; ++i) state.begin_fibers(0);
  return problem;
}

BlockThreads::BlockThreads() : state_(std::make_unique<State>()) {
  void* const stacks = ::mmap(nullptr, kMostThreads * kStackBytes, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stacks == MAP_FAILED) std::abort();
  state_->stacks = static_cast<char*>(stacks);
}

BlockThreads::~BlockThreads() { ::munmap(state_->stacks, kMostThreads * kStackBytes); }

Places::Places(Order order, std::int64_t count)
    : count_(count), first_(order == Order::kBackwards ? count - 1 : 0), step_(1) {
  if (order == Order::kBackwards) step_ = count - 1;
  if (order != Order::kShuffled) return;
  step_ = count / 2 + count / 8 + 1;
  while (std::gcd(step_, count) != 1) ++step_;
}

}  // namespace saesweep::worker::device::emulation
