// One SAE in training: parameters, optimiser, schedules, dead-latent bookkeeping, learning curve.
// Hand-written forward and backward (worker/training/architectures), no autograd.
//
// Bytes depend on the spec, the rows and nothing else: not on threads, neighbours, checkpoints,
// logging. A trainer restored from a checkpoint goes on with the same bytes.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/json.h"
#include "core/result.h"
#include "sweeps/spec.h"
#include "worker/activations/row_stream.h"
#include "worker/parallel/thread_pool.h"
#include "worker/sae/sae.h"

namespace saesweep::worker {

// Of one step, or of the steps since the last curve point.
struct StepReport {
  std::uint64_t step = 0;    // steps done
  std::uint64_t tokens = 0;  // steps done x batch
  double loss = 0;           // as optimised: reconstruction + sparsity + auxiliary
  double mse = 0;            // squared error summed over what is reconstructed, mean over rows
  double fve = 0;            // of this batch
  double l0 = 0;             // mean non-zero features a row
  double dead_fraction = 0;
  double grad_norm = 0;  // before clipping
  bool applied = true;   // false: not finite, the step was skipped
};

// The same of rows that nobody is trained on, as the SAE stands after a step.
struct HeldOutReport {
  std::uint64_t step = 0;
  std::uint64_t tokens = 0;
  double loss = 0;  // as optimised, with the coefficients of the step; mean over batches
  double mse = 0;   // of all the rows, as are those below
  double fve = 0;   // not a number where the rows are all the same
  double l0 = 0;
  double dead_fraction = 0;  // of latents that none of the rows activates
};

class SplicedModel;
class StepEngines;

class SaeTrainer {
 public:
  // Parameters are drawn, or read from spec.init_path. `parts` are those of the stream
  // (RowStream::parts): one, of transcoders what is read and what is predicted, of a crosscoder two
  // or more of one width. Their factors are stored and folded into sae(). `model`: of end_to_end,
  // of the stream whose rows it will be given; outlives the trainer. Errors: kInvalidArgument (k >
  // d_sae, an init of the wrong shape, parts that are not the architecture's, end_to_end without a
  // model, a GPU that is wanted and not given); kResourceExhausted (memory). `gpu`: where the steps
  // of a spec of device cuda are done; outlives the trainer.
  static Result<std::unique_ptr<SaeTrainer>> create(const sweeps::TrainingSpec& spec,
                                                    const std::vector<RowPart>& parts,
                                                    ThreadPool& pool, SplicedModel* model = nullptr,
                                                    StepEngines* gpu = nullptr);
  static Result<std::unique_ptr<SaeTrainer>> create(const sweeps::TrainingSpec& spec,
                                                    std::int64_t d_in, double norm_factor,
                                                    ThreadPool& pool) {
    return create(spec, {{d_in, norm_factor}}, pool);
  }
  virtual ~SaeTrainer() = default;

  virtual const sweeps::TrainingSpec& spec() const = 0;
  virtual std::uint64_t step() const = 0;  // steps done
  bool finished() const { return step() >= spec().steps(); }
  // Row of the stream its next batch begins at.
  std::uint64_t position() const { return step() * spec().batch; }

  // What of the next step is done elsewhere than by this processor is asked for, and not waited
  // for; train_step() of the same rows then only waits. So a GPU has the steps of a whole cohort
  // before it. Errors: as train_step.
  virtual Result<void> begin_step(const at::Tensor& x) = 0;
  // x: [spec().batch, values of a row] fp32, lent. The first batch also sets what an initialisation
  // takes from data. Errors: kDiverged after 10 steps in a row that were not finite (the message
  // names the step); kResourceExhausted (memory); kUnavailable (the GPU failed).
  virtual Result<StepReport> train_step(const at::Tensor& x) = 0;

  // True after the steps at which spec().eval_every wants a look at held-out rows: the first point
  // of the learning curve in each `eval_every` tokens, and the last step. Until it was taken.
  virtual bool held_out_is_due() const = 0;
  // Runs rows [n, values of a row] of the stream through the SAE as training does, in batches of at
  // most spec().batch, and puts what it finds into the learning curve. Training goes on with the
  // same bytes as without. Costs what as many rows of training cost. Errors: as train_step.
  virtual Result<HeldOutReport> score_held_out(const at::Tensor& rows) = 0;

  // A full-state checkpoint in `directory` (which it creates, whole or absent):
  // weights.safetensors, optim.safetensors, manifest.json with the SHA-256 of both. Errors:
  // kResourceExhausted (disk); kUnavailable.
  virtual Result<void> save(const std::filesystem::path& directory) const = 0;
  // Errors: kNotFound; kCorrupted; kInvalidArgument if it is of another spec.
  virtual Result<void> restore(const std::filesystem::path& directory) = 0;

  // Has what training changed back from a GPU: before sae() and calibrate_threshold(). Errors: as
  // train_step.
  virtual Result<void> settle() = 0;
  // The dictionary as others use it: norm factor folded in, decoder norms folded in where that
  // keeps the function (training.md A.2.4, A.2.5 as public sources have it).
  virtual Sae sae() const = 0;
  // BatchTopK without a threshold yet: sets it so that held-out rows [n, d_in] (normalised, as
  // trained on) have the training L0 on average, and returns true. Others: false.
  virtual bool calibrate_threshold(const at::Tensor& held_out) = 0;
  virtual bool needs_threshold() const = 0;

  // config.json's keys that the trainer knows: architecture, parameters, recipe, recipe_hash,
  // tokens, apply_b_dec_to_input, normalization_factor (of transcoders also
  // normalization_factor_out, of a crosscoder normalization_factors in its place),
  // threshold_calibrated.
  virtual Json config() const = 0;
  // curve.csv: step,tokens,loss,mse,fve,l0,dead_fraction,grad_norm; about 200 points, no times.
  // Where held-out rows were looked at, five columns more: heldout_loss,heldout_mse,heldout_fve,
  // heldout_l0,heldout_dead_fraction, empty at other points.
  virtual std::string curve_csv() const = 0;
  // {"tokens", "steps", "l0_train", "dead_fraction", "skipped_steps", "fve_heldout", ...}: of the
  // last points.
  virtual Json summary() const = 0;
};

// Bytes a trainer and a step of it need, for packing and for `validate`. d_in: values of a row.
std::uint64_t training_memory_bytes(const sweeps::TrainingSpec& spec, std::int64_t d_in);

}  // namespace saesweep::worker
