// Linear probes of the board: how much of it a linear map reads off activations when it is told the
// answers. The ceiling beside which a dictionary's board scores are read.
//
// A softmax over mine, yours and blank for every square (by parity and by who moved), a logistic
// unit for every square's legality, each with a bias, on activations scaled to a mean square of 1.
// AdamW (lr 0.1 / sqrt(width) falling to 0 over the run, weight decay 0.01, betas 0.9 and 0.99)
// from zeros, 16 games a step, 50 000 games seen: 5 epochs of the first 10 000 training games, more
// of fewer. Source: the probes of Karvonen et al. (arXiv 2408.00113), which see as many games, 2 a
// step at a constant lr, without a bias. The problem is convex: both end near the same place.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/result.h"
#include "worker/data/documents.h"
#include "worker/evaluation/board_sample.h"
#include "worker/models/transformer.h"
#include "worker/parallel/thread_pool.h"

namespace saesweep::worker {

struct ProbeRecipe {
  std::size_t games = 10000;  // at most, for training
  std::size_t steps = 3125;   // of 16 games
};

// Predictions for the games of `half`: bit sets of properties [rows, words].
// Errors: kInvalidArgument without training games; kUnavailable when `stop` said so.
Result<std::vector<std::uint64_t>> probe_predictions(const Transformer& model,
                                                     const std::string& hook,
                                                     const TokenDocuments& documents,
                                                     const BoardHalf& half, ThreadPool& pool,
                                                     const std::function<bool()>& stop,
                                                     const ProbeRecipe& recipe = {});

}  // namespace saesweep::worker
