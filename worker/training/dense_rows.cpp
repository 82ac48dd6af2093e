#include "worker/training/dense_rows.h"

#include <cmath>

#include "worker/training/vector_clones.h"

namespace saesweep::worker::dense_rows {

SAE_VECTOR_CLONES void gated_forward(const float* __restrict z, const float* __restrict b_gate,
                                     const float* __restrict scale, const float* __restrict b_mag,
                                     float* __restrict gate, float* __restrict f, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    const float opening = z[i] + b_gate[i];
    const float magnitude = z[i] * scale[i] + b_mag[i];
    gate[i] = opening > 0 ? opening : 0.0F;
    f[i] = opening > 0 && magnitude > 0 ? magnitude : 0.0F;
  }
}

SAE_VECTOR_CLONES std::int64_t gated_backward(
    const float* __restrict z, const float* __restrict gate, const float* __restrict f,
    const float* __restrict scale, const float* __restrict pull, const float* __restrict d_gate,
    float* __restrict d_f, const GatedSums& sums, std::int64_t n) {
  float* __restrict b_gate = sums.b_gate;
  float* __restrict b_mag = sums.b_mag;
  float* __restrict r_mag = sums.r_mag;
  float* __restrict d_z = sums.d_z;
  std::int32_t active = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const float of_magnitude = f[i] > 0 ? d_f[i] : 0.0F;
    const float of_gate = gate[i] > 0 ? d_gate[i] + pull[i] : 0.0F;
    const float of_z = of_magnitude * scale[i] + of_gate;
    active += f[i] > 0 ? 1 : 0;
    b_gate[i] += of_gate;
    b_mag[i] += of_magnitude;
    r_mag[i] += of_magnitude * scale[i] * z[i];
    d_z[i] += of_z;
    d_f[i] = of_z;
  }
  return active;
}

SAE_VECTOR_CLONES void jump_forward(const float* __restrict z, const float* __restrict threshold,
                                    float* __restrict f, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) f[i] = z[i] > threshold[i] ? z[i] : 0.0F;
}

SAE_VECTOR_CLONES void jump_backward(const float* __restrict z, const float* __restrict threshold,
                                     float bandwidth, float* __restrict d_f, const JumpSums& sums,
                                     std::int64_t n) {
  float* __restrict active = sums.active;
  float* __restrict near = sums.near;
  float* __restrict near_jump = sums.near_jump;
  float* __restrict window = sums.window;
  float* __restrict d_z = sums.d_z;
  for (std::int64_t i = 0; i < n; ++i) {
    const bool on = z[i] > threshold[i];
    const float away = (z[i] - threshold[i]) / bandwidth;
    const bool is_near = away > -0.5F && away < 0.5F;
    const float gradient = d_f[i];
    const float of_z = on ? gradient : 0.0F;
    active[i] += on ? 1.0F : 0.0F;
    near[i] += is_near ? 1.0F : 0.0F;
    near_jump[i] += is_near && on ? 1.0F : 0.0F;
    window[i] += is_near ? gradient : 0.0F;
    d_z[i] += of_z;
    d_f[i] = of_z;
  }
}

double tanh_pull(const float* f, const float* norm_scale, float weight, float* d_f, float* slopes,
                 std::int64_t n) {
  double sum = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    // Most latents are silent, where the slope is 1.
    const float value = f[i] == 0 ? 0.0F : std::tanh(norm_scale[i] * f[i]);
    const float slope = 1 - value * value;
    sum += value;
    d_f[i] += weight * norm_scale[i] * slope;
    slopes[i] += f[i] * slope;
  }
  return sum;
}

double pull_below(const float* z, const float* threshold, const float* weight, float* d_z,
                  float* pulls, float* excesses, std::int64_t n) {
  double sum = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const float excess = threshold[i] - z[i];
    if (!(excess > 0)) continue;
    sum += static_cast<double>(weight[i]) * excess;
    d_z[i] -= weight[i];
    pulls[i] += weight[i];
    excesses[i] += excess;
  }
  return sum;
}

}  // namespace saesweep::worker::dense_rows
