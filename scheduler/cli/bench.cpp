// saesweep bench: one measurement with its baseline in the same run. What needs LibTorch is
// measured by saesweep-task, which gets the same flags.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "core/files.h"
#include "scheduler/cli/build_info.h"
#include "scheduler/cli/child_process.h"
#include "scheduler/cli/machine.h"
#include "scheduler/cli/people.h"
#include "scheduler/cli/program.h"
#include "scheduler/cli/verbs.h"
#include "scheduler/service/bench_agents.h"
#include "scheduler/service/bench_tasks.h"
#include "storage/bench_cache.h"
#include "sweeps/values.h"

namespace saesweep::cli {
namespace {

namespace fs = std::filesystem;

int complain(const Error& error) {
  fmt::print(stderr, "saesweep bench: {}\n", error.message);
  return exit_code_of(error.code);
}

std::string value_text(const Json& value) {
  if (value.is_string()) return printable(value.get<std::string>());
  if (!value.is_number_float()) return value.dump();
  const double number = value.get<double>();
  return number >= 1000 ? fmt::format("{:.0f}", number) : fmt::format("{:.4g}", number);
}

void print_object(const Json& object, int indent) {
  for (const auto& [key, value] : object.items()) {
    if (value.is_object()) {
      fmt::print("{:{}}{}\n", "", indent, key);
      print_object(value, indent + 2);
    } else {
      fmt::print("{:{}}{:<{}} {}\n", "", indent, key, std::max(1, 22 - indent), value_text(value));
    }
  }
}

int show(Json measured, const std::string& name, bool json) {
  measured["bench"] = name;
  if (!measured.contains("machine")) measured["machine"] = describe_host();
  Json versions{{"saesweep", version()}, {"commit", commit()}};
  if (measured.contains("versions") && measured["versions"].is_object())
    versions.update(measured["versions"]);
  measured["versions"] = std::move(versions);
  if (json)
    fmt::print("{}", pretty_json(measured));
  else
    print_object(measured, 0);
  return kExitDone;
}

// The value after `flag`, taken out of `words`; "--flag=value" too.
std::string take_value(std::vector<std::string>& words, const std::string& flag) {
  for (auto word = words.begin(); word != words.end(); ++word) {
    if (word->starts_with(flag + "=")) {
      std::string value = word->substr(flag.size() + 1);
      words.erase(word);
      return value;
    }
    if (*word == flag && word + 1 != words.end()) {
      std::string value = *(word + 1);
      words.erase(word, word + 2);
      return value;
    }
  }
  return {};
}

int bench_by_executor(const std::string& name, std::vector<std::string> words,
                      const std::string& help_text) {
  const std::string given = take_value(words, "--task");
  const bool json = std::erase(words, "--json") > 0;
  const bool help = std::erase(words, "--help") + std::erase(words, "-h") > 0;
  const auto task = find_task_program(given);
  if (!task && help) {
    fmt::print("{}", help_text);
    return kExitDone;
  }
  if (!task) return complain(task.error());
  std::vector<std::string> arguments{"bench", name};
  arguments.insert(arguments.end(), words.begin(), words.end());
  arguments.emplace_back(help ? "--help" : "--json");
  const auto outcome = run_child(*task, arguments);
  if (!outcome) return complain(outcome.error());
  if (help || outcome->exit_code != 0) {
    fmt::print("{}", outcome->output);
    return outcome->exit_code;
  }
  const auto measured = parse_json(outcome->output);
  if (!measured || !measured->is_object())
    return complain(
        {ErrorCode::kCorrupted, fmt::format("saesweep-task bench {} wrote no JSON object", name)});
  return show(*measured, name, json);
}

// In a directory of its own below flags.directory, which is gone afterwards.
template <class Bench, class Flags>
int measure(Result<Json> (*function)(const Bench&), Bench bench, const char* name,
            const Flags& flags) {
  const auto scratch = make_private_directory(fs::absolute(flags.directory), "saesweep-bench-");
  if (!scratch) return complain(scratch.error());
  bench.directory = *scratch;
  const auto measured = function(bench);
  std::error_code ignored;
  fs::remove_all(*scratch, ignored);
  if (!measured) return complain(measured.error());
  return show(*measured, name, flags.json);
}

struct CacheFlags {
  bool json = false;
  std::string bytes = "512MiB", chunk = "1MiB", directory = ".";
  unsigned rounds = 5;
};

int bench_cache(const CacheFlags& flags) {
  storage::CacheBench bench;
  const auto bytes = sweeps::parse_size(flags.bytes);
  if (!bytes) return complain({bytes.error().code, "--bytes: " + bytes.error().message});
  const auto chunk = sweeps::parse_size(flags.chunk);
  if (!chunk) return complain({chunk.error().code, "--chunk-bytes: " + chunk.error().message});
  if (*chunk == 0 || *chunk > (std::uint64_t{1} << 30))
    return complain({ErrorCode::kInvalidArgument,
                     fmt::format("--chunk-bytes {}: up to 1GiB would be right", flags.chunk)});
  bench.bytes = *bytes;
  bench.chunk_bytes = static_cast<std::uint32_t>(*chunk);
  bench.rounds = flags.rounds;
  return measure(storage::bench_cache, bench, "cache", flags);
}

struct TasksFlags {
  bool json = false;
  std::string directory = ".", tasks = "100k";
  scheduler::TasksBench bench = {};
};

int bench_tasks(const TasksFlags& flags) {
  scheduler::TasksBench bench = flags.bench;
  const auto tasks = sweeps::parse_count(flags.tasks);
  if (!tasks) return complain({tasks.error().code, "--tasks: " + tasks.error().message});
  bench.tasks = *tasks;
  return measure(scheduler::bench_tasks, bench, "tasks", flags);
}

struct AgentsFlags {
  bool json = false;
  std::string directory = ".";
  scheduler::AgentsBench bench = {};
};

int bench_agents(const AgentsFlags& flags) {
  return measure(scheduler::bench_agents, flags.bench, "agents", flags);
}

struct ExecutorBench {
  const char* name;
  const char* what;
  const char* flags;
};
constexpr ExecutorBench kExecutorBenches[] = {
    {"train", "SAEs trained side by side against separate runs of the same code",
     "Flags: --arch topk -n 16 --d-in 512 --d-sae 4096 --k 32 --batch 4096 --precision fp32|bf16 "
     "--device cpu|cuda "
     "--against separate|autograd --threads N --json; saesweep-task bench train --help has all\n\n"
     "Example: saesweep bench train --arch topk -n 16 --d-in 512 --d-sae 4096 --k 32 --json\n"},
    {"harvest", "Activations taken from a model",
     "saesweep-task bench harvest --help lists the flags\n"},
    {"generate", "Games played, per second",
     "saesweep-task bench generate --help lists the flags\n"}};

std::shared_ptr<AgentsFlags> add_agents_bench(CLI::App& verb) {
  CLI::App* agents = verb.add_subcommand(
      "agents", "Many agents: that only live, tell of progress, and come back all at once");
  auto flags = std::make_shared<AgentsFlags>();
  agents->add_flag("--json", flags->json, "For machines");
  agents->add_option("--agents", flags->bench.agents, "Default: 512")->check(CLI::Range(1, 1024));
  agents->add_option("--slots", flags->bench.slots, "Of all agents together (default 1024)")
      ->check(CLI::Range(1, 100'000));
  agents->add_option("--members", flags->bench.members, "Of each run (default 10)")
      ->check(CLI::Range(1, 64));
  agents->add_option("--seconds", flags->bench.seconds, "Of each look (default 5)")
      ->check(CLI::Range(1, 3600));
  agents->add_option("--dir", flags->directory, "Whose disk to use (default: this directory's)")
      ->type_name("DIR");
  return flags;
}

}  // namespace

Action add_bench(CLI::App& program, const GlobalFlags&) {
  CLI::App* verb =
      program.add_subcommand("bench", "Measure one thing, with its baseline in the same run");
  verb->require_subcommand(1);
  for (const ExecutorBench& bench : kExecutorBenches) {
    CLI::App* one = verb->add_subcommand(bench.name, bench.what);
    one->prefix_command();  // every flag is the executor's
    one->set_help_flag();
    one->footer(bench.flags);
  }
  CLI::App* cache = verb->add_subcommand("cache", "The activation cache against a raw file");
  const auto flags = std::make_shared<CacheFlags>();
  cache->add_flag("--json", flags->json, "For machines");
  cache->add_option("--bytes", flags->bytes, "Written and read a round (default 512MiB)")
      ->type_name("SIZE");
  cache->add_option("--chunk-bytes", flags->chunk, "Of one chunk (default 1MiB)")
      ->type_name("SIZE");
  cache->add_option("--rounds", flags->rounds, "Medians are over these (default 5)")
      ->check(CLI::Range(1, 1000));
  cache->add_option("--dir", flags->directory, "Whose disk to measure (default: this directory's)")
      ->type_name("DIR");
  CLI::App* tasks =
      verb->add_subcommand("tasks", "Tasks that do nothing, through scheduler and journal");
  const auto of_tasks = std::make_shared<TasksFlags>();
  tasks->add_flag("--json", of_tasks->json, "For machines");
  tasks->add_option("--slots", of_tasks->bench.slots, "Of all agents together (default 1000)")
      ->check(CLI::Range(1, 100'000));
  tasks->add_option("--tasks", of_tasks->tasks, "A round (default 100k)")->type_name("COUNT");
  tasks->add_option("--agents", of_tasks->bench.agents, "Default: one for each 125 slots")
      ->check(CLI::Range(1, 1024));
  tasks->add_option("--rounds", of_tasks->bench.rounds, "Medians are over these (default 5)")
      ->check(CLI::Range(1, 1000));
  tasks
      ->add_option("--singles", of_tasks->bench.latencies,
                   "Sweeps of one task, whose latency is measured (default 200)")
      ->check(CLI::Range(0, 1'000'000));
  tasks
      ->add_option("--task-seconds", of_tasks->bench.task_s,
                   "Each task takes so long: how much longer than full slots would take it all is")
      ->check(CLI::Range(0.0, 3600.0));
  tasks->add_option("--dir", of_tasks->directory, "Whose disk to use (default: this directory's)")
      ->type_name("DIR");
  const auto of_agents = add_agents_bench(*verb);
  verb->footer(R"(Examples:
  saesweep bench train --arch topk -n 16 --d-in 512 --d-sae 4096 --k 32 --batch 4096 --json
  saesweep bench cache --dir /scratch
  saesweep bench tasks --slots 1000
  saesweep bench tasks --slots 16 --tasks 10k --task-seconds 1
  saesweep bench agents --agents 512
  saesweep bench generate
)");
  return [verb, cache, flags, tasks, of_tasks, of_agents] {
    if (cache->parsed()) return bench_cache(*flags);
    if (tasks->parsed()) return bench_tasks(*of_tasks);
    if (verb->get_subcommand("agents")->parsed()) return bench_agents(*of_agents);
    for (const ExecutorBench& bench : kExecutorBenches)
      if (const CLI::App* one = verb->get_subcommand(bench.name); one->parsed())
        return bench_by_executor(bench.name, one->remaining(), one->help());
    return kExitMisuse;
  };
}

}  // namespace saesweep::cli
