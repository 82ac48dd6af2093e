#include "scheduler/cli/screen.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>

#include "scheduler/cli/people.h"

namespace saesweep::cli {
namespace {

double unix_seconds() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}
double monotonic_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
void put(const std::string& bytes) {
  if (!bytes.empty()) fmt::print(stderr, "{}", bytes);
}

}  // namespace

std::size_t terminal_width() {
  winsize size{};
  return ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

Screen::Screen(bool json, bool quiet)
    : json_(json),
      progress_(quiet                     ? ProgressStyle::kNone
                : ::isatty(STDERR_FILENO) ? ProgressStyle::kTerminal
                                          : ProgressStyle::kLog) {}

bool Screen::hear(Json event) {
  progress_.hear(event, monotonic_seconds());
  if (event.value("event", "") == "trial.failed")
    say(fmt::format("trial {} failed: {}", event.value("number", Json()).dump(),
                    printable(event.value("reason", std::string()))));
  if (!json_) return true;
  event["time"] = unix_seconds();
  const std::string line = canonical_json(event) + "\n";
  return std::fwrite(line.data(), 1, line.size(), stdout) == line.size() &&
         std::fflush(stdout) == 0;
}

void Screen::tick() { put(progress_.tick(monotonic_seconds(), terminal_width())); }
void Screen::say(const std::string& line) { put(progress_.say(line)); }
void Screen::finish() { put(progress_.finish()); }

}  // namespace saesweep::cli
