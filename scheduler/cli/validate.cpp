// saesweep validate FILE: what a sweep would cost, or everything that is wrong with its file.
// Writes nothing.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/json.h"
#include "scheduler/cli/child_process.h"
#include "scheduler/cli/people.h"
#include "scheduler/cli/program.h"
#include "scheduler/cli/stopping_text.h"
#include "scheduler/cli/verbs.h"
#include "sweeps/estimates.h"
#include "sweeps/sweep_plan.h"

namespace saesweep::cli {
namespace {

struct ValidateFlags {
  std::string file;
  std::vector<std::string> overrides;
  bool json = false;
};

int report_errors(const ValidateFlags& flags, const std::vector<sweeps::SweepFileError>& errors) {
  for (const sweeps::SweepFileError& error : errors)
    if (!flags.json) fmt::print(stderr, "{}\n", error.to_string());
  if (!flags.json) return kExitMisuse;
  Json list = Json::array();
  for (const sweeps::SweepFileError& error : errors)
    list.push_back({{"file", error.file},
                    {"line", error.line},
                    {"column", error.column},
                    {"key", error.key},
                    {"message", error.message}});
  fmt::print("{}", pretty_json({{"file", flags.file},
                                {"valid", false},
                                {"warnings", Json::array()},
                                {"errors", std::move(list)}}));
  return kExitMisuse;
}

std::string families_text(const sweeps::SweepPlan& plan) {
  std::map<std::string, std::size_t> counts;
  for (const sweeps::PlannedTrial& trial : plan.trials)
    ++counts[std::string(sweeps::to_string(trial.spec.training.architecture))];
  std::string text;
  for (const auto& [name, number] : counts)
    text += fmt::format("{}{} {}", text.empty() ? "" : ", ", number, name);
  return text;
}

void print_summary(const sweeps::SweepPlan& plan, const sweeps::SweepEstimate& estimate) {
  fmt::print("{}\n", plan.name);
  if (plan.train_lm)
    fmt::print("  trains     a model of {} layers, d_model {}, on {} games\n",
               plan.train_lm->layers, plan.train_lm->d_model,
               count_text(static_cast<double>(plan.train_lm->games)));
  else
    fmt::print("  trials     {} ({}) on {} {}\n  baselines  {}\n", plan.trials.size(),
               families_text(plan), plan.streams.size(),
               plan.streams.size() == 1 ? "stream" : "streams", plan.baselines.size());
  if (plan.early_stopping)
    fmt::print("  stopping   {}\n", stopping_text(plan, scheduler::to_submission(plan)));
  fmt::print("  tokens     {} in all{}\n", count_text(static_cast<double>(estimate.tokens)),
             plan.early_stopping ? " if nothing were stopped" : "");
  fmt::print("  memory     about {}, {} allowed\n",
             bytes_text(static_cast<double>(estimate.memory_bytes)),
             bytes_text(static_cast<double>(plan.resources.memory_bytes)));
  if (estimate.gpu_memory_bytes > 0)
    fmt::print("  GPU        about {} of memory for the largest trial\n",
               bytes_text(static_cast<double>(estimate.gpu_memory_bytes)));
  fmt::print("  disk       about {}\n", bytes_text(static_cast<double>(estimate.disk_bytes)));
  fmt::print("  time       about {} on two cores\n", duration_text(estimate.seconds));
  for (const std::string& warning : plan.warnings) fmt::print("warning: {}\n", warning);
  if (plan.warnings.empty()) fmt::print("nothing to warn about\n");
}

int validate(const ValidateFlags& flags) {
  auto plan = sweeps::plan_sweep(flags.file, {.overrides = flags.overrides});
  if (!plan) return report_errors(flags, plan.error());
  if (plan->device_is_auto && auto_device("") == "cuda")
    plan = sweeps::plan_sweep(flags.file, {.overrides = flags.overrides, .auto_device = "cuda"});
  const sweeps::SweepEstimate estimate = sweeps::estimate(*plan);
  if (!flags.json) {
    print_summary(*plan, estimate);
    return kExitDone;
  }
  fmt::print("{}",
             pretty_json({{"file", flags.file},
                          {"valid", true},
                          {"name", plan->name},
                          {"trials", plan->trials.size()},
                          {"baselines", plan->baselines.size()},
                          {"tokens", estimate.tokens},
                          {"memory_bytes", estimate.memory_bytes},
                          {"gpu_memory_bytes", estimate.gpu_memory_bytes},
                          {"disk_bytes", estimate.disk_bytes},
                          {"seconds", estimate.seconds},
                          {"early_stopping", stopping_json(*plan, scheduler::to_submission(*plan))},
                          {"warnings", plan->warnings},
                          {"errors", Json::array()}}));
  return kExitDone;
}

}  // namespace

Action add_validate(CLI::App& program, const GlobalFlags&) {
  CLI::App* verb =
      program.add_subcommand("validate", "Count trials, tokens, memory, time and disk; warn");
  const auto flags = std::make_shared<ValidateFlags>();
  verb->add_option("FILE", flags->file, "The sweep file")->required();
  verb->add_option("--set", flags->overrides, "Override one key of the file: train.tokens=1M")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
  verb->add_flag("--json", flags->json, "For machines");
  verb->footer(R"(Examples:
  saesweep validate sweep.yaml
  saesweep validate sweep.yaml --set trials.0.k=[8,16] --json
)");
  return [flags] { return validate(*flags); };
}

}  // namespace saesweep::cli
