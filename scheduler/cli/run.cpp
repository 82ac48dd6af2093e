// saesweep run FILE: a whole sweep on this machine.
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/bounded_queue.h"
#include "core/files.h"
#include "core/log.h"
#include "metrics/telemetry/telemetry.h"
#include "scheduler/cli/build_info.h"
#include "scheduler/cli/child_process.h"
#include "scheduler/cli/interrupts.h"
#include "scheduler/cli/local_cluster.h"
#include "scheduler/cli/machine.h"
#include "scheduler/cli/outcome.h"
#include "scheduler/cli/people.h"
#include "scheduler/cli/program.h"
#include "scheduler/cli/screen.h"
#include "scheduler/cli/verbs.h"
#include "scheduler/http/http_server.h"
#include "sweeps/estimates.h"
#include "sweeps/values.h"

namespace saesweep::cli {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;

struct RunFlags {
  std::string file, out, task, memory;
  std::string state = "./saesweep-data";
  std::vector<std::string> overrides;
  bool json = false;
  std::uint32_t slots = 0, threads = 0;  // 0: the sweep file's, all cores
  std::optional<std::uint16_t> metrics_port;
};

// Events wait here between the scheduler's thread and the one that shows them. Many more than a
// screen takes; when a reader of --json stalls for that long, progress is dropped.
constexpr std::size_t kEventsWaiting = 1 << 16;

double unix_seconds() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

// Trials now in training, by what we publish about ourselves.
std::uint64_t training_now(const metrics::Telemetry& telemetry) {
  const std::string page = telemetry.expose();
  constexpr std::string_view kSeries = R"(saesweep_tasks{kind="train",state="running"} )";
  const std::size_t at = page.find(kSeries);
  if (at == std::string::npos) return 0;
  return std::strtoull(page.c_str() + at + kSeries.size(), nullptr, 10);
}

std::string number_of(std::size_t count, std::string_view thing) {
  return fmt::format("{} {}{}", count, thing, count == 1 ? "" : "s");
}

int complain(const Error& error) {
  fmt::print(stderr, "saesweep run: {}\n", error.message);
  return exit_code_of(error.code);
}

class Run {
 public:
  Run(const RunFlags& flags, const GlobalFlags& globals)
      : flags_(flags),
        screen_(flags.json, globals.quiet),
        quiet_(globals.quiet),
        log_level_(globals.log_level) {}

