// Games with what is true on their boards, cut into the half for labels and the half for scores.
//
// Properties of a position, in this order, S = squares:
//   [0, S) mine, [S, 2S) yours            by the parity of the move
//   [2S, 3S) mine, [3S, 4S) yours         by who really moved
//   [4S, 5S) legal for whoever moves next
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "metrics/scores/board_scores.h"
#include "worker/data/documents.h"
#include "worker/parallel/thread_pool.h"

namespace saesweep::worker {

struct BoardHalf {
  std::vector<std::uint64_t> documents;
  std::vector<std::size_t> first_row;  // [games + 1]
  std::size_t properties = 0;
  std::size_t words = 0;            // of a bit set of properties
  std::vector<std::uint8_t> truth;  // [rows, properties], 0 or 1
  std::vector<std::uint64_t> bits;  // [rows, words], the same

  std::size_t games() const { return documents.size(); }
  std::size_t rows() const { return first_row.back(); }
  std::size_t game_of(std::size_t row) const;
};

// Labels of games, which must be legal (generated documents are).
BoardHalf label_games(const TokenDocuments& documents, std::span<const std::uint64_t> chosen,
                      ThreadPool& pool);

struct BoardSample {
  BoardHalf labels, scores;
  // The last quarter of the half for labels chooses the threshold; the games before it are [0,
  // fit).
  std::size_t fit_games() const { return labels.games() - labels.games() / 4; }
};

// "board.", "board.true_mover.", "board.valid_moves."
std::vector<metrics::PropertyGroup> property_groups(std::size_t properties);

}  // namespace saesweep::worker
