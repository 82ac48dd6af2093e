#include "worker/evaluation/board_evaluation.h"

#include <algorithm>
#include <bit>
#include <memory>
#include <optional>
#include <utility>

#include "worker/data/othello.h"
#include "worker/evaluation/sample.h"

namespace saesweep::worker {
namespace {

using metrics::BestF1;
using metrics::BoardCounts;
using metrics::kReconstructionThresholds;
using metrics::kThresholds;
using metrics::LatentCounts;
using metrics::PropertyGroup;

// Games over which a latent's maximum is taken.
constexpr std::size_t kGamesForMaximum = 1000;
std::size_t pieces_of(const BoardHalf& half) {
  return (half.games() + kGamesPerPiece - 1) / kGamesPerPiece;
}

// The codes of a half, piece by piece, kept where they are few.
class HalfCodes {
 public:
  HalfCodes(const BoardHalf& half, const CodeSource& source, std::size_t room)
      : half_(half), source_(source), room_(room), kept_(pieces_of(half)) {}

  // On any thread; the piece's codes live as long as the returned pointer.
  std::shared_ptr<const SparseCodes> piece(std::size_t index) const {
    if (kept_[index]) return kept_[index];
    const std::size_t first = index * kGamesPerPiece;
    return std::make_shared<const SparseCodes>(
        source_.codes(half_, first, std::min(half_.games(), first + kGamesPerPiece)));
  }
  // On the calling thread, between waves.
  void keep(std::size_t index, std::shared_ptr<const SparseCodes> codes) {
    if (codes->latent.size() > room_) return;
    room_ -= codes->latent.size();
    kept_[index] = std::move(codes);
  }
  std::size_t first_row(std::size_t index) const { return half_.first_row[index * kGamesPerPiece]; }
  std::size_t pieces() const { return kept_.size(); }
  const BoardHalf& half() const { return half_; }

 private:
  const BoardHalf& half_;
  const CodeSource& source_;
  std::size_t room_;  // for codes to keep
  std::vector<std::shared_ptr<const SparseCodes>> kept_;
};

// Whose label each latent is: bit sets [latents, thresholds, words].
struct LabelSet {
  std::size_t words = 0;
  std::vector<std::uint64_t> bits;
  std::vector<std::uint8_t> any;  // [latents]

  LabelSet(std::size_t latents, std::size_t words_)
      : words(words_), bits(latents * kReconstructionThresholds * words_, 0), any(latents, 0) {}
  std::uint64_t* of(std::size_t latent, std::size_t threshold) {
    return bits.data() + (latent * kReconstructionThresholds + threshold) * words;
  }
  const std::uint64_t* of(std::size_t latent, std::size_t threshold) const {
    return bits.data() + (latent * kReconstructionThresholds + threshold) * words;
  }
  void set(std::size_t latent, std::size_t threshold, std::size_t property) {
    of(latent, threshold)[property / 64] |= std::uint64_t{1} << (property % 64);
    any[latent] = 1;
  }
};

// Bit set of a group of properties.
std::vector<std::uint64_t> mask_of(const PropertyGroup& group, std::size_t words) {
  std::vector<std::uint64_t> mask(words, 0);
  for (std::size_t k = group.first; k < group.end; ++k)
    mask[k / 64] |= std::uint64_t{1} << (k % 64);
  return mask;
}

void count_board(BoardCounts::Cell& cell, const std::uint64_t* predicted,
                 const std::uint64_t* truth, const std::vector<std::uint64_t>& mask) {
  std::uint64_t hits = 0, on = 0, positives = 0;
  for (std::size_t w = 0; w < mask.size(); ++w) {
    hits += static_cast<std::uint64_t>(std::popcount(predicted[w] & truth[w] & mask[w]));
    on += static_cast<std::uint64_t>(std::popcount(predicted[w] & mask[w]));
    positives += static_cast<std::uint64_t>(std::popcount(truth[w] & mask[w]));
  }
  cell.add_board(hits, on, positives);
}

std::vector<std::vector<std::uint64_t>> positives_by_block(const BoardHalf& half) {
  std::vector<std::vector<std::uint64_t>> positives(metrics::block_count(half.games()),
                                                    std::vector<std::uint64_t>(half.properties, 0));
  for (std::size_t game = 0; game < half.games(); ++game) {
    auto& of_block = positives[metrics::block_of(game, half.games())];
    for (std::size_t row = half.first_row[game]; row < half.first_row[game + 1]; ++row)
      for (std::size_t k = 0; k < half.properties; ++k)
        of_block[k] += half.truth[row * half.properties + k];
  }
  return positives;
}

class BoardEvaluation {
 public:
  BoardEvaluation(const BoardSample& sample, const CodeSource& source, int version,
                  ThreadPool& pool, const std::function<bool()>& stop,
                  const std::function<void(std::uint64_t, std::uint64_t)>& progress,
                  const BoardLimits& limits)
      : sample_(sample),
        source_(source),
        version_(version),
        pool_(pool),
        stop_(stop),
        progress_(progress),
        turned_codes_(limits.turned_codes),
        labels_(sample.labels, source, limits.kept_codes / 2),
        scores_(sample.scores, source, limits.kept_codes / 2),
        groups_(property_groups(sample.labels.properties)),
        maximum_(source.latents, 0),
        fit_labels_(source.latents, sample.labels.words),
        whole_labels_(source.latents, sample.labels.words) {
    for (const PropertyGroup& group : groups_)
      masks_.push_back(mask_of(group, sample.labels.words));
  }

