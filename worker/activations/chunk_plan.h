// Which rows an activation stream has, in which chunks they lie, and in which order each pass reads
// them. Pure arithmetic over document lengths: nothing here touches a model or a disk.
//
// Chunk i holds the training documents among permuted document numbers [i*c, (i+1)*c), where c is
// the largest power of two whose longest documents fit kChunkBytes. A stream is the first `tokens`
// rows of chunks 0, 1, 2, ...: the last chunk is read in part.
// Each pass permutes the chunks, joins them, cuts groups of `shuffle_rows` consecutive rows and
// permutes each group. The order depends on the stream's seed and the pass alone.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "core/philox.h"
#include "core/result.h"
#include "sweeps/spec.h"
#include "worker/data/documents.h"

namespace saesweep::worker {

class ChunkPlan {
 public:
  // How many rows the documents of a chunk have.
  using RowsOfChunk =
      std::function<Result<std::uint64_t>(const ChunkPlan& plan, std::uint32_t chunk)>;
  // `rows_of` where filters leave out rows of documents. Errors: its own; kInvalidArgument when the
  // training documents have fewer than stream.tokens rows, with what they have.
  static Result<ChunkPlan> make(const sweeps::StreamSpec& stream, const Documents& documents,
                                std::int64_t d_in, const RowsOfChunk& rows_of = {});

  // How many document numbers a chunk takes.
  static std::uint64_t documents_per_chunk(const sweeps::StreamSpec& stream,
                                           const Documents& documents, std::int64_t d_in);

  std::uint64_t rows() const { return rows_; }  // of one pass
  std::uint32_t chunks() const { return static_cast<std::uint32_t>(chunk_rows_.size()); }
  std::uint64_t max_chunk_rows() const { return max_chunk_rows_; }
  std::uint64_t group_rows() const { return group_rows_; }
  std::uint64_t groups() const { return (rows_ + group_rows_ - 1) / group_rows_; }  // of a pass
  // Share of the rows of its chunks' documents that filters left out.
  double dropped() const { return dropped_; }
  // Training documents of a chunk, in the order of their rows.
  std::vector<std::uint64_t> documents_of(std::uint32_t chunk) const;
  // Those among permuted document numbers [first, last).
  std::vector<std::uint64_t> documents_between(std::uint64_t first, std::uint64_t last) const;

  // Consecutive rows [first, first + count) of one chunk.
  struct Piece {
    std::uint32_t chunk;
    std::uint64_t first, count;
  };
  // What group `group` of `pass` is joined from, in order, before its rows are permuted.
  std::vector<Piece> pieces_of_group(std::uint64_t pass, std::uint64_t group) const;
  std::uint64_t rows_of_group(std::uint64_t group) const;
  // Row i of a group, as read, is row order(i) of the joined pieces.
  Permutation order_of_group(std::uint64_t pass, std::uint64_t group) const;
  bool permutes_rows() const { return shuffle_ != sweeps::Shuffle::kNone; }

 private:
  ChunkPlan(const Documents& documents, Permutation order)
      : documents_(&documents), order_(order) {}
  std::uint32_t chunk_at(std::uint64_t pass, std::uint32_t position) const;

  const Documents* documents_;  // outlives this
  Permutation order_;           // of document numbers
  sweeps::Shuffle shuffle_ = sweeps::Shuffle::kFull;
  std::uint64_t seed_ = 0;
  std::uint64_t documents_per_chunk_ = 1;
  std::uint64_t max_chunk_rows_ = 0;
  std::uint64_t rows_ = 0;
  std::uint64_t group_rows_ = 0;
  double dropped_ = 0;
  std::vector<std::uint64_t> chunk_rows_;  // rows read of each chunk; the last may hold more
};

}  // namespace saesweep::worker
