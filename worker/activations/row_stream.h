// The rows a trial trains on, by their position: row r of the endless stream that reads pass 0,
// then pass 1, ... each in its own order. The same row has the same bytes whoever reads it,
// whenever, with or without a cache.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "core/result.h"

namespace saesweep::worker {

// What one hook contributes to a row.
struct RowPart {
  std::int64_t width = 0;
  double norm_factor = 1;  // what its values were multiplied with
  bool operator==(const RowPart&) const = default;
};

// All but `stop` are called by who opens and reads.
struct StreamEvents {
  std::function<void(std::uint64_t rows)> harvested;                     // rows computed anew
  std::function<void(std::uint64_t done, std::uint64_t total)> loading;  // rows of what is brought
  std::function<bool()> stop;  // any thread; true: give up with kUnavailable
};

class RowStream {
 public:
  virtual ~RowStream() = default;
  virtual std::int64_t d_in() const = 0;  // values of a row
  virtual std::uint64_t rows_per_pass() const = 0;
  // What rows were multiplied with (sweep key `normalize`); 1 for none. Of a joint stream the
  // values of its first hook.
  virtual double norm_factor() const = 0;
  // The hooks of a joint stream, in the order of their values in a row; else the row itself.
  virtual std::vector<RowPart> parts() const { return {{d_in(), norm_factor()}}; }
  // Rows [first, first + count), already normalised, as fp32 row-major into out[count * d_in].
  // Blocks while chunks are harvested. Not thread-safe.
  // Errors: those of the harvest (kResourceExhausted: out of memory; kUnavailable: stopping).
  virtual Result<void> read(std::uint64_t first, std::uint64_t count, float* out) = 0;
};

}  // namespace saesweep::worker
