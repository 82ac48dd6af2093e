// The rules on the tree as it is: every source of every room.
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <string>

#include "core/files.h"
#include "tests/tidy/rules.h"

namespace saesweep::tidy {
namespace {

namespace fs = std::filesystem;

// path from the repository root -> text
std::map<std::string, std::string> sources() {
  const fs::path root = SAESWEEP_SOURCE_DIR;
  std::map<std::string, std::string> found;
  for (const char* room : {"core", "metrics", "sweeps", "storage", "scheduler", "worker", "tests"})
    for (const auto& entry : fs::recursive_directory_iterator(root / room)) {
      const fs::path ending = entry.path().extension();
      if (!entry.is_regular_file() || (ending != ".h" && ending != ".cpp" && ending != ".cu"))
        continue;
      found[entry.path().lexically_relative(root).generic_string()] =
          read_file(entry.path()).value();
    }
  return found;
}

std::string report(const Violation& violation) {
  return violation.path + ":" + std::to_string(violation.line) + ": " + violation.message;
}

TEST(TreeTest, EverySourceKeepsTheRules) {
  const auto files = sources();
  EXPECT_TRUE(files.contains("core/result.h"));  // the walk reached something
  for (const auto& [path, text] : files)
    for (const Violation& violation : check_file(path, text)) ADD_FAILURE() << report(violation);
}

TEST(TreeTest, NoHeadersIncludeEachOtherInACircle) {
  for (const Violation& violation : check_circles(sources())) ADD_FAILURE() << report(violation);
}

}  // namespace
}  // namespace saesweep::tidy
