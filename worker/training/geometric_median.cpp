#include "worker/training/geometric_median.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace saesweep::worker {

at::Tensor geometric_median(const at::Tensor& points) {
  const std::int64_t rows = points.size(0), d = points.size(1);
  const float* values = points.const_data_ptr<float>();
  std::vector<double> guess(static_cast<std::size_t>(d), 0), next(static_cast<std::size_t>(d));
  for (std::int64_t row = 0; row < rows; ++row)
    for (std::int64_t j = 0; j < d; ++j)
      guess[static_cast<std::size_t>(j)] +=
          static_cast<double>(values[row * d + j]) / static_cast<double>(rows);
  for (int round = 0; round < 100; ++round) {
    std::fill(next.begin(), next.end(), 0.0);
    double weights = 0;
    for (std::int64_t row = 0; row < rows; ++row) {
      const float* x = values + row * d;
      double square = 0;
      for (std::int64_t j = 0; j < d; ++j) {
        const double difference = x[j] - guess[static_cast<std::size_t>(j)];
        square += difference * difference;
      }
      // A point on the guess would weigh infinitely much.
      const double weight = 1 / std::max(std::sqrt(square), 1e-12);
      weights += weight;
      for (std::int64_t j = 0; j < d; ++j) next[static_cast<std::size_t>(j)] += weight * x[j];
    }
    double moved = 0;
    for (std::int64_t j = 0; j < d; ++j) {
      const auto at = static_cast<std::size_t>(j);
      next[at] /= weights;
      moved += (next[at] - guess[at]) * (next[at] - guess[at]);
    }
    guess.swap(next);
    if (std::sqrt(moved) < 1e-5) break;
  }
  at::Tensor median = at::empty({d}, at::kFloat);
  for (std::int64_t j = 0; j < d; ++j)
    median.mutable_data_ptr<float>()[j] = static_cast<float>(guess[static_cast<std::size_t>(j)]);
  return median;
}

}  // namespace saesweep::worker