  int act() {
    auto plan = sweeps::plan_sweep(flags_.file, {.overrides = flags_.overrides});
    if (!plan) {
      for (const sweeps::SweepFileError& error : plan.error())
        fmt::print(stderr, "{}\n", error.to_string());
      return kExitMisuse;
    }
    if (plan->device_is_auto && auto_device(flags_.task) == "cuda")
      plan =
          sweeps::plan_sweep(flags_.file, {.overrides = flags_.overrides, .auto_device = "cuda"});
    plan_ = std::move(*plan);
    std::uint64_t memory = plan_.resources.memory_bytes;
    if (!flags_.memory.empty()) {
      const auto size = sweeps::parse_size(flags_.memory);
      if (!size)
        return complain({ErrorCode::kInvalidArgument, "--memory: " + size.error().message});
      memory = *size;
    }
    state_ = fs::absolute(flags_.state).lexically_normal();
    out_ = fs::absolute(flags_.out.empty() ? fs::path("saesweep-out") / plan_.name
                                           : fs::path(flags_.out))
               .lexically_normal();
    // Better now than after hours of training.
    if (auto made = make_directories(out_); !made) return cannot_write(made.error());
    if (::access(out_.c_str(), W_OK) != 0)
      return cannot_write(system_error(errno, fmt::format("write to {}", out_.string())));

    auto interrupts = Interrupts::take();
    if (!interrupts) return complain(interrupts.error());
    auto sockets = SocketFolder::make();
    if (!sockets) return complain(sockets.error());
    const std::uint32_t slots = flags_.slots > 0 ? flags_.slots : plan_.resources.slots;
    telemetry_.emplace(metrics::ProcessIdentity{.component = "run",
                                                .version = version(),
                                                .commit = commit(),
                                                .start_time_s = unix_seconds()});
    auto service = scheduler::SchedulerService::open(
        {.state_directory = state_,
         .endpoint = sockets->endpoint(),
         .client_endpoint = sockets->client_endpoint(),
         .build = build(),
         .slots = slots,
         .observer = [this](const Json& event) { events_.try_push(event); },
         .telemetry = &*telemetry_});
    if (!service) return complain(service.error());
    std::optional<scheduler::HttpServer> metrics_page;
    if (flags_.metrics_port) {
      auto server = scheduler::HttpServer::start(
          {.port = *flags_.metrics_port},
          scheduler::metrics_handler([this] { return telemetry_->expose(); }));
      if (!server) return complain(server.error());
      metrics_page.emplace(std::move(*server));
      screen_.say(fmt::format("metrics: {}/metrics", metrics_page->url()));
    }
    if (auto submitted = service->submit(plan_); !submitted) return complain(submitted.error());
    const auto before = service->result(plan_.name);
    if (!before) return complain(before.error());
    greet(*before, slots);

    Json executor;  // what it says about itself; nothing if it was not needed
    if (!before->finished) {
      const auto task = find_task_program(flags_.task);
      if (!task) return complain(task.error());
      auto probed = probe_executor(*task);
      if (interrupts->wait(milliseconds(0)) != 0) return interrupted();
      if (!probed) return complain(probed.error());
      executor = std::move(*probed);
      const bool needs_gpu = std::ranges::any_of(
          plan_.trials, [](const auto& trial) { return trial.spec.training.device == "cuda"; });
      if (needs_gpu && gpus_of(executor) == 0)
        return complain({ErrorCode::kInvalidArgument,
                         fmt::format("train.device: cuda, and something is missing here: {}; "
                                     "train.device: cpu would run without",
                                     missing_gpu_text(executor))});
      const std::uint64_t gpu_memory = gpu_memory_of_slot(executor, slots);
      const std::uint64_t needed = sweeps::estimate(plan_).gpu_memory_bytes;
      if (needs_gpu && gpu_memory != 0 && needed > gpu_memory)
        return complain(
            {ErrorCode::kInvalidArgument,
             fmt::format("train.device: cuda, and the largest trial needs about {} of a "
                         "GPU's memory, of which a slot has {} here; a smaller batch or "
                         "d_sae, fewer slots or train.device: cpu would fit",
                         bytes_text(static_cast<double>(needed)),
                         bytes_text(static_cast<double>(gpu_memory)))});
      const std::uint32_t threads = flags_.threads > 0 ? flags_.threads : usable_cores();
      LocalCluster cluster(*service, {.endpoint = sockets->endpoint(),
                                      .build = build(),
                                      .state_directory = state_,
                                      .task_program = *task,
                                      .slots = slots,
                                      .gpus = gpus_of(executor),
                                      .gpu_memory_bytes = gpu_memory,
                                      .threads = threads,
                                      .memory_bytes = memory,
                                      .log_level = log_level_});
      watch(cluster, *interrupts, *sockets);
      const auto finished = cluster.finish();
      drain();
      screen_.finish();
      if (!finished) return complain(finished.error());
      if (!*finished) return interrupted();
    }
    screen_.finish();
    const auto result = service->result(plan_.name);
    if (!result) return complain(result.error());
    return write_results(*result,
                         {.verb = "run",
                          .executor = executor,
                          .state = state_,
                          .out = out_,
                          .json = flags_.json,
                          .quiet = quiet_},
                         screen_);
  }

 private:
  static int cannot_write(const Error& error) {
    fmt::print(stderr, "saesweep run: --out: {}\n", error.message);
    return kExitTryLater;
  }

  void greet(const scheduler::SweepResult& before, std::uint32_t slots) {
    std::size_t done = 0;
    for (const scheduler::SubjectResult& subject : before.subjects)
      done += !subject.baseline && subject.state != "unfinished" ? 1 : 0;
    screen_.hear({{"event", "sweep.started"},
                  {"sweep", plan_.name},
                  {"trials", plan_.train_lm ? 1 : plan_.trials.size()},
                  {"done", done}});
    if (quiet_) return;
    for (const std::string& warning : plan_.warnings) screen_.say("warning: " + warning);
    if (before.finished) {
      screen_.say(fmt::format("{}: finished already, nothing to do", plan_.name));
      return;
    }
    std::string line = plan_.train_lm ? fmt::format("{}: training a model", plan_.name)
                                      : fmt::format("{}: {}, {}", plan_.name,
                                                    number_of(plan_.trials.size(), "trial"),
                                                    number_of(plan_.baselines.size(), "baseline"));
    if (done > 0) line += fmt::format(" ({} trained and scored already)", done);
    screen_.say(
        fmt::format("{}; {}; state in {}", line, number_of(slots, "slot"), state_.string()));
  }

