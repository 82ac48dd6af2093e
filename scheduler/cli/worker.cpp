// saesweep worker: the agent of a node alone, for a scheduler elsewhere.
#include <fmt/format.h>
#include <signal.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "core/log.h"
#include "core/thread.h"
#include "scheduler/cli/ask.h"
#include "scheduler/cli/build_info.h"
#include "scheduler/cli/child_process.h"
#include "scheduler/cli/interrupts.h"
#include "scheduler/cli/machine.h"
#include "scheduler/cli/program.h"
#include "scheduler/cli/verbs.h"
#include "sweeps/values.h"
#include "worker/agent/agent.h"
#include "worker/agent/chunk_server.h"

namespace saesweep::cli {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;

// Exit codes that sites requeue on, from sysexits.h: EX_TEMPFAIL, EX_NOPERM, EX_CONFIG,
// EX_SOFTWARE.
constexpr int kExitTemporary = 75;
constexpr int kExitNotAuthorised = 77;
constexpr int kExitConfiguration = 78;
constexpr int kExitInternal = 70;

// Of the memory that is usable; the rest is for the system and the page cache.
constexpr double kMemoryShare = 0.9;

struct WorkerFlags {
  std::string connect, access, name, memory, task, idle_timeout, chunks;
  std::string state = "./saesweep-worker";
  std::string patience = "10m";
  std::uint32_t slots = 1, threads = 0;
};

int configuration(const std::string& what) {
  fmt::print(stderr, "saesweep worker: {}\n", what);
  return kExitConfiguration;
}

int exit_code_of(agent::AgentEnd end, const Result<void>& ran, int signal_number) {
  using agent::AgentEnd;
  switch (end) {
    case AgentEnd::kNotAuthorised:
      return kExitNotAuthorised;
    case AgentEnd::kMisplaced:
      return kExitConfiguration;
    case AgentEnd::kAlone:
      return kExitTemporary;
    case AgentEnd::kStopped:
      if (signal_number == SIGINT) return kExitInterrupted;
      break;
    case AgentEnd::kDismissed:
    case AgentEnd::kIdle:
    case AgentEnd::kDrained:
      break;
  }
  return ran ? kExitDone : kExitTemporary;
}

Result<milliseconds> time_of(const char* flag, const std::string& text) {
  const auto seconds = sweeps::parse_seconds(text);
  if (!seconds) return fail(seconds.error().code, "{}: {}", flag, seconds.error().message);
  return milliseconds(static_cast<std::int64_t>(*seconds * 1000));
}

int work(const WorkerFlags& flags, const GlobalFlags& globals) {
  if (flags.connect.empty() && flags.access.empty())
    return configuration(
        "which scheduler? --access FILE (worker.access of its keys), or --connect "
        "tcp://127.0.0.1:7077 for one of this machine that serves without keys");
  auto way = way_to(flags.connect, flags.access);
  if (!way) return configuration(way.error().message);
  agent::AgentOptions options;
  options.endpoint = way->endpoint;
  options.security = way->security;
  options.name = flags.name.empty() ? host_name() : flags.name;
  options.build = build();
  options.log_level = globals.log_level;
  options.state_directory = fs::absolute(flags.state).lexically_normal();
  options.slots = flags.slots;
  options.threads = flags.threads > 0 ? flags.threads : usable_cores();
  options.memory_bytes =
      static_cast<std::uint64_t>(kMemoryShare * static_cast<double>(usable_memory_bytes()));
  options.outlives_scheduler = true;
  options.chunks_endpoint =
      flags.chunks.empty() ? agent::usual_chunks_endpoint(way->endpoint) : flags.chunks;
  if (flags.chunks == "off") options.chunks_endpoint.clear();
  if (!flags.memory.empty()) {
    const auto size = sweeps::parse_size(flags.memory);
    if (!size) return configuration("--memory: " + size.error().message);
    options.memory_bytes = *size;
  }
  if (!flags.idle_timeout.empty()) {
    const auto time = time_of("--idle-timeout", flags.idle_timeout);
    if (!time) return configuration(time.error().message);
    options.idle_timeout = *time;
  }
  const auto patience = time_of("--patience", flags.patience);
  if (!patience) return configuration(patience.error().message);
  options.scheduler_patience = *patience;
  const auto task = find_task_program(flags.task);
  if (!task) return configuration(task.error().message);
  options.task_program = *task;
  auto interrupts = Interrupts::take({SIGUSR1, SIGUSR2});
  if (!interrupts) {
    fmt::print(stderr, "saesweep worker: {}\n", interrupts.error().message);
    return kExitInternal;
  }
  const auto probed = probe_executor(*task);
  if (!probed) return configuration(probed.error().message);
  options.gpus = gpus_of(*probed);
  options.gpu_memory_bytes = gpu_memory_of_slot(*probed, options.slots);

  Result<void> ran;
  agent::AgentEnd end = agent::AgentEnd::kStopped;
  bool created = false;
  std::atomic<bool> ended = false;
  int signal_number = 0;
  {
    std::jthread thread = run_thread("agent", [&](const std::stop_token& stop) {
      // Made here: its sockets belong to this thread.
      auto made = agent::Agent::create(options);
      created = made.has_value();
      ran = made ? made->run(stop) : fail(made.error());
      if (made) end = made->end();
      ended.store(true, std::memory_order_release);
    });
    if (!globals.quiet)
      fmt::print(stderr, "worker {}: {} slot{}, {} threads, {} GPU{}; scheduler: {}\n",
                 options.name, options.slots, options.slots == 1 ? "" : "s", options.threads,
                 options.gpus, options.gpus == 1 ? "" : "s", options.endpoint);
    while (!ended.load(std::memory_order_acquire)) {
      const int heard = interrupts->wait(milliseconds(100));
      if (heard == 0) continue;
      if (signal_number == 0 && !globals.quiet)
        fmt::print(stderr, "stopping: checkpointing what runs ...\n");
      signal_number = heard;
      thread.request_stop();  // a repeated notice is the same
    }
  }
  if (!ran) fmt::print(stderr, "saesweep worker: {}\n", ran.error().message);
  if (!created)
    return ran.error().code == ErrorCode::kUnavailable ? kExitTemporary : kExitConfiguration;
  return exit_code_of(end, ran, signal_number);
}

}  // namespace

