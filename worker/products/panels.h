// Operands of matrix products in the order in which the inner loop reads them.
//
// A product out[i][j] = sum over k of left[i][k] * right[k][j] is computed in blocks of kBlockRows
// x kBlockColumns. Panel p of the left operand holds rows p * 8 and on as [depth][8], of the right
// one columns p * 32 and on as [depth][32]; lanes past the edge are zero. Panels of pairs hold two
// neighbouring depths as bf16 side by side in the space of one float (an odd depth ends in a zero).
//
// Tiles are what AMX multiplies: 16 lanes x 16 such pairs, a kilobyte each. A panel of the left
// operand is 16 lanes wide, [depth / 32][16 lanes][16 pairs], one of the right operand
// [depth / 32][2][16 pairs][16 lanes]; the depth is filled up with zeros.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "worker/products/scratch.h"

namespace saesweep::worker::products {

inline constexpr std::int64_t kBlockRows = 8, kBlockColumns = 32;
inline constexpr std::int64_t kTileLanes = 16, kTilePairs = 16, kTileFloats = 256;
// Sums run over chunks of this depth, one term after another, and over the chunks in order: part of
// the numerics.
inline constexpr std::int64_t kDepthChunk = 512;

enum class Numbers : std::uint8_t {
  kFloat,    // as they are
  kRounded,  // rounded to bf16, held as fp32: where no instruction multiplies pairs
  kPairs,    // rounded to bf16, two in the space of one float
  kTiles,    // pairs in tiles
};
// Lanes of a panel of the left operand.
constexpr std::int64_t left_width(Numbers numbers) {
  return numbers == Numbers::kTiles ? kTileLanes : kBlockRows;
}
// How the current instruction set multiplies bf16.
Numbers bf16_numbers();

// A matrix to be packed: lane i (a row of the left or a column of the right operand) at depth k is
// data[i * lane_stride + k * depth_stride]; one of the strides is 1. Along that one the matrix may
// lie in pieces, a multiple of kBlockColumns long and `piece_stride` apart.
struct Source {
  const float* data;
  std::int64_t lane_stride, depth_stride;
  std::int64_t piece = std::numeric_limits<std::int64_t>::max(), piece_stride = 0;

  std::int64_t lane_offset(std::int64_t lane) const {
    return lane_stride == 1 ? along(lane) : lane * lane_stride;
  }
  std::int64_t depth_offset(std::int64_t depth) const {
    return depth_stride == 1 ? along(depth) : depth * depth_stride;
  }

 private:
  std::int64_t along(std::int64_t at) const {
    return at < piece ? at : at / piece * piece_stride + at % piece;
  }
};

class Panels {
 public:
  // width: left_width(numbers) for a left operand, kBlockColumns for a right one.
  Panels(std::int64_t lanes, std::int64_t depth, std::int64_t width, Numbers numbers);

  std::int64_t count() const { return (lanes_ + width_ - 1) / width_; }
  std::int64_t lanes() const { return lanes_; }
  std::int64_t depth() const { return depth_; }
  Numbers numbers() const { return numbers_; }
  // Floats from one depth (or pair of depths) to the next make `width`; a panel has steps() of
  // them.
  std::int64_t steps() const { return steps_of(depth_, numbers_); }
  // A panel from the first step of a chunk of kDepthChunk depths on.
  const float* panel(std::int64_t index, std::int64_t chunk = 0) const {
    return memory_.data() + (index * steps() + chunk * steps_of(kDepthChunk, numbers_)) * width_;
  }
  static std::int64_t steps_of(std::int64_t depth, Numbers numbers) {
    switch (numbers) {
      case Numbers::kFloat:
      case Numbers::kRounded:
        return depth;
      case Numbers::kPairs:
        return (depth + 1) / 2;
      case Numbers::kTiles:
        return (depth + 2 * kTilePairs - 1) / (2 * kTilePairs) * kTilePairs;
    }
    return 0;
  }

  std::int64_t chunks() const {
    return std::max<std::int64_t>(1, (depth_ + kDepthChunk - 1) / kDepthChunk);
  }
  std::int64_t depth_of_chunk(std::int64_t chunk) const {
    return std::min(kDepthChunk, depth_ - chunk * kDepthChunk);
  }
  std::int64_t steps_of_chunk(std::int64_t chunk) const {
    return steps_of(depth_of_chunk(chunk), numbers_);
  }

  // Fills one panel; different panels may be filled by different threads. `source` begins at lane
  // 0 and depth 0 of the matrix.
  void pack(const Source& source, std::int64_t index);
  void pack_all(const Source& source) {
    for (std::int64_t index = 0; index < count(); ++index) pack(source, index);
  }
  // The depths of one chunk, of one panel or of all; `source` begins at the chunk's first depth.
  void pack_chunk(const Source& source, std::int64_t index, std::int64_t chunk);
  void pack_chunk(const Source& source, std::int64_t chunk) {
    for (std::int64_t index = 0; index < count(); ++index) pack_chunk(source, index, chunk);
  }

 private:
  std::int64_t lanes_, depth_, width_;
  Numbers numbers_;
  Scratch memory_;
};

}  // namespace saesweep::worker::products
