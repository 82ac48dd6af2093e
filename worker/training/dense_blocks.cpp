#include "worker/training/dense_blocks.h"

#include <cmath>

#include "worker/training/vector_clones.h"

namespace saesweep::worker::dense_blocks {
namespace {

// Sums of a block by latent, kept in registers while its rows go by.
struct Lanes {
  alignas(64) float values[kLatents] = {};
  void add_to(float* sums) const {
    for (std::int64_t i = 0; i < kLatents; ++i) sums[i] += values[i];
  }
};

}  // namespace

bool Seen::finite() const {
  float sum = 0;
  for (const float check : checks) sum += check;
  return sum == 0;
}
std::int64_t Seen::count() const {
  std::int64_t sum = 0;
  for (const std::int32_t lane : above) sum += lane;
  return sum;
}

SAE_VECTOR_CLONES void relu_forward(const float* __restrict z, const float* __restrict bias,
                                    float* __restrict f, std::int64_t height, Seen& seen) {
  for (std::int64_t row = 0; row < height; ++row)
    for (std::int64_t i = 0; i < kLatents; ++i) {
      const float value = z[row * kLatents + i] + bias[i];
      const float kept = value < 0 ? 0.0F : value;
      seen.checks[i] += kept * 0.0F;  // NaN and infinity times 0 are NaN
      seen.above[i] += value > 0 ? 1 : 0;
      f[row * kLatents + i] = kept;
    }
}

SAE_VECTOR_CLONES void relu(const float* __restrict z, float* __restrict f, std::int64_t height) {
  for (std::int64_t i = 0; i < height * kLatents; ++i) f[i] = z[i] > 0 ? z[i] : 0.0F;
}

SAE_VECTOR_CLONES void relu_backward(const float* __restrict f, const float* __restrict d_f,
                                     const float* __restrict pull, std::int64_t pull_stride,
                                     float* __restrict d_z, const ReluSums& sums,
                                     std::int64_t height) {
  Lanes of_f, of_z;
  for (std::int64_t row = 0; row < height; ++row)
    for (std::int64_t i = 0; i < kLatents; ++i) {
      const std::int64_t at = row * kLatents + i;
      const float gradient = f[at] > 0 ? d_f[at] + pull[row * pull_stride + i] : 0.0F;
      of_f.values[i] += f[at];
      of_z.values[i] += gradient;
      d_z[at] = gradient;
    }
  of_f.add_to(sums.f);
  of_z.add_to(sums.d_z);
}

SAE_VECTOR_CLONES void gated_forward(const float* __restrict z, const float* __restrict b_gate,
                                     const float* __restrict scale, const float* __restrict shift,
                                     float* __restrict opening, float* __restrict f,
                                     std::int64_t height, Seen& seen) {
  for (std::int64_t row = 0; row < height; ++row)
    for (std::int64_t i = 0; i < kLatents; ++i) {
      const std::int64_t at = row * kLatents + i;
      const float value = z[at] + b_gate[i];
      const float magnitude = value * scale[i] + shift[i];
      seen.checks[i] += (value < 0 ? 0.0F : value) * 0.0F;
      seen.above[i] += value > 0 ? 1 : 0;
      opening[at] = value;
      f[at] = value > 0 && magnitude > 0 ? magnitude : 0.0F;
    }
}

SAE_VECTOR_CLONES void gated_codes(const float* __restrict opening, const float* __restrict scale,
                                   const float* __restrict shift, float* __restrict f,
                                   std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    const float magnitude = opening[i] * scale[i] + shift[i];
    f[i] = opening[i] > 0 && magnitude > 0 ? magnitude : 0.0F;
  }
}

