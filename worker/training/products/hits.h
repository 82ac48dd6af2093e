// Pre-activations above a threshold, found while a block of them is in cache: what a selection
// needs of an encoder's product, so that the whole [rows, latents] matrix is never stored.
#pragma once

#include <cstdint>
#include <vector>

#include "worker/training/products/panels.h"

namespace saesweep::worker::products {

struct Hit {
  std::int32_t row, latent;
  float value;
};

// A value per latent, and `beyond` in the lanes past the edge. Of a bias -infinity, which no
// threshold is below.
std::vector<float> padded(const float* values, std::int64_t latents, float beyond);

// Appends every entry of rows x encoderᵀ + bias that is above its row's threshold plus its latent's
// floor; for each row in order of latents. Returns false if one of them is not finite, which is
// left out: NaN and +infinity are above any threshold. An entry's value depends on neither
// threshold nor neighbours.
//   rows: left operand; encoder: right operand; bias, floors: padded; thresholds: one a row
bool collect_hits(const Panels& rows, const Panels& encoder, const std::vector<float>& bias,
                  const std::vector<float>& floors, const std::vector<float>& thresholds,
                  std::vector<Hit>& hits);

}  // namespace saesweep::worker::products