  Result<BoardResult> run() {
    const std::size_t maximum_games = std::min(sample_.labels.games(), kGamesForMaximum);
    SAE_TRY(const auto label_sizes,
            survey(labels_, sample_.labels.first_row[maximum_games], &maximum_));
    SAE_TRY(const auto score_sizes, survey(scores_, 0, nullptr));
    SAE_TRY_VOID(find_labels(label_sizes));
    const std::size_t fit = sample_.fit_games();
    SAE_TRY(const std::vector<BoardCounts> validation,
            predict(labels_, fit_labels_, fit, 1, [](std::size_t) { return std::size_t{0}; }));
    const std::size_t games = sample_.scores.games();
    SAE_TRY(const std::vector<BoardCounts> counts,
            predict(scores_, whole_labels_, 0, metrics::block_count(games),
                    [games](std::size_t game) { return metrics::block_of(game, games); }));
    SAE_TRY(const BestF1 best, find_best(score_sizes));

    BoardResult result;
    for (std::size_t g = 0; g < groups_.size(); ++g) {
      const auto chosen = metrics::choose_thresholds(validation[g]);
      metrics::add_coverage(result.scores, best, groups_[g], version_);
      metrics::add_reconstruction_scores(result.scores, counts[g], chosen, groups_[g], version_);
      std::uint64_t labels = 0;
      for (std::size_t latent = 0; latent < source_.latents; ++latent)
        for (std::size_t w = 0; w < masks_[g].size(); ++w)
          labels += static_cast<std::uint64_t>(
              std::popcount(whole_labels_.of(latent, chosen.micro)[w] & masks_[g][w]));
      result.chosen[groups_[g].prefix.substr(0, groups_[g].prefix.size() - 1)] = {
          {"t", static_cast<double>(chosen.micro) / 10}, {"labels", labels}};
    }
    return result;
  }

 private:
  // Codes of each latent on a half; their largest value on its first `maximum_rows` rows.
  Result<std::vector<std::size_t>> survey(HalfCodes& codes, std::size_t maximum_rows,
                                          std::vector<float>* maximum) {
    std::vector<std::size_t> sizes(source_.latents, 0);
    std::vector<std::shared_ptr<const SparseCodes>> wave(codes.pieces());
    SAE_TRY_VOID(in_waves(
        pool_, codes.pieces(), stop_, [&](std::size_t index) { wave[index] = codes.piece(index); },
        [&](std::size_t first, std::size_t end) {
          for (std::size_t index = first; index < end; ++index) {
            const SparseCodes& piece = *wave[index];
            for (const std::uint32_t latent : piece.latent) ++sizes[latent];
            const std::size_t first_row = codes.first_row(index);
            for (std::size_t row = 0; maximum != nullptr && row + 1 < piece.first.size(); ++row) {
              if (first_row + row >= maximum_rows) break;
              for (std::uint32_t i = piece.first[row]; i < piece.first[row + 1]; ++i) {
                float& largest = (*maximum)[piece.latent[i]];
                largest = std::max(largest, piece.value[i]);
              }
            }
            codes.keep(index, std::move(wave[index]));
          }
          report(end - first);
        }));
    return sizes;
  }

