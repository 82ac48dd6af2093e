// saesweep status [SWEEP]: what a scheduler works on.
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

struct StatusFlags {
  AskFlags scheduler;
  std::string sweep;
  bool json = false;
};

std::string share_text(const Json& tokens) {
  const double total = tokens.value("total", 0.0), done = tokens.value("done", 0.0);
  return total > 0 ? fmt::format("{:.0f} %", 100 * done / total) : "-";
}

void print_sweep(const Json& sweep) {
  const Json& trials = sweep.at("trials");
  const auto count = [&](const char* name) { return trials.value(name, std::uint64_t{0}); };
  const std::uint64_t bad = count("failed") + count("diverged");
  fmt::print("{:<32} {:<10} {:>6} {:>6} {:>6} {:>6} {:>7} {}\n", printable(sweep.value("name", "")),
             sweep.value("state", ""), count("total"), count("done"), bad,
             count("training") + count("scoring"), share_text(sweep.at("tokens")),
             rfc3339(sweep.value("started", 0.0)));
}

void print_row(const Json& row) {
  const auto text = [&](const char* name) {
    return row.contains(name) && row[name].is_string() ? printable(row[name].get<std::string>())
                                                       : std::string("-");
  };
  fmt::print("{:>6} {} {:<9} {:>9}/{:<9} {:>7} {:<16} {}\n", row.value("number", 0), text("trial"),
             text("state"), count_text(row.value("tokens", 0.0)),
             count_text(row.value("tokens_total", 0.0)), row.value("attempt", 0), text("worker"),
             text("reason"));
}

int status(const StatusFlags& flags, const GlobalFlags& globals) {
  auto scheduler = Scheduler::find(flags.scheduler);
  if (!scheduler) return complain("status", scheduler.error());
  const auto answer = scheduler->ask("status", {{"sweep", flags.sweep}});
  if (!answer) return complain("status", answer.error());
  if (flags.json) {
    fmt::print("{}", pretty_json(*answer));
    return kExitDone;
  }
  if (!scheduler->trouble().empty())
    fmt::print(stderr, "the scheduler is read-only: {}\n", printable(scheduler->trouble()));
  const Json& sweeps = answer->at("sweeps");
  fmt::print("{:<32} {:<10} {:>6} {:>6} {:>6} {:>6} {:>7} {}\n", "sweep", "state", "trials", "done",
             "bad", "busy", "tokens", "submitted");
  for (const Json& sweep : sweeps) print_sweep(sweep);
  if (sweeps.size() == 1 && sweeps[0].contains("rows")) {
    fmt::print("\n{:>6} {:<12} {:<9} {:>19} {:>7} {:<16} {}\n", "trial", "id", "state", "tokens",
               "attempt", "worker", "reason");
    for (const Json& row : sweeps[0]["rows"]) print_row(row);
  }
  if (!globals.quiet)
    fmt::print(stderr, "{} worker{}\n", answer->value("workers", 0),
               answer->value("workers", 0) == 1 ? "" : "s");
  return kExitDone;
}

}  // namespace

Action add_status(CLI::App& program, const GlobalFlags& globals) {
  CLI::App* verb = program.add_subcommand("status", "Show sweeps, or the trials of one");
  const auto flags = std::make_shared<StatusFlags>();
  verb->add_option("SWEEP", flags->sweep, "Its name, or last; its trials are shown too");
  add_ask_flags(*verb, flags->scheduler);
  verb->add_flag("--json", flags->json, "For machines");
  verb->footer(R"(Examples:
  saesweep status
  saesweep status othello-widths --state /data/lab
  saesweep status last --json | jq '.sweeps[0].rows[] | select(.state == "failed")'
)");
  return [flags, &globals] { return status(*flags, globals); };
}

}  // namespace saesweep::cli
