// Activations of a batch, all of them.
#pragma once

#include <cstdint>

#include "worker/training/products/panels.h"
#include "worker/training/products/scratch.h"

namespace saesweep::worker {

// [rows, latents] in slabs of kSlab latents, [slab][row][kSlab]: what a product over latents reads
// and what one over rows reads both lie together. Lanes past the last latent are undefined.
class Slabs {
 public:
  static constexpr std::int64_t kSlab = products::kDepthChunk;

  Slabs(std::int64_t rows, std::int64_t latents)
      : rows_(rows), memory_((latents + kSlab - 1) / kSlab * kSlab * rows) {}
  float* at(std::int64_t row, std::int64_t latent) const {
    return memory_.data() + (latent / kSlab * rows_ + row) * kSlab + latent % kSlab;
  }
  // Lanes are rows, depth is a slab of latents.
  products::Source of_rows(std::int64_t row, std::int64_t slab) const {
    return {at(row, slab * kSlab), kSlab, 1};
  }
  // Lanes are latents from `latent` on, within a slab; depth is rows.
  products::Source of_latents(std::int64_t latent, std::int64_t row) const {
    return {at(row, latent), 1, kSlab};
  }

 private:
  std::int64_t rows_;
  products::Scratch memory_;
};

}  // namespace saesweep::worker
