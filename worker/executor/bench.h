// `saesweep-task bench …`: one measurement with its baseline in the same run, as a JSON object.
// Rounds of the two alternate and medians are compared, so that a machine that speeds up or slows
// down does not favour either.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/json.h"
#include "core/result.h"

namespace saesweep::worker {

struct TrainBench {
  std::string arch = "topk";
  unsigned saes = 4;
  std::uint64_t d_in = 512, d_sae = 4096, batch = 4096;
  std::uint64_t k = 32;
  double l1 = 0.04;
  double l0_target = 32;
  double l0 = 0;                     // at the start, of architectures without k; 0: as drawn
  std::string device = "cpu";        // cpu | cuda
  std::string precision = "fp32";    // fp32 | bf16
  std::string against = "separate";  // separate | autograd
  std::uint64_t steps = 3;           // of each SAE, a round
  unsigned rounds = 3;
  unsigned threads = 0;  // 0: all cores
};
// Keys: sae_tokens_per_s (tokens times SAEs), sae_tokens_per_cpu_s (a second of all cores' time
// together: what others do on the machine does not count), baseline {name, sae_tokens_per_s},
// ratio, roofline, l0 of the last step. Errors: kInvalidArgument for an architecture, precision or
// baseline that there is not.
Result<Json> bench_train(const TrainBench& bench);

struct HarvestBench {
  std::string model;  // folder; empty: random weights of the shape below
  std::string hook;   // empty: the residual stream in the middle
  int layers = 4, d_model = 128, heads = 4, d_mlp = 512;
  int board = 6;
  std::uint64_t games = 2048;  // a round
  std::string precision = "fp32";
  unsigned rounds = 5;
  unsigned threads = 0;
};
// Keys: tokens_per_s of a harvest that stops at the hook, tokens_per_cpu_s, roofline; baseline: the
// same games through the whole model, as capturing without stopping would do.
Result<Json> bench_harvest(const HarvestBench& bench);

struct GenerateBench {
  int board = 8;
  std::uint64_t games = 100'000;  // a round
  unsigned rounds = 3;
  unsigned threads = 0;
};
// Keys: games_per_s, games_per_s_per_core; baseline: the same on one core.
Result<Json> bench_generate(const GenerateBench& bench);

// Medians of `rounds` alternating rounds, in units a second; one round of each warms up.
struct Rates {
  double ours = 0, baseline = 0;
  double ours_per_cpu_second = 0;  // of this process, all threads together
};
Rates compare(unsigned rounds, double units, const std::function<void()>& ours,
              const std::function<void()>& baseline);
unsigned bench_threads(unsigned asked);

}  // namespace saesweep::worker
