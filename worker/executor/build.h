// What this program is and what it runs on.
#pragma once

#include <string>

#include "core/json.h"

namespace saesweep::worker {

std::string build_text();  // "0.1.0 (LibTorch 2.11.0)"

// {"version", "libtorch", "cpu_capability", "amx", "avx512", ..., "cuda": {"module",
// "devices", "missing"}}; opens each GPU to see whether it can be used.
Json probe();

// The part of it that belongs to a measurement: {"libtorch", "cpu_capability"}.
Json versions();

}  // namespace saesweep::worker
