// How kernels are written: the work of one block of threads, as phases. Within each() every thread
// runs the same lines; between two of them all threads meet. What lives longer than a phase stands
// in the kernel's Shared.
//
// So a kernel is plain C++ that also runs without a GPU: there a phase is a loop over the threads.
// worker/cuda compiles the same text for the GPU; tests run it here.
//
//   struct Kernel {
//     static constexpr int kThreads = 256;
//     struct Shared { ... };
//     ... parameters: numbers and pointers to memory of the device ...
//     template <class Block> SAE_DEVICE void run(Block& block, Shared& shared) const;
//   };
//
// Of a Block:
//   index                the block's number
//   each(f)              f(thread) for every thread, and a meeting
//   add, bit_or, least   of integers, by many threads at once: the result is that of any order
//   mark                 makes a flag 1, by many threads at once
#pragma once

#include <math.h>
#include <string.h>

#include <cstdint>

#if defined(__CUDACC__)
#define SAE_DEVICE __device__ __forceinline__
#else
#define SAE_DEVICE inline
#endif

namespace saesweep::worker::device {

// Nothing is shared.
struct Nothing {};

// Positive floats are in the order of their bits.
SAE_DEVICE std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}
SAE_DEVICE float float_of(std::uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

SAE_DEVICE bool is_finite(float value) { return (bits_of(value) & 0x7f800000U) != 0x7f800000U; }

// To the nearest, ties to even, as its upper 16 bits.
SAE_DEVICE std::uint16_t bfloat16_bits(float value) {
  const std::uint32_t bits = bits_of(value);
  if ((bits & 0x7fffffffU) > 0x7f800000U) return 0x7fc0;
  return static_cast<std::uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
}

SAE_DEVICE int bits_set(std::uint32_t word) {
#if defined(__CUDA_ARCH__)
  return __popc(word);
#else
  return __builtin_popcount(word);
#endif
}

// values[0] becomes the sum of values[0 .. kThreads), a power of two, in a fixed order.
template <int kThreads, class Block>
SAE_DEVICE void sum_shared(Block& block, double* values) {
  for (int half = kThreads / 2; half > 0; half /= 2)
    block.each([&](int thread) {
      if (thread < half) values[thread] += values[thread + half];
    });
}

// values[0] becomes the sum of term(i), i in [0, count), in a fixed order.
template <int kThreads, class Block, class Term>
SAE_DEVICE void sum_over(Block& block, double* values, std::int64_t count, const Term& term) {
  block.each([&](int thread) {
    double sum = 0;
    for (std::int64_t i = thread; i < count; i += kThreads) sum += term(i);
    values[thread] = sum;
  });
  sum_shared<kThreads>(block, values);
}

struct Counter {
  std::uint32_t found;
};

// How many of [first, end) `look` says yes to: take(count) is called by one thread.
template <int kThreads, class Block, class Look, class Take>
SAE_DEVICE void count_in(Block& block, Counter& counter, std::int64_t first, std::int64_t end,
                         const Look& look, const Take& take) {
  block.each([&](int thread) {
    if (thread == 0) counter.found = 0;
  });
  block.each([&](int thread) {
    std::uint32_t found = 0;
    for (std::int64_t i = first + thread; i < end; i += kThreads) found += look(i) ? 1 : 0;
    block.add(&counter.found, found);
  });
  block.each([&](int thread) {
    if (thread == 0) take(counter.found);
  });
}

// values[i] becomes the sum of those before it; returns nothing: the total is in `total`.
template <int kThreads, class Number, class Block>
SAE_DEVICE void scan_shared(Block& block, Number* values, Number& total) {
  block.each([&](int thread) {
    if (thread != 0) return;
    Number sum = 0;
    for (int i = 0; i < kThreads; ++i) {
      const Number value = values[i];
      values[i] = sum;
      sum += value;
    }
    total = sum;
  });
}

}  // namespace saesweep::worker::device
