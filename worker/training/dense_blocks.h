// What stands between the matrix products of a dense family, forwards and backwards, on plain
// floats. It works on blocks [height][kLatents] of neighbouring rows and latents while they are in
// cache; what belongs to a latent comes as [kLatents]. Sums over rows are added to in the order of
// the calls.
#pragma once

#include <cstdint>

#include "worker/products/panels.h"

namespace saesweep::worker::dense_blocks {

inline constexpr std::int64_t kLatents = products::kBlockColumns;

// What a tile's blocks say of its pre-activations.
struct Seen {
  alignas(64) float checks[kLatents] = {};        // 0 unless one was NaN or +infinity
  alignas(64) std::int32_t above[kLatents] = {};  // how many are worth a look, by lane
  bool finite() const;
  std::int64_t count() const;
};

// ---- relu ---------------------------------------------------------------------------------------

// f = max(z + bias, 0); those > 0 are seen.
void relu_forward(const float* z, const float* bias, float* f, std::int64_t height, Seen& seen);

void relu(const float* z, float* f, std::int64_t height);

// Sums over rows of f and of the gradient of z.
struct ReluSums {
  float *f, *d_z;
};
// d_z, the gradient of z, is that of f plus `pull` of a penalty where f > 0, and 0 elsewhere. Rows
// of `pull` lie `pull_stride` apart: 0, or kLatents.
void relu_backward(const float* f, const float* d_f, const float* pull, std::int64_t pull_stride,
                   float* d_z, const ReluSums& sums, std::int64_t height);

// ---- gated --------------------------------------------------------------------------------------

// The gate's pre-activation: opening = z + b_gate. The code: f = relu(scale opening + shift) where
// the gate is open, else 0, with shift = b_mag - scale b_gate. Open gates are seen.
void gated_forward(const float* z, const float* b_gate, const float* scale, const float* shift,
                   float* opening, float* f, std::int64_t height, Seen& seen);
// The same of openings that were selected, `n` of them.
void gated_codes(const float* opening, const float* scale, const float* shift, float* f,
                 std::int64_t n);

// Sums over rows of the gradients of a gated family's own parameters and of z, of f > 0, and of
// relu(opening).
struct GatedSums {
  float *b_gate, *b_mag, *r_mag, *d_z, *active, *gates;
};
// d_f and d_gate are the gradients of f and of relu(opening) without the penalty, whose pull is
// added where the gate is open. `opening` becomes the gradient of z.
void gated_backward(float* opening, const float* f, const float* scale, const float* b_mag,
                    const float* pull, std::int64_t pull_stride, const float* d_f,
                    const float* d_gate, const GatedSums& sums, std::int64_t height);

// ---- jumprelu -----------------------------------------------------------------------------------

// z becomes z + bias; f = z where z > threshold, else 0. Those above `floor` are seen.
void jump_forward(const float* z, const float* bias, const float* threshold, const float* floor,
                  float* z_out, float* f, std::int64_t height, Seen& seen);

// Sums over rows.
struct JumpSums {
  float* active;     // rows with z > threshold
  float* positive;   // of them those with z > 0
  float* near;       // rows with |z - threshold| < bandwidth / 2
  float* near_jump;  // of them those with z > threshold
  float* window;     // gradient of f where it is near
  float* d_z;        // gradient of z
};
// z becomes its gradient, which is that of f where f speaks.
void jump_backward(float* z, const float* threshold, float bandwidth, const float* d_f,
                   const JumpSums& sums, std::int64_t height);

// The penalty weight * tanh(norm_scale f) of each latent: adds its gradient to that of f, and
// f (1 - tanh^2) to `slopes`. Returns the sum of tanh over the block.
double tanh_pull(const float* f, const float* norm_scale, float weight, float* d_f, float* slopes,
                 std::int64_t height);
// The penalty weight[i] * relu(threshold - z) of each latent: writes to `below` its gradient, to be
// subtracted from that of z; adds it to `pulls` and the excess to `excesses`. Returns the block's
// penalty.
double pull_below(const float* z, const float* threshold, const float* weight, float* below,
                  float* pulls, float* excesses, std::int64_t height);

}  // namespace saesweep::worker::dense_blocks
