#include "scheduler/cli/outcome.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>

#include "core/files.h"
#include "scheduler/cli/build_info.h"
#include "scheduler/cli/machine.h"
#include "scheduler/cli/people.h"
#include "scheduler/cli/program.h"
#include "scheduler/cli/results.h"
#include "scheduler/leaderboard/table.h"

namespace saesweep::cli {
namespace {

namespace fs = std::filesystem;

// The executor's LibTorch belongs into run.json; a run that found everything done keeps what the
// last one wrote there.
Json versions(const Json& executor, const fs::path& out) {
  Json all{{"saesweep", version()},
           {"commit", commit()},
           {"compiler", compiler()},
           {"libraries", library_versions()}};
  Json before = Json::object();
  if (const auto text = read_file(out / "run.json", 1 << 20))
    if (const auto json = parse_json(*text); json && json->is_object())
      before = json->value("versions", Json::object());
  for (const Json& known : {executor, before})
    if (known.is_object() && known.contains("libtorch") && !all.contains("libtorch"))
      all["libtorch"] = known["libtorch"];
  return all;
}

// A sweep without rows trains a model.
bool trains_model(const scheduler::SweepResult& result) { return result.subjects.empty(); }

struct Counts {
  std::size_t trials = 0, failed = 0;
};

Counts count(const scheduler::SweepResult& result) {
  Counts counts;
  if (trains_model(result)) return {1, result.model_files.contains("model.safetensors") ? 0u : 1u};
  for (const scheduler::SubjectResult& subject : result.subjects) {
    if (!subject.baseline) ++counts.trials;
    // What was stopped early is as it was asked for.
    if (subject.state != "done" && subject.state != "stopped") ++counts.failed;
  }
  return counts;
}

}  // namespace

int write_results(const scheduler::SweepResult& result, const OutcomeOptions& options,
                  Screen& screen) {
  const RunFacts facts{.host = describe_host(),
                       .versions = versions(options.executor, options.out),
                       .state = options.state,
                       .out = options.out};
  const auto contents = to_out_contents(result, facts, commit());
  if (!contents) {
    fmt::print(stderr, "saesweep {}: {}\n", options.verb, contents.error().message);
    return exit_code_of(contents.error().code);
  }
  if (auto written = scheduler::write_out(options.out, *contents); !written) {
    fmt::print(stderr, "saesweep {}: --out: {}\n", options.verb, written.error().message);
    return kExitTryLater;
  }

  std::FILE* people = options.json ? stderr : stdout;
  const Counts counts = count(result);
  if (trains_model(result)) {
    for (const auto& [key, value] : result.model_summary.items())
      if (value.is_number() || value.is_string()) fmt::print(people, "{}: {}\n", key, value.dump());
    if (counts.failed == 0) fmt::print(people, "model: {}\n", (options.out / "model").string());
  } else {
    const bool color = ::isatty(::fileno(people)) == 1;
    fmt::print(people, "{}", scheduler::leaderboard_table(contents->board, {.color = color}));
    fmt::print(people, "report: {}\n", (options.out / "report.html").string());
    if (counts.failed > 0 && !options.quiet)
      fmt::print(stderr, "{} of the rows above did not finish\n", counts.failed);
  }
  std::fflush(people);
  screen.hear({{"event", "sweep.finished"},
               {"sweep", result.name},
               {"trials", counts.trials},
               {"failed", counts.failed},
               {"out", options.out.string()}});
  return counts.failed == 0 ? kExitDone : kExitSomeFailed;
}

}  // namespace saesweep::cli
