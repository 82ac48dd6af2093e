// What architectures share that keep the largest activations of each row or batch and pass
// gradients through those alone.
#pragma once

#include "worker/training/selection.h"
#include "worker/training/sparse_passes.h"
#include "worker/training/trainer_base.h"

namespace saesweep::worker {

class SparseTrainer : public TrainerBase {
 protected:
  using TrainerBase::TrainerBase;

  // Dead latents reconstruct the residual: squared error over the residual's own variance (Gao et
  // al. 2024, with dictionary_learning's reductions). Adds to the gradients of the dead rows and
  // returns their loss, weighted. After next_silence_ is known.
  //   read: [batch, d_in], what the encoder reads; error: [batch, d_out], x_hat - x
  double auxiliary(const float* read, const float* error);
  // W_enc for a selection of k of each row's d_sae.
  PackedEncoder selecting_encoder(std::int64_t k) const {
    return packed_for(parameters_.w_enc.const_data_ptr<float>(),
                      parameters_.b_enc.const_data_ptr<float>(), d_sae(), k);
  }

 private:
  PackedEncoder packed_for(const float* w_enc, const float* bias, std::int64_t latents,
                           std::int64_t k) const;

  SelectionHints aux_hints_;  // speed only
};

}  // namespace saesweep::worker