Action add_worker(CLI::App& program, const GlobalFlags& globals) {
  CLI::App* verb = program.add_subcommand("worker", "Train and score what a scheduler asks for");
  const auto flags = std::make_shared<WorkerFlags>();
  verb->add_option("--access", flags->access, "The scheduler and our keys: its worker.access")
      ->type_name("FILE");
  verb->add_option("--connect", flags->connect,
                   "The scheduler, on this machine: tcp://127.0.0.1:7077")
      ->type_name("ADDRESS");
  verb->add_option(
          "--state", flags->state,
          "Its cache of activations, and what it makes until the scheduler has it; of this "
          "worker alone (default ./saesweep-worker)")
      ->type_name("DIR");
  verb->add_option("--slots", flags->slots, "Executors side by side (default 1)")
      ->check(CLI::Range(1, 1024))
      ->type_name("N");
  verb->add_option("--threads", flags->threads, "Of all slots together (default: all cores)")
      ->check(CLI::Range(1, 4096))
      ->type_name("N");
  verb->add_option("--memory", flags->memory,
                   "For all slots together, e.g. 4GiB (default: nine tenths of this machine's)")
      ->type_name("SIZE");
  verb->add_option("--name", flags->name, "Shown to people (default: the host's)")
      ->type_name("NAME");
  verb->add_option("--idle-timeout", flags->idle_timeout,
                   "Leave after this time without work, e.g. 5m (default: never)")
      ->type_name("TIME");
  verb->add_option("--patience", flags->patience,
                   "Go on for this long while no scheduler is there (default 10m)")
      ->type_name("TIME");
  verb->add_option(
          "--chunks-listen", flags->chunks,
          "Where other workers fetch activation chunks of this one's cache (default: a free port, "
          "on 127.0.0.1 if the scheduler is there), e.g. tcp://10.0.0.5:7080; off: nowhere")
      ->type_name("ADDRESS");
  verb->add_option("--task", flags->task,
                   "The executor (default: saesweep-task beside this program)")
      ->type_name("PATH");
  verb->footer(R"(Examples:
  saesweep worker --access worker.access
  saesweep worker --connect tcp://127.0.0.1:7077 --slots 2
  saesweep worker --connect tcp://127.0.0.1:7077 --idle-timeout 10m --state /scratch/cache

SIGTERM, SIGUSR1 and SIGUSR2 make it checkpoint what runs and leave. Exit codes: 0 idle, drained or
told to leave; 75 the scheduler is gone, try again later; 77 not authorised; 78 bad configuration;
70 internal; 130 Ctrl-C.
)");
  return [flags, &globals] { return work(*flags, globals); };
}

}  // namespace saesweep::cli
