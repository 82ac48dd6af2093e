// saesweep watch [SWEEP]: progress of a sweep that a scheduler works on, and its results at the
// end.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "core/files.h"
#include "scheduler/cli/outcome.h"
#include "scheduler/cli/people.h"
#include "scheduler/cli/program.h"
#include "scheduler/cli/verbs.h"
#include "scheduler/cli/watching.h"
#include "scheduler/service/result_json.h"

namespace saesweep::cli {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using std::chrono::steady_clock;

constexpr auto kAskEvery = 200ms;
constexpr auto kPatience = 2s;         // of one question, so that Ctrl-C is heard
constexpr auto kGonePatience = 10min;  // for a scheduler that was there to come back

struct WatchFlags {
  AskFlags scheduler;
  std::string sweep, out;
  bool json = false;
};

// True if nothing will become of the sweep any more.
bool is_over(const Json& summary) {
  const std::string state = summary.value("state", "");
  return state == "done" || state == "cancelled";
}

}  // namespace

int watch_sweep(const AskFlags& flags, Scheduler& scheduler, Interrupts& interrupts, Screen& screen,
                const WatchOptions& options) {
  std::string sweep = options.sweep;
  Json body{{"sweep", sweep}};
  std::optional<steady_clock::time_point> gone;
  std::string trouble;
  bool started = false;
  while (true) {
    const auto answer = scheduler.ask("events", body, kPatience);
    if (!answer) {
      const bool may_come_back = answer.error().code == ErrorCode::kUnavailable && started;
      if (may_come_back && !gone) {
        gone = steady_clock::now();
        screen.say("the scheduler does not answer; waiting for it ...");
      }
      if (!may_come_back || steady_clock::now() - *gone > kGonePatience) {
        screen.finish();
        return complain(options.verb, answer.error());
      }
    } else {
      if (gone) screen.say("the scheduler is back");
      gone.reset();
      if (scheduler.trouble() != trouble && !scheduler.trouble().empty())
        screen.say("the scheduler waits: " + printable(scheduler.trouble()));
      trouble = scheduler.trouble();
      const Json& summary = answer->at("sweep");
      if (!started) {
        started = true;
        sweep = summary.at("name").get<std::string>();
        const Json& trials = summary.at("trials");
        screen.hear({{"event", "sweep.started"},
                     {"sweep", sweep},
                     {"trials", trials.value("total", 0)},
                     {"done", trials.value("done", 0)}});
      }
      for (const Json& event : answer->at("events"))
        if (!screen.hear(event)) return kExitDone;  // nobody reads our output any more
      body = {{"sweep", sweep}, {"since", answer->at("next")}};
      // Whatever happened before the end was said before it.
      if (is_over(summary) && answer->at("events").empty()) break;
    }
    screen.tick();
    if (interrupts.wait(std::chrono::milliseconds(kAskEvery)) == 0) continue;
    screen.finish();
    fmt::print(stderr, "{} goes on; see it again with: saesweep watch {}\n", sweep, sweep);
    return kExitInterrupted;
  }
  screen.finish();
  const auto answer = scheduler.ask("result", {{"sweep", sweep}});
  if (!answer) return complain(options.verb, answer.error());
  const auto result = scheduler::result_from_json(*answer);
  if (!result) return complain(options.verb, result.error());
  const fs::path out =
      fs::absolute(options.out.empty() ? fs::path("saesweep-out") / sweep : fs::path(options.out))
          .lexically_normal();
  if (auto made = make_directories(out); !made) return complain(options.verb, made.error());
  return write_results(*result,
                       {.verb = options.verb,
                        .executor = Json::object(),
                        .state = fs::absolute(flags.state).lexically_normal(),
                        .out = out,
                        .json = options.json,
                        .quiet = options.quiet},
                       screen);
}

Action add_watch(CLI::App& program, const GlobalFlags& globals) {
  CLI::App* verb = program.add_subcommand("watch", "Follow a sweep to its end and its results");
  const auto flags = std::make_shared<WatchFlags>();
  verb->add_option("SWEEP", flags->sweep, "Its name (default: the one submitted last)");
  add_ask_flags(*verb, flags->scheduler);
  verb->add_option("--out", flags->out, "Results (default ./saesweep-out/NAME)")->type_name("DIR");
  verb->add_flag("--json", flags->json, "One event a line to stdout, as `run` writes them");
  verb->footer(R"(Examples:
  saesweep watch
  saesweep watch othello-widths --state /data/lab --out results/

Ctrl-C leaves the sweep running.
)");
  return [flags, &globals] {
    auto interrupts = Interrupts::take();
    if (!interrupts) return complain("watch", interrupts.error());
    auto scheduler = Scheduler::find(flags->scheduler);
    if (!scheduler) return complain("watch", scheduler.error());
    Screen screen(flags->json, globals.quiet);
    return watch_sweep(flags->scheduler, *scheduler, *interrupts, screen,
                       {.verb = "watch",
                        .sweep = flags->sweep,
                        .out = flags->out,
                        .json = flags->json,
                        .quiet = globals.quiet});
  };
}

}  // namespace saesweep::cli
