// saesweep journal: the scheduler's memory, checked, exported, imported, backed up.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <string>

#include "scheduler/cli/ask.h"
#include "scheduler/cli/people.h"
#include "scheduler/cli/program.h"
#include "scheduler/cli/verbs.h"
#include "scheduler/service/journal_tools.h"
#include "scheduler/service/state_directory.h"
#include "scheduler/service/state_store.h"

namespace saesweep::cli {
namespace {

namespace fs = std::filesystem;

struct JournalFlags {
  std::string state = "./saesweep-data", file = "-";
  bool json = false;
  fs::path directory() const { return fs::absolute(state).lexically_normal(); }
};

int verify(const JournalFlags& flags) {
  const auto differences = scheduler::verify_journal(flags.directory() / "journal");
  if (!differences) return complain("journal verify", differences.error());
  if (flags.json) {
    fmt::print(
        "{}", pretty_json(
                  {{"schema", 1}, {"valid", differences->empty()}, {"differences", *differences}}));
  } else {
    for (const std::string& difference : *differences) fmt::print("{}\n", printable(difference));
    if (differences->empty()) fmt::print("every object is what the events make of it\n");
  }
  return differences->empty() ? kExitDone : kExitSomeFailed;
}

int export_rows(const JournalFlags& flags) {
  const auto rows =
      scheduler::export_journal(flags.directory() / "journal", [](std::string_view line) {
        return std::fwrite(line.data(), 1, line.size(), stdout) == line.size() &&
               std::fputc('\n', stdout) == '\n';
      });
  if (!rows) return complain("journal export", rows.error());
  return std::fflush(stdout) == 0 ? kExitDone : kExitTryLater;
}

int import_rows(const JournalFlags& flags) {
  const std::string name = flags.file == "-" ? "stdin" : flags.file;
  std::ifstream file;
  if (flags.file != "-") file.open(flags.file);
  std::istream& input = flags.file == "-" ? std::cin : file;
  if (!input)
    return complain("journal import",
                    {ErrorCode::kInvalidArgument, fmt::format("{} cannot be read", name)});
  scheduler::JournalImport import;
  std::string line;
  for (std::uint64_t number = 1; std::getline(input, line); ++number) {
    if (line.empty()) continue;
    if (const auto taken = import.take(line); !taken)
      return complain("journal import",
                      {taken.error().code,
                       fmt::format("{}:{}: {}", name, number, printable(taken.error().message))});
  }
  if (const auto fits = import.check(); !fits)
    return complain(
        "journal import",
        {fits.error().code, fmt::format("{}: {}", name, printable(fits.error().message))});
  const auto rows = import.write(flags.directory());
  if (!rows) return complain("journal import", rows.error());
  if (flags.json)
    fmt::print("{}", pretty_json({{"schema", 1}, {"rows", *rows}}));
  else
    fmt::print("{} rows\n", *rows);
  return kExitDone;
}

int backup(const JournalFlags& flags) {
  std::string to;
  if (const auto living = scheduler::living_endpoint(flags.directory());
      living && !living->clients.empty()) {
    AskFlags ask;
    ask.state = flags.state;
    auto scheduler = Scheduler::find(ask);
    if (!scheduler) return complain("journal backup", scheduler.error());
    const auto answer = scheduler->wish("backup", Json::object());
    if (!answer) return complain("journal backup", answer.error());
    to = answer->value("backup", "");
  } else {
    const auto made = scheduler::backup_journal(flags.directory());
    if (!made) return complain("journal backup", made.error());
    to = made->string();
  }
  if (flags.json)
    fmt::print("{}", pretty_json({{"schema", 1}, {"backup", to}}));
  else
    fmt::print("{}\n", to);
  return kExitDone;
}

}  // namespace

Action add_journal(CLI::App& program, const GlobalFlags&) {
  CLI::App* verb = program.add_subcommand(
      "journal", "Check, export, import or back up a state directory's journal");
  const auto flags = std::make_shared<JournalFlags>();
  const auto chosen = std::make_shared<int (*)(const JournalFlags&)>(nullptr);
  struct Act {
    const char* name;
    const char* does;
    int (*act)(const JournalFlags&);
  };
  for (const Act& one :
       {Act{"verify", "Fold the events and compare with what is stored", verify},
        Act{"export", "Every row as a line of JSON to stdout", export_rows},
        Act{"import", "Rows that export wrote become the journal of a new state", import_rows},
        Act{"backup", "Copy it to STATE/backups/", backup}}) {
    CLI::App* sub = verb->add_subcommand(one.name, one.does);
    sub->add_option("--state", flags->state, "Of run or serve (default ./saesweep-data)")
        ->type_name("DIR");
    sub->add_flag("--json", flags->json, "For machines");
    if (one.act == import_rows)
      sub->add_option("FILE", flags->file, "What export wrote (default -: stdin)");
    sub->callback([chosen, act = one.act] { *chosen = act; });
  }
  verb->require_subcommand(1);
  verb->footer(R"(Examples:
  saesweep journal verify --state /data/lab
  saesweep journal export | jq 'select(.family == "event")'
  saesweep journal export > rows.jsonl; saesweep journal import rows.jsonl --state /data/new
  saesweep journal backup

An import has no files: copy STATE/artifacts and STATE/trials beside it, or what is missing is done
again when its sweep is submitted. verify, export and backup work beside a scheduler that serves. verify exits with 1 if something differs.
)");
  return [flags, chosen] { return (*chosen)(*flags); };
}

}  // namespace saesweep::cli
