// What a language model says when a reconstruction stands in for its activations: what end-to-end
// dictionaries are trained on.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace saesweep::worker {

class SplicedModel {
 public:
  virtual ~SplicedModel() = default;
  struct Said {
    // KL(P || Q) of next-token distributions, P of the model as it is, Q with the reconstruction in
    // place: summed over the vocabulary, in nats, mean over the rows.
    double kl = 0;
    // Squared error of the residual streams after the blocks behind the hook: mean over the values
    // of each, the rows and these streams. 0 unless it was asked for.
    double downstream = 0;
    at::Tensor gradient;  // of kl + in_to_orig * downstream, [rows, width] fp32
  };
  // `reconstruction`: [rows, width] fp32, of the rows that were read last from the stream this
  // belongs to, the first of which was `first`. `in_to_orig`: weight of the downstream error.
  virtual Said splice(std::uint64_t first, const at::Tensor& reconstruction, double in_to_orig) = 0;
  // The same of held-out rows; `first` is where a document begins.
  virtual Said splice_held_out(std::int64_t first, const at::Tensor& reconstruction,
                               double in_to_orig) = 0;
  // Where documents of the held-out rows end, ascending.
  virtual std::vector<std::int64_t> held_out_documents_end() const = 0;
};

}  // namespace saesweep::worker
