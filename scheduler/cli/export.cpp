// saesweep export TRIAL...: trained dictionaries as folders that others load.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "core/files.h"
#include "scheduler/cli/ask.h"
#include "scheduler/cli/program.h"
#include "scheduler/cli/selectors.h"
#include "scheduler/cli/verbs.h"

namespace saesweep::cli {
namespace {

namespace fs = std::filesystem;

struct ExportFlags {
  std::vector<std::string> trials;
  std::string format = "native", to, sweep;
  AskFlags scheduler;
};

constexpr const char* kNativeFiles[] = {"sae.safetensors", "config.json"};

Result<fs::path> export_trial(const scheduler::SubjectResult& trial, const fs::path& to) {
  const std::string id = trial.identity.substr(0, 12);
  for (const char* name : kNativeFiles)
    if (!trial.files.contains(name))
      return fail(ErrorCode::kNotFound, "trial {} ({}) is {} and has no {}", trial.number, id,
                  trial.state, name);
  const fs::path folder = to / id;
  SAE_TRY_VOID(make_directories(folder));
  for (const char* name : kNativeFiles) {
    SAE_TRY(const std::string bytes, read_file(trial.files.at(name)));
    SAE_TRY_VOID(write_file_atomically(folder / name, bytes));
  }
  return folder;
}

int export_all(const ExportFlags& flags) {
  const auto complain = [](const Error& error) { return cli::complain("export", error); };
  if (flags.format != "native")
    return complain({ErrorCode::kInvalidArgument,
                     fmt::format("--format {}: this version writes native; saelens, "
                                 "dictionary_learning and sparsify come with a later one",
                                 flags.format)});
  const auto sweep = result_of(flags.scheduler, flags.sweep);
  if (!sweep) return complain(sweep.error());
  // All of them are meant before one is written.
  std::vector<const scheduler::SubjectResult*> chosen;
  const auto indexes = select_trials(flags.trials, sweep->subjects);
  if (!indexes) return complain(indexes.error());
  for (const std::size_t index : *indexes) chosen.push_back(&sweep->subjects[index]);
  for (const scheduler::SubjectResult* trial : chosen) {
    const auto folder = export_trial(*trial, fs::absolute(flags.to).lexically_normal());
    if (!folder) return complain(folder.error());
    fmt::print("{}\n", folder->string());
  }
  return kExitDone;
}

}  // namespace

Action add_export(CLI::App& program, const GlobalFlags&) {
  CLI::App* verb =
      program.add_subcommand("export", "Write trained SAEs as folders others can load");
  const auto flags = std::make_shared<ExportFlags>();
  verb->add_option("TRIAL", flags->trials,
                   "3, 1-10, all, last, an id (12 hex digits), or id: and at least 4 of them")
      ->required();
  verb->add_option("--format", flags->format, "native: sae.safetensors + config.json")
      ->check(CLI::IsMember({"native", "saelens", "dictionary_learning", "sparsify"}))
      ->type_name("FORMAT");
  verb->add_option("--to", flags->to, "A folder; each trial gets one of its own in it")
      ->required()
      ->type_name("DIR");
  verb->add_option("--sweep", flags->sweep, "Its name (default: the one run last)")
      ->type_name("NAME");
  add_ask_flags(*verb, flags->scheduler);
  verb->footer(R"(Examples:
  saesweep export 3 7 --format native --to saes/
  saesweep export id:3fa9 --sweep othello-widths --to saes/
)");
  return [flags] { return export_all(*flags); };
}

}  // namespace saesweep::cli
