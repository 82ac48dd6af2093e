// What this program is: version, commit, compiler, libraries.
#pragma once

#include <string>

#include "core/json.h"

namespace saesweep::cli {

std::string version();   // "0.1.0"
std::string commit();    // 12 hex digits, "-dirty" if files differed; "unknown" outside a checkout
std::string compiler();  // "g++ 12.2.0"
std::string build();     // "0.1.0 (4e6afce01234)"

// Libraries of `saesweep` by name, as they were when it was built. LibTorch belongs to the
// executor.
Json library_versions();

}  // namespace saesweep::cli
