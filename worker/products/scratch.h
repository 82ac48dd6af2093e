// Working memory of a training step. What is given back is kept for the next step, which finds it
// mapped: fresh pages of a batch's matrices would cost a tenth of a step.
#pragma once

#include <cstddef>
#include <cstdint>

namespace saesweep::worker::products {

// Floats aligned to a cache line, contents undefined. Thread-safe. Throws std::bad_alloc.
class Scratch {
 public:
  explicit Scratch(std::int64_t floats);
  ~Scratch();
  Scratch(Scratch&& other) noexcept;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  Scratch& operator=(Scratch&&) = delete;

  float* data() const { return data_; }

  // Bytes kept that nobody uses: never more than one and a half times what was in use at one time.
  static std::size_t idle_bytes();
  // Returns what nobody uses to the system: when training is over.
  static void drop_idle();

 private:
  float* data_;
  std::size_t bytes_;
};

}  // namespace saesweep::worker::products
