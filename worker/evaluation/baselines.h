// Dictionaries nobody trained: what a score is worth is seen beside theirs.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>

#include "core/result.h"
#include "sweeps/spec.h"
#include "worker/activations/row_stream.h"
#include "worker/parallel/thread_pool.h"
#include "worker/sae/sae.h"

namespace saesweep::worker {

// f = x, x_hat = x.
Sae identity_dictionary();

// Decoder rows drawn uniformly from the unit sphere, encoder their transpose, no biases; TopK.
Sae random_dictionary(const sweeps::TrainingSpec& shape, std::int64_t d_in);

// Mean and covariance of rows, in double precision.
struct RowMoments {
  std::uint64_t rows = 0;
  at::Tensor mean;        // [d]
  at::Tensor covariance;  // [d, d], divided by rows
};
// Over the first pass of a stream, in raw units (its normalisation taken back).
// Errors: those of the stream; kUnavailable when `stop` said so.
Result<RowMoments> row_moments(RowStream& stream, ThreadPool& pool,
                               const std::function<bool()>& stop = {});

// Principal components, largest variance first: f_i = u_i . (x - mean), signed;
// x_hat = mean + sum_i f_i u_i. `components` of d (all: an exact copy of x).
// Each component's largest entry is positive, so that its sign is no accident.
// SAEBench's own PCA baseline stores encoder and decoder the other way round: its reconstruction is
// as exact, but its latents are no principal scores.
Sae principal_components(const RowMoments& moments, std::int64_t components);

}  // namespace saesweep::worker
