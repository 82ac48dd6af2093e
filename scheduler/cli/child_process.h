// Another program, run to its end: what it wrote and how it ended.
#pragma once

#include <chrono>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "core/json.h"
#include "core/result.h"

namespace saesweep::cli {

struct ChildOutcome {
  int exit_code = 0;   // 128 + signal if one ended it
  std::string output;  // its stdout; stderr is ours
};

struct ChildOptions {
  std::optional<std::chrono::milliseconds> patience = {};  // then it is killed
  bool silence_errors = false;                             // its stderr goes nowhere
};

// Errors: kNotFound if the program is not there; kUnavailable if it cannot be started or was killed
// because patience ran out.
Result<ChildOutcome> run_child(const std::filesystem::path& program,
                               const std::vector<std::string>& arguments,
                               const ChildOptions& options = {});

// The file of the running program; saesweep-task lies beside it.
std::filesystem::path this_program();
std::filesystem::path default_task_program();

// Where saesweep-task is, or an error that says how to get it.
Result<std::filesystem::path> find_task_program(const std::string& given);

// Starts the executor once, so that one that cannot start says why now and not by failing every
// trial. What it found on this machine.
// Errors: kNotFound if it does not start, with what would help; those of run_child.
Result<Json> probe_executor(const std::filesystem::path& task);
// GPUs that an executor can train on, by its probe; and what is missing, if there are none.
std::uint32_t gpus_of(const Json& probe);
// Of the smallest GPU what a slot has to itself, since slots take turns at the GPUs; 0: there is
// none, or it does not say.
std::uint64_t gpu_memory_of_slot(const Json& probe, std::uint32_t slots);
std::string missing_gpu_text(const Json& probe);
// What `device: auto` means on this machine. Asks the executor only if there is a GPU to be seen.
std::string auto_device(const std::string& given_task);

}  // namespace saesweep::cli
