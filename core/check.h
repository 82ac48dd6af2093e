// SAE_CHECK: our own bugs, in every build. Prints the values and aborts; the lease rules make that
// safe. A user's input never reaches it.
#pragma once

#include <fmt/core.h>

#include <string>

namespace saesweep {

[[noreturn]] void check_failed(const char* file, int line, const char* condition,
                               const std::string& message);

}  // namespace saesweep

#define SAE_CHECK(condition, ...)                                                         \
  do {                                                                                    \
    if (!(condition)) [[unlikely]]                                                        \
      ::saesweep::check_failed(__FILE__, __LINE__, #condition, fmt::format(__VA_ARGS__)); \
  } while (false)
