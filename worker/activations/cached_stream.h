// The RowStream that trainers read: chunks from the cache when they are there, harvested when not,
// one shuffle group in memory at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "core/result.h"
#include "sweeps/spec.h"
#include "worker/activations/chunk_plan.h"
#include "worker/activations/harvest.h"
#include "worker/activations/row_stream.h"

namespace saesweep::worker {

// Brings chunk `index` into `out` (its rows in the stored dtype) and returns how many rows it has:
// from a cache, or by calling `harvest` on the bytes.
using FetchChunk = std::function<Result<std::uint32_t>(
    std::uint32_t index, std::span<std::byte> out,
    const std::function<Result<std::uint32_t>(std::span<std::byte>)>& harvest)>;

struct StreamEvents {
  std::function<void(std::uint64_t rows)> harvested;                     // rows computed anew
  std::function<void(std::uint64_t done, std::uint64_t total)> loading;  // rows of the group
  std::function<bool()> stop;  // true: give up with kUnavailable
};

class CachedStream final : public RowStream {
 public:
  // Without `fetch` every chunk is harvested each time it is needed.
  static Result<std::unique_ptr<CachedStream>> open(const sweeps::StreamSpec& spec,
                                                    std::unique_ptr<Harvester> harvester,
                                                    FetchChunk fetch = {},
                                                    StreamEvents events = {});

  std::int64_t d_in() const override { return harvester_->d_in(); }
  std::uint64_t rows_per_pass() const override { return plan_.rows(); }
  double norm_factor() const override { return parts_.front().norm_factor; }
  std::vector<RowPart> parts() const override { return parts_; }
  Result<void> read(std::uint64_t first, std::uint64_t count, float* out) override;
  const ChunkPlan& plan() const { return plan_; }

 private:
  CachedStream(sweeps::StreamSpec spec, std::unique_ptr<Harvester> harvester, ChunkPlan plan,
               FetchChunk fetch, StreamEvents events);
  Result<void> load_group(std::uint64_t pass, std::uint64_t group);
  Result<void> measure_norm_factors();
  bool is_scaled() const;
  // The rows of one group from `offset`, unscaled.
  void copy_rows(std::uint64_t offset, std::uint64_t count, float* out) const;

  sweeps::StreamSpec spec_;
  std::unique_ptr<Harvester> harvester_;
  ChunkPlan plan_;
  FetchChunk fetch_;
  StreamEvents events_;
  std::vector<RowPart> parts_;
  std::uint64_t loaded_pass_ = 0, loaded_group_ = 0;
  bool loaded_ = false;
  Permutation order_;
  std::vector<std::byte> group_;  // rows of the loaded group, joined but not permuted
  std::vector<std::byte> chunk_;  // scratch for one chunk
};

}  // namespace saesweep::worker
