#include "worker/training/selection.h"

#include <algorithm>
#include <cmath>
#include <span>

namespace saesweep::worker {
namespace {

using kernels::Code;
using products::Hit;

// Hits of a tile by row, each row in order of latents (a counting sort).
struct ByRow {
  std::vector<std::int64_t> begin;  // one more than rows
  std::vector<Code> codes;

  ByRow(const std::vector<Hit>& hits, std::int64_t rows)
      : begin(static_cast<std::size_t>(rows) + 1, 0), codes(hits.size()) {
    for (const Hit& hit : hits) ++begin[static_cast<std::size_t>(hit.row) + 1];
    for (std::size_t row = 1; row < begin.size(); ++row) begin[row] += begin[row - 1];
    std::vector<std::int64_t> next(begin.begin(), begin.end() - 1);
    for (const Hit& hit : hits)
      codes[static_cast<std::size_t>(next[static_cast<std::size_t>(hit.row)]++)] = {hit.latent,
                                                                                    hit.value};
  }
  std::span<const Code> row(std::int64_t index) const {
    const auto at = static_cast<std::size_t>(index);
    return std::span(codes).subspan(static_cast<std::size_t>(begin[at]),
                                    static_cast<std::size_t>(begin[at + 1] - begin[at]));
  }
};

// Appends the k largest, ties to the lowest latent, in order of latents; returns the k-th value.
// There are at least k.
float keep_top_k(std::span<const Code> codes, std::int64_t k, std::vector<float>& scratch,
                 std::vector<Code>& out) {
  scratch.clear();
  for (const Code& code : codes) scratch.push_back(code.value);
  const kernels::KthLargest kth = kernels::kth_largest(scratch.data(), std::ssize(scratch), k);
  std::int64_t ties = k - kth.larger, kept = std::ssize(out);
  const std::int64_t end = kept + k;
  // Each is written where the next one goes, and stays if it is kept.
  out.resize(static_cast<std::size_t>(end) + 1);
  for (const Code& code : codes) {
    const bool tied = code.value == kth.value;
    out[static_cast<std::size_t>(kept)] = code;
    kept += static_cast<std::int64_t>(code.value > kth.value) |
            static_cast<std::int64_t>(tied && ties > 0);
    ties -= static_cast<std::int64_t>(tied);
  }
  out.resize(static_cast<std::size_t>(end));
  return kth.value;
}

struct TileResult {
  std::vector<Code> codes;  // row by row
  bool finite = true;
  double ratios = 0, squared_ratios = 0;  // of k-th values over norms
  std::int64_t full_rows = 0;             // with at least k
};

class RowSelection {
 public:
  RowSelection(const CentredRows& rows, const PackedEncoder& encoder, std::int64_t k, float of_norm)
      : rows_(rows), encoder_(encoder), k_(k), of_norm_(of_norm) {}

  // counts: of the codes of each row of the tile
  TileResult tile(std::int64_t first, std::int64_t count, std::int64_t* counts) const {
    const std::int64_t d = rows_.d;
    const float* data = rows_.data + first * d;
    std::vector<double> norms(static_cast<std::size_t>(count));
    std::vector<float> thresholds(norms.size());
    for (std::size_t row = 0; row < norms.size(); ++row) {
      norms[row] = std::sqrt(kernels::sum_of_squares(data + static_cast<std::int64_t>(row) * d, d));
      // A row that is not finite has no threshold: all of it is seen.
      const double guess = of_norm_ * norms[row];
      thresholds[row] = std::isfinite(guess) ? static_cast<float>(guess) : 0.0F;
    }
    TileResult result;
    const ByRow found = collect(data, thresholds, result.finite);

    std::vector<std::int64_t> short_rows;
    for (std::int64_t row = 0; row < count; ++row)
      if (std::ssize(found.row(row)) < k_ && thresholds[static_cast<std::size_t>(row)] > 0)
        short_rows.push_back(row);
    std::vector<float> again(short_rows.size() * static_cast<std::size_t>(d));
    for (std::size_t i = 0; i < short_rows.size(); ++i)
      std::copy_n(data + short_rows[i] * d, d, again.begin() + static_cast<std::ptrdiff_t>(i) * d);
    const ByRow redone =
        collect(again.data(), std::vector<float>(short_rows.size(), 0.0F), result.finite);

    std::vector<float> scratch;
    result.codes.reserve(static_cast<std::size_t>(count * k_));
    std::size_t next_short = 0;
    for (std::int64_t row = 0; row < count; ++row) {
      const bool was_short = next_short < short_rows.size() && short_rows[next_short] == row;
      const auto codes =
          was_short ? redone.row(static_cast<std::int64_t>(next_short++)) : found.row(row);
      const std::size_t before = result.codes.size();
      if (std::ssize(codes) < k_) {
        result.codes.insert(result.codes.end(), codes.begin(), codes.end());
      } else {
        const float smallest = keep_top_k(codes, k_, scratch, result.codes);
        const double ratio = smallest / norms[static_cast<std::size_t>(row)];
        if (std::isfinite(ratio)) {
          result.ratios += ratio;
          result.squared_ratios += ratio * ratio;
          ++result.full_rows;
        }
      }
      counts[row] = static_cast<std::int64_t>(result.codes.size() - before);
    }
    return result;
  }

