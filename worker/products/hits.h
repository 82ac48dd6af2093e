// Pre-activations above a threshold, found while a block of them is in cache: what a selection
// needs of an encoder's product, so that the whole [rows, latents] matrix is never stored.
#pragma once

#include <cstdint>
#include <vector>

#include "worker/products/panels.h"

namespace saesweep::worker::products {

struct Hit {
  std::int32_t row, latent;
  float value;
};

// A value per latent, and `beyond` in the lanes past the edge. Of a bias -infinity, which no
// threshold is below.
std::vector<float> padded(const float* values, std::int64_t latents, float beyond);

// An encoder as right operand, and for each latent, padded, what its products are compared with.
struct Encoder {
  Panels panels;
  std::vector<float> bias;
  std::vector<float> floors;     // added to every row's threshold
  std::vector<float> norms;      // how much a row's limit may lower the threshold:
  std::vector<float> roundings;  // see RowLimit
};

// What a row's pre-activations have to be above: threshold + floor - of_norm * norm
// - of_rounding * rounding. NaN: all are.
struct RowLimit {
  float threshold = 0, of_norm = 0, of_rounding = 0;
};

// Appends every entry of rows x encoderᵀ + bias that is above its limit, for each row in order of
// latents; NaN and +infinity are above any. An entry's value depends on neither limit nor
// neighbours.
//   rows: left operand; limits: one a row
void collect_hits(const Panels& rows, const Encoder& encoder, const std::vector<RowLimit>& limits,
                  std::vector<Hit>& hits);

}  // namespace saesweep::worker::products
