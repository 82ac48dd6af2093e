// The RowStream that trainers read: chunks from the cache when they are there, harvested when not,
// one shuffle group in memory at a time. A stream that is one group stays in memory: later passes
// read the same rows in their order. Of a stream of several groups the next can be brought while
// the one before is read, by a thread of its own; what it has not brought when it is needed, the
// reader brings. No byte depends on who brought it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <thread>
#include <vector>

#include "core/clock.h"
#include "core/result.h"
#include "sweeps/spec.h"
#include "worker/activations/chunk_order.h"
#include "worker/activations/chunk_plan.h"
#include "worker/activations/harvest.h"
#include "worker/activations/row_stream.h"

namespace saesweep::worker {

// Brings chunk `index` into `out` (its rows in the stored dtype) and returns how many rows it has:
// from a cache, or by calling `harvest` on the bytes, and on those of chunks that are harvested
// beside it. Nothing if somebody else still harvests it after `most`; not if that is kPatiently.
// Called by one thread at a time.
using FetchChunk = std::function<Result<std::optional<std::uint32_t>>(
    std::uint32_t index, std::span<std::byte> out, const HarvestChunk& harvest, Duration most)>;
inline constexpr Duration kPatiently = Duration::max();

class CachedStream final : public RowStream {
 public:
  // Without `fetch` every chunk is harvested each time it is needed. With a filter by norm, how
  // many rows a chunk has is known only when it is there: all of them are brought once before
  // anything is read.
  static Result<std::unique_ptr<CachedStream>> open(const sweeps::StreamSpec& spec,
                                                    std::unique_ptr<Harvester> harvester,
                                                    FetchChunk fetch = {},
                                                    StreamEvents events = {});
  ~CachedStream() override;

  std::int64_t d_in() const override { return harvester_->d_in(); }
  std::uint64_t rows_per_pass() const override { return plan_.rows(); }
  double norm_factor() const override { return parts_.front().norm_factor; }
  std::vector<RowPart> parts() const override { return parts_; }
  Result<void> read(std::uint64_t first, std::uint64_t count, float* out) override;
  const ChunkPlan& plan() const { return plan_; }

  // From now on the group after the one that is read is brought beside it, as far as rows before
  // `position` need it; 0: never. Takes the memory of another group.
  void bring_ahead(std::uint64_t position) { ahead_until_ = position; }

 private:
  // Rows of a group, joined but not permuted, as far as they were brought.
  struct Group {
    std::uint64_t pass = 0, index = 0;
    std::vector<ChunkPlan::Piece> pieces;
    std::vector<std::uint64_t> starts;  // the first row of each piece
    std::set<std::size_t> missing;      // pieces
    std::uint64_t done = 0;             // rows of those that are there
    std::vector<std::byte> rows;

    bool is_of(std::uint64_t of_pass, std::uint64_t of_index) const {
      return !pieces.empty() && pass == of_pass && index == of_index;
    }
    bool is_complete() const { return !pieces.empty() && missing.empty(); }
  };

  CachedStream(sweeps::StreamSpec spec, std::unique_ptr<Harvester> harvester, FetchChunk fetch,
               StreamEvents events, ChunkPlan plan);
  std::size_t row_bytes() const;
  Result<void> begin(Group& group, std::uint64_t pass, std::uint64_t index);
  // A piece more. Returns how many rows were harvested.
  Result<std::uint64_t> bring_piece(Group& group);
  // This one. Nothing if somebody else still harvests its chunk after `most`.
  Result<std::optional<std::uint64_t>> bring_piece(Group& group, std::size_t number, Duration most);
  // Makes rows of the group readable.
  Result<void> show(std::uint64_t pass, std::uint64_t index);
  Result<void> load(std::uint64_t pass, std::uint64_t index);
  void start_ahead();
  void stop_ahead();
  void count_harvested_ahead();
  Result<void> measure_norm_factors();
  bool is_scaled() const;
  // The rows of the shown group from `offset`, unscaled.
  void copy_rows(std::uint64_t offset, std::uint64_t count, float* out) const;

  sweeps::StreamSpec spec_;
  std::unique_ptr<Harvester> harvester_;
  FetchChunk fetch_;
  StreamEvents events_;
  ChunkPlan plan_;
  std::vector<RowPart> parts_;
  // The chunk that was brought last, which may reach into the next group.
  struct Chunk {
    std::uint32_t index = 0, rows = 0;  // 0 rows: none
    std::vector<std::byte> bytes;
  };
  Chunk chunk_;  // the thread's while it runs
  Group loaded_;
  // What read() reads: the loaded group, in the order of a pass.
  std::uint64_t shown_pass_ = 0, shown_index_ = 0;
  bool shown_ = false;
  Permutation order_;
  // Where the pass joins the rows of a chunk, and where they are in a group that was loaded for
  // another pass; empty if it was loaded for this one.
  struct Place {
    std::uint64_t joined, loaded;
  };
  std::vector<Place> places_;

  std::uint64_t ahead_until_ = 0;
  Group ahead_;  // the thread's while it runs
  std::atomic<std::uint64_t> harvested_ahead_ = 0;
  std::jthread ahead_thread_;
};

}  // namespace saesweep::worker
