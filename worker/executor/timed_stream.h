// A stream that knows how long who reads it has waited.
#pragma once

#include <cstdint>
#include <vector>

#include "core/clock.h"
#include "worker/activations/row_stream.h"

namespace saesweep::worker {

class TimedStream final : public RowStream {
 public:
  TimedStream(RowStream& stream, const Clock& clock) : stream_(stream), clock_(clock) {}

  Duration waited() const { return waited_; }

  std::int64_t d_in() const override { return stream_.d_in(); }
  std::uint64_t rows_per_pass() const override { return stream_.rows_per_pass(); }
  double norm_factor() const override { return stream_.norm_factor(); }
  std::vector<RowPart> parts() const override { return stream_.parts(); }
  Result<void> read(std::uint64_t first, std::uint64_t count, float* out) override {
    const TimePoint begin = clock_.now();
    auto done = stream_.read(first, count, out);
    waited_ += clock_.now() - begin;
    return done;
  }

 private:
  RowStream& stream_;  // outlives this
  const Clock& clock_;
  Duration waited_{};
};

}  // namespace saesweep::worker
