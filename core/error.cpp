#include "core/error.h"

#include <cstdio>
#include <cstdlib>

#include "core/check.h"

namespace saesweep {

std::string_view to_string(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument:
      return "invalid argument";
    case ErrorCode::kNotFound:
      return "not found";
    case ErrorCode::kUnavailable:
      return "unavailable";
    case ErrorCode::kResourceExhausted:
      return "resource exhausted";
    case ErrorCode::kStaleLease:
      return "stale lease";
    case ErrorCode::kCorrupted:
      return "corrupted";
    case ErrorCode::kDiverged:
      return "diverged";
  }
  return "unknown";
}

void check_failed(const char* file, int line, const char* condition, const std::string& message) {
  std::fprintf(stderr, "%s:%d: check failed: %s: %s\n", file, line, condition, message.c_str());
  std::abort();
}

}  // namespace saesweep
