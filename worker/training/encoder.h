// The encoder as an operand of products, and what of its pre-activations is above a threshold.
//
// Of fp32 with few of many wanted, the products only filter: they are done with the fastest numbers
// this machine has (pairs of bf16), what may be above the threshold by a bound on their error is
// looked at again, and its value is kernels::dot(), whatever the filter was. So selection and
// values are those of fp32 at nearly the speed of bf16, and the same bytes on every machine with
// FMA.
//
// The bound, with x~ and w~ as multiplied, u = 2^-24 and n = d:
//   |x~.w~ - x.w| <= |x - x~| |w| + |x~| |w - w~|                        (Cauchy-Schwarz)
//   |computed - exact| <= n u / (1 - n u) |x| |w| for any order of sums  (Higham 2002, section 3.1)
// so that (n + 64) 2^-23 (|x| + |x~|) |w| covers both computed values, with room for the rounding
// of the bound itself; numbers that a product would flush to zero count as rounded to it.
#pragma once

#include <cstdint>
#include <vector>

#include "sweeps/spec.h"
#include "worker/parallel/thread_pool.h"
#include "worker/products/hits.h"

namespace saesweep::worker {

struct PackedEncoder : products::Encoder {
  const float* again = nullptr;  // W_enc, [latents, d], if the products only filter
};
// The products themselves are the values.
//   w_enc: [latents, d] rows; bias: [latents]; floors: [latents], or nullptr: 0
PackedEncoder pack_encoder(ThreadPool& pool, const float* w_enc, const float* bias,
                           const float* floors, std::int64_t latents, std::int64_t d,
                           products::Numbers numbers);
// The products filter. w_enc outlives the result.
//   filter: kFloat, or another for speed only
PackedEncoder pack_filter(ThreadPool& pool, const float* w_enc, const float* bias,
                          std::int64_t latents, std::int64_t d, products::Numbers filter);
// Whether a selection of k of so many latents is worth a filter; part of the numerics.
bool is_filtered(const sweeps::TrainingSpec& spec, std::int64_t k, std::int64_t latents);
// The fastest filter of the current instruction set.
products::Numbers filter_numbers();

// All pre-activations above their row's threshold plus their latent's floor, those of a row in
// order of latents; what is not finite is left out.
//   rows: [thresholds.size(), d]; expected: about so many hits
struct Above {
  std::vector<products::Hit> hits;
  bool finite = true;
};
Above collect_above(const PackedEncoder& encoder, const float* rows,
                    const std::vector<float>& thresholds, std::size_t expected);

}  // namespace saesweep::worker
