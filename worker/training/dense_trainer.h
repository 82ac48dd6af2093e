// What dense families share after their rows are done: the gradients that sum over the whole batch.
#pragma once

#include <vector>

#include "worker/training/trainer_base.h"

namespace saesweep::worker {

class DenseTrainer : public TrainerBase {
 protected:
  using TrainerBase::TrainerBase;

  // What the gradients of the weights sum over, a row of the batch each.
  struct Kept {
    Kept(std::int64_t rows, std::int64_t d_sae, std::int64_t d_in);
    at::Tensor f, d_z;  // [batch, d_sae]: codes; gradients of the encoder's product
    at::Tensor x, g;    // [batch, d_in]: what the encoder read; gradient of the reconstruction
  };
  // W_dec's gradient becomes f^T g, W_enc's d_z^T x.
  void weight_gradients(const Kept& kept);
  // d_z W_enc for the sum over rows of d_z, [d_sae] -> [d_in]: what b_dec gets where it is
  // subtracted before the encoder.
  std::vector<double> through_encoder(const std::vector<double>& d_z) const;
};

// Adds the rows of a tensor [rows, columns] to `sums`.
void add_rows(const at::Tensor& rows, std::vector<double>& sums);
// Adds the floats of a tile to sums over the batch.
void add_to(std::vector<double>& sums, const std::vector<float>& of_tile);
// values as fp32, into a vector of that size.
void store(const std::vector<double>& values, at::Tensor& out);

}  // namespace saesweep::worker
