#include "scheduler/cli/program.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <array>
#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

#include "core/log.h"
#include "scheduler/cli/verbs.h"
#include "sweeps/nearest.h"

namespace saesweep::cli {
namespace {

constexpr std::string_view kExamples =
    R"(Examples:
  saesweep run sweeps/othello-quickstart.yaml        a whole sweep on this machine
  saesweep validate sweep.yaml                       what it would cost, or what is wrong
  saesweep serve, worker, submit --watch             the same on several machines
  saesweep leaderboard --filter 'arch=topk and l0<40'
  saesweep export 3 --format native --to saes/

Exit codes: 0 done; 1 finished, but some trials failed; 2 wrong arguments or input, nothing started;
3 cannot go on now, try again later; 130 interrupted, the same command continues.
)";

struct VerbEntry {
  std::string_view name;
  Action (*add)(CLI::App&, const GlobalFlags&);
};
constexpr std::array kVerbs{
    VerbEntry{"run", add_run},           VerbEntry{"serve", add_serve},
    VerbEntry{"worker", add_worker},     VerbEntry{"submit", add_submit},
    VerbEntry{"status", add_status},     VerbEntry{"watch", add_watch},
    VerbEntry{"top", add_top},           VerbEntry{"workers", add_workers},
    VerbEntry{"explain", add_explain},   VerbEntry{"logs", add_logs},
    VerbEntry{"cancel", add_cancel},     VerbEntry{"pause", add_pause},
    VerbEntry{"resume", add_resume},     VerbEntry{"retry", add_retry},
    VerbEntry{"priority", add_priority}, VerbEntry{"drain", add_drain},
    VerbEntry{"validate", add_validate}, VerbEntry{"leaderboard", add_leaderboard},
    VerbEntry{"export", add_export},     VerbEntry{"journal", add_journal},
    VerbEntry{"keys", add_keys},         VerbEntry{"bench", add_bench},
    VerbEntry{"doctor", add_doctor},     VerbEntry{"completion", add_completion},
    VerbEntry{"version", add_version}};
constexpr std::array<std::string_view, 5> kLogLevels{"debug", "info", "warn", "error", "off"};

// The first argument that is neither a flag nor the value of a global one.
std::string_view first_word(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (argument == "--log-level")
      ++i;
    else if (!argument.starts_with('-'))
      return argument;
  }
  return {};
}

void set_log_level(std::string_view word) {
  for (std::size_t i = 0; i < kLogLevels.size(); ++i)
    if (kLogLevels[i] == word) log::set_level(static_cast<log::Level>(i));
}

// What a misspelt flag was meant to be; empty if it was not a flag or nothing is close.
std::string flag_suggestion(const CLI::App& verb, int argc, char** argv) {
  std::vector<std::string> names;
  for (const CLI::App* app : {&verb, verb.get_parent()})
    if (app != nullptr)
      for (const CLI::Option* option : app->get_options())
        for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  const std::vector<std::string_view> words(names.begin(), names.end());
  for (int i = 1; i < argc; ++i) {
    std::string_view argument = argv[i];
    if (!argument.starts_with("--")) continue;
    argument = argument.substr(0, argument.find('='));
    if (std::find(words.begin(), words.end(), argument) != words.end()) continue;
    const std::string_view nearest = sweeps::nearest_word(argument, words);
    if (!nearest.empty()) return fmt::format("; did you mean {}?", nearest);
  }
  return {};
}

int misuse(std::string_view verb, std::string_view what) {
  fmt::print(stderr, "saesweep{}{}: {}\n", verb.empty() ? "" : " ", verb, what);
  fmt::print(stderr, "See saesweep{}{} --help\n", verb.empty() ? "" : " ", verb);
  return kExitMisuse;
}

}  // namespace

int exit_code_of(ErrorCode code) {
  return code == ErrorCode::kInvalidArgument || code == ErrorCode::kNotFound ? kExitMisuse
                                                                             : kExitTryLater;
}

int run_program(int argc, char** argv) {
  CLI::App program("Sweeps of sparse autoencoders: trained side by side, scored, ranked.",
                   "saesweep");
  program.footer(std::string(kExamples));
  program.set_help_flag("-h,--help", "Show this help");
  GlobalFlags globals;
  program
      .add_option("--log-level", globals.log_level,
                  "debug, info, warn, error or off (default warn)")
      ->check(CLI::IsMember(std::vector<std::string>(kLogLevels.begin(), kLogLevels.end())))
      ->type_name("LEVEL");
  program.add_flag("--quiet", globals.quiet, "Results and errors only");
  program.require_subcommand(1);

  std::array<Action, kVerbs.size()> actions;
  std::array<std::string_view, kVerbs.size()> names{};
  for (std::size_t i = 0; i < kVerbs.size(); ++i) {
    actions[i] = kVerbs[i].add(program, globals);
    names[i] = kVerbs[i].name;
    program.get_subcommand(std::string(names[i]))->fallthrough();
  }

  const std::string_view verb = first_word(argc, argv);
  const auto known = std::find(names.begin(), names.end(), verb);
  if (!verb.empty() && known == names.end())
    return misuse("", fmt::format("'{}' is not a verb; {}", verb, sweeps::suggestion(verb, names)));
  try {
    program.parse(argc, argv);
  } catch (const CLI::CallForHelp& help) {
    return program.exit(help) == 0 ? kExitDone : kExitMisuse;
  } catch (const CLI::ParseError& error) {
    if (verb.empty()) {
      if (argc == 1) fmt::print(stderr, "{}", program.help());
      return argc == 1 ? kExitMisuse : misuse("", error.what());
    }
    std::string hint;
    if (dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr)
      hint = flag_suggestion(*program.get_subcommand(std::string(verb)), argc, argv);
    return misuse(verb, error.what() + hint);
  }
  set_log_level(globals.log_level);
  return actions[static_cast<std::size_t>(known - names.begin())]();
}

}  // namespace saesweep::cli
