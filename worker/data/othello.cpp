#include "worker/data/othello.h"

#include <bit>
#include <cmath>

#include "core/check.h"
#include "core/philox.h"

namespace saesweep::worker::othello {
namespace {

// Moves of all discs one step; columns that would wrap around are cut off.
constexpr Bits kNotFirstColumn = 0xfefefefefefefefeULL;
constexpr Bits kNotLastColumn = 0x7f7f7f7f7f7f7f7fULL;

template <int kDirection>
constexpr Bits step(Bits bits) {
  if constexpr (kDirection == 0) return (bits & kNotLastColumn) << 1;
  if constexpr (kDirection == 1) return (bits & kNotFirstColumn) >> 1;
  if constexpr (kDirection == 2) return bits << 8;
  if constexpr (kDirection == 3) return bits >> 8;
  if constexpr (kDirection == 4) return (bits & kNotLastColumn) << 9;
  if constexpr (kDirection == 5) return (bits & kNotFirstColumn) >> 9;
  if constexpr (kDirection == 6) return (bits & kNotFirstColumn) << 7;
  if constexpr (kDirection == 7) return (bits & kNotLastColumn) >> 7;
}

template <int kDirection>
constexpr Bits reached(Bits own, Bits other) {
  Bits run = step<kDirection>(own) & other;
  for (int i = 0; i < 5; ++i) run |= step<kDirection>(run) & other;
  return step<kDirection>(run);
}

Bits legal_moves(Bits own, Bits other, Bits board) {
  const Bits ends = reached<0>(own, other) | reached<1>(own, other) | reached<2>(own, other) |
                    reached<3>(own, other) | reached<4>(own, other) | reached<5>(own, other) |
                    reached<6>(own, other) | reached<7>(own, other);
  return ends & board & ~(own | other);
}

template <int kDirection>
constexpr Bits flipped(Bits move, Bits own, Bits other) {
  Bits run = step<kDirection>(move) & other;
  for (int i = 0; i < 5; ++i) run |= step<kDirection>(run) & other;
  return (step<kDirection>(run) & own) != 0 ? run : 0;
}

Bits all_flipped(Bits move, Bits own, Bits other) {
  return flipped<0>(move, own, other) | flipped<1>(move, own, other) |
         flipped<2>(move, own, other) | flipped<3>(move, own, other) |
         flipped<4>(move, own, other) | flipped<5>(move, own, other) |
         flipped<6>(move, own, other) | flipped<7>(move, own, other);
}

// The `rank`-th set bit, from the lowest.
Bits nth_bit(Bits bits, std::uint32_t rank) {
  for (; rank > 0; --rank) bits &= bits - 1;
  return bits & (~bits + 1);
}

}  // namespace

Rules::Rules(int size) : size_(size) {
  SAE_CHECK(size == 4 || size == 6 || size == 8, "board size {}", size);
  board_ = 0;
  token_of_.fill(-1);
  square_of_token_.fill(-1);
  const int centre = size / 2 - 1;
  int token = 1;
  for (int row = 0; row < size; ++row) {
    for (int column = 0; column < size; ++column) {
      board_ |= Bits{1} << (8 * row + column);
      const bool is_centre =
          (row == centre || row == centre + 1) && (column == centre || column == centre + 1);
      if (is_centre) continue;
      const auto square = static_cast<std::size_t>(size) * row + column;
      token_of_[square] = static_cast<std::int8_t>(token);
      square_of_token_[static_cast<std::size_t>(token)] = static_cast<std::int8_t>(square);
      ++token;
    }
  }
}

Position Rules::start() const {
  const int low = size_ / 2 - 1;
  const int high = size_ / 2;
  const auto bit = [](int row, int column) { return Bits{1} << (8 * row + column); };
  return {.black = bit(low, high) | bit(high, low),
          .white = bit(low, low) | bit(high, high),
          .black_to_move = true};
}

Bits Rules::legal(const Position& position) const {
  return position.black_to_move ? legal_moves(position.black, position.white, board_)
                                : legal_moves(position.white, position.black, board_);
}

Position Rules::play(const Position& position, Bits move) const {
  Position next = position;
  Bits& own = position.black_to_move ? next.black : next.white;
  Bits& other = position.black_to_move ? next.white : next.black;
  const Bits flips = all_flipped(move, own, other);
  own |= flips | move;
  other &= ~flips;
  next.black_to_move = !position.black_to_move;
  if (legal(next) == 0) {
    Position skipped = next;
    skipped.black_to_move = !next.black_to_move;
    if (legal(skipped) != 0) return skipped;
  }
  return next;
}

std::uint64_t Rules::perft(int plies) const { return perft(start(), plies); }

std::uint64_t Rules::perft(const Position& position, int plies) const {
  if (plies == 0) return 1;
  const Bits own = position.black_to_move ? position.black : position.white;
  const Bits other = position.black_to_move ? position.white : position.black;
  Bits moves = legal_moves(own, other, board_);
  if (moves == 0) {
    // A skipped turn is a ply. A game that is over is one leaf, however deep the count goes.
    if (legal_moves(other, own, board_) == 0) return 1;
    Position skipped = position;
    skipped.black_to_move = !position.black_to_move;
    return perft(skipped, plies - 1);
  }
  if (plies == 1) return static_cast<std::uint64_t>(std::popcount(moves));
  std::uint64_t total = 0;
  for (; moves != 0; moves &= moves - 1) {
    const Bits move = moves & (~moves + 1);
    const Bits flips = all_flipped(move, own, other);
    Position next;
    (position.black_to_move ? next.black : next.white) = own | flips | move;
    (position.black_to_move ? next.white : next.black) = other & ~flips;
    next.black_to_move = !position.black_to_move;
    total += perft(next, plies - 1);
  }
  return total;
}

int Rules::square_of(Bits move) const {
  const int bit = std::countr_zero(move);
  return size_ * (bit / 8) + bit % 8;
}

Bits Rules::bit_of(int square) const { return Bits{1} << (8 * (square / size_) + square % size_); }

int Rules::token_of(int square) const { return token_of_[static_cast<std::size_t>(square)]; }

int Rules::square_of_token(int token) const {
  return token <= 0 || token > max_moves() ? -1 : square_of_token_[static_cast<std::size_t>(token)];
}

Game play_uniform(const Rules& rules, std::uint64_t seed, std::uint64_t index) {
  Rng rng(seed,
          rules.size() == 8   ? "othello.uniform.8"
          : rules.size() == 6 ? "othello.uniform.6"
                              : "othello.uniform.4",
          index);
  Game game;
  game.moves.reserve(static_cast<std::size_t>(rules.max_moves()));
  game.black_moved.reserve(static_cast<std::size_t>(rules.max_moves()));
  Position position = rules.start();
  for (Bits moves = rules.legal(position); moves != 0; moves = rules.legal(position)) {
    const auto count = static_cast<std::uint32_t>(std::popcount(moves));
    const Bits move = nth_bit(moves, rng.below(count));
    game.moves.push_back(static_cast<std::uint8_t>(rules.square_of(move)));
    game.black_moved.push_back(position.black_to_move);
    game.log_legal.push_back(std::log(static_cast<double>(count)));
    position = rules.play(position, move);
  }
  return game;
}

bool is_legal_game(const Rules& rules, std::span<const std::uint8_t> moves) {
  Position position = rules.start();
  for (const std::uint8_t square : moves) {
    if (square >= rules.squares()) return false;
    const Bits move = rules.bit_of(square);
    if ((rules.legal(position) & move) == 0) return false;
    position = rules.play(position, move);
  }
  return true;
}

Labels label_game(const Rules& rules, std::span<const std::uint8_t> moves, std::size_t positions) {
  SAE_CHECK(positions <= moves.size(), "{} positions of {} moves", positions, moves.size());
  Labels labels;
  Position position = rules.start();
  const auto squares = static_cast<std::size_t>(rules.squares());
  for (std::size_t i = 0; i < positions; ++i) {
    const bool black_moved = position.black_to_move;
    const Bits move = rules.bit_of(moves[i]);
    SAE_CHECK((rules.legal(position) & move) != 0, "illegal move {} at ply {}", moves[i], i);
    position = rules.play(position, move);
    const Bits legal = rules.legal(position);
    const bool parity_black = i % 2 == 0;
    auto& parity = labels.parity.emplace_back(squares);
    auto& mover = labels.true_mover.emplace_back(squares);
    auto& valid = labels.valid.emplace_back(squares);
    for (std::size_t square = 0; square < squares; ++square) {
      const Bits bit = rules.bit_of(static_cast<int>(square));
      const int black = (position.black & bit) != 0 ? 1 : (position.white & bit) != 0 ? -1 : 0;
      parity[square] = static_cast<std::int8_t>(parity_black ? black : -black);
      mover[square] = static_cast<std::int8_t>(black_moved ? black : -black);
      valid[square] = (legal & bit) != 0;
    }
  }
  return labels;
}

}  // namespace saesweep::worker::othello