  // Calls body(latent, counts) for every latent that is not dead, its codes counted in `blocks`
  // blocks: block_of_row[row].
  Result<void> count_latents(
      const HalfCodes& codes, const std::vector<std::size_t>& sizes, std::size_t blocks,
      const std::vector<std::uint8_t>& block_of_row,
      const std::function<void(std::size_t piece, std::size_t latent, const LatentCounts&)>& body) {
    struct Entry {
      std::uint32_t row;
      std::uint32_t bucket;
    };
    const std::size_t properties = codes.half().properties;
    for (std::size_t low = 0; low < source_.latents;) {
      // Latents [low, high) are turned around together.
      std::size_t high = low, total = 0;
      std::vector<std::size_t> first(1, 0);
      while (high < source_.latents && (high == low || total + sizes[high] <= turned_codes_)) {
        total += maximum_[high] > 0 ? sizes[high] : 0;
        first.push_back(total);
        ++high;
      }
      std::vector<Entry> entries(total);
      std::vector<std::size_t> next(first.begin(), first.end() - 1);
      std::vector<std::shared_ptr<const SparseCodes>> wave(codes.pieces());
      SAE_TRY_VOID(in_waves(
          pool_, codes.pieces(), stop_,
          [&](std::size_t index) { wave[index] = codes.piece(index); },
          [&](std::size_t begin, std::size_t end) {
            for (std::size_t index = begin; index < end; ++index) {
              const SparseCodes& piece = *wave[index];
              const std::size_t first_row = codes.first_row(index);
              for (std::size_t row = 0; row + 1 < piece.first.size(); ++row)
                for (std::uint32_t i = piece.first[row]; i < piece.first[row + 1]; ++i) {
                  const std::size_t latent = piece.latent[i];
                  if (latent < low || latent >= high || !(maximum_[latent] > 0)) continue;
                  entries[next[latent - low]++] = {static_cast<std::uint32_t>(first_row + row),
                                                   static_cast<std::uint32_t>(metrics::bucket_of(
                                                       piece.value[i], maximum_[latent]))};
                }
              wave[index].reset();
            }
          }));
      const std::size_t latents = high - low;
      const std::size_t pieces = std::min(kCountingPieces, latents);
      pool_.run(static_cast<std::int64_t>(pieces), [&](std::int64_t number) {
        const auto piece = static_cast<std::size_t>(number);
        LatentCounts counts(blocks, properties);
        for (std::size_t i = piece; i < latents; i += pieces) {
          if (first[i] == first[i + 1]) continue;
          counts.clear();
          for (std::size_t e = first[i]; e < first[i + 1]; ++e)
            counts.add(block_of_row[entries[e].row], entries[e].bucket,
                       codes.half().truth.data() + entries[e].row * properties);
          counts.finish();
          body(piece, low + i, counts);
        }
      });
      low = high;
    }
    return {};
  }

  Result<void> find_labels(const std::vector<std::size_t>& sizes) {
    const BoardHalf& half = sample_.labels;
    std::vector<std::uint8_t> block_of_row(half.rows(), 1);  // 0: fit, 1: validation
    std::fill_n(block_of_row.begin(), half.first_row[sample_.fit_games()], std::uint8_t{0});
    return count_latents(labels_, sizes, 2, block_of_row,
                         [&](std::size_t, std::size_t latent, const LatentCounts& counts) {
                           for (std::size_t t = 0; t < kReconstructionThresholds; ++t) {
                             const std::uint64_t fit_on = counts.on(0, t),
                                                 on = fit_on + counts.on(1, t);
                             for (std::size_t k = 0; k < half.properties; ++k) {
                               const std::uint64_t fit_hits = counts.hits(0, t)[k];
                               if (metrics::is_label(fit_hits, fit_on))
                                 fit_labels_.set(latent, t, k);
                               if (metrics::is_label(fit_hits + counts.hits(1, t)[k], on))
                                 whole_labels_.set(latent, t, k);
                             }
                           }
                         });
  }

