#include "scheduler/cli/build_info.h"

#include <fmt/format.h>

#include "scheduler/cli/commit.h"
#include "scheduler/cli/libraries.h"

namespace saesweep::cli {

std::string version() { return SAESWEEP_VERSION; }

std::string commit() { return SAESWEEP_COMMIT; }

std::string compiler() {
#if defined(__clang__)
  return fmt::format("clang++ {}.{}.{}", __clang_major__, __clang_minor__, __clang_patchlevel__);
#else
  return fmt::format("g++ {}.{}.{}", __GNUC__, __GNUC_MINOR__, __GNUC_PATCHLEVEL__);
#endif
}

std::string build() { return fmt::format("{} ({})", version(), commit()); }

Json library_versions() {
  Json versions = Json::object();
  for (const auto& [name, number] : kLibraryVersions)
    if (*number != '\0') versions[name] = number;
  return versions;
}

}  // namespace saesweep::cli
