// Board scores of a dictionary, from its sparse codes on labelled games.
//
// Two sweeps over codes: one on the half for labels (maxima, then counts), one on the half for
// scores. Codes are turned around so that one thread counts one latent at a time: its counters for
// all blocks, thresholds and properties are half a megabyte, whatever the width of the dictionary,
// and a jackknife over 32 blocks of games is exact: for every block left out the best latent of
// every property is found again. Counts are integers and maxima do not depend on order, so threads
// change no byte.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "core/json.h"
#include "core/result.h"
#include "metrics/scores/board_scores.h"
#include "worker/evaluation/board_sample.h"
#include "worker/parallel/thread_pool.h"

namespace saesweep::worker {

// Codes above 0 of consecutive rows.
struct SparseCodes {
  std::vector<std::uint32_t> first;   // [rows + 1]
  std::vector<std::uint32_t> latent;  // ascending within a row
  std::vector<float> value;
};

// A dictionary as the board sees it: the codes of games [first, end) of a half. Called from several
// threads; the same games always give the same codes.
struct CodeSource {
  std::size_t latents = 0;
  std::function<SparseCodes(const BoardHalf& half, std::size_t first, std::size_t end)> codes;
};

// Games at once: as the model reads them.
inline constexpr std::size_t kGamesPerPiece = 16;

struct BoardResult {
  metrics::Scores scores;
  // For each group of properties: {"t": chosen threshold, "labels": how many (latent, property)}.
  Json chosen = Json::object();
};

// Codes kept between sweeps, and entries turned around at once. Where there are more, codes are
// computed again and latents are taken in several groups: slower, with the same bytes.
struct BoardLimits {
  std::size_t kept_codes = std::size_t{8} << 20;
  std::size_t turned_codes = std::size_t{32} << 20;
};

// Errors: kUnavailable when `stop` said so.
Result<BoardResult> score_board(
    const BoardSample& sample, const CodeSource& source, int version, ThreadPool& pool,
    const std::function<bool()>& stop = {},
    const std::function<void(std::uint64_t, std::uint64_t)>& progress = {},
    const BoardLimits& limits = {});

// The same scores of predictions that need neither thresholds nor labels (a linear probe):
//   predicted: [rows of sample.scores, words]
metrics::Scores score_predictions(const BoardHalf& half,
                                  const std::vector<std::uint64_t>& predicted, int version);

// Latent 0 is always on.
CodeSource always_on();
// Two latents a square: mine and yours by who occupied it first, as parity sees it; no disc flips.
CodeSource placement(const TokenDocuments& documents);

}  // namespace saesweep::worker
