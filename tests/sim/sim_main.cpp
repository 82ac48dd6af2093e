// saesweep-sim: as many seeds as one likes, each twice. See cluster.h.
#include <fmt/core.h>

#include <charconv>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string_view>

#include "core/log.h"
#include "tests/sim/cluster.h"

namespace {

constexpr int kExitDone = 0;
constexpr int kExitViolated = 1;
constexpr int kExitMisuse = 2;

std::optional<std::uint64_t> number(std::string_view text) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

}  // namespace

int main(int argc, char** argv) {
  using namespace saesweep;
  std::uint64_t seeds = 200, first = 0;
  bool verbose = false;
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (argument == "--verbose") {
      verbose = true;
      continue;
    }
    std::uint64_t* wanted = argument == "--seeds"        ? &seeds
                            : argument == "--first-seed" ? &first
                                                         : nullptr;
    const auto value = wanted == nullptr || i + 1 == argc ? std::nullopt : number(argv[++i]);
    if (!value) {
      fmt::print(stderr, "usage: saesweep-sim [--seeds N] [--first-seed M] [--verbose]\n");
      return kExitMisuse;
    }
    *wanted = *value;
  }
  const auto begin = std::chrono::steady_clock::now();
  std::uint64_t violated = 0, events = 0, frames = 0, steps = 0, restarts = 0;
  double hours = 0;
  for (std::uint64_t seed = first; seed < first + seeds; ++seed) {
    const sim::Outcome outcome = sim::simulate(seed);
    std::string violation = outcome.violation;
    if (violation.empty() && !(sim::simulate(seed) == outcome)) violation = "a second run differs";
    events += outcome.events;
    frames += outcome.frames;
    steps += outcome.steps;
    restarts += outcome.restarts - 1;
    hours += outcome.hours;
    if (verbose)
      fmt::print(
          "seed {}: {} workers, {} tasks, {} restarts, {} events, {} frames, {:.2f} h, {:016x}\n",
          seed, outcome.workers, outcome.tasks, outcome.restarts - 1, outcome.events,
          outcome.frames, outcome.hours, outcome.hash);
    if (violation.empty()) continue;
    ++violated;
    fmt::print("seed {}: {}\n", seed, violation);
  }
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  fmt::print(
      "{} seeds, {} violated; {} events, {} frames, {} steps, {} restarts of the scheduler, "
      "{:.0f} virtual hours in {:.0f} s\n",
      seeds, violated, events, frames, steps, restarts, hours, seconds);
  return violated == 0 ? kExitDone : kExitViolated;
}
