// The end of a sweep: what it found, as files of --out and as a table.
#pragma once

#include <filesystem>
#include <string>

#include "core/json.h"
#include "scheduler/cli/screen.h"
#include "scheduler/service/scheduler_service.h"

namespace saesweep::cli {

struct OutcomeOptions {
  std::string verb;                // that complains
  Json executor = Json::object();  // what it said about itself, if it was asked
  std::filesystem::path state, out;
  bool json = false, quiet = false;
};

// Writes all of --out, shows the table and says sweep.finished. The exit code.
int write_results(const scheduler::SweepResult& result, const OutcomeOptions& options,
                  Screen& screen);

}  // namespace saesweep::cli
