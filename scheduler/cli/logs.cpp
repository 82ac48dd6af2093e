// saesweep logs TRIAL: what its executor printed.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>

#include "scheduler/cli/ask.h"
#include "scheduler/cli/interrupts.h"
#include "scheduler/cli/program.h"
#include "scheduler/cli/verbs.h"

namespace saesweep::cli {
namespace {

using namespace std::chrono_literals;

struct LogsFlags {
  AskFlags scheduler;
  std::string trial, sweep;
  std::uint64_t attempt = 0;  // 0: the newest
  bool follow = false, json = false;
};

// What an executor prints may hold anything; a terminal gets lines and tabs.
std::string for_people(std::string text) {
  for (char& c : text)
    if ((static_cast<unsigned char>(c) < 0x20 && c != '\n' && c != '\t') || c == 0x7f) c = ' ';
  return text;
}

int logs(const LogsFlags& flags) {
  auto interrupts = Interrupts::take();
  if (!interrupts) return complain("logs", interrupts.error());
  auto scheduler = Scheduler::find(flags.scheduler);
  if (!scheduler) return complain("logs", scheduler.error());
  std::uint64_t offset = 0;
  std::uint64_t run = 0;
  while (true) {
    const auto answer = scheduler->ask("log", {{"trial", flags.trial},
                                               {"sweep", flags.sweep},
                                               {"attempt", flags.attempt},
                                               {"offset", offset}});
    if (!answer) return complain("logs", answer.error());
    const std::uint64_t now = answer->value("run", std::uint64_t{0});
    if (now != run && run != 0 && offset > 0) {  // another attempt begins its own log
      run = now;
      offset = 0;
      continue;
    }
    run = now;
    const std::string text = answer->value("text", std::string());
    if (flags.json)
      fmt::print("{}\n", canonical_json(*answer));
    else
      fmt::print("{}", for_people(text));
    if (std::fflush(stdout) != 0) return kExitDone;  // nobody reads it any more
    offset = answer->value("next", offset);
    const bool is_here = !text.empty();
    if (!is_here && !(flags.follow && answer->value("more", false))) return kExitDone;
    if (interrupts->wait(is_here ? 0ms : 500ms) != 0) return kExitInterrupted;
  }
}

}  // namespace

Action add_logs(CLI::App& program, const GlobalFlags&) {
  CLI::App* verb = program.add_subcommand("logs", "Show what the executor of a trial printed");
  const auto flags = std::make_shared<LogsFlags>();
  verb->add_option("TRIAL", flags->trial, "5, last, an id (12 hex digits), or id:3fa9")->required();
  verb->add_option("--sweep", flags->sweep, "Its sweep (default: the one submitted last)")
      ->type_name("NAME");
  verb->add_option("--attempt", flags->attempt, "As explain numbers them (default: the newest)")
      ->type_name("N")
      ->check(CLI::Range(std::uint64_t{1}, std::uint64_t{1} << 32));
  verb->add_flag("--follow", flags->follow, "Go on until the trial is over");
  add_ask_flags(*verb, flags->scheduler);
  verb->add_flag("--json", flags->json, "A piece a line, for machines");
  verb->footer(R"(Examples:
  saesweep logs 3
  saesweep logs last --follow
  saesweep logs 3 --attempt 1                        why the first one died

The trials of a run share one executor and its log. 1 MiB of each run is kept.
)");
  return [flags] { return logs(*flags); };
}

}  // namespace saesweep::cli
