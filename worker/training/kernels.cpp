#include "worker/training/kernels.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "worker/training/vector_clones.h"

namespace saesweep::worker::kernels {
namespace {

constexpr std::int64_t kLanes = 16;  // partial sums kept apart, added at the end in order

}  // namespace

SAE_VECTOR_CLONES void axpy(float a, const float* __restrict x, float* __restrict y,
                            std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) y[i] += a * x[i];
}

SAE_VECTOR_CLONES float dot(const float* __restrict x, const float* __restrict y, std::int64_t n) {
  float lanes[kLanes] = {};
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (std::int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += x[i + lane] * y[i + lane];
  float sum = 0;
  for (; i < n; ++i) sum += x[i] * y[i];
  for (const float lane : lanes) sum += lane;
  return sum;
}

SAE_VECTOR_CLONES double sum_of_squares(const float* __restrict x, std::int64_t n) {
  double lanes[kLanes] = {};
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (std::int64_t lane = 0; lane < kLanes; ++lane) {
      const auto value = static_cast<double>(x[i + lane]);
      lanes[lane] += value * value;
    }
  double sum = 0;
  for (; i < n; ++i) sum += static_cast<double>(x[i]) * x[i];
  for (const double lane : lanes) sum += lane;
  return sum;
}

SAE_VECTOR_CLONES std::int64_t relu_row(const float* __restrict f, const float* __restrict pull,
                                        float* __restrict g, float* __restrict f_sums,
                                        float* __restrict g_sums, std::int64_t n) {
  std::int32_t active = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const bool on = f[i] > 0;
    const float gradient = on ? g[i] + pull[i] : 0.0F;
    active += on ? 1 : 0;
    g[i] = gradient;
    f_sums[i] += f[i];
    g_sums[i] += gradient;
  }
  return active;
}

SAE_VECTOR_CLONES std::int64_t relu_of(const float* __restrict z, const float* __restrict bias,
                                       float* __restrict f, float& check, std::int64_t n) {
  std::int32_t active = 0;
  float lanes[kLanes] = {};
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (std::int64_t lane = 0; lane < kLanes; ++lane) {
      const float value = z[i + lane] + bias[i + lane];
      const float kept = value < 0 ? 0.0F : value;
      lanes[lane] += kept * 0.0F;  // NaN and infinity times 0 are NaN
      active += value > 0 ? 1 : 0;
      f[i + lane] = kept;
    }
  for (; i < n; ++i) {
    const float value = z[i] + bias[i];
    const float kept = value < 0 ? 0.0F : value;
    check += kept * 0.0F;
    active += value > 0 ? 1 : 0;
    f[i] = kept;
  }
  for (const float lane : lanes) check += lane;
  return active;
}

SAE_VECTOR_CLONES bool all_finite(const float* __restrict x, std::int64_t n) {
  float lanes[kLanes] = {};
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (std::int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += x[i + lane] * 0.0F;
  float sum = 0;
  for (; i < n; ++i) sum += x[i] * 0.0F;
  for (const float lane : lanes) sum += lane;
  return sum == 0;  // infinities and NaN times 0 are NaN
}

SAE_VECTOR_CLONES void collect_above(const float* __restrict z, std::int64_t n, float threshold,
                                     std::vector<Code>& out) {
  constexpr std::int64_t kBlock = 64;
  std::int64_t i = 0;
  for (; i + kBlock <= n; i += kBlock) {
    // Most blocks hold nothing: one comparison of the largest tells.
    float largest = z[i];
    for (std::int64_t j = 1; j < kBlock; ++j) largest = z[i + j] > largest ? z[i + j] : largest;
    if (!(largest > threshold)) continue;
    for (std::int64_t j = 0; j < kBlock; ++j)
      if (z[i + j] > threshold) out.push_back({static_cast<std::int32_t>(i + j), z[i + j]});
  }
  for (; i < n; ++i)
    if (z[i] > threshold) out.push_back({static_cast<std::int32_t>(i), z[i]});
}

void select_top_k(const float* z, std::int64_t n, std::int64_t k, float& hint,
                  std::vector<Code>& scratch, std::vector<Code>& out) {
  scratch.clear();
  collect_above(z, n, hint > 0 ? hint : 0.0F, scratch);
  if (static_cast<std::int64_t>(scratch.size()) < k && hint > 0) {
    scratch.clear();
    collect_above(z, n, 0.0F, scratch);
  }
  if (static_cast<std::int64_t>(scratch.size()) > k) {
    const auto better = [](const Code& a, const Code& b) {
      return a.value > b.value || (a.value == b.value && a.latent < b.latent);
    };
    std::nth_element(scratch.begin(), scratch.begin() + (k - 1), scratch.end(), better);
    hint = 0.8F * scratch[static_cast<std::size_t>(k - 1)].value;
    scratch.resize(static_cast<std::size_t>(k));
    std::sort(scratch.begin(), scratch.end(),
              [](const Code& a, const Code& b) { return a.latent < b.latent; });
  } else {
    hint = 0;
  }
  out.insert(out.end(), scratch.begin(), scratch.end());
}

SAE_VECTOR_CLONES void gather_slice(const Touch* __restrict touches, std::int64_t count,
                                    const float* __restrict slice, bool add,
                                    float* __restrict first, float* __restrict second,
                                    std::int64_t first_width, std::int64_t second_width) {
  using Line = float __attribute__((vector_size(64)));
  Line sum_first{}, sum_second{};
  const auto first_bytes = static_cast<std::size_t>(first_width) * sizeof(float);
  const auto second_bytes = static_cast<std::size_t>(second_width) * sizeof(float);
  if (add) {
    std::memcpy(&sum_first, first, first_bytes);
    std::memcpy(&sum_second, second, second_bytes);
  }
  for (std::int64_t i = 0; i < count; ++i) {
    const float* row = slice + std::int64_t{touches[i].row} * 2 * kLanes;
    Line of_first, of_second;
    std::memcpy(&of_first, row, sizeof(Line));
    std::memcpy(&of_second, row + kLanes, sizeof(Line));
    sum_first += touches[i].value * of_first;
    sum_second += touches[i].pull * of_second;
  }
  if (first_width == kLanes && second_width == kLanes) {
    std::memcpy(first, &sum_first, sizeof(Line));
    std::memcpy(second, &sum_second, sizeof(Line));
    return;
  }
  std::memcpy(first, &sum_first, first_bytes);
  std::memcpy(second, &sum_second, second_bytes);
}

SAE_VECTOR_CLONES void adam(const AdamStep& step, const float* __restrict gradient,
                            float* __restrict weight, float* __restrict first,
                            float* __restrict second, std::int64_t n) {
  const float rate = step.rate * step.correction1, root = std::sqrt(step.correction2);
  const float beta1 = step.beta1, beta2 = step.beta2, epsilon = step.epsilon, scale = step.scale;
  const float rest1 = step.rest1, rest2 = step.rest2;
  for (std::int64_t i = 0; i < n; ++i) {
    const float g = gradient[i] * scale;
    const float m = beta1 * first[i] + rest1 * g;
    const float v = beta2 * second[i] + rest2 * g * g;
    first[i] = m;
    second[i] = v;
    weight[i] -= rate * m / (std::sqrt(v) * root + epsilon);
  }
}

}  // namespace saesweep::worker::kernels
