#include "worker/training/kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "worker/training/vector_clones.h"

namespace saesweep::worker::kernels {
namespace {

constexpr std::int64_t kPiece = 256;  // of a row that is worked on in the first-level cache
constexpr std::int64_t kLanes = 16;   // partial sums kept apart, added at the end in order
using Line = float __attribute__((vector_size(64)));

}  // namespace

SAE_VECTOR_CLONES void axpy(float a, const float* __restrict x, float* __restrict y,
                            std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) y[i] += a * x[i];
}

SAE_VECTOR_CLONES void axpy4(const float* __restrict a, const float* const* x, float* __restrict y,
                             std::int64_t n) {
  const float* __restrict x0 = x[0], * __restrict x1 = x[1], * __restrict x2 = x[2], * __restrict x3 = x[3];
  const float a0 = a[0], a1 = a[1], a2 = a[2], a3 = a[3];
  for (std::int64_t i = 0; i < n; ++i) {
    float sum = y[i];
    sum += a0 * x0[i];
    sum += a1 * x1[i];
    sum += a2 * x2[i];
    sum += a3 * x3[i];
    y[i] = sum;
  }
}

SAE_VECTOR_CLONES void dot4(const float* __restrict x, const float* const* y, float* __restrict out,
                            std::int64_t n) {
  Line lanes0{}, lanes1{}, lanes2{}, lanes3{};
  const float *y0 = y[0], *y1 = y[1], *y2 = y[2], *y3 = y[3];
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    Line of_x, of_y;
    std::memcpy(&of_x, x + i, sizeof(Line));
    std::memcpy(&of_y, y0 + i, sizeof(Line));
    lanes0 += of_x * of_y;
    std::memcpy(&of_y, y1 + i, sizeof(Line));
    lanes1 += of_x * of_y;
    std::memcpy(&of_y, y2 + i, sizeof(Line));
    lanes2 += of_x * of_y;
    std::memcpy(&of_y, y3 + i, sizeof(Line));
    lanes3 += of_x * of_y;
  }
  const Line* lanes[] = {&lanes0, &lanes1, &lanes2, &lanes3};
  for (int row = 0; row < 4; ++row) {
    float sum = 0;
    for (std::int64_t j = i; j < n; ++j) sum += x[j] * y[row][j];
    for (std::int64_t lane = 0; lane < kLanes; ++lane) sum += (*lanes[row])[lane];
    out[row] = sum;
  }
}

SAE_VECTOR_CLONES void divide(float by, float* __restrict x, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) x[i] /= by;
}

SAE_VECTOR_CLONES float dot(const float* __restrict x, const float* __restrict y, std::int64_t n) {
  Line lanes{};
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    Line of_x, of_y;
    std::memcpy(&of_x, x + i, sizeof(Line));
    std::memcpy(&of_y, y + i, sizeof(Line));
    lanes += of_x * of_y;
  }
  float sum = 0;
  for (; i < n; ++i) sum += x[i] * y[i];
  for (std::int64_t lane = 0; lane < kLanes; ++lane) sum += lanes[lane];
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

SAE_VECTOR_CLONES double square_of_rounding(const float* __restrict x, std::int64_t n) {
  double sum = 0;
  for (std::int64_t first = 0; first < n; first += kPiece) {
    const std::int64_t count = std::min(kPiece, n - first);
    float taken[kPiece];
    for (std::int64_t i = 0; i < count; ++i) {
      std::uint32_t bits = 0;
      std::memcpy(&bits, x + first + i, sizeof(bits));
      bits = (bits + 0x7fffU + ((bits >> 16) & 1U)) & 0xffff0000U;
      float rounded = 0;
      std::memcpy(&rounded, &bits, sizeof(rounded));
      rounded = std::abs(rounded) < std::numeric_limits<float>::min() ? 0.0F : rounded;
      taken[i] = x[first + i] - rounded;
    }
    sum += sum_of_squares(taken, count);
  }
  return sum;
}

SAE_VECTOR_CLONES double finish_error(const float* __restrict x, float factor, float* __restrict e,
                                      float* __restrict g, double* __restrict g_columns,
                                      std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    e[i] -= x[i];
    g[i] = e[i] * factor;
    g_columns[i] += static_cast<double>(g[i]);
  }
  return sum_of_squares(e, n);
}

SAE_VECTOR_CLONES void add_scaled(double a, const float* __restrict x, double* __restrict sums,
                                  std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) sums[i] += a * static_cast<double>(x[i]);
}

SAE_VECTOR_CLONES KthLargest kth_largest(const float* __restrict x, std::int64_t n,
                                         std::int64_t k) {
  // Floats that are not negative are in order of their bits: the answer is found bit by bit,
  // without a branch that could be guessed wrong.
  float smallest = x[0], largest = x[0];
  for (std::int64_t i = 0; i < n; ++i) {
    smallest = x[i] < smallest ? x[i] : smallest;
    largest = x[i] > largest ? x[i] : largest;
  }
  // At least k are >= low, fewer are >= high.
  std::int32_t low = 0, high = 0;
  std::memcpy(&low, &smallest, sizeof(low));
  std::memcpy(&high, &largest, sizeof(high));
  ++high;
  std::int64_t larger = 0;  // >= high
  while (high - low > 1) {
    const std::int32_t middle = low + (high - low) / 2;
    float bound = 0;
    std::memcpy(&bound, &middle, sizeof(bound));
    std::int32_t count = 0;
    for (std::int64_t i = 0; i < n; ++i) count += x[i] >= bound ? 1 : 0;
    const bool enough = count >= k;
    low = enough ? middle : low;
    high = enough ? high : middle;
    larger = enough ? larger : count;
  }
  float value = 0;
  std::memcpy(&value, &low, sizeof(value));
  return {value, larger};
}

SAE_VECTOR_CLONES void gather_slice(const Touch* __restrict touches, std::int64_t count,
                                    const float* __restrict slice, bool add,
                                    float* __restrict first, float* __restrict second,
                                    std::int64_t first_width, std::int64_t second_width) {
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

SAE_VECTOR_CLONES void adam(const AdamStep& step, const float* __restrict gradient, float along,
                            float* __restrict weight, float* __restrict first,
                            float* __restrict second, std::int64_t n) {
  const float rate = step.rate * step.correction1, root = std::sqrt(step.correction2);
  const float beta1 = step.beta1, beta2 = step.beta2, epsilon = step.epsilon, scale = step.scale;
  const float rest1 = step.rest1, rest2 = step.rest2;
  for (std::int64_t i = 0; i < n; ++i) {
    const float g = (gradient[i] - along * weight[i]) * scale;
    const float m = beta1 * first[i] + rest1 * g;
    const float v = beta2 * second[i] + rest2 * g * g;
    first[i] = m;
    second[i] = v;
    weight[i] -= rate * m / (std::sqrt(v) * root + epsilon);
  }
}

}  // namespace saesweep::worker::kernels