 private:
  ByRow collect(const float* data, const std::vector<float>& thresholds, bool& finite) const {
    const auto count = std::ssize(thresholds);
    if (count == 0) return {{}, 0};
    const Above found =
        collect_above(encoder_, data, thresholds, static_cast<std::size_t>(2 * count * k_));
    finite = finite && found.finite;
    return {found.hits, count};
  }

  const CentredRows& rows_;
  const PackedEncoder& encoder_;
  std::int64_t k_;
  float of_norm_;
};

// Of a tile, all above the threshold.
TileResult above(const CentredRows& rows, const PackedEncoder& encoder, float threshold,
                 std::int64_t first, std::int64_t count, std::int64_t* counts) {
  TileResult result;
  const Above all =
      collect_above(encoder, rows.data + first * rows.d,
                    std::vector<float>(static_cast<std::size_t>(count), threshold), 0);
  result.finite = all.finite;
  ByRow found(all.hits, count);
  for (std::int64_t row = 0; row < count; ++row) counts[row] = std::ssize(found.row(row));
  result.codes = std::move(found.codes);
  return result;
}

// Runs of_tile(first, count, counts) for every tile and joins what they found.
template <class OfTile>
std::vector<TileResult> for_all_tiles(ThreadPool& pool, const CentredRows& rows, SparseCodes& codes,
                                      const OfTile& of_tile) {
  std::vector<TileResult> results(static_cast<std::size_t>(rows.tiles()));
  std::vector<std::int64_t> counts(static_cast<std::size_t>(rows.rows));
  pool.run(rows.tiles(), [&](std::int64_t tile) {
    const std::int64_t first = tile * rows.rows_per_tile;
    results[static_cast<std::size_t>(tile)] =
        of_tile(first, std::min(rows.rows_per_tile, rows.rows - first),
                &counts[static_cast<std::size_t>(first)]);
  });
  std::vector<std::vector<Code>> tiles;
  for (TileResult& result : results) tiles.push_back(std::move(result.codes));
  codes.assign(counts, tiles);
  return results;
}

bool all_finite(const std::vector<TileResult>& results) {
  return std::ranges::all_of(results, [](const TileResult& tile) { return tile.finite; });
}

}  // namespace

bool select_per_row(ThreadPool& pool, const CentredRows& rows, const PackedEncoder& encoder,
                    std::int64_t k, SelectionHints& hints, SparseCodes& codes) {
  const RowSelection selection(rows, encoder, k, hints.of_norm);
  const auto results = for_all_tiles(
      pool, rows, codes, [&](std::int64_t first, std::int64_t count, std::int64_t* counts) {
        return selection.tile(first, count, counts);
      });
  double ratios = 0, squares = 0, full = 0;
  for (const TileResult& tile : results) {
    ratios += tile.ratios;
    squares += tile.squared_ratios;
    full += static_cast<double>(tile.full_rows);
  }
  // Lower than all but a few in a hundred.
  const double mean = full > 0 ? ratios / full : 0;
  const double deviation = full > 0 ? std::sqrt(std::max(0.0, squares / full - mean * mean)) : 0;
  hints.of_norm = static_cast<float>(std::max(0.0, mean - 2.5 * deviation));
  return all_finite(results);
}

bool select_above(ThreadPool& pool, const CentredRows& rows, const PackedEncoder& encoder,
                  float threshold, SparseCodes& codes) {
  return all_finite(for_all_tiles(
      pool, rows, codes, [&](std::int64_t first, std::int64_t count, std::int64_t* counts) {
        return above(rows, encoder, threshold, first, count, counts);
      }));
}

bool select_per_batch(ThreadPool& pool, const CentredRows& rows, const PackedEncoder& encoder,
                      std::size_t wanted, SelectionHints& hints, SparseCodes& codes) {
  float guess = 0.97F * hints.of_batch;
  if (!(guess > 0) && rows.tiles() > 1) {
    // Nothing is known yet: the first rows tell.
    CentredRows sample = rows;
    sample.rows = rows.rows_per_tile;
    select_above(pool, sample, encoder, 0, codes);
    const auto share =
        static_cast<std::size_t>(static_cast<double>(wanted) * static_cast<double>(sample.rows) /
                                 static_cast<double>(rows.rows));
    if (share >= 1 && share < codes.entries.size()) guess = 0.8F * codes.keep_largest(share);
  }
  bool finite = true;
  for (const float threshold : {guess, 0.8F * guess, 0.0F}) {
    finite = select_above(pool, rows, encoder, std::isfinite(threshold) ? threshold : 0, codes);
    if (codes.entries.size() >= wanted || !(threshold > 0)) break;
  }
  hints.of_batch = codes.entries.size() > wanted ? codes.keep_largest(wanted) : 0;
  return finite;
}

}  // namespace saesweep::worker
