// What LibTorch and the allocator throw, as errors of ours: the one place that knows their words.
#pragma once

#include <exception>

#include "core/error.h"

namespace saesweep::worker {

// kResourceExhausted if memory was at its end, kInvalidArgument else.
Error error_of(const std::exception& thrown);

}  // namespace saesweep::worker
