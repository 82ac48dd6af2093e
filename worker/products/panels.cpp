#include "worker/products/panels.h"

#include <algorithm>
#include <cstring>

#include "core/check.h"
#include "core/dtype.h"
#include "worker/products/isa.h"

namespace saesweep::worker::products {
namespace {

constexpr std::int64_t kStripe = 16;  // depths copied at a time where lanes have to be transposed

float rounded(float value) { return from_bf16(to_bf16(value)); }

// Copies depths [first, first + count) of `valid` lanes to out[depth][width]; count <= kStripe.
template <std::int64_t kWidth>
void copy_stripe(const Source& source, std::int64_t valid, std::int64_t first, std::int64_t count,
                 float* out) {
  const float* data = source.data + source.depth_offset(first);
  if (source.depth_stride == 1) {
    for (std::int64_t lane = 0; lane < valid; ++lane)
      for (std::int64_t k = 0; k < count; ++k)
        out[k * kWidth + lane] = data[lane * source.lane_stride + k];
  } else {
    for (std::int64_t k = 0; k < count; ++k)
      std::copy_n(data + k * source.depth_stride, valid, out + k * kWidth);
  }
  if (valid == kWidth) return;
  for (std::int64_t k = 0; k < count; ++k)
    std::fill(out + k * kWidth + valid, out + (k + 1) * kWidth, 0.0F);
}

float pair_of(float low, float high) {
  const std::uint32_t both = to_bf16(low) | std::uint32_t{to_bf16(high)} << 16;
  float pair = 0;
  std::memcpy(&pair, &both, sizeof(both));
  return pair;
}

// Where a pair of depths lies in a panel of tiles.
template <std::int64_t kWidth>
float* place_in_tiles(float* panel, std::int64_t pair, std::int64_t lane) {
  float* tiles = panel + pair / kTilePairs * kTilePairs * kWidth;
  const std::int64_t within = pair % kTilePairs;
  if constexpr (kWidth == kTileLanes) return tiles + lane * kTilePairs + within;
  return tiles + lane / kTileLanes * kTileFloats + within * kTileLanes + lane % kTileLanes;
}

template <std::int64_t kWidth>
void pack_panel(const Source& source, std::int64_t valid, std::int64_t depth, Numbers numbers,
                float* out) {
  alignas(64) float stripe[kStripe * kWidth];
  if (numbers == Numbers::kTiles) std::fill_n(out, Panels::steps_of(depth, numbers) * kWidth, 0.0F);
  for (std::int64_t first = 0; first < depth; first += kStripe) {
    const std::int64_t count = std::min(kStripe, depth - first);
    if (numbers == Numbers::kFloat) {
      copy_stripe<kWidth>(source, valid, first, count, out + first * kWidth);
      continue;
    }
    copy_stripe<kWidth>(source, valid, first, count, stripe);
    if (numbers == Numbers::kRounded) {
      for (std::int64_t i = 0; i < count * kWidth; ++i)
        out[first * kWidth + i] = rounded(stripe[i]);
      continue;
    }
    if (count % 2 != 0) std::fill_n(stripe + count * kWidth, kWidth, 0.0F);
    for (std::int64_t k = 0; k < count; k += 2) {
      const float* low = stripe + k * kWidth;
      const std::int64_t pair = (first + k) / 2;
      for (std::int64_t lane = 0; lane < kWidth; ++lane) {
        float* to = numbers == Numbers::kPairs ? out + pair * kWidth + lane
                                               : place_in_tiles<kWidth>(out, pair, lane);
        *to = pair_of(low[lane], low[kWidth + lane]);
      }
    }
  }
}

}  // namespace

Numbers bf16_numbers() {
  if (current_isa() == Isa::kAmx) return Numbers::kTiles;
  return current_isa() == Isa::kAvx512Bf16 ? Numbers::kPairs : Numbers::kRounded;
}

Panels::Panels(std::int64_t lanes, std::int64_t depth, std::int64_t width, Numbers numbers)
    : lanes_(lanes),
      depth_(depth),
      width_(width),
      numbers_(numbers),
      memory_((lanes + width - 1) / width * width * steps_of(depth, numbers)) {
  SAE_CHECK(width == left_width(numbers) || width == kBlockColumns, "panels of {} lanes", width);
}

void Panels::pack(const Source& source, std::int64_t index) {
  for (std::int64_t chunk = 0; chunk < chunks(); ++chunk) {
    Source of_chunk = source;
    of_chunk.data += source.depth_offset(chunk * kDepthChunk);
    pack_chunk(of_chunk, index, chunk);
  }
}

void Panels::pack_chunk(const Source& source, std::int64_t index, std::int64_t chunk) {
  SAE_CHECK(source.lane_stride == 1 || source.depth_stride == 1, "strides {} and {}",
            source.lane_stride, source.depth_stride);
  const std::int64_t first = index * width_;
  const std::int64_t valid = std::min(width_, lanes_ - first);
  float* out =
      memory_.data() + (index * steps() + chunk * steps_of(kDepthChunk, numbers_)) * width_;
  Source lanes = source;
  lanes.data += source.lane_offset(first);
  if (width_ == kTileLanes)
    pack_panel<kTileLanes>(lanes, valid, depth_of_chunk(chunk), numbers_, out);
  else if (width_ == kBlockRows)
    pack_panel<kBlockRows>(lanes, valid, depth_of_chunk(chunk), numbers_, out);
  else
    pack_panel<kBlockColumns>(lanes, valid, depth_of_chunk(chunk), numbers_, out);
}

}  // namespace saesweep::worker::products
