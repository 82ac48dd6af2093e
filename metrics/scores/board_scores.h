// Board scores: how well single latents of a dictionary, switched on above a threshold, tell
// properties of the board.
//
//   coverage        mean over properties of the best F1 that any one latent reaches
//   reconstruction  latents that are nearly always right (precision >= 0.95, at least 10 hits) on
//   one
//                   half of the games vote for their properties on the other; F1 of the outcome
//
// Latent i is on at threshold t iff f_i > t * M_i, where M_i is its maximum over games of the half
// for labels; t = 0, .1, ..., 1. Coverage in three definitions: one threshold for all properties
// (cov_single_t), the best one for each (cov_best_t), the latter over properties that occur at all
// (cov_occurring). Reconstruction: counts over all squares and boards together with the threshold
// chosen on games set aside from the half for labels (rec_micro), the same with the threshold
// chosen on the games it is scored on (rec_legacy, as published numbers are), F1 by board, then
// averaged (rec_boardmean). Everything is made of integer counts. F1 = 2 TP / (on + positives +
// 1e-8). Source: Karvonen et al., "Measuring Progress in Dictionary Learning for Language Model
// Interpretability with Board Game Models" (arXiv 2408.00113).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "metrics/scores/score_set.h"

namespace saesweep::metrics {

inline constexpr std::size_t kThresholds = 11;                // 0, .1, ..., 1
inline constexpr std::size_t kReconstructionThresholds = 10;  // the last one hardly ever fires

// How many thresholds f exceeds (0: off at all of them): on at thresholds 0..bucket-1. Exact: both
// sides of f * 10 > t * M are representable.
std::size_t bucket_of(float f, float maximum);

double f1(std::uint64_t hits, std::uint64_t on, std::uint64_t positives);
// Precision >= 0.95 and at least 10 hits, in integers: 19 of 20 is enough.
bool is_label(std::uint64_t hits, std::uint64_t on);

// Counts of one latent on a set of positions that is cut into blocks of games.
class LatentCounts {
 public:
  LatentCounts(std::size_t blocks, std::size_t properties);
  void clear();
  // A position of `block` where the latent exceeds `bucket` > 0 thresholds and the properties are
  // `truth` (0 or 1 each): the bucket kernel. Counts are by bucket until finish().
  void add(std::size_t block, std::size_t bucket, const std::uint8_t* truth);
  // Sums over buckets from above: then hits and on are those of thresholds.
  void finish();

  std::size_t blocks() const { return blocks_; }
  std::size_t properties() const { return properties_; }
  const std::uint32_t* hits(std::size_t block, std::size_t threshold) const;  // [properties]
  std::uint32_t on(std::size_t block, std::size_t threshold) const;

 private:
  std::size_t blocks_, properties_;
  std::vector<std::uint32_t> hits_;  // [blocks, kThresholds, properties]
  std::vector<std::uint32_t> on_;    // [blocks, kThresholds]
};

// Best F1 of any latent for every property and threshold, on all blocks and without each one.
// Merging in any order gives the same bytes.
class BestF1 {
 public:
  // positives: [blocks][properties] positions where a property holds
  explicit BestF1(std::vector<std::vector<std::uint64_t>> positives);
  void add(const LatentCounts& latent);  // finished
  // The same for a predictor of one property (a probe): it stands at every threshold.
  //   hits, on: [blocks]
  void add_predictor(std::size_t property, std::span<const std::uint64_t> hits,
                     std::span<const std::uint64_t> on);
  void merge(const BestF1& other);

  std::size_t blocks() const { return positives_.size(); }
  std::size_t properties() const { return properties_; }
  // Without `block`; blocks(): with all.
  double best(std::size_t without, std::size_t threshold, std::size_t property) const {
    return best_[(without * kThresholds + threshold) * properties_ + property];
  }
  std::uint64_t positives(std::size_t without, std::size_t property) const {
    return total_[without * properties_ + property];
  }

 private:
  std::size_t properties_;
  std::vector<std::vector<std::uint64_t>> positives_;
  std::vector<std::uint64_t> total_;  // [blocks + 1, properties]
  std::vector<double> best_;          // [blocks + 1, kThresholds, properties]
};

// A set of properties that is scored together: [first, end) of all properties, and what its scores'
// names begin with ("board.", "board.true_mover.", "board.valid_moves.").
struct PropertyGroup {
  std::string prefix;
  std::size_t first, end;
};

// cov_single_t, cov_best_t, cov_occurring; n: properties averaged.
void add_coverage(Scores& scores, const BestF1& best, const PropertyGroup& group, int version);

// Predictions of one property group on a set of boards, by block of games and threshold.
class BoardCounts {
 public:
  explicit BoardCounts(std::size_t blocks);
  struct Cell {
    std::uint64_t hits = 0, predicted = 0, positives = 0, boards = 0;
    double board_f1 = 0;  // sum over boards
    void add(const Cell& other);
    void add_board(std::uint64_t hits, std::uint64_t predicted, std::uint64_t positives);
  };
  std::size_t blocks() const { return cells_.size() / kReconstructionThresholds; }
  Cell& at(std::size_t block, std::size_t threshold) {
    return cells_[block * kReconstructionThresholds + threshold];
  }
  Cell total(std::size_t threshold, std::size_t without) const;  // blocks(): with all

 private:
  std::vector<Cell> cells_;
};

// The thresholds with the highest micro F1 and the highest mean F1 by board; the lowest of equals.
struct ChosenThresholds {
  std::size_t micro = 0, board_mean = 0;
};
ChosenThresholds choose_thresholds(const BoardCounts& validation);

// rec_micro, rec_boardmean, rec_legacy; n: boards.
void add_reconstruction_scores(Scores& scores, const BoardCounts& counts,
                               const ChosenThresholds& chosen, const PropertyGroup& group,
                               int version);

}  // namespace saesweep::metrics
