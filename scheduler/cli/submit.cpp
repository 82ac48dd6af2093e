// saesweep submit FILE: hands a sweep to the scheduler that serves, or says what it would be.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/json.h"
#include "scheduler/cli/ask.h"
#include "scheduler/cli/people.h"
#include "scheduler/cli/program.h"
#include "scheduler/cli/stopping_text.h"
#include "scheduler/cli/verbs.h"
#include "scheduler/cli/watching.h"
#include "scheduler/service/submission.h"
#include "sweeps/estimates.h"
#include "sweeps/sweep_plan.h"

namespace saesweep::cli {
namespace {

struct SubmitFlags {
  AskFlags scheduler;
  std::string file, out;
  std::vector<std::string> overrides;
  bool watch = false, dry_run = false, json = false;
};

// What the sweep would be: trials, cohorts, memory of each, time, warnings.
struct DryRun {
  std::vector<std::size_t> cohorts;                 // trials that train side by side, at most
  std::uint64_t least_memory = 0, most_memory = 0;  // of a trial
};

DryRun dry_run_of(const scheduler::Submission& submission) {
  DryRun dry;
  std::map<std::string, std::size_t> groups;
  for (const auto& task : submission.tasks) {
    if (task.kind() != protocol::TASK_KIND_TRAIN) continue;
    ++groups[task.group()];
    dry.most_memory = std::max(dry.most_memory, task.memory_bytes());
    dry.least_memory = dry.least_memory == 0 ? task.memory_bytes()
                                             : std::min(dry.least_memory, task.memory_bytes());
  }
  for (auto [group, left] : groups)
    for (; left > 0; left -= std::min<std::size_t>(left, scheduler::kMostTrainTasks))
      dry.cohorts.push_back(std::min<std::size_t>(left, scheduler::kMostTrainTasks));
  std::ranges::sort(dry.cohorts, std::greater{});
  return dry;
}

int show_dry_run(const SubmitFlags& flags, const sweeps::SweepPlan& plan) {
  const sweeps::SweepEstimate estimate = sweeps::estimate(plan);
  const scheduler::Submission submission = scheduler::to_submission(plan);
  const DryRun dry = dry_run_of(submission);
  if (flags.json) {
    fmt::print("{}", pretty_json({{"schema", 1},
                                  {"name", plan.name},
                                  {"trials", plan.trials.size()},
                                  {"baselines", plan.baselines.size()},
                                  {"cohorts", dry.cohorts},
                                  {"trial_memory_bytes",
                                   {{"least", dry.least_memory}, {"most", dry.most_memory}}},
                                  {"tokens", estimate.tokens},
                                  {"disk_bytes", estimate.disk_bytes},
                                  {"seconds", estimate.seconds},
                                  {"early_stopping", stopping_json(plan, submission)},
                                  {"warnings", plan.warnings}}));
    return kExitDone;
  }
  fmt::print("{}: nothing is submitted\n", plan.name);
  fmt::print("  trials     {}, baselines {}\n", plan.trials.size(), plan.baselines.size());
  std::string sizes;
  for (const std::size_t size : dry.cohorts)
    sizes += fmt::format("{}{}", sizes.empty() ? "" : ", ", size);
  fmt::print("  cohorts    {} (of {} trials)\n", dry.cohorts.size(), sizes.empty() ? "no" : sizes);
  fmt::print("  memory     {} to {} for a trial\n",
             bytes_text(static_cast<double>(dry.least_memory)),
             bytes_text(static_cast<double>(dry.most_memory)));
  if (plan.early_stopping) fmt::print("  stopping   {}\n", stopping_text(plan, submission));
  fmt::print("  disk       about {}\n", bytes_text(static_cast<double>(estimate.disk_bytes)));
  fmt::print("  time       about {} on two cores\n", duration_text(estimate.seconds));
  for (const std::string& warning : plan.warnings) fmt::print("warning: {}\n", warning);
  return kExitDone;
}

// A worker that is there has one.
bool has_gpu(const Json& view) {
  return std::ranges::any_of(view.at("workers"), [](const Json& worker) {
    return worker.value("state", "") == "here" && worker.value("gpus", 0) > 0;
  });
}

int submit(const SubmitFlags& flags, const GlobalFlags& globals) {
  auto plan = sweeps::plan_sweep(flags.file, {.overrides = flags.overrides});
  if (!plan) {
    for (const sweeps::SweepFileError& error : plan.error())
      fmt::print(stderr, "{}\n", error.to_string());
    return kExitMisuse;
  }
  if (flags.dry_run) return show_dry_run(flags, *plan);
  auto interrupts = Interrupts::take();
  if (!interrupts) return complain("submit", interrupts.error());
  auto scheduler = Scheduler::find(flags.scheduler);
  if (!scheduler) return complain("submit", scheduler.error());
  if (plan->device_is_auto) {
    const auto workers = scheduler->ask("workers");
    if (!workers) return complain("submit", workers.error());
    if (has_gpu(*workers))
      plan = sweeps::plan_sweep(flags.file, {.overrides = flags.overrides, .auto_device = "cuda"});
  }
  Screen screen(flags.json && flags.watch, globals.quiet);
  if (!globals.quiet)
    for (const std::string& warning : plan->warnings) screen.say("warning: " + warning);
  const std::string payload = scheduler::to_payload(scheduler::to_submission(*plan));
  const auto answer = scheduler->wish("submit", Json::object(), payload);
  if (!answer) return complain("submit", answer.error());
  if (!flags.watch) {
    if (flags.json)
      fmt::print("{}", pretty_json(*answer));
    else
      fmt::print("{}\n", plan->name);
    if (!globals.quiet && !flags.json)
      fmt::print(stderr,
                 "submitted: {} tasks, {} of them known; follow it with: saesweep watch {}\n",
                 answer->value("tasks", 0), answer->value("known_tasks", 0), plan->name);
    return kExitDone;
  }
  return watch_sweep(flags.scheduler, *scheduler, *interrupts, screen,
                     {.verb = "submit",
                      .sweep = plan->name,
                      .out = flags.out,
                      .json = flags.json,
                      .quiet = globals.quiet});
}

}  // namespace

Action add_submit(CLI::App& program, const GlobalFlags& globals) {
  CLI::App* verb = program.add_subcommand("submit", "Hand a sweep to the scheduler that serves");
  const auto flags = std::make_shared<SubmitFlags>();
  verb->add_option("FILE", flags->file, "The sweep file")->required();
  add_ask_flags(*verb, flags->scheduler);
  verb->add_option("--set", flags->overrides, "Override one key of the file: train.tokens=1M")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
  verb->add_flag("--watch", flags->watch, "Follow it to its end and write its results");
  verb->add_option("--out", flags->out, "With --watch: results (default ./saesweep-out/NAME)")
      ->type_name("DIR");
  verb->add_flag("--dry-run", flags->dry_run,
                 "Say what it would be: trials, cohorts, memory, time; submit nothing");
  verb->add_flag("--json", flags->json, "For machines; with --watch one event a line");
  verb->footer(R"(Examples:
  saesweep submit sweep.yaml --state /data/lab
  saesweep submit sweep.yaml --watch --out results/
  saesweep submit sweep.yaml --dry-run

The sweep is durable once its name is printed. Submitting a file again is the same sweep; of a
changed file only what changed is done.
)");
  return [flags, &globals] { return submit(*flags, globals); };
}

}  // namespace saesweep::cli
