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
float dot(const float* x, const float* y, std::int64_t n);
double sum_of_squares(const float* x, std::int64_t n);

// One row of a ReLU layer backwards: g, the gradient of f, becomes that of the pre-activations
// after `pull` of a penalty is added where f > 0, and 0 elsewhere. Adds f and g to the sums by
// column. Returns how many f are > 0.
std::int64_t relu_row(const float* f, const float* pull, float* g, float* f_sums, float* g_sums,
                      std::int64_t n);

// One row of a block of pre-activations without bias: f = max(z + bias, 0). Adds to `check`, which
// stays 0 unless one is NaN or +infinity. Returns how many f are > 0.
std::int64_t relu_of(const float* z, const float* bias, float* f, float& check, std::int64_t n);

bool all_finite(const float* x, std::int64_t n);

struct Code {
  std::int32_t latent;
  float value;
};

// Appends the entries of z[0..n) above `threshold`, in order of index.
void collect_above(const float* z, std::int64_t n, float threshold, std::vector<Code>& out);

// The k largest positive entries of z, ties to the lowest index, in order of index. `hint` guesses
// the k-th value: it changes the speed and never the result; updated for the next row.
void select_top_k(const float* z, std::int64_t n, std::int64_t k, float& hint,
                  std::vector<Code>& scratch, std::vector<Code>& out);

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
// Adam as in Kingma & Ba (2015), bias corrections as torch.optim.Adam applies them.
void adam(const AdamStep& step, const float* gradient, float* weight, float* first, float* second,
          std::int64_t n);

}  // namespace saesweep::worker::kernels
