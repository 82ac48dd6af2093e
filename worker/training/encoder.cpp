#include "worker/training/encoder.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "worker/training/kernels.h"
#include "worker/training/packing.h"

namespace saesweep::worker {
namespace {

using products::Hit;
using products::Numbers;
using products::RowLimit;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
// Norms up to here multiply without overflow, of bf16 either.
constexpr double kLargest = 1e18;

// |x| and |x - x~|, of which the second is 0 where products take numbers as they are.
struct Lengths {
  double whole, rounding;
  Lengths(const float* x, std::int64_t d, Numbers numbers)
      : whole(std::sqrt(kernels::sum_of_squares(x, d))),
        rounding(numbers == Numbers::kFloat ? 0 : std::sqrt(kernels::square_of_rounding(x, d))) {}
  bool is_usable() const { return whole <= kLargest && rounding <= kLargest; }
};

// Rounded up.
float up(double value) { return static_cast<float>(value * (1 + 0x1p-20)); }

RowLimit limit_of_filter(const float* row, std::int64_t d, Numbers numbers, float threshold) {
  const Lengths lengths(row, d, numbers);
  // Everything is looked at again.
  if (!lengths.is_usable()) return {kNaN, 0, 0};
  const double as_multiplied = lengths.whole + lengths.rounding;
  const double sums = static_cast<double>(d + 64) * 0x1p-23 * (lengths.whole + as_multiplied);
  // Against its own rounding, and against sums that are flushed to zero.
  return {static_cast<float>(threshold - std::abs(threshold) * 0x1p-20 - 0x1p-100),
          up(lengths.rounding + sums), up(as_multiplied)};
}

// By latents, those of one in the order in which they were (a counting sort).
std::vector<Hit> by_latent(const std::vector<Hit>& hits, std::int64_t latents) {
  std::vector<std::size_t> next(static_cast<std::size_t>(latents) + 1, 0);
  for (const Hit& hit : hits) ++next[static_cast<std::size_t>(hit.latent) + 1];
  for (std::size_t latent = 1; latent < next.size(); ++latent) next[latent] += next[latent - 1];
  std::vector<Hit> sorted(hits.size());
  for (const Hit& hit : hits) sorted[next[static_cast<std::size_t>(hit.latent)]++] = hit;
  return sorted;
}

}  // namespace

PackedEncoder pack_encoder(ThreadPool& pool, const float* w_enc, const float* bias,
                           const float* floors, std::int64_t latents, std::int64_t d,
                           Numbers numbers) {
  const std::vector<float> none(static_cast<std::size_t>(latents), 0.0F);
  return {{right_operand(pool, rows_of(w_enc, d), latents, d, numbers),
           products::padded(bias, latents, -std::numeric_limits<float>::infinity()),
           products::padded(floors == nullptr ? none.data() : floors, latents, 0),
           products::padded(none.data(), latents, 0), products::padded(none.data(), latents, 0)}};
}

PackedEncoder pack_filter(ThreadPool& pool, const float* w_enc, const float* bias,
                          std::int64_t latents, std::int64_t d, Numbers filter) {
  PackedEncoder encoder = pack_encoder(pool, w_enc, bias, nullptr, latents, d, filter);
  encoder.again = w_enc;
  constexpr std::int64_t kPiece = 256;
  pool.run((latents + kPiece - 1) / kPiece, [&](std::int64_t piece) {
    for (std::int64_t latent = piece * kPiece; latent < std::min(latents, (piece + 1) * kPiece);
         ++latent) {
      const auto at = static_cast<std::size_t>(latent);
      const Lengths lengths(w_enc + latent * d, d, filter);
      encoder.floors[at] = -std::abs(bias[latent]) * 0x1p-20F;
      encoder.norms[at] = lengths.is_usable() ? up(lengths.whole) : kNaN;
      encoder.roundings[at] = up(lengths.rounding);
    }
  });
  return encoder;
}

bool is_filtered(const sweeps::TrainingSpec& spec, std::int64_t k, std::int64_t latents) {
  // Of more a second look costs what the filter saves.
  constexpr std::int64_t kFewOf = 16;
  return spec.precision == sweeps::Precision::kFloat32 && k * kFewOf <= latents;
}

Numbers filter_numbers() {
  const Numbers numbers = products::bf16_numbers();
  return numbers == Numbers::kRounded ? Numbers::kFloat : numbers;
}

Above collect_above(const PackedEncoder& encoder, const float* rows,
                    const std::vector<float>& thresholds, std::size_t expected) {
  const auto count = std::ssize(thresholds);
  const std::int64_t d = encoder.panels.depth();
  const Numbers numbers = encoder.panels.numbers();
  std::vector<RowLimit> limits;
  limits.reserve(thresholds.size());
  for (std::int64_t row = 0; row < count; ++row) {
    const float threshold = thresholds[static_cast<std::size_t>(row)];
    limits.push_back(encoder.again == nullptr
                         ? RowLimit{.threshold = threshold}
                         : limit_of_filter(rows + row * d, d, numbers, threshold));
  }
  std::vector<Hit> hits;
  hits.reserve(expected);
  products::collect_hits(left_operand(rows_of(rows, d), count, d, numbers), encoder, limits, hits);
  // Latent by latent, so that each row of W_enc is fetched once.
  if (encoder.again != nullptr) hits = by_latent(hits, encoder.panels.lanes());
  Above above;
  std::size_t kept = 0;
  for (Hit hit : hits) {
    if (encoder.again != nullptr) {
      hit.value = kernels::dot(rows + hit.row * d, encoder.again + hit.latent * d, d) +
                  encoder.bias[static_cast<std::size_t>(hit.latent)];
      if (hit.value <= thresholds[static_cast<std::size_t>(hit.row)]) continue;
    }
    if (!std::isfinite(hit.value)) {
      above.finite = false;
      continue;
    }
    hits[kept++] = hit;
  }
  hits.resize(kept);
  above.hits = std::move(hits);
  return above;
}

}  // namespace saesweep::worker
