// saesweep cancel, pause, resume, retry, priority, drain: a person's word to the scheduler.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "scheduler/cli/ask.h"
#include "scheduler/cli/people.h"
#include "scheduler/cli/program.h"
#include "scheduler/cli/verbs.h"

namespace saesweep::cli {
namespace {

struct CommandFlags {
  AskFlags scheduler;
  std::string verb, sweep, worker;
  std::vector<std::string> words;  // trials, or one name of a sweep
  std::optional<int> priority;
  std::optional<double> weight;
  bool failed = false, undo = false, json = false;
};

std::string counted(const Json& answer, const char* name, const char* unit) {
  const auto count = answer.value(name, std::uint64_t{0});
  return fmt::format("{} {}{}", count, unit, count == 1 ? "" : "s");
}

// What became of it, in a sentence. Rows are trials and baselines.
std::string sentence(const CommandFlags& flags, const Json& answer) {
  const std::string verb = answer.value("verb", flags.verb);
  const std::string sweep = printable(answer.value("sweep", ""));
  const auto is_any = [&](const char* name) { return answer.value(name, std::uint64_t{0}) > 0; };
  if (verb == "cancel")
    return fmt::format(
        "{}: cancelled {}, {}{}", sweep, counted(answer, "trials", "row"),
        counted(answer, "tasks", "task"),
        is_any("kept_for_others")
            ? fmt::format("; kept for other sweeps: {}", counted(answer, "kept_for_others", "task"))
            : "");
  if (verb == "pause")
    return fmt::format("{}: paused {}{}", sweep, counted(answer, "trials", "row"),
                       is_any("running") ? fmt::format(", after checkpoints of {}",
                                                       counted(answer, "running", "task"))
                                         : "");
  if (verb == "resume")
    return fmt::format("{}: resumed {}", sweep, counted(answer, "trials", "row"));
  if (verb == "retry")
    return fmt::format("{}: trying {} again, {}", sweep, counted(answer, "trials", "row"),
                       counted(answer, "tasks", "task"));
  if (verb == "priority")
    return fmt::format("{}: priority {}, weight {}", sweep, answer.value("priority", 0),
                       answer.value("weight", 1.0));
  std::vector<std::string> names;
  for (const Json& name : answer.value("workers", Json::array()))
    names.push_back(printable(name.get<std::string>()));
  const std::string workers = fmt::format("{}", fmt::join(names, ", "));
  if (verb == "undrain") return fmt::format("{}: gets new work again", workers);
  return fmt::format("{}: gets no new work, leaves {}", workers,
                     is_any("runs")
                         ? fmt::format("after checkpoints of {}", counted(answer, "runs", "run"))
                         : "now");
}

int show(const CommandFlags& flags, const Json& answer) {
  if (flags.json)
    fmt::print("{}", pretty_json(answer));
  else
    fmt::print("{}\n", sentence(flags, answer));
  return kExitDone;
}

int wish(const CommandFlags& flags, const std::string& kind, Json body) {
  auto scheduler = Scheduler::find(flags.scheduler);
  if (!scheduler) return complain(flags.verb, scheduler.error());
  const auto answer = scheduler->wish(kind, std::move(body));
  if (!answer) return complain(flags.verb, answer.error());
  return show(flags, *answer);
}

// One word may be the name of a sweep; several, or one that is a selector, are trials of --sweep.
Result<Json> sweep_body(const CommandFlags& flags) {
  Json body{{"sweep", flags.sweep}, {"verb", flags.verb}, {"failed", flags.failed}};
  if (flags.words.size() != 1 || !flags.sweep.empty()) {
    body["trials"] = flags.words;
    return body;
  }
  const std::string& word = flags.words.front();
  if (word == "all") return body;  // of the sweep submitted last
  SAE_TRY(Scheduler scheduler, Scheduler::find(flags.scheduler));
  SAE_TRY(const Json status, scheduler.ask("status"));
  bool is_sweep = word == "last";
  for (const Json& sweep : status.at("sweeps")) is_sweep |= sweep.value("name", "") == word;
  if (is_sweep)
    body["sweep"] = word;
  else
    body["trials"] = flags.words;
  return body;
}

int sweep_command(const CommandFlags& flags) {
  // A verb that ends or holds things wants to be told which.
  if (flags.words.empty() && flags.sweep.empty() && !flags.failed) {
    fmt::print(stderr,
               "saesweep {0}: of what? a sweep (saesweep {0} NAME, or last) or trials (saesweep "
               "{0} 3 7-9 --sweep NAME) would be right\n",
               flags.verb);
    return kExitMisuse;
  }
  auto body = sweep_body(flags);
  if (!body) return complain(flags.verb, body.error());
  return wish(flags, "sweep", std::move(*body));
}

Action add_sweep_command(CLI::App& program, const std::string& name, const std::string& does,
                         const std::string& footer) {
  CLI::App* verb = program.add_subcommand(name, does);
  const auto flags = std::make_shared<CommandFlags>();
  flags->verb = name;
  verb->add_option("WHAT", flags->words,
                   "A sweep's name, or last; or trials: 5, 1-10, all, last (with --sweep), an id, "
                   "id:3fa9");
  verb->add_option("--sweep", flags->sweep, "The trials' sweep (default: the one submitted last)")
      ->type_name("NAME");
  if (name == "retry") verb->add_flag("--failed", flags->failed, "Only what failed");
  add_ask_flags(*verb, flags->scheduler);
  verb->add_flag("--json", flags->json, "For machines");
  verb->footer(footer);
  return [flags] { return sweep_command(*flags); };
}

}  // namespace

Action add_cancel(CLI::App& program, const GlobalFlags&) {
  return add_sweep_command(program, "cancel", "End a sweep or some of its trials", R"(Examples:
  saesweep cancel othello-widths
  saesweep cancel 3 7-9 --sweep othello-widths

What another sweep wants too goes on for it. Results that are there are kept.
)");
}

Action add_pause(CLI::App& program, const GlobalFlags&) {
  return add_sweep_command(program, "pause", "Hold a sweep or some of its trials", R"(Examples:
  saesweep pause othello-widths
  saesweep pause 1-10 --sweep othello-widths

What runs makes a checkpoint and waits; saesweep resume goes on from there.
)");
}

Action add_resume(CLI::App& program, const GlobalFlags&) {
  return add_sweep_command(program, "resume", "Go on with what was paused", R"(Examples:
  saesweep resume othello-widths
  saesweep resume 1-10 --sweep othello-widths
)");
}

Action add_retry(CLI::App& program, const GlobalFlags&) {
  return add_sweep_command(program, "retry", "Try again what failed or was cancelled", R"(Examples:
  saesweep retry last --failed
  saesweep retry id:3fa9 --sweep othello-widths
)");
}

Action add_priority(CLI::App& program, const GlobalFlags&) {
  CLI::App* verb =
      program.add_subcommand("priority", "Which sweep goes first, and whose share is larger");
  const auto flags = std::make_shared<CommandFlags>();
  flags->verb = "priority";
  verb->add_option("SWEEP", flags->sweep, "Its name, or last")->required();
  verb->add_option("NUMBER", flags->priority,
                   "-100 to 100: the higher goes first, whatever the shares (0 at first)");
  verb->add_option("--weight", flags->weight,
                   "Of its share among sweeps of one priority (1 at first)");
  add_ask_flags(*verb, flags->scheduler);
  verb->add_flag("--json", flags->json, "For machines");
  verb->footer(R"(Examples:
  saesweep priority othello-widths 10
  saesweep priority othello-widths --weight 3

What runs is not interrupted: the next free slots go by it.
)");
  return [flags] {
    Json body{{"sweep", flags->sweep}};
    if (flags->priority) body["priority"] = *flags->priority;
    if (flags->weight) body["weight"] = *flags->weight;
    if (body.size() == 1) {
      fmt::print(stderr, "saesweep priority: which? a number or --weight would be right\n");
      return static_cast<int>(kExitMisuse);
    }
    return wish(*flags, "priority", std::move(body));
  };
}

Action add_drain(CLI::App& program, const GlobalFlags&) {
  CLI::App* verb =
      program.add_subcommand("drain", "Let a worker checkpoint what it runs and leave");
  const auto flags = std::make_shared<CommandFlags>();
  flags->verb = "drain";
  verb->add_option("WORKER", flags->worker, "Its name or session, see saesweep workers")
      ->required();
  verb->add_flag("--undo", flags->undo, "It may have work again");
  add_ask_flags(*verb, flags->scheduler);
  verb->add_flag("--json", flags->json, "For machines");
  verb->footer(R"(Examples:
  saesweep drain node-7
  saesweep drain node-7 --undo
)");
  return [flags] {
    return wish(*flags, "worker",
                {{"worker", flags->worker}, {"verb", flags->undo ? "undrain" : "drain"}});
  };
}

}  // namespace saesweep::cli
