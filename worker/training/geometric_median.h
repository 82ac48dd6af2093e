// The point from which the distances to others are least in sum: where b_dec begins, of families
// that start from data.
#pragma once

namespace at {
class Tensor;
}

namespace saesweep::worker {

// Weiszfeld's algorithm as dictionary_learning runs it: at most 100 rounds, until a move is shorter
// than 1e-5. points: [n, d] -> [d]
at::Tensor geometric_median(const at::Tensor& points);

}  // namespace saesweep::worker
