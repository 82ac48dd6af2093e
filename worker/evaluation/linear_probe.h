// Linear probes of the board: how much of it a linear map reads off activations when it is told the
// answers. The ceiling beside which a dictionary's board scores are read.
//
// A softmax over mine, yours and blank for every square (by parity and by who moved), a logistic
// unit for every square's legality; AdamW (lr 1e-3, falling to 0 over the run, weight decay 0.01,
// betas 0.9 and 0.99), 5 epochs over the first 10 000 training games, 16 games a step. Source: the
// probes of Karvonen et al. (arXiv 2408.00113), which take 2 games a step, a constant lr and no
// bias.
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

inline constexpr std::size_t kProbeGames = 10000;

// Predictions for the games of `half`: bit sets of properties [rows, words].
// Errors: kInvalidArgument without training games; kUnavailable when `stop` said so.
Result<std::vector<std::uint64_t>> probe_predictions(const Transformer& model,
                                                     const std::string& hook,
                                                     const TokenDocuments& documents,
                                                     const BoardHalf& half, ThreadPool& pool,
                                                     const std::function<bool()>& stop);

}  // namespace saesweep::worker
