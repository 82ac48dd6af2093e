// For people who change the report: writes samples of it, from twelve trials to five hundred, to
// look at in a browser.
//
//   sample_reports DIRECTORY
#include <fmt/core.h>

#include "core/files.h"
#include "scheduler/leaderboard/report_page.h"
#include "tests/scheduler/leaderboard/example_board.h"

namespace {

bool write(const std::filesystem::path& path, const saesweep::scheduler::Leaderboard& board) {
  const auto written =
      saesweep::write_file_atomically(path, saesweep::scheduler::report_page(board));
  if (!written) fmt::print(stderr, "{}\n", written.error().message);
  return written.has_value();
}

}  // namespace

int main(int count, char** arguments) {
  using saesweep::test::example_board;
  if (count != 2) {
    fmt::print(stderr, "usage: {} DIRECTORY\n", arguments[0]);
    return 2;
  }
  const std::filesystem::path directory = arguments[1];
  const bool all =
      write(directory / "typical.html", example_board()) &&
      write(directory / "small.html", example_board({.trials = 12})) &&
      write(directory / "large.html", example_board({.trials = 500, .hooks = 2})) &&
      write(directory / "no_model.html", example_board({.trials = 24, .model = false})) &&
      write(directory / "no_board.html",
            example_board({.trials = 24, .board = false, .curve_points = 0})) &&
      write(directory / "empty.html", {.sweep = "nothing yet", .commit = "", .rows = {}});
  return all ? 0 : 1;
}
