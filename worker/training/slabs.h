// Activations of a batch, all of them.
#pragma once

#include <cstdint>

#include "worker/products/panels.h"
#include "worker/products/scratch.h"

namespace saesweep::worker {

// [rows, latents] in slabs as wide as a product's block, [slab][row][kSlab]: a block lies in one
// piece, and products over latents and over rows read whole cache lines. Lanes past the last latent
// are part of the last slab.
class Slabs {
 public:
  static constexpr std::int64_t kSlab = products::kBlockColumns;

  Slabs(std::int64_t rows, std::int64_t latents)
      : rows_(rows), memory_((latents + kSlab - 1) / kSlab * kSlab * rows) {}
  // The block of rows from `row` on and of the slab of `latent`, a multiple of kSlab:
  // [rows][kSlab].
  float* block(std::int64_t row, std::int64_t latent) const {
    return memory_.data() + (latent / kSlab * rows_ + row) * kSlab;
  }
  // Lanes are rows from `row` on, depth is latents from `latent` on, a multiple of kSlab.
  products::Source of_rows(std::int64_t row, std::int64_t latent) const {
    return {block(row, latent), kSlab, 1, kSlab, rows_ * kSlab};
  }
  // Lanes are latents from `latent` on, a multiple of kSlab; depth is rows from `row` on.
  products::Source of_latents(std::int64_t latent, std::int64_t row) const {
    return {block(row, latent), 1, kSlab, kSlab, rows_ * kSlab};
  }

 private:
  std::int64_t rows_;
  products::Scratch memory_;
};

}  // namespace saesweep::worker
