// saesweep leaderboard [SWEEP]: the table, from a state directory that may be in use.
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "scheduler/cli/ask.h"
#include "scheduler/cli/build_info.h"
#include "scheduler/cli/program.h"
#include "scheduler/cli/results.h"
#include "scheduler/cli/verbs.h"
#include "scheduler/leaderboard/filter.h"
#include "scheduler/leaderboard/table.h"

namespace saesweep::cli {
namespace {

struct LeaderboardFlags {
  std::string sweep, sort, filter;
  AskFlags scheduler;
  bool json = false, csv = false;
};

Result<scheduler::Leaderboard> board_of(const scheduler::SweepResult& sweep,
                                        const LeaderboardFlags& flags) {
  SAE_TRY(scheduler::Leaderboard board,
          to_leaderboard(sweep, {.commit = commit(), .curves = false}));
  if (!flags.filter.empty()) {
    SAE_TRY(const scheduler::Filter filter, scheduler::parse_filter(flags.filter));
    SAE_TRY_VOID(scheduler::check_fields(filter, board.rows));
    std::vector<scheduler::LeaderboardRow> kept;
    bool before_is_kept = false;
    for (scheduler::LeaderboardRow& row : board.rows) {
      const bool keep = scheduler::matches(filter, row);
      row.tied &= before_is_kept;  // it speaks of the row before
      before_is_kept = keep;
      if (keep) kept.push_back(std::move(row));
    }
    board.rows = std::move(kept);
  }
  if (!flags.sort.empty()) {
    SAE_TRY(const scheduler::SortKey key, scheduler::parse_sort(flags.sort));
    SAE_TRY_VOID(scheduler::check_field(key.field, board.rows));
    scheduler::sort_rows(board.rows, key);
  }
  return board;
}

int show(const LeaderboardFlags& flags, const GlobalFlags& globals) {
  const auto complain = [](const Error& error) { return cli::complain("leaderboard", error); };
  const auto sweep = result_of(flags.scheduler, flags.sweep);
  if (!sweep) return complain(sweep.error());
  const auto board = board_of(*sweep, flags);
  if (!board) return complain(board.error());
  if (flags.json) {
    fmt::print("{}", scheduler::leaderboard_json(*board));
  } else if (flags.csv) {
    fmt::print("{}", scheduler::leaderboard_csv(*board));
  } else {
    fmt::print("{}", scheduler::leaderboard_table(*board, {.color = ::isatty(STDOUT_FILENO) == 1}));
    if (!sweep->finished && !globals.quiet)
      fmt::print(stderr, "{}: not finished yet\n", sweep->name);
  }
  return kExitDone;
}

}  // namespace

Action add_leaderboard(CLI::App& program, const GlobalFlags& globals) {
  CLI::App* verb = program.add_subcommand("leaderboard", "Show the trials of a sweep, best first");
  const auto flags = std::make_shared<LeaderboardFlags>();
  verb->add_option("SWEEP", flags->sweep, "Its name (default: the one run last)");
  add_ask_flags(*verb, flags->scheduler);
  verb->add_option("--sort", flags->sort, "A score or parameter: core.l0, -recon.fve, lr:desc")
      ->type_name("METRIC");
  verb->add_option("--filter", flags->filter, "Rows to show: 'arch=topk and l0<40'")
      ->type_name("CONDITION");
  CLI::Option* json = verb->add_flag("--json", flags->json, "As leaderboard.json");
  verb->add_flag("--csv", flags->csv, "As leaderboard.csv")->excludes(json);
  verb->footer(R"(Examples:
  saesweep leaderboard
  saesweep leaderboard othello-widths --filter 'd_sae>=1k and state=done' --sort l0
  saesweep leaderboard --json > board.json
)");
  return [flags, &globals] { return show(*flags, globals); };
}

}  // namespace saesweep::cli
