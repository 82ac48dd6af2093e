// The TopK family: only the largest activations are kept, of each row (topk) or of the whole batch
// (batchtopk, matryoshka), and latents that have long been silent learn to explain what is left
// (AuxK). A threshold stands for the selection over a batch at inference.
// As dictionary_learning trains them (Gao et al. 2024; Bussmann et al. 2024). A BatchTopK
// crosscoder is one of its hooks side by side that does not subtract b_dec.
//
// Only kept activations are stored, decoded and differentiated: nothing of size [batch, d_sae] is
// ever in memory.
#pragma once

#include <optional>

#include "worker/training/geometric_median.h"
#include "worker/training/selection.h"
#include "worker/training/sparse_trainer.h"

namespace saesweep::worker {

class TopKTrainer : public SparseTrainer {
 public:
  TopKTrainer(const sweeps::TrainingSpec& spec, const std::vector<RowPart>& parts,
              ThreadPool& pool);

  bool calibrate_threshold(const at::Tensor& held_out) override;
  bool needs_threshold() const override { return over_batch_ && threshold_ < 0; }
  Json config() const override;

 protected:
  struct Decoded {
    DecodeSums sums;
    std::optional<double> in_place = {};  // see PassSums
  };
  // x: [batch, d_in]; read: what the encoder reads; error: [batch, d_in], gets x_hat - x. Fills the
  // gradients of W_dec, W_enc and b_enc.
  virtual Decoded decode(const SparseCodes& codes, const float* x, const float* read, float* error);

 private:
  PassSums pass(const at::Tensor& x) override;
  void keep_bookkeeping() override { threshold_ = next_threshold_; }
  void note(const StepFindings& found) override { move_threshold(found.smallest_kept); }
  // The moving average of the smallest activation that is kept.
  void move_threshold(double smallest);
  bool crosses() const { return sweeps::is_crosscoder(spec_.architecture); }
  // What the encoder reads of rows: x - b_dec, of crosscoders a copy of x.
  products::Scratch read_of(const at::Tensor& x) const;
  void draw() override;
  void before_first_step(const at::Tensor& x) override {
    parameters_.b_dec.copy_(geometric_median(x));
  }
  Json state() const override { return {{"threshold", threshold_}, {"calibrated", calibrated_}}; }
  Result<void> set_state(const Json& json) override;
  void finish_sae(Sae& sae) const override;
  // Ranking changes with the norms, so they are not folded; they are 1.
  bool folds_decoder_norms() const override { return false; }
  double smallest_selected(const SparseCodes& codes) const;

  bool over_batch_;
  std::int64_t k_;
  double threshold_ = -1, next_threshold_ = -1;  // moving average; -1: not yet
  bool calibrated_ = false;
  SelectionHints hints_;  // speed only
};

}  // namespace saesweep::worker
