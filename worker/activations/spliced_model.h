// What a language model says when a reconstruction stands in for its activations: what end-to-end
// dictionaries are trained on.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace saesweep::worker {

class SplicedModel {
 public:
  virtual ~SplicedModel() = default;
  struct Said {
    // KL(P || Q) of next-token distributions, P of the model as it is, Q with the reconstruction in
    // place: summed over the vocabulary, in nats, mean over the rows.
    double kl = 0;
    at::Tensor gradient;  // of kl by the reconstruction, [rows, width] fp32
  };
  // `reconstruction`: [rows, width] fp32, of the rows that were read last from the stream this
  // belongs to, the first of which was `first`.
  virtual Said splice(std::uint64_t first, const at::Tensor& reconstruction) = 0;
};

}  // namespace saesweep::worker
