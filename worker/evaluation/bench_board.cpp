// The bucket kernel of the board scores against a dense product of 0/1 matrices, one per threshold.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <chrono>
#include <vector>

#include "core/philox.h"
#include "metrics/scores/board_scores.h"
#include "worker/evaluation/evaluate.h"

namespace saesweep::worker {
namespace {

// Shapes of an 8x8 board with a dictionary of medium width.
constexpr std::size_t kPositions = 16384, kLatents = 1024, kActive = 32, kProperties = 320;

struct Active {
  std::uint32_t position;
  float value;
};

template <class Body>
double seconds(const Body& body) {
  const auto begin = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace

Result<Json> bench_board() {
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  Rng rng(0, "bench.board");
  std::vector<std::uint8_t> truth(kPositions * kProperties);
  for (std::uint8_t& each : truth) each = rng.below(4) == 0;
  std::vector<std::vector<Active>> codes(kLatents);
  std::vector<float> maximum(kLatents, 0);
  for (std::size_t position = 0; position < kPositions; ++position)
    for (std::size_t i = 0; i < kActive; ++i) {
      // One latent out of each of kActive equal parts.
      const std::size_t latent = i * (kLatents / kActive) + rng.below(kLatents / kActive);
      const auto value = static_cast<float>(rng.uniform());
      codes[latent].push_back({static_cast<std::uint32_t>(position), value});
      maximum[latent] = std::max(maximum[latent], value);
    }

  std::vector<std::uint64_t> bucket_hits(metrics::kThresholds, 0);
  const double bucket_seconds = seconds([&] {
    metrics::LatentCounts counts(1, kProperties);
    for (std::size_t latent = 0; latent < kLatents; ++latent) {
      counts.clear();
      for (const Active& each : codes[latent])
        if (const std::size_t bucket = metrics::bucket_of(each.value, maximum[latent]); bucket > 0)
          counts.add(0, bucket, truth.data() + each.position * kProperties);
      counts.finish();
      for (std::size_t t = 0; t < metrics::kThresholds; ++t)
        for (std::size_t k = 0; k < kProperties; ++k) bucket_hits[t] += counts.hits(0, t)[k];
    }
  });

  std::vector<std::uint64_t> dense_hits(metrics::kThresholds, 0);
  const auto positions = static_cast<std::int64_t>(kPositions);
  const auto latents = static_cast<std::int64_t>(kLatents);
  const double dense_seconds = seconds([&] {
    at::Tensor f = at::zeros({latents, positions}, at::kFloat);
    for (std::int64_t latent = 0; latent < latents; ++latent)
      for (const Active& each : codes[static_cast<std::size_t>(latent)])
        f.mutable_data_ptr<float>()[latent * positions + each.position] = each.value;
    const at::Tensor largest = at::tensor(maximum, at::kFloat).unsqueeze(1).to(at::kDouble);
    const at::Tensor labels =
        at::from_blob(truth.data(), {positions, static_cast<std::int64_t>(kProperties)}, at::kByte)
            .to(at::kFloat);
    for (std::size_t t = 0; t < metrics::kThresholds; ++t) {
      const at::Tensor bound = (largest * static_cast<double>(t) / 10).to(at::kFloat);
      const at::Tensor hits = at::mm(f.gt(bound).to(at::kFloat), labels);  // exact below 2^24
      dense_hits[t] = static_cast<std::uint64_t>(hits.sum(at::kDouble).item<double>());
    }
  });
  at::set_num_threads(threads);
  return Json{
      {"bench", "board"},
      {"positions_per_s", kPositions / bucket_seconds},
      {"baseline", {{"name", "dense product"}, {"positions_per_s", kPositions / dense_seconds}}},
      {"ratio", dense_seconds / bucket_seconds},
      {"positions", kPositions},
      {"latents", kLatents},
      {"l0", kActive},
      {"properties", kProperties},
      {"thresholds", metrics::kThresholds},
      {"equal", bucket_hits == dense_hits}};
}

}  // namespace saesweep::worker
