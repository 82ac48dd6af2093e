// Games as documents: the moves of each, generated from a seed.
#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <new>
#include <stdexcept>
#include <thread>

#include "core/digest.h"
#include "worker/data/documents.h"
#include "worker/data/othello.h"

namespace saesweep::worker {
namespace {

// XXH3-64 of the content as a share of 2^64: the same document is held out in every data set.
bool is_held_out(std::span<const std::byte> content, double holdout) {
  return static_cast<double>(xxh3_64(content)) < std::ldexp(holdout, 64);
}

}  // namespace

Result<std::shared_ptr<const TokenDocuments>> TokenDocuments::open(const sweeps::DataSpec& data,
                                                                   double holdout, int context,
                                                                   unsigned threads) {
  if (data.source != "othello")
    return fail(ErrorCode::kInvalidArgument, "data.source {} has no tokens", data.source);
  if (data.board != 4 && data.board != 6 && data.board != 8)
    return fail(ErrorCode::kInvalidArgument, "data.board {}: 4, 6 or 8 would be right", data.board);
  if (data.games == 0) return fail(ErrorCode::kInvalidArgument, "data.games is 0");
  const othello::Rules rules(data.board);
  auto documents = std::make_shared<TokenDocuments>();
  documents->board_ = data.board;
  documents->vocabulary_ = rules.vocabulary();
  documents->context_ = std::min(context, rules.context());
  // Tokens kept of a game: its inputs and the target of the last one.
  documents->stride_ = static_cast<std::size_t>(documents->context_) + 1;
  const std::uint64_t count = data.games;
  std::vector<std::uint8_t> held_out;
  const auto too_many = [&] {
    return fail(ErrorCode::kResourceExhausted,
                "data.games: {} games need more memory than there is", count);
  };
  if (count > std::numeric_limits<std::uint64_t>::max() / documents->stride_) return too_many();
  try {
    documents->tokens_.assign(count * documents->stride_, 0);
    documents->lengths_.assign(count, 0);
    documents->held_out_.assign(count, false);
    held_out.assign(count, 0);
  } catch (const std::bad_alloc&) {
    return too_many();
  } catch (const std::length_error&) {
    return too_many();
  }

  // Fixed blocks, so that sums have the same order for any number of threads.
  constexpr std::uint64_t kBlock = 4096;
  const std::uint64_t blocks = (count + kBlock - 1) / kBlock;
  std::vector<double> log_sums(blocks, 0);
  std::vector<std::uint64_t> targets(blocks, 0);
  const auto make_block = [&](std::uint64_t block) {
    for (std::uint64_t i = block * kBlock; i < std::min(count, (block + 1) * kBlock); ++i) {
      const othello::Game game = othello::play_uniform(rules, data.seed, i);
      const std::size_t length = std::min(game.moves.size(), documents->stride_);
      std::uint32_t content[64];
      for (std::size_t move = 0; move < length; ++move) {
        const int token = rules.token_of(game.moves[move]);
        documents->tokens_[i * documents->stride_ + move] = static_cast<std::uint8_t>(token);
        content[move] = static_cast<std::uint32_t>(token);
        if (move > 0) {
          log_sums[block] += game.log_legal[move];
          ++targets[block];
        }
      }
      documents->lengths_[i] = static_cast<std::uint8_t>(length);
      static_assert(std::endian::native == std::endian::little,
                    "hashes are of little-endian words");
      held_out[i] = is_held_out(std::as_bytes(std::span(content, length)), holdout);
    }
  };
  const unsigned workers = static_cast<unsigned>(
      std::clamp<std::uint64_t>(std::min<std::uint64_t>(threads, blocks), 1, 256));
  {
    std::vector<std::jthread> pool;
    for (unsigned worker = 0; worker < workers; ++worker)
      pool.emplace_back([&, worker] {
        for (std::uint64_t block = worker; block < blocks; block += workers) make_block(block);
      });
  }
  for (std::uint64_t i = 0; i < count; ++i) {
    documents->held_out_[i] = held_out[i] != 0;
    if (held_out[i] != 0) documents->held_out_list_.push_back(i);
  }
  double log_sum = 0;
  std::uint64_t target_count = 0;
  for (std::uint64_t block = 0; block < blocks; ++block) {
    log_sum += log_sums[block];
    target_count += targets[block];
  }
  documents->optimum_ = target_count == 0 ? 0 : log_sum / static_cast<double>(target_count);
  return std::shared_ptr<const TokenDocuments>(std::move(documents));
}

std::uint64_t TokenDocuments::rows(std::uint64_t document) const {
  return lengths_[document] == 0 ? 0 : lengths_[document] - 1u;
}

std::uint64_t TokenDocuments::max_rows() const { return static_cast<std::uint64_t>(context_); }

std::span<const std::uint8_t> TokenDocuments::tokens(std::uint64_t document) const {
  return std::span(tokens_).subspan(document * stride_, lengths_[document]);
}

}  // namespace saesweep::worker
