#include "worker/thrown.h"

#include <c10/util/Exception.h>

#include <new>
#include <string>

namespace saesweep::worker {

Error error_of(const std::exception& thrown) {
  const auto* torch = dynamic_cast<const c10::Error*>(&thrown);
  const std::string message = torch != nullptr ? torch->what_without_backtrace() : thrown.what();
  // LibTorch's allocator for the CPU says it in a plain c10::Error.
  if (dynamic_cast<const std::bad_alloc*>(&thrown) != nullptr ||
      dynamic_cast<const c10::OutOfMemoryError*>(&thrown) != nullptr ||
      message.find("can't allocate memory") != std::string::npos)
    return {ErrorCode::kResourceExhausted, "out of memory: " + message};
  return {ErrorCode::kInvalidArgument, "LibTorch: " + message};
}

}  // namespace saesweep::worker
