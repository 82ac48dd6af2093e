// SIGINT, SIGTERM and the like as something one thread asks for, instead of handlers that interrupt
// any.
#pragma once

#include <chrono>
#include <initializer_list>

#include "core/result.h"

namespace saesweep::cli {

class Interrupts {
 public:
  // Blocks both signals and `more` in this thread and in every thread it starts from now on, and
  // ignores SIGPIPE. Call before any other thread exists.
  // Errors: kUnavailable.
  static Result<Interrupts> take(std::initializer_list<int> more = {});
  Interrupts(Interrupts&& other) noexcept : file_(other.file_) { other.file_ = -1; }
  Interrupts& operator=(Interrupts&&) = delete;
  ~Interrupts();

  // Waits at most `patience`; the signal's number, or 0.
  int wait(std::chrono::milliseconds patience);

 private:
  explicit Interrupts(int file) : file_(file) {}
  int file_;  // signalfd
};

}  // namespace saesweep::cli