  Result<BestF1> find_best(const std::vector<std::size_t>& sizes) {
    const BoardHalf& half = sample_.scores;
    std::vector<std::uint8_t> block_of_row(half.rows());
    for (std::size_t game = 0; game < half.games(); ++game)
      std::fill(block_of_row.begin() + static_cast<std::ptrdiff_t>(half.first_row[game]),
                block_of_row.begin() + static_cast<std::ptrdiff_t>(half.first_row[game + 1]),
                static_cast<std::uint8_t>(metrics::block_of(game, half.games())));
    std::vector<BestF1> best(kCountingPieces, BestF1(positives_by_block(half)));
    SAE_TRY_VOID(count_latents(scores_, sizes, metrics::block_count(half.games()), block_of_row,
                               [&](std::size_t piece, std::size_t, const LatentCounts& counts) {
                                 best[piece].add(counts);
                               }));
    for (std::size_t piece = 1; piece < best.size(); ++piece) best[0].merge(best[piece]);
    return std::move(best[0]);
  }

  // Each label's latents vote; counts by block of games from `first_game` on, for each group.
  Result<std::vector<BoardCounts>> predict(
      const HalfCodes& codes, const LabelSet& labels, std::size_t first_game, std::size_t blocks,
      const std::function<std::size_t(std::size_t game)>& block_of) {
    const BoardHalf& half = codes.half();
    using GameCells = std::vector<BoardCounts::Cell>;  // [groups, thresholds]
    std::vector<GameCells> cells(half.games());
    const auto piece = [&](std::size_t index) {
      const std::size_t first = index * kGamesPerPiece;
      const std::size_t end = std::min(half.games(), first + kGamesPerPiece);
      if (end <= first_game) return;
      const auto of_piece = codes.piece(index);
      std::vector<std::uint64_t> predicted(kReconstructionThresholds * half.words);
      for (std::size_t game = std::max(first, first_game); game < end; ++game) {
        cells[game].resize(groups_.size() * kReconstructionThresholds);
        for (std::size_t row = half.first_row[game]; row < half.first_row[game + 1]; ++row) {
          std::ranges::fill(predicted, 0);
          const std::size_t own = row - codes.first_row(index);
          for (std::uint32_t i = of_piece->first[own]; i < of_piece->first[own + 1]; ++i) {
            const std::size_t latent = of_piece->latent[i];
            if (labels.any[latent] == 0) continue;
            const std::size_t bucket =
                std::min(kReconstructionThresholds,
                         metrics::bucket_of(of_piece->value[i], maximum_[latent]));
            const std::uint64_t* votes = labels.of(latent, 0);
            for (std::size_t w = 0; w < bucket * half.words; ++w) predicted[w] |= votes[w];
          }
          for (std::size_t g = 0; g < groups_.size(); ++g)
            for (std::size_t t = 0; t < kReconstructionThresholds; ++t)
              count_board(cells[game][g * kReconstructionThresholds + t],
                          predicted.data() + t * half.words, half.bits.data() + row * half.words,
                          masks_[g]);
        }
      }
    };
    SAE_TRY_VOID(in_waves(pool_, codes.pieces(), stop_, piece, [](std::size_t, std::size_t) {}));
    std::vector<BoardCounts> counts(groups_.size(), BoardCounts(blocks));
    for (std::size_t game = first_game; game < half.games(); ++game)
      for (std::size_t g = 0; g < groups_.size(); ++g)
        for (std::size_t t = 0; t < kReconstructionThresholds; ++t)
          counts[g].at(block_of(game), t).add(cells[game][g * kReconstructionThresholds + t]);
    return counts;
  }

  void report(std::size_t pieces) {
    done_ += pieces;
    if (!progress_) return;
    const std::uint64_t total = sample_.labels.rows() + sample_.scores.rows();
    progress_(total * done_ / (labels_.pieces() + scores_.pieces()), total);
  }

  static constexpr std::size_t kCountingPieces = 16;

