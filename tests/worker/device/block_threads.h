// The threads of a block as a GPU has them: each runs a kernel from beginning to end with locals of
// its own, and stops at a meeting until all have come there. They run one after another, on a stack
// each and in an order that may be chosen, so that a run can be repeated.
//
// For ThreadSanitizer they are threads that only meetings order: what two of them do to one word
// between two meetings, or two of different blocks at any time, is a race that it reports.
//
// The switch between stacks is that of QEMU's util/coroutine-ucontext.c.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#if defined(__SANITIZE_THREAD__)
#define SAE_THREAD_SANITIZER
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define SAE_THREAD_SANITIZER
#endif
#endif

namespace saesweep::worker::device::emulation {

#if defined(SAE_THREAD_SANITIZER)
inline constexpr bool kWatchesRaces = true;
#else
inline constexpr bool kWatchesRaces = false;
#endif

// Which a GPU does not promise.
enum class Order : std::uint8_t { kForwards, kBackwards, kShuffled };

// Numbers below `count` in an order.
class Places {
 public:
  Places(Order order, std::int64_t count);
  std::int64_t operator[](std::int64_t i) const { return (first_ + i * step_) % count_; }

 private:
  std::int64_t count_, first_, step_;
};

class BlockThreads {
 public:
  BlockThreads();
  ~BlockThreads();

  // body(block, thread) by each of so many threads of so many blocks. Returns what a GPU would wait
  // for for ever, or does not define: threads that end or meet elsewhere while others wait. Empty:
  // all is well.
  template <class Body>
  std::string launch(std::int64_t blocks, int threads, Order order, const Body& body) {
    const auto call = [](const void* what, std::int64_t block, int thread) {
      (*static_cast<const Body*>(what))(block, thread);
    };
    return launch(blocks, threads, order, call, &body);
  }
  // Of a body: waits for all others of its block to come to this place.
  void meet(const void* place);

 private:
  using Body = void (*)(const void* what, std::int64_t block, int thread);
  std::string launch(std::int64_t blocks, int threads, Order order, Body body, const void* what);

  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace saesweep::worker::device::emulation