  void drain() {
    while (auto event = events_.pop_for(milliseconds(0))) {
      const std::string word = event->value("event", "");
      // These two are ours to say: where the results are is known here.
      if (word == "sweep.started" || word == "sweep.finished") continue;
      if (!screen_.hear(std::move(*event))) output_gone_ = true;
    }
  }

  void watch(LocalCluster& cluster, Interrupts& interrupts, SocketFolder& sockets) {
    bool stopping = false;
    while (!cluster.ended()) {
      const int signal_number = interrupts.wait(milliseconds(50));
      drain();
      if (signal_number != 0 && stopping) {
        screen_.finish();
        fmt::print(stderr, "stopped at once; the last checkpoints are kept\n");
        how_to_continue();
        sockets.remove();
        // Executors end when their socket does; what is durable is already there.
        std::fflush(nullptr);
        ::_exit(kExitInterrupted);
      }
      if ((signal_number != 0 || output_gone_) && !stopping) {
        stopping = true;
        const std::uint64_t running = training_now(*telemetry_);
        screen_.say(fmt::format("stopping: checkpointing {} ... (again to stop at once)",
                                running == 0 ? "what runs" : number_of(running, "trial")));
        cluster.stop();
      }
      screen_.tick();
    }
  }

  void how_to_continue() const {
    std::string words = fmt::format("saesweep run {}", flags_.file);
    if (flags_.state != RunFlags().state) words += fmt::format(" --state {}", flags_.state);
    if (!flags_.out.empty()) words += fmt::format(" --out {}", flags_.out);
    for (const std::string& one : flags_.overrides) words += fmt::format(" --set '{}'", one);
    fmt::print(stderr, "continue with: {}\n", words);
  }

  int interrupted() const {
    fmt::print(stderr, "interrupted; every running trial has a checkpoint\n");
    how_to_continue();
    return kExitInterrupted;
  }

  const RunFlags& flags_;
  Screen screen_;
  bool quiet_;
  std::string log_level_;
  bool output_gone_ = false;
  sweeps::SweepPlan plan_;
  fs::path state_, out_;
  std::optional<metrics::Telemetry> telemetry_;
  BoundedQueue<Json> events_{kEventsWaiting};
};

}  // namespace

Action add_run(CLI::App& program, const GlobalFlags& globals) {
  CLI::App* verb = program.add_subcommand("run", "Run a whole sweep on this machine");
  const auto flags = std::make_shared<RunFlags>();
  verb->add_option("FILE", flags->file, "The sweep file")->required();
  verb->add_option("--state", flags->state, "What survives a crash (default ./saesweep-data)")
      ->type_name("DIR");
  verb->add_option("--out", flags->out, "Results (default ./saesweep-out/NAME)")->type_name("DIR");
  verb->add_option("--set", flags->overrides, "Override one key of the file: train.tokens=1M")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
  verb->add_flag("--json", flags->json, "One event a line to stdout");
  verb->add_option("--slots", flags->slots, "Executors side by side (default: resources.slots)")
      ->check(CLI::Range(1, 1024))
      ->type_name("N");
  verb->add_option("--threads", flags->threads, "Of all slots together (default: all cores)")
      ->check(CLI::Range(1, 4096))
      ->type_name("N");
  verb->add_option("--memory", flags->memory,
                   "For all slots together, e.g. 4GiB (default: "
                   "resources.memory)")
      ->type_name("SIZE");
  verb->add_option("--metrics-port", flags->metrics_port,
                   "Serve Prometheus metrics on this port of the loopback address; 0: a free one")
      ->type_name("PORT");
  verb->add_option("--task", flags->task,
                   "The executor (default: saesweep-task beside this program)")
      ->type_name("PATH");
  verb->footer(R"(Examples:
  saesweep run sweeps/othello-quickstart.yaml
  saesweep run sweep.yaml --set train.tokens=1M --out /tmp/quick
  saesweep run sweep.yaml --json | jq 'select(.event == "trial.finished")'

Ctrl-C makes checkpoints and stops; the same command continues. A finished sweep is not run again,
and of a changed file only what changed runs.
)");
  return [flags, &globals] { return Run(*flags, globals).act(); };
}

}  // namespace saesweep::cli
