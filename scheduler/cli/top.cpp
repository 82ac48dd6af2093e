// saesweep top: a page of sweeps, workers and runs, drawn anew every second.
#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "scheduler/cli/ask.h"
#include "scheduler/cli/interrupts.h"
#include "scheduler/cli/people.h"
#include "scheduler/cli/program.h"
#include "scheduler/cli/screen.h"
#include "scheduler/cli/verbs.h"

namespace saesweep::cli {
namespace {

using namespace std::chrono_literals;

constexpr auto kDrawEvery = 1000ms;
constexpr auto kPatience = 2s;  // of a question, so that Ctrl-C is heard

struct TopFlags {
  AskFlags scheduler;
  bool once = false, json = false;
};

std::string text(const Json& object, const char* name) {
  const auto found = object.find(name);
  if (found == object.end() || found->is_null()) return "-";
  return printable(found->is_string() ? found->get<std::string>() : found->dump());
}

std::string share(const Json& tokens) {
  const double total = tokens.value("total", 0.0);
  return total > 0 ? fmt::format("{:3.0f} %", 100 * tokens.value("done", 0.0) / total) : "    -";
}

std::vector<std::string> page_of(const Json& view, const std::string& trouble) {
  std::vector<std::string> lines;
  if (!trouble.empty()) lines.push_back("read-only: " + printable(trouble));
  lines.push_back(fmt::format("{:<28} {:<10} {:>7} {:>7} {:>7} {:>7}", "SWEEP", "STATE", "TRIALS",
                              "DONE", "BUSY", "TOKENS"));
  for (const Json& sweep : view.at("sweeps")) {
    const Json& trials = sweep.at("trials");
    lines.push_back(fmt::format("{:<28} {:<10} {:>7} {:>7} {:>7} {:>7}", text(sweep, "name"),
                                text(sweep, "state"), text(trials, "total"), text(trials, "done"),
                                trials.value("training", 0) + trials.value("scoring", 0),
                                share(sweep.at("tokens"))));
  }
  lines.emplace_back();
  lines.push_back(fmt::format("{:<28} {:<10} {:>7} {:>7} {:>10}", "WORKER", "STATE", "SLOTS",
                              "RUNS", "SILENT"));
  for (const Json& worker : view.at("workers"))
    lines.push_back(fmt::format("{:<28} {:<10} {:>7} {:>7} {:>10}", text(worker, "name"),
                                text(worker, "state"), text(worker, "slots"),
                                worker.at("runs").size(),
                                duration_text(worker.value("silent_s", 0.0))));
  lines.emplace_back();
  lines.push_back(fmt::format("{:>6} {:<9} {:<20} {:<20} {:<9} {:>6} {:>7}", "RUN", "KIND", "SWEEP",
                              "WORKER", "STATE", "TASKS", "SAVED"));
  for (const Json& run : view.at("runs"))
    lines.push_back(fmt::format("{:>6} {:<9} {:<20} {:<20} {:<9} {:>6} {:>7}", text(run, "run"),
                                text(run, "kind"), text(run, "sweep"), text(run, "worker"),
                                text(run, "state"), text(run, "tasks"), share(run.at("tokens"))));
  return lines;
}

// Of the terminal that stdout is.
std::size_t terminal_height() {
  winsize size{};
  return ::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_row > 0 ? size.ws_row : 24;
}

void draw(const std::vector<std::string>& lines) {
  const std::size_t height = terminal_height(), width = terminal_width();
  std::string page = "\x1b[H";
  for (std::size_t i = 0; i < lines.size() && i + 1 < height; ++i)
    page += lines[i].substr(0, width) + "\x1b[K\n";
  page += "\x1b[J";
  fmt::print("{}", page);
  std::fflush(stdout);
}

int top(const TopFlags& flags) {
  auto interrupts = Interrupts::take();
  if (!interrupts) return complain("top", interrupts.error());
  auto scheduler = Scheduler::find(flags.scheduler);
  if (!scheduler) return complain("top", scheduler.error());
  const bool live = !flags.once && !flags.json && ::isatty(STDOUT_FILENO) == 1;
  if (live) fmt::print("\x1b[2J");
  while (true) {
    const auto answer = scheduler->ask("top", Json::object(), kPatience);
    if (!answer && !(live && answer.error().code == ErrorCode::kUnavailable))
      return complain("top", answer.error());
    const auto lines = answer ? page_of(*answer, scheduler->trouble())
                              : std::vector<std::string>{"the scheduler does not answer; waiting"};
    if (flags.json) {
      fmt::print("{}", pretty_json(*answer));
    } else if (live) {
      draw(lines);
    } else {
      for (const std::string& line : lines) fmt::print("{}\n", line);
    }
    if (!live) return kExitDone;
    if (interrupts->wait(kDrawEvery) != 0) return kExitDone;
  }
}

}  // namespace

Action add_top(CLI::App& program, const GlobalFlags&) {
  CLI::App* verb = program.add_subcommand("top", "Show sweeps, workers and runs, refreshed live");
  const auto flags = std::make_shared<TopFlags>();
  add_ask_flags(*verb, flags->scheduler);
  verb->add_flag("--once", flags->once, "One page; so it is where no terminal reads it");
  verb->add_flag("--json", flags->json, "One page for machines");
  verb->footer(R"(Examples:
  saesweep top
  saesweep top --once --state /data/lab

Ctrl-C leaves it. SAVED is what checkpoints hold of a run.
)");
  return [flags] { return top(*flags); };
}

}  // namespace saesweep::cli
