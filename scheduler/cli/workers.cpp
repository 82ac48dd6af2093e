// saesweep workers: who works for a scheduler.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <string>

#include "scheduler/cli/ask.h"
#include "scheduler/cli/people.h"
#include "scheduler/cli/program.h"
#include "scheduler/cli/verbs.h"

namespace saesweep::cli {
namespace {

struct WorkersFlags {
  AskFlags scheduler;
  bool json = false;
};

int workers(const WorkersFlags& flags) {
  auto scheduler = Scheduler::find(flags.scheduler);
  if (!scheduler) return complain("workers", scheduler.error());
  const auto answer = scheduler->ask("workers");
  if (!answer) return complain("workers", answer.error());
  if (flags.json) {
    fmt::print("{}", pretty_json(*answer));
    return kExitDone;
  }
  fmt::print("{:<24} {:<9} {:<9} {:>5} {:>5} {:>5} {:>10} {:>8}\n", "worker", "session", "state",
             "slots", "gpus", "runs", "memory", "silent");
  for (const Json& worker : answer->at("workers"))
    fmt::print("{:<24} {:<9} {:<9} {:>5} {:>5} {:>5} {:>10} {:>8}\n",
               printable(worker.value("name", "")), worker.value("session", ""),
               worker.value("state", ""), worker.value("slots", 0), worker.value("gpus", 0),
               worker.at("runs").size(), bytes_text(worker.value("memory_bytes", 0.0)),
               duration_text(worker.value("silent_s", 0.0)));
  return kExitDone;
}

}  // namespace

Action add_workers(CLI::App& program, const GlobalFlags&) {
  CLI::App* verb = program.add_subcommand("workers", "Show who works for a scheduler");
  const auto flags = std::make_shared<WorkersFlags>();
  add_ask_flags(*verb, flags->scheduler);
  verb->add_flag("--json", flags->json, "For machines");
  verb->footer(R"(Examples:
  saesweep workers
  saesweep workers --json --state /data/lab
)");
  return [flags] { return workers(*flags); };
}

}  // namespace saesweep::cli