SAE_VECTOR_CLONES void gated_backward(float* __restrict opening, const float* __restrict f,
                                      const float* __restrict scale, const float* __restrict b_mag,
                                      const float* __restrict pull, std::int64_t pull_stride,
                                      const float* __restrict d_f, const float* __restrict d_gate,
                                      const GatedSums& sums, std::int64_t height) {
  Lanes of_b_gate, of_b_mag, of_r_mag, of_z, active, gates;
  for (std::int64_t row = 0; row < height; ++row)
    for (std::int64_t i = 0; i < kLatents; ++i) {
      const std::int64_t at = row * kLatents + i;
      const float gate = opening[at], pulled = d_gate[at] + pull[row * pull_stride + i];
      const float of_magnitude = f[at] > 0 ? d_f[at] : 0.0F;
      const float of_gate = gate > 0 ? pulled : 0.0F;
      const float both = of_magnitude * scale[i] + of_gate;
      of_b_gate.values[i] += of_gate;
      of_b_mag.values[i] += of_magnitude;
      of_r_mag.values[i] += of_magnitude * (f[at] - b_mag[i]);
      of_z.values[i] += both;
      active.values[i] += f[at] > 0 ? 1.0F : 0.0F;
      gates.values[i] += gate > 0 ? gate : 0.0F;
      opening[at] = both;
    }
  of_b_gate.add_to(sums.b_gate);
  of_b_mag.add_to(sums.b_mag);
  of_r_mag.add_to(sums.r_mag);
  of_z.add_to(sums.d_z);
  active.add_to(sums.active);
  gates.add_to(sums.gates);
}

SAE_VECTOR_CLONES void jump_forward(const float* __restrict z, const float* __restrict bias,
                                    const float* __restrict threshold,
                                    const float* __restrict floor, float* __restrict z_out,
                                    float* __restrict f, std::int64_t height, Seen& seen) {
  for (std::int64_t row = 0; row < height; ++row)
    for (std::int64_t i = 0; i < kLatents; ++i) {
      const std::int64_t at = row * kLatents + i;
      const float value = z[at] + bias[i];
      seen.checks[i] += (value < 0 ? 0.0F : value) * 0.0F;
      seen.above[i] += value > floor[i] ? 1 : 0;
      z_out[at] = value;
      f[at] = value > threshold[i] ? value : 0.0F;
    }
}

SAE_VECTOR_CLONES void jump_backward(float* __restrict z, const float* __restrict threshold,
                                     float bandwidth, const float* __restrict d_f,
                                     const JumpSums& sums, std::int64_t height) {
  Lanes active, positive, near, near_jump, window, of_z;
  for (std::int64_t row = 0; row < height; ++row)
    for (std::int64_t i = 0; i < kLatents; ++i) {
      const std::int64_t at = row * kLatents + i;
      const float value = z[at], gradient = d_f[at];
      const float on = value > threshold[i] ? 1.0F : 0.0F;
      const float is_near = std::fabs((value - threshold[i]) / bandwidth) < 0.5F ? 1.0F : 0.0F;
      const float passed = value > threshold[i] ? gradient : 0.0F;
      active.values[i] += on;
      positive.values[i] += value > 0 ? on : 0.0F;
      near.values[i] += is_near;
      near_jump.values[i] += is_near * on;
      window.values[i] += is_near * gradient;
      of_z.values[i] += passed;
      z[at] = passed;
    }
  active.add_to(sums.active);
  positive.add_to(sums.positive);
  near.add_to(sums.near);
  near_jump.add_to(sums.near_jump);
  window.add_to(sums.window);
  of_z.add_to(sums.d_z);
}

double tanh_pull(const float* f, const float* norm_scale, float weight, float* d_f, float* slopes,
                 std::int64_t height) {
  double sum = 0;
  for (std::int64_t at = 0; at < height * kLatents; ++at) {
    const std::int64_t i = at % kLatents;
    // Most latents are silent, where the slope is 1.
    const float value = f[at] == 0 ? 0.0F : std::tanh(norm_scale[i] * f[at]);
    const float slope = 1 - value * value;
    sum += value;
    d_f[at] += weight * norm_scale[i] * slope;
    slopes[i] += f[at] * slope;
  }
  return sum;
}

double pull_below(const float* z, const float* threshold, const float* weight, float* below,
                  float* pulls, float* excesses, std::int64_t height) {
  double sum = 0;
  for (std::int64_t at = 0; at < height * kLatents; ++at) {
    const std::int64_t i = at % kLatents;
    const float excess = threshold[i] - z[at];
    below[at] = excess > 0 ? weight[i] : 0.0F;
    if (!(excess > 0)) continue;
    sum += static_cast<double>(weight[i]) * excess;
    pulls[i] += weight[i];
    excesses[i] += excess;
  }
  return sum;
}

}  // namespace saesweep::worker::dense_blocks
