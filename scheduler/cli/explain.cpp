// saesweep explain TRIAL: why it is where it is, from what the scheduler goes by.
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

struct ExplainFlags {
  AskFlags scheduler;
  std::string trial, sweep;
  bool json = false;
};

std::string word(const Json& object, const char* name) {
  const auto found = object.find(name);
  if (found == object.end() || found->is_null()) return "";
  return printable(found->is_string() ? found->get<std::string>() : found->dump());
}

void print_task(const Json& task) {
  if (!task.is_object()) return;
  const std::string id = word(task, "task");
  fmt::print("{:<20} {}\n", id.substr(0, id.find(':') + 1 + 12), word(task, "state"));
  if (task.contains("reasons"))
    for (const Json& reason : task["reasons"])
      fmt::print("  {}: {}\n", word(reason, "code"), word(reason, "text"));
  if (!task.contains("attempts")) return;
  for (const Json& attempt : task["attempts"]) {
    const double began = attempt.value("began", 0.0);
    fmt::print("  attempt {} on {} at {}: {}", word(attempt, "fence"), word(attempt, "worker"),
               rfc3339(began), word(attempt, "outcome"));
    if (const std::string why = word(attempt, "reason"); !why.empty()) fmt::print(", {}", why);
    fmt::print("\n");
  }
}

int explain(const ExplainFlags& flags) {
  auto scheduler = Scheduler::find(flags.scheduler);
  if (!scheduler) return complain("explain", scheduler.error());
  const auto answer = scheduler->ask("explain", {{"trial", flags.trial}, {"sweep", flags.sweep}});
  if (!answer) return complain("explain", answer.error());
  if (flags.json) {
    fmt::print("{}", pretty_json(*answer));
    return kExitDone;
  }
  if (!scheduler->trouble().empty())
    fmt::print("the scheduler is read-only: {}\n", printable(scheduler->trouble()));
  fmt::print("trial {} ({}) of {}: {}{}{}\n", word(*answer, "number"), word(*answer, "trial"),
             word(*answer, "sweep"), word(*answer, "state"),
             word(*answer, "reason").empty() ? "" : ", ", word(*answer, "reason"));
  for (const Json& task : answer->at("tasks")) print_task(task);
  return kExitDone;
}

}  // namespace

Action add_explain(CLI::App& program, const GlobalFlags&) {
  CLI::App* verb = program.add_subcommand("explain", "Say why a trial is where it is");
  const auto flags = std::make_shared<ExplainFlags>();
  verb->add_option("TRIAL", flags->trial, "5, last, an id (12 hex digits), or id:3fa9")->required();
  verb->add_option("--sweep", flags->sweep, "Its sweep (default: the one submitted last)")
      ->type_name("NAME");
  add_ask_flags(*verb, flags->scheduler);
  verb->add_flag("--json", flags->json, "For machines");
  verb->footer(R"(Examples:
  saesweep explain 17
  saesweep explain id:3fa9 --sweep othello-widths --json
)");
  return [flags] { return explain(*flags); };
}

}  // namespace saesweep::cli
