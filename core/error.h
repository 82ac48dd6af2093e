// What went wrong, in terms of what the caller does next.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace saesweep {

enum class ErrorCode : std::uint8_t {
  kInvalidArgument,    // can never succeed: reject it, tell its author
  kNotFound,           // absent, which may be normal
  kUnavailable,        // the same again later, with backoff
  kResourceExhausted,  // disk, queue or memory is full: ask for less
  kStaleLease,         // someone else owns the trial: stop, drop the result
  kCorrupted,          // do not trust these bytes: discard and regenerate
  kDiverged,           // the loss is not finite: record it, do not retry
};

std::string_view to_string(ErrorCode code);

struct Error {
  ErrorCode code = ErrorCode::kInvalidArgument;
  std::string message;  // what happened, with the values, for a person
};

}  // namespace saesweep
