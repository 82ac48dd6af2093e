// The inner loops of training on plain floats. Each sums in one fixed order, so that its bytes
// depend on its arguments alone.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace saesweep::worker::kernels {

// Asks for a row that is about to be read: gathered rows come from where no hardware looks ahead.
inline void prefetch(const float* x, std::int64_t n) {
  constexpr std::int64_t kLine = 16;
  for (std::int64_t i = 0; i < n; i += kLine) __builtin_prefetch(x + i);
}

// y += a * x
void axpy(float a, const float* x, float* y, std::int64_t n);
// Four at a time, with the bytes of one after another: y += a[0] x[0], then a[1] x[1] and so on;
// out[i] = dot(x, y[i]).
void axpy4(const float* a, const float* const* x, float* y, std::int64_t n);
void dot4(const float* x, const float* const* y, float* out, std::int64_t n);
// x /= by
void divide(float by, float* x, std::int64_t n);
float dot(const float* x, const float* y, std::int64_t n);
double sum_of_squares(const float* x, std::int64_t n);
// Of what rounding to bf16 takes away, where a subnormal result counts as 0.
double square_of_rounding(const float* x, std::int64_t n);

// A row of the reconstruction, in e, becomes its error e - x, and g factor times that, which is
// added to the sums by column. Returns the sum of squares of the error.
double finish_error(const float* x, float factor, float* e, float* g, double* g_columns,
                    std::int64_t n);
// sums += a * x
void add_scaled(double a, const float* x, double* sums, std::int64_t n);

// The k-th largest of n >= k >= 1 numbers, none negative or NaN, and how many are larger.
struct KthLargest {
  float value;
  std::int64_t larger;
};
KthLargest kth_largest(const float* x, std::int64_t n, std::int64_t k);

struct Code {
  std::int32_t latent;
  float value;
};

// A row of the batch that a latent touches: with an activation, and the gradient of its
// pre-activation.
struct Touch {
  std::int32_t row;
  float value, pull;
};
// The sums of value x first and pull x second over the touched rows of a slice [row][16 of the
// first, 16 of the second], in order; `of_first` and `of_second` <= 16 columns are written, or
// added with `add`.
void gather_slice(const Touch* touches, std::int64_t count, const float* slice, bool add,
                  float* first, float* second, std::int64_t of_first, std::int64_t of_second);

struct AdamStep {
  float rate, beta1, beta2, epsilon;
  float rest1, rest2;              // 1 - beta, rounded once
  float correction1, correction2;  // 1 / (1 - beta^t)
  float scale;                     // of the gradient: the clip factor
};
// Adam as in Kingma & Ba (2015), bias corrections as torch.optim.Adam applies them; of the gradient
// less `along` times the weights.
void adam(const AdamStep& step, const float* gradient, float along, float* weight, float* first,
          float* second, std::int64_t n);

}  // namespace saesweep::worker::kernels
