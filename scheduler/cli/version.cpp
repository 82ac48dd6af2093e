// saesweep version.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "scheduler/cli/build_info.h"
#include "scheduler/cli/program.h"
#include "scheduler/cli/verbs.h"

namespace saesweep::cli {

Action add_version(CLI::App& program, const GlobalFlags&) {
  CLI::App* verb = program.add_subcommand("version", "Show program, commit and libraries");
  const auto as_json = std::make_shared<bool>(false);
  verb->add_flag("--json", *as_json, "For machines");
  verb->footer(R"(Examples:
  saesweep version
  saesweep version --json
)");
  return [as_json] {
    const Json libraries = library_versions();
    if (*as_json) {
      fmt::print("{}", pretty_json({{"version", version()},
                                    {"commit", commit()},
                                    {"compiler", compiler()},
                                    {"libraries", libraries}}));
      return kExitDone;
    }
    fmt::print("saesweep {}\ncommit {}\n{}\n", version(), commit(), compiler());
    for (const auto& [name, number] : libraries.items())
      fmt::print("{} {}\n", name, number.get<std::string>());
    return kExitDone;
  };
}

}  // namespace saesweep::cli
