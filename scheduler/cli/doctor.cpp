// saesweep doctor: what this machine offers, what is missing and how to get it.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>

#include "scheduler/cli/build_info.h"
#include "scheduler/cli/child_process.h"
#include "scheduler/cli/machine.h"
#include "scheduler/cli/people.h"
#include "scheduler/cli/program.h"
#include "scheduler/cli/verbs.h"

namespace saesweep::cli {
namespace {

namespace fs = std::filesystem;

struct DoctorFlags {
  bool json = false;
  std::string directory = ".", task;
};

constexpr std::uint64_t kDiskProbeBytes = std::uint64_t{32} << 20;
constexpr std::uint64_t kLeastMemory = std::uint64_t{2} << 30;  // the quick start's
constexpr double kLeastDiskRate = 50e6;

Json check(const std::string& name, bool ok, const std::string& found, const std::string& advice) {
  Json one{{"name", name}, {"ok", ok}, {"found", found}};
  if (!ok) one["advice"] = advice;
  return one;
}

Json check_disk(const fs::path& directory) {
  const auto rate = measure_disk_rate(directory, kDiskProbeBytes);
  if (!rate)
    return check("disk", false, rate.error().message,
                 "run where you may write, or name such a place with --state and --out");
  std::error_code error;
  const auto space = fs::space(directory, error);
  std::string found = fmt::format("{}/s written and synced", bytes_text(*rate));
  if (!error) found += fmt::format(", {} free", bytes_text(static_cast<double>(space.available)));
  return check("disk", *rate >= kLeastDiskRate, found,
               "slow for the activation cache: put --state on a local disk");
}

// The executor, and through it LibTorch.
// Returns what it found; nothing if it cannot be asked.
Json check_executor(const std::string& given, Json& checks) {
  const auto task = find_task_program(given);
  if (!task) {
    checks.push_back(check("executor", false, "saesweep-task is not there", task.error().message));
    checks.push_back(check("libtorch", false, "unknown without the executor",
                           "comes with saesweep-task; deploy/setup.sh installs it"));
    return Json::object();
  }
  checks.push_back(check("executor", true, task->string(), ""));
  const auto probe =
      run_child(*task, {"probe", "--json"}, {.patience = std::chrono::milliseconds(60'000)});
  const auto json = probe && probe->exit_code == 0
                        ? parse_json(probe->output)
                        : Result<Json>(fail(ErrorCode::kUnavailable, "{}",
                                            probe ? fmt::format("exit code {}", probe->exit_code)
                                                  : probe.error().message));
  if (!json || !json->is_object()) {
    checks.push_back(check(
        "libtorch", false,
        fmt::format("saesweep-task probe failed: {}", json ? "no object" : json.error().message),
        "run `saesweep-task probe` and read what it says; deploy/setup.sh "
        "installs LibTorch again"));
    return Json::object();
  }
  // Its version, then what it found: words as they are, features of the CPU by name.
  std::string found = json->value("libtorch", "present");
  for (const auto& [key, value] : json->items()) {
    if (key == "libtorch" || key == "version" || key == "cores") continue;
    if (value.is_string()) found += fmt::format(", {}", value.get<std::string>());
    if (value.is_boolean() && value.get<bool>()) found += fmt::format(", {}", key);
  }
  checks.push_back(check("libtorch", true, printable(found), ""));
  return *json;
}

Json examine(const DoctorFlags& flags) {
  const unsigned cores = usable_cores();
  const std::uint64_t memory = usable_memory_bytes();
  Json checks = Json::array();
  checks.push_back(check("cores", cores >= 2, fmt::format("{}", cores),
                         "two or more are better: one sweep keeps them all busy"));
  checks.push_back(
      check("memory", memory >= kLeastMemory, bytes_text(static_cast<double>(memory)),
            "sweeps need 2 GiB or more; lower resources.memory and activations.cache"));
  checks.push_back(check_disk(fs::absolute(flags.directory)));
  const Json probe = check_executor(flags.task, checks);
  const std::string gpus = describe_gpus();
  checks.push_back(check("gpu", gpus_of(probe) > 0, gpus.empty() ? "none" : gpus,
                         fmt::format("not needed; for train.device: cuda, missing: {}",
                                     printable(missing_gpu_text(probe)))));
  const char* search_path = std::getenv("PATH");  // NOLINT(concurrency-mt-unsafe): one thread
  const auto mpirun = find_program("mpirun", search_path == nullptr ? "" : search_path);
  checks.push_back(check("mpi", mpirun.has_value(), mpirun ? mpirun->string() : "none",
                         "not needed on one machine; `apt-get install openmpi-bin` brings it"));
  return {{"cores", cores},
          {"memory_bytes", memory},
          {"cpu", cpu_name()},
          {"version", build()},
          {"checks", std::move(checks)}};
}

}  // namespace

Action add_doctor(CLI::App& program, const GlobalFlags&) {
  CLI::App* verb = program.add_subcommand(
      "doctor", "Show what this machine offers, what is missing and how to get it");
  const auto flags = std::make_shared<DoctorFlags>();
  verb->add_flag("--json", flags->json, "For machines");
  verb->add_option("--state", flags->directory, "Whose disk to measure (default: this directory's)")
      ->type_name("DIR");
  verb->add_option("--task", flags->task,
                   "The executor (default: saesweep-task beside this program)")
      ->type_name("PATH");
  verb->footer(R"(Examples:
  saesweep doctor
  saesweep doctor --json
)");
  return [flags] {
    const Json found = examine(*flags);
    if (flags->json) {
      fmt::print("{}", pretty_json(found));
      return kExitDone;
    }
    fmt::print("saesweep {} on {}\n", build(), found["cpu"].get<std::string>());
    for (const Json& one : found["checks"]) {
      fmt::print("{} {:<9} {}\n", one["ok"].get<bool>() ? "ok" : "--",
                 one["name"].get<std::string>(), one["found"].get<std::string>());
      if (one.contains("advice")) fmt::print("             {}\n", one["advice"].get<std::string>());
    }
    return kExitDone;
  };
}

}  // namespace saesweep::cli
