#include "metrics/scores/board_scores.h"

#include <algorithm>

#include "core/check.h"

namespace saesweep::metrics {
namespace {

constexpr double kTiny = 1e-8;

double micro_f1(const BoardCounts::Cell& cell) {
  return f1(cell.hits, cell.predicted, cell.positives);
}
double board_mean_f1(const BoardCounts::Cell& cell) {
  return cell.boards == 0 ? 0 : cell.board_f1 / static_cast<double>(cell.boards);
}

// value(blocks): with all blocks; value(j): without block j.
template <class Value>
Score jackknifed(std::size_t blocks, std::uint64_t n, int version, const Value& value) {
  std::vector<double> without(blocks);
  for (std::size_t block = 0; block < blocks; ++block) without[block] = value(block);
  return with_interval(value(blocks), without, n, version);
}

}  // namespace

std::size_t bucket_of(float f, float maximum) {
  if (!(f > 0)) return 0;
  std::size_t bucket = 1;
  while (bucket < kThresholds &&
         10.0 * f > static_cast<double>(bucket) * static_cast<double>(maximum))
    ++bucket;
  return bucket;
}

double f1(std::uint64_t hits, std::uint64_t on, std::uint64_t positives) {
  return 2.0 * static_cast<double>(hits) / (static_cast<double>(on + positives) + kTiny);
}

bool is_label(std::uint64_t hits, std::uint64_t on) { return hits >= 10 && 20 * hits >= 19 * on; }

LatentCounts::LatentCounts(std::size_t blocks, std::size_t properties)
    : blocks_(blocks),
      properties_(properties),
      hits_(blocks * kThresholds * properties),
      on_(blocks * kThresholds) {}

void LatentCounts::clear() {
  std::ranges::fill(hits_, 0);
  std::ranges::fill(on_, 0);
}

void LatentCounts::add(std::size_t block, std::size_t bucket, const std::uint8_t* truth) {
  const std::size_t cell = block * kThresholds + bucket - 1;
  ++on_[cell];
  std::uint32_t* hits = hits_.data() + cell * properties_;
  for (std::size_t k = 0; k < properties_; ++k) hits[k] += truth[k];
}

void LatentCounts::finish() {
  for (std::size_t block = 0; block < blocks_; ++block)
    for (std::size_t t = kThresholds - 1; t-- > 0;) {
      const std::size_t cell = block * kThresholds + t;
      on_[cell] += on_[cell + 1];
      std::uint32_t* hits = hits_.data() + cell * properties_;
      for (std::size_t k = 0; k < properties_; ++k) hits[k] += hits[properties_ + k];
    }
}

const std::uint32_t* LatentCounts::hits(std::size_t block, std::size_t threshold) const {
  return hits_.data() + (block * kThresholds + threshold) * properties_;
}

std::uint32_t LatentCounts::on(std::size_t block, std::size_t threshold) const {
  return on_[block * kThresholds + threshold];
}

BestF1::BestF1(std::vector<std::vector<std::uint64_t>> positives)
    : properties_(positives.empty() ? 0 : positives.front().size()),
      positives_(std::move(positives)),
      total_((positives_.size() + 1) * properties_, 0),
      best_((positives_.size() + 1) * kThresholds * properties_, 0) {
  for (std::size_t without = 0; without <= blocks(); ++without)
    for (std::size_t block = 0; block < blocks(); ++block)
      if (block != without)
        for (std::size_t k = 0; k < properties_; ++k)
          total_[without * properties_ + k] += positives_[block][k];
}

void BestF1::add(const LatentCounts& latent) {
  SAE_CHECK(latent.blocks() == blocks() && latent.properties() == properties_, "{} blocks of {}",
            latent.blocks(), latent.properties());
  std::vector<std::uint32_t> all(properties_);
  for (std::size_t t = 0; t < kThresholds; ++t) {
    std::uint32_t on = 0;
    std::ranges::fill(all, 0);
    for (std::size_t block = 0; block < blocks(); ++block) {
      on += latent.on(block, t);
      const std::uint32_t* hits = latent.hits(block, t);
      for (std::size_t k = 0; k < properties_; ++k) all[k] += hits[k];
    }
    if (on == 0) break;  // nor at any higher threshold
    for (std::size_t without = 0; without <= blocks(); ++without) {
      const bool whole = without == blocks();
      const double fired = on - (whole ? 0 : latent.on(without, t));
      const std::uint32_t* left_out = whole ? nullptr : latent.hits(without, t);
      const std::uint64_t* total = total_.data() + without * properties_;
      double* best = best_.data() + (without * kThresholds + t) * properties_;
      for (std::size_t k = 0; k < properties_; ++k) {
        const double hits = all[k] - (whole ? 0 : left_out[k]);
        const double value = 2 * hits / (fired + static_cast<double>(total[k]) + kTiny);
        best[k] = std::max(best[k], value);
      }
    }
  }
}

void BestF1::add_predictor(std::size_t property, std::span<const std::uint64_t> hits,
                           std::span<const std::uint64_t> on) {
  for (std::size_t without = 0; without <= blocks(); ++without) {
    std::uint64_t own_hits = 0, own_on = 0;
    for (std::size_t block = 0; block < blocks(); ++block) {
      if (block == without) continue;
      own_hits += hits[block];
      own_on += on[block];
    }
    const double value = f1(own_hits, own_on, positives(without, property));
    for (std::size_t t = 0; t < kThresholds; ++t) {
      double& best = best_[(without * kThresholds + t) * properties_ + property];
      best = std::max(best, value);
    }
  }
}

void BestF1::merge(const BestF1& other) {
  SAE_CHECK(other.best_.size() == best_.size(), "{} values and {}", other.best_.size(),
            best_.size());
  for (std::size_t i = 0; i < best_.size(); ++i) best_[i] = std::max(best_[i], other.best_[i]);
}

void add_coverage(Scores& scores, const BestF1& best, const PropertyGroup& group, int version) {
  const std::size_t blocks = best.blocks();
  const std::size_t properties = group.end - group.first;
  const auto single = [&](std::size_t without) {
    double highest = 0;
    for (std::size_t t = 0; t < kThresholds; ++t) {
      double sum = 0;
      for (std::size_t k = group.first; k < group.end; ++k) sum += best.best(without, t, k);
      highest = std::max(highest, sum / static_cast<double>(properties));
    }
    return highest;
  };
  std::size_t occurring = 0;
  const auto each = [&](std::size_t without, bool only_occurring) {
    double sum = 0;
    occurring = 0;
    for (std::size_t k = group.first; k < group.end; ++k) {
      if (only_occurring && best.positives(without, k) == 0) continue;
      ++occurring;
      double highest = 0;
      for (std::size_t t = 0; t < kThresholds; ++t)
        highest = std::max(highest, best.best(without, t, k));
      sum += highest;
    }
    return occurring == 0 ? 0 : sum / static_cast<double>(occurring);
  };
  scores[group.prefix + "cov_single_t"] = jackknifed(blocks, properties, version, single);
  scores[group.prefix + "cov_best_t"] = jackknifed(
      blocks, properties, version, [&](std::size_t without) { return each(without, false); });
  Score& score = scores[group.prefix + "cov_occurring"];
  score = jackknifed(blocks, 0, version, [&](std::size_t without) { return each(without, true); });
  each(blocks, true);
  score.n = occurring;
}

BoardCounts::BoardCounts(std::size_t blocks) : cells_(blocks * kReconstructionThresholds) {}

void BoardCounts::Cell::add(const Cell& other) {
  hits += other.hits;
  predicted += other.predicted;
  positives += other.positives;
  boards += other.boards;
  board_f1 += other.board_f1;
}

void BoardCounts::Cell::add_board(std::uint64_t own_hits, std::uint64_t own_predicted,
                                  std::uint64_t own_positives) {
  hits += own_hits;
  predicted += own_predicted;
  positives += own_positives;
  ++boards;
  board_f1 += f1(own_hits, own_predicted, own_positives);
}

BoardCounts::Cell BoardCounts::total(std::size_t threshold, std::size_t without) const {
  Cell sum;
  for (std::size_t block = 0; block < blocks(); ++block)
    if (block != without) sum.add(cells_[block * kReconstructionThresholds + threshold]);
  return sum;
}

ChosenThresholds choose_thresholds(const BoardCounts& validation) {
  ChosenThresholds chosen;
  double micro = -1, board_mean = -1;
  for (std::size_t t = 0; t < kReconstructionThresholds; ++t) {
    const BoardCounts::Cell cell = validation.total(t, validation.blocks());
    if (micro_f1(cell) > micro) {
      micro = micro_f1(cell);
      chosen.micro = t;
    }
    if (board_mean_f1(cell) > board_mean) {
      board_mean = board_mean_f1(cell);
      chosen.board_mean = t;
    }
  }
  return chosen;
}

void add_reconstruction_scores(Scores& scores, const BoardCounts& counts,
                               const ChosenThresholds& chosen, const PropertyGroup& group,
                               int version) {
  const std::size_t blocks = counts.blocks();
  const std::uint64_t boards = counts.total(0, blocks).boards;
  scores[group.prefix + "rec_micro"] = jackknifed(
      blocks, boards, version,
      [&](std::size_t without) { return micro_f1(counts.total(chosen.micro, without)); });
  scores[group.prefix + "rec_boardmean"] = jackknifed(
      blocks, boards, version,
      [&](std::size_t without) { return board_mean_f1(counts.total(chosen.board_mean, without)); });
  scores[group.prefix + "rec_legacy"] =
      jackknifed(blocks, boards, version, [&](std::size_t without) {
        double best = 0;
        for (std::size_t t = 0; t < kReconstructionThresholds; ++t)
          best = std::max(best, micro_f1(counts.total(t, without)));
        return best;
      });
}

}  // namespace saesweep::metrics
