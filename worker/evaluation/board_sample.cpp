#include "worker/evaluation/board_sample.h"

#include <algorithm>

#include "worker/data/othello.h"

namespace saesweep::worker {

std::size_t BoardHalf::game_of(std::size_t row) const {
  return static_cast<std::size_t>(std::ranges::upper_bound(first_row, row) - first_row.begin()) - 1;
}

BoardHalf label_games(const TokenDocuments& documents, std::span<const std::uint64_t> chosen,
                      ThreadPool& pool) {
  const othello::Rules rules(documents.board());
  const auto squares = static_cast<std::size_t>(rules.squares());
  BoardHalf half;
  half.documents.assign(chosen.begin(), chosen.end());
  half.first_row.assign(1, 0);
  for (const std::uint64_t document : chosen)
    half.first_row.push_back(half.first_row.back() + documents.rows(document));
  half.properties = 5 * squares;
  half.words = (half.properties + 63) / 64;
  half.truth.assign(half.rows() * half.properties, 0);
  half.bits.assign(half.rows() * half.words, 0);
  pool.run(static_cast<std::int64_t>(chosen.size()), [&](std::int64_t index) {
    const auto game = static_cast<std::size_t>(index);
    std::vector<std::uint8_t> moves;
    for (const std::uint8_t token : documents.tokens(chosen[game]))
      moves.push_back(static_cast<std::uint8_t>(rules.square_of_token(token)));
    const std::size_t first = half.first_row[game], count = half.first_row[game + 1] - first;
    const othello::Labels labels = othello::label_game(rules, moves, count);
    for (std::size_t i = 0; i < count; ++i) {
      std::uint8_t* truth = half.truth.data() + (first + i) * half.properties;
      for (std::size_t square = 0; square < squares; ++square) {
        truth[square] = labels.parity[i][square] == 1;
        truth[squares + square] = labels.parity[i][square] == -1;
        truth[2 * squares + square] = labels.true_mover[i][square] == 1;
        truth[3 * squares + square] = labels.true_mover[i][square] == -1;
        truth[4 * squares + square] = labels.valid[i][square];
      }
      std::uint64_t* bits = half.bits.data() + (first + i) * half.words;
      for (std::size_t k = 0; k < half.properties; ++k)
        bits[k / 64] |= std::uint64_t{truth[k]} << (k % 64);
    }
  });
  return half;
}

std::vector<metrics::PropertyGroup> property_groups(std::size_t properties) {
  const std::size_t squares = properties / 5;
  return {{"board.", 0, 2 * squares},
          {"board.true_mover.", 2 * squares, 4 * squares},
          {"board.valid_moves.", 4 * squares, 5 * squares}};
}

}  // namespace saesweep::worker
