// What dictionaries share that keep the k * batch largest activations of a whole batch: selection,
// the threshold that stands for it at inference, gradients through what was kept, and the revival
// of latents that have long been silent (AuxK; Gao et al. 2024, Bussmann et al. 2024, with
// dictionary_learning's reductions).
#pragma once

#include <cstdint>
#include <vector>

#include "worker/training/sparse_codes.h"
#include "worker/training/trainer_base.h"

namespace saesweep::worker {

class BatchSelectionTrainer : public TrainerBase {
 public:
  bool calibrate_threshold(const at::Tensor& held_out) override;
  bool needs_threshold() const override { return threshold_ < 0; }
  Json config() const override;

 protected:
  BatchSelectionTrainer(const sweeps::TrainingSpec& spec, std::int64_t d_in, double norm_factor,
                        ThreadPool& pool);

  // Fills `x_centred` and the codes kept; false: a pre-activation was not finite.
  bool select(const at::Tensor& x, at::Tensor& x_centred, SparseCodes& codes);
  // What the step that is under way makes of silence and threshold.
  void note(const SparseCodes& codes);
  void move_threshold(double smallest);

  // Gradients of a reconstruction: row r of latent i is at g + r * stride, where each latent may
  // have an offset of its own.
  struct Upstream {
    const float* g;
    std::int64_t stride;
    std::function<std::int64_t(std::int64_t latent)> offset;
  };
  // W_dec, W_enc and b_enc of every latent from the gradients `d_codes` of the codes; `add`: to
  // what is there.
  void weight_gradients(const SparseCodes& codes, const std::vector<float>& d_codes,
                        const Upstream& upstream, const at::Tensor& x_centred, bool add);
  // The dead reconstruct `error` = x_hat - x, held still: returns their loss, weighted, and adds
  // its gradients. After note().
  double revive(const at::Tensor& x_centred, const at::Tensor& error);
  // b_dec's gradient: the sums of the reconstruction's, less what comes through the encoder.
  void finish_b_dec(std::vector<double> sums);

  void keep_bookkeeping() override { threshold_ = next_threshold_; }
  void note(const StepFindings& found) override { move_threshold(found.smallest_kept); }
  void before_first_step(const at::Tensor& x) override {
    parameters_.b_dec.copy_(geometric_median(x));
  }
  Json state() const override { return {{"threshold", threshold_}, {"calibrated", calibrated_}}; }
  Result<void> set_state(const Json& json) override;
  void finish_sae(Sae& sae) const override;
  // Ranking changes with the norms, so they are not folded; they are 1.
  bool folds_decoder_norms() const override { return false; }

 private:
  bool candidates(const at::Tensor& x, at::Tensor& x_centred, float threshold, SparseCodes& codes);
  // Codes of the dead alone, the aux_k largest of each row.
  SparseCodes codes_of(const std::vector<std::int64_t>& dead, const at::Tensor& x_centred) const;

  std::int64_t k_;
  double threshold_ = -1, next_threshold_ = -1;  // moving average; -1: not yet
  bool calibrated_ = false;
  float hint_ = 0;  // of the last k * batch-th value: speed only
};

}  // namespace saesweep::worker
