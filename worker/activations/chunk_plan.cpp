#include "worker/activations/chunk_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>

namespace saesweep::worker {
namespace {

constexpr std::uint64_t kMaxGroupRows = std::uint64_t{1} << 20;
constexpr std::uint64_t kMaxGroupBytes = std::uint64_t{1} << 30;

// The largest power of two n >= 1 with n * unit <= limit.
std::uint64_t power_of_two_within(std::uint64_t unit, std::uint64_t limit) {
  return std::max<std::uint64_t>(1, std::bit_floor(limit / std::max<std::uint64_t>(1, unit)));
}

}  // namespace

std::uint64_t ChunkPlan::documents_per_chunk(const sweeps::StreamSpec& stream,
                                             const Documents& documents, std::int64_t d_in) {
  const std::uint64_t row_bytes = static_cast<std::uint64_t>(d_in) * size_of(stream.dtype);
  return power_of_two_within(documents.max_rows() * row_bytes, sweeps::kChunkBytes);
}

Result<ChunkPlan> ChunkPlan::make(const sweeps::StreamSpec& stream, const Documents& documents,
                                  std::int64_t d_in, const RowsOfChunk& rows_of) {
  ChunkPlan plan(documents, Permutation(documents.count(), stream.seed, "activations.documents"));
  plan.shuffle_ = stream.shuffle;
  plan.seed_ = stream.seed;
  const std::uint64_t row_bytes = static_cast<std::uint64_t>(d_in) * size_of(stream.dtype);
  plan.documents_per_chunk_ = documents_per_chunk(stream, documents, d_in);
  plan.max_chunk_rows_ = plan.documents_per_chunk_ * documents.max_rows();
  if (stream.tokens == 0) return fail(ErrorCode::kInvalidArgument, "activations.tokens is 0");

  const std::uint64_t count = documents.count();
  std::uint64_t offered = 0, kept = 0;
  for (std::uint64_t first = 0; first < count && plan.rows_ < stream.tokens;
       first += plan.documents_per_chunk_) {
    const auto chunk = static_cast<std::uint32_t>(plan.chunk_rows_.size());
    std::uint64_t all = 0;
    for (const std::uint64_t document : plan.documents_of(chunk)) all += documents.rows(document);
    std::uint64_t rows = all;
    if (rows_of && all > 0) {
      SAE_TRY(rows, rows_of(plan, chunk));
    }
    offered += all;
    kept += rows;
    rows = std::min(rows, stream.tokens - plan.rows_);
    plan.chunk_rows_.push_back(rows);
    plan.rows_ += rows;
  }
  if (offered > 0)
    plan.dropped_ = static_cast<double>(offered - kept) / static_cast<double>(offered);
  if (plan.rows_ < stream.tokens)
    return fail(
        ErrorCode::kInvalidArgument,
        "activations.tokens: {} asked for, but the training documents of `data` have {}; at "
        "most {} tokens, or more documents, would be right",
        stream.tokens, plan.rows_, plan.rows_);
  plan.group_rows_ = stream.shuffle_rows > 0
                         ? stream.shuffle_rows
                         : std::min(kMaxGroupRows, power_of_two_within(row_bytes, kMaxGroupBytes));
  plan.group_rows_ = std::min(plan.group_rows_, plan.rows_);
  return plan;
}

std::vector<std::uint64_t> ChunkPlan::documents_of(std::uint32_t chunk) const {
  const std::uint64_t first = chunk * documents_per_chunk_;
  return documents_between(first, first + documents_per_chunk_);
}

std::vector<std::uint64_t> ChunkPlan::documents_between(std::uint64_t first,
                                                        std::uint64_t last) const {
  std::vector<std::uint64_t> chosen;
  last = std::min(documents_->count(), last);
  for (std::uint64_t position = first; position < last; ++position) {
    const std::uint64_t document = shuffle_ == sweeps::Shuffle::kFull ? order_(position) : position;
    if (!documents_->held_out(document)) chosen.push_back(document);
  }
  return chosen;
}

std::uint32_t ChunkPlan::chunk_at(std::uint64_t pass, std::uint32_t position) const {
  if (shuffle_ == sweeps::Shuffle::kNone) return position;
  return static_cast<std::uint32_t>(
      Permutation(chunks(), seed_, "activations.chunks", pass)(position));
}

std::uint64_t ChunkPlan::rows_of_group(std::uint64_t group) const {
  return std::min(group_rows_, rows_ - group * group_rows_);
}

std::vector<ChunkPlan::Piece> ChunkPlan::pieces_of_group(std::uint64_t pass,
                                                         std::uint64_t group) const {
  const std::uint64_t begin = group * group_rows_;
  const std::uint64_t end = begin + rows_of_group(group);
  std::vector<Piece> pieces;
  std::uint64_t at = 0;  // joined rows before the chunk
  for (std::uint32_t position = 0; position < chunks() && at < end; ++position) {
    const std::uint32_t chunk = chunk_at(pass, position);
    const std::uint64_t rows = chunk_rows_[chunk];
    const std::uint64_t from = std::max(begin, at), to = std::min(end, at + rows);
    if (from < to) pieces.push_back({chunk, from - at, to - from});
    at += rows;
  }
  return pieces;
}

Permutation ChunkPlan::order_of_group(std::uint64_t pass, std::uint64_t group) const {
  return {rows_of_group(group), seed_, fmt::format("activations.rows.{}", pass), group};
}

}  // namespace saesweep::worker
