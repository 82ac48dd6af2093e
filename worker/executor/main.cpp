// saesweep-task: the executor that an agent starts, and the measurements that need LibTorch.
#include <ATen/Parallel.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>

#include "core/clock.h"
#include "core/log.h"
#include "worker/evaluation/evaluate.h"
#include "worker/executor/bench.h"
#include "worker/executor/build.h"
#include "worker/executor/executor.h"

namespace saesweep::worker {
namespace {

// As `saesweep` has them.
constexpr int kExitDone = 0, kExitMisuse = 2, kExitLater = 3;

void print_object(const Json& object, int indent) {
  for (const auto& [key, value] : object.items()) {
    if (value.is_object()) {
      fmt::print("{:{}}{}\n", "", indent, key);
      print_object(value, indent + 2);
    } else if (value.is_number_float()) {
      fmt::print("{:{}}{:<{}} {:.6g}\n", "", indent, key, std::max(1, 24 - indent),
                 value.get<double>());
    } else {
      fmt::print("{:{}}{:<{}} {}\n", "", indent, key, std::max(1, 24 - indent),
                 value.is_string() ? value.get<std::string>() : value.dump());
    }
  }
}

int show(const Json& object, bool json) {
  if (json)
    fmt::print("{}", pretty_json(object));
  else
    print_object(object, 0);
  return kExitDone;
}

int show(const char* name, const Result<Json>& measured, bool json) {
  if (!measured) {
    fmt::print(stderr, "saesweep-task bench {}: {}\n", name, measured.error().message);
    return measured.error().code == ErrorCode::kResourceExhausted ? kExitLater : kExitMisuse;
  }
  Json object = *measured;
  object["bench"] = name;
  object["versions"] = versions();
  return show(object, json);
}

int run_executor(int channel) {
  struct ::stat info {};
  if (::fstat(channel, &info) != 0 || !S_ISSOCK(info.st_mode)) {
    fmt::print(stderr,
               "saesweep-task: --channel {} is no socket; an agent starts this program with one. "
               "`saesweep run` is what people start\n",
               channel);
    return kExitMisuse;
  }
  ::fcntl(channel, F_SETFD, FD_CLOEXEC);
  // Ctrl-C in a terminal reaches the whole process group, but it is for the agent to say what
  // becomes of a run. A closed socket and a file limit are errors of the write.
  for (const int signal_number : {SIGINT, SIGTERM, SIGPIPE, SIGXFSZ})
    ::signal(signal_number, SIG_IGN);
  const SystemClock clock;
  Executor executor{protocol::ExecutorChannel(channel), clock};
  if (executor.serve() == Executor::End::kBye) return kExitDone;
  // Without waiting for the step at hand: whoever starts the next executor needs the cores.
  std::_Exit(kExitDone);
}

struct Flags {
  int channel = -1;
  bool json = false;
  TrainBench train;
  HarvestBench harvest;
  GenerateBench generate;
};

void add_train(CLI::App& bench, Flags& flags) {
  CLI::App* verb = bench.add_subcommand(
      "train", "SAEs trained side by side against separate runs of the same code");
  TrainBench& own = flags.train;
  verb->add_option("--arch", own.arch, "As in a sweep file")->capture_default_str();
  verb->add_option("-n", own.saes, "SAEs")->capture_default_str();
  verb->add_option("--d-in", own.d_in, "Width of the activations")->capture_default_str();
  verb->add_option("--d-sae", own.d_sae, "Features")->capture_default_str();
  verb->add_option("--k", own.k, "Of the topk family")->capture_default_str();
  verb->add_option("--l1", own.l1, "Of the standard and gated families")->capture_default_str();
  verb->add_option("--l0-target", own.l0_target, "Of jumprelu")->capture_default_str();
  verb->add_option("--l0", own.l0, "Start where about as many latents are active a row, without k");
  verb->add_option("--batch", own.batch, "Tokens a step")->capture_default_str();
  verb->add_option("--device", own.device, "cpu or cuda")->capture_default_str();
  verb->add_option("--precision", own.precision, "fp32 or bf16")->capture_default_str();
  verb->add_option("--against", own.against, "separate or autograd")->capture_default_str();
  verb->add_option("--steps", own.steps, "Of each SAE, a round")->capture_default_str();
  verb->add_option("--rounds", own.rounds, "Medians are over these")->capture_default_str();
  verb->add_option("--threads", own.threads, "0: all cores")->capture_default_str();
  verb->add_flag("--json", flags.json, "For machines");
}

void add_harvest(CLI::App& bench, Flags& flags) {
  CLI::App* verb =
      bench.add_subcommand("harvest", "Activations at a hook against the whole forward pass");
  HarvestBench& own = flags.harvest;
  verb->add_option("--model", own.model, "A folder (default: random weights)")->type_name("DIR");
  verb->add_option("--hook", own.hook, "Default: the residual stream in the middle");
  verb->add_option("--layers", own.layers, "Of random weights")->capture_default_str();
  verb->add_option("--d-model", own.d_model, "Of random weights")->capture_default_str();
  verb->add_option("--heads", own.heads, "Of random weights")->capture_default_str();
  verb->add_option("--d-mlp", own.d_mlp, "Of random weights")->capture_default_str();
  verb->add_option("--board", own.board, "4, 6 or 8")->capture_default_str();
  verb->add_option("--games", own.games, "A round")->capture_default_str();
  verb->add_option("--precision", own.precision, "Of the model's products: fp32 or bf16")
      ->capture_default_str();
  verb->add_option("--rounds", own.rounds, "Medians are over these")->capture_default_str();
  verb->add_option("--threads", own.threads, "0: all cores")->capture_default_str();
  verb->add_flag("--json", flags.json, "For machines");
}

void add_generate(CLI::App& bench, Flags& flags) {
  CLI::App* verb = bench.add_subcommand("generate", "Othello games of uniform play, per second");
  GenerateBench& own = flags.generate;
  verb->add_option("--board", own.board, "4, 6 or 8")->capture_default_str();
  verb->add_option("--games", own.games, "A round")->capture_default_str();
  verb->add_option("--rounds", own.rounds, "Medians are over these")->capture_default_str();
  verb->add_option("--threads", own.threads, "0: all cores")->capture_default_str();
  verb->add_flag("--json", flags.json, "For machines");
}

void add_board(CLI::App& bench, Flags& flags) {
  bench.add_subcommand("board", "The bucket kernel of the board scores against a dense product")
      ->add_flag("--json", flags.json, "For machines");
}

int dispatch(const CLI::App& program, const Flags& flags) {
  if (const auto* bench = program.get_subcommand("bench"); bench->parsed()) {
    if (bench->got_subcommand("train")) return show("train", bench_train(flags.train), flags.json);
    if (bench->got_subcommand("harvest"))
      return show("harvest", bench_harvest(flags.harvest), flags.json);
    if (bench->got_subcommand("board")) return show("board", bench_board(), flags.json);
    return show("generate", bench_generate(flags.generate), flags.json);
  }
  if (program.get_subcommand("probe")->parsed()) return show(probe(), flags.json);
  if (flags.channel >= 0) return run_executor(flags.channel);
  fmt::print(stderr, "{}", program.help());
  return kExitMisuse;
}

int main_of(int argc, char** argv) {
  log::set_name("task");
  // All threads are ours: the same bytes whatever the machine.
  at::set_num_threads(1);
  at::set_num_interop_threads(1);

  Flags flags;
  CLI::App program{"Trains and evaluates sparse autoencoders on behalf of `saesweep`",
                   "saesweep-task"};
  program.set_version_flag("--version", "saesweep-task " + build_text());
  program
      .add_option("--channel", flags.channel,
                  "Serve the agent at the other end of this inherited socket")
      ->type_name("FD");
  CLI::App* bench =
      program.add_subcommand("bench", "Measure one thing, with its baseline in the same run");
  bench->require_subcommand(1);
  add_train(*bench, flags);
  add_harvest(*bench, flags);
  add_generate(*bench, flags);
  add_board(*bench, flags);
  program.add_subcommand("probe", "What this machine offers to LibTorch")
      ->add_flag("--json", flags.json, "For machines");
  try {
    program.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return program.exit(error) == 0 ? kExitDone : kExitMisuse;
  }
  return dispatch(program, flags);
}

}  // namespace
}  // namespace saesweep::worker

int main(int argc, char** argv) {
  try {
    return saesweep::worker::main_of(argc, argv);
  } catch (const std::exception& error) {  // a bench may be asked for more memory than there is
    fmt::print(stderr, "saesweep-task: {}\n", error.what());
    return saesweep::worker::kExitLater;
  }
}
