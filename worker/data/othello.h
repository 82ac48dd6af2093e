// Othello on 4x4, 6x6 and 8x8 boards: rules on bitboards, games of uniform play, tokens, labels.
//
// Squares are numbered size * row + column. Black moves first; a player without a move is skipped
// silently; the game ends when nobody can move. Start: the centre squares (s/2-1, s/2-1) and
// (s/2, s/2) are white, the other two black.
// Tokens: 0 is padding; 1.. are the non-centre squares in ascending order.
// Source of rules, tokens and labels: Li et al., "Emergent world representations" (2023) and
// Nanda's mine/yours labels; the golden values of the tests were counted independently.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

namespace saesweep::worker::othello {

using Bits = std::uint64_t;  // bit 8 * row + column, whatever the board's size

struct Position {
  Bits black = 0, white = 0;
  bool black_to_move = true;
  bool operator==(const Position&) const = default;
};

class Rules {
 public:
  explicit Rules(int size);  // 4, 6 or 8
  int size() const { return size_; }
  int squares() const { return size_ * size_; }
  int max_moves() const { return squares() - 4; }
  int vocabulary() const { return max_moves() + 1; }
  int context() const { return max_moves() - 1; }  // inputs of a full game: all moves but the last

  Position start() const;
  Bits legal(const Position& position) const;  // moves of the side to move
  // Plays a legal move (a single bit); the turn passes, skipping a side that cannot move. When
  // nobody can move the side to move is whoever would have been next, and legal() is 0.
  Position play(const Position& position, Bits move) const;
  // Lines of `plies` plies from the start, a skipped turn counting as a ply and a game that ended
  // earlier as one line: the tables of engine authors.
  std::uint64_t perft(int plies) const;

  int square_of(Bits move) const;  // single bit -> size * row + column
  Bits bit_of(int square) const;
  int token_of(int square) const;        // -1 for a centre square
  int square_of_token(int token) const;  // -1 for padding or an id out of range

 private:
  std::uint64_t perft(const Position& position, int plies) const;
  int size_;
  Bits board_;
  std::array<std::int8_t, 64> token_of_;
  std::array<std::int8_t, 64> square_of_token_;
};

struct Game {
  std::vector<std::uint8_t> moves;  // squares
  std::vector<bool> black_moved;    // who made each
  std::vector<double> log_legal;    // ln(number of legal moves) before each
};

// Game number `index` of the collection `seed`: depends on (size, seed, index) alone.
Game play_uniform(const Rules& rules, std::uint64_t seed, std::uint64_t index);

// Labels after each move of a game.
struct Labels {
  // [position][square]: +1 mine, -1 yours, 0 blank, where mine is
  std::vector<std::vector<std::int8_t>> parity;      // black after even moves, white after odd ones
  std::vector<std::vector<std::int8_t>> true_mover;  // the side that made the move
  std::vector<std::vector<std::uint8_t>> valid;      // 1: legal for whoever moves next
};
// Replays the first `positions` moves. The moves must be legal (they come from play_uniform or from
// tokens already checked by `is_legal_game`).
Labels label_game(const Rules& rules, std::span<const std::uint8_t> moves, std::size_t positions);
bool is_legal_game(const Rules& rules, std::span<const std::uint8_t> moves);

}  // namespace saesweep::worker::othello