  const BoardSample& sample_;
  const CodeSource& source_;
  int version_;
  ThreadPool& pool_;
  const std::function<bool()>& stop_;
  const std::function<void(std::uint64_t, std::uint64_t)>& progress_;
  std::size_t turned_codes_;
  HalfCodes labels_, scores_;
  std::vector<PropertyGroup> groups_;
  std::vector<std::vector<std::uint64_t>> masks_;  // of each group
  std::vector<float> maximum_;                     // of each latent; 0: dead
  LabelSet fit_labels_, whole_labels_;
  std::size_t done_ = 0;  // pieces surveyed
};

}  // namespace

Result<BoardResult> score_board(const BoardSample& sample, const CodeSource& source, int version,
                                ThreadPool& pool, const std::function<bool()>& stop,
                                const std::function<void(std::uint64_t, std::uint64_t)>& progress,
                                const BoardLimits& limits) {
  return BoardEvaluation(sample, source, version, pool, stop, progress, limits).run();
}

metrics::Scores score_predictions(const BoardHalf& half,
                                  const std::vector<std::uint64_t>& predicted, int version) {
  const std::size_t blocks = metrics::block_count(half.games());
  BestF1 best(positives_by_block(half));
  for (std::size_t k = 0; k < half.properties; ++k) {
    std::vector<std::uint64_t> hits(blocks, 0), on(blocks, 0);
    for (std::size_t game = 0; game < half.games(); ++game) {
      const std::size_t block = metrics::block_of(game, half.games());
      for (std::size_t row = half.first_row[game]; row < half.first_row[game + 1]; ++row) {
        const std::uint64_t bit = predicted[row * half.words + k / 64] >> (k % 64) & 1;
        on[block] += bit;
        hits[block] += bit & half.truth[row * half.properties + k];
      }
    }
    best.add_predictor(k, hits, on);
  }
  metrics::Scores scores;
  for (const PropertyGroup& group : property_groups(half.properties)) {
    const std::vector<std::uint64_t> mask = mask_of(group, half.words);
    BoardCounts counts(blocks);
    for (std::size_t game = 0; game < half.games(); ++game) {
      BoardCounts::Cell cell;
      for (std::size_t row = half.first_row[game]; row < half.first_row[game + 1]; ++row)
        count_board(cell, predicted.data() + row * half.words, half.bits.data() + row * half.words,
                    mask);
      for (std::size_t t = 0; t < kReconstructionThresholds; ++t)
        counts.at(metrics::block_of(game, half.games()), t).add(cell);
    }
    metrics::add_coverage(scores, best, group, version);
    metrics::add_reconstruction_scores(scores, counts, {}, group, version);
  }
  return scores;
}

CodeSource always_on() {
  return {1, [](const BoardHalf& half, std::size_t first, std::size_t end) {
            const std::size_t rows = half.first_row[end] - half.first_row[first];
            SparseCodes codes;
            for (std::uint32_t row = 0; row <= rows; ++row) codes.first.push_back(row);
            codes.latent.assign(rows, 0);
            codes.value.assign(rows, 1);
            return codes;
          }};
}

CodeSource placement(const TokenDocuments& documents) {
  const othello::Rules rules(documents.board());
  const auto squares = static_cast<std::size_t>(rules.squares());
  return {2 * squares,
          [&documents, rules, squares](const BoardHalf& half, std::size_t first, std::size_t end) {
            const othello::Position start = rules.start();
            SparseCodes codes;
            codes.first.push_back(0);
            for (std::size_t game = first; game < end; ++game) {
              const auto tokens = documents.tokens(half.documents[game]);
              // Who occupied a square first: +1 black, -1 white, 0 nobody yet.
              std::vector<int> first_owner(squares, 0);
              for (std::size_t square = 0; square < squares; ++square) {
                const othello::Bits bit = rules.bit_of(static_cast<int>(square));
                if ((start.black & bit) != 0) first_owner[square] = 1;
                if ((start.white & bit) != 0) first_owner[square] = -1;
              }
              othello::Position position = start;
              const std::size_t rows = half.first_row[game + 1] - half.first_row[game];
              for (std::size_t i = 0; i < rows; ++i) {
                const int square = rules.square_of_token(tokens[i]);
                first_owner[static_cast<std::size_t>(square)] = position.black_to_move ? 1 : -1;
                position = rules.play(position, rules.bit_of(square));
                const int mine = i % 2 == 0 ? 1 : -1;
                for (const int side : {mine, -mine})
                  for (std::size_t s = 0; s < squares; ++s)
                    if (first_owner[s] == side) {
                      codes.latent.push_back(
                          static_cast<std::uint32_t>(s + (side == mine ? 0 : squares)));
                      codes.value.push_back(1);
                    }
                codes.first.push_back(static_cast<std::uint32_t>(codes.latent.size()));
              }
            }
            return codes;
          }};
}

}  // namespace saesweep::worker
