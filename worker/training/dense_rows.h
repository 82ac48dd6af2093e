// One row of a dense family forwards and backwards, on plain floats: what stands between its matrix
// products. Sums over rows are added to in the order of the calls.
#pragma once

#include <cstdint>

namespace saesweep::worker::dense_rows {

// ---- gated --------------------------------------------------------------------------------------

// z = x W_enc^T of a row becomes codes f and the gate's rectified pre-activations.
//   gate = relu(z + b_gate); f = relu(scale z + b_mag) where gate > 0, else 0
void gated_forward(const float* z, const float* b_gate, const float* scale, const float* b_mag,
                   float* gate, float* f, std::int64_t n);

// Sums over rows of the gradients of a gated family's own parameters, [n] each.
struct GatedSums {
  float *b_gate, *b_mag, *r_mag, *d_z;
};
// d_f and d_gate are the gradients of f and of relu(gate) without the penalty, whose pull on each
// latent is added where the gate is open; d_f becomes the gradient of z. Returns how many f are >
// 0.
std::int64_t gated_backward(const float* z, const float* gate, const float* f, const float* scale,
                            const float* pull, const float* d_gate, float* d_f,
                            const GatedSums& sums, std::int64_t n);

// ---- jumprelu -----------------------------------------------------------------------------------

// f = z where z > threshold, else 0.
void jump_forward(const float* z, const float* threshold, float* f, std::int64_t n);

// Sums over rows, [n] each.
struct JumpSums {
  float* active;     // rows with z > threshold
  float* near;       // rows with |z - threshold| < bandwidth / 2
  float* near_jump;  // the same of rows with z > threshold
  float* window;     // gradient of f where it is near
  float* d_z;        // gradient of z
};
// d_f, the gradient of f, becomes that of z.
void jump_backward(const float* z, const float* threshold, float bandwidth, float* d_f,
                   const JumpSums& sums, std::int64_t n);

// The penalty weight * tanh(norm_scale f) of each latent: adds its gradient to that of f, and
// f (1 - tanh^2) to `slopes`. norm_scale: [n]. Returns the row's sum of tanh.
double tanh_pull(const float* f, const float* norm_scale, float weight, float* d_f, float* slopes,
                 std::int64_t n);
// The penalty weight[i] * relu(threshold - z): subtracts its gradient from that of z and adds the
// one of the threshold to `pulls`, the excess to `excesses`. Returns the row's penalty.
double pull_below(const float* z, const float* threshold, const float* weight, float* d_z,
                  float* pulls, float* excesses, std::int64_t n);

}  // namespace saesweep::worker::dense_rows
