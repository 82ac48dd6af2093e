// Where the arithmetic of an SAE's steps is done, if not here: on a GPU (worker/device). It holds
// parameters, moments and silence; a trainer keeps all else, and has them back for checkpoints.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "core/result.h"
#include "sweeps/spec.h"
#include "worker/activations/row_stream.h"

namespace saesweep::worker {

struct SaeTensors;
struct PassSums;

// What makes a trainer's state, as an engine reads and writes it: on the CPU.
struct TrainerState {
  const SaeTensors &parameters, &first, &second;  // tensors are handles: their values are written
  std::vector<std::int64_t>& silence;
};

// A penalty on sums of f^p, while p is not 1 for good.
struct Bend {
  double p = 1;
  std::optional<double> next_p;
};

// Of one step, as the trainer has decided it.
struct StepOrder {
  std::uint64_t step = 0;                  // steps done; the stream's rows [step * batch, + batch)
  double rate = 0;                         // of learning
  std::uint64_t adam_step = 0;             // counted from 1
  double sparsity_scale = 1;               // of the penalty's coefficient
  std::optional<double> coefficient = {};  // in place of that of the spec
  std::optional<Bend> bend = {};
  std::int64_t dead_after = 0;  // tokens, of dead_fraction
};

// What it found.
struct StepFindings {
  double optimised = 0;  // in place of the reconstruction: of nested prefixes
  double reconstruction = 0, sparsity = 0, auxiliary = 0, fve = 0, l0 = 0;  // as PassSums has them
  bool finite = true;
  double norm = 0;                 // of the gradient, before clipping
  bool applied = false;            // false: not finite, nothing has changed
  double dead_fraction = 0;        // after the step
  double bent = 0, next_bent = 0;  // of a penalty on sums of f^p: means of these, at p and next_p
  double smallest_kept = 0;        // activation: mean over rows of the row's, or of the batch
};

class StepEngine {
 public:
  virtual ~StepEngine() = default;

  // Errors of all: kResourceExhausted (its memory); kUnavailable (it is broken).
  virtual Result<void> write(const TrainerState& state) = 0;
  virtual Result<void> read(const TrainerState& state) const = 0;
  // A whole step over rows [batch, values of a row], which may go on when this returns; and what it
  // found.
  virtual Result<void> begin_step(const at::Tensor& x, const StepOrder& order) = 0;
  virtual Result<StepFindings> end_step() = 0;
  // Forward and backward alone over some rows, at most a batch of them; `fired` says which latents
  // were active.
  virtual Result<StepFindings> look(const at::Tensor& rows, const StepOrder& order,
                                    std::vector<char>& fired) = 0;
  // The gradients of the last step, for tests.
  virtual Result<void> read_gradients(const SaeTensors& gradients) const = 0;
};

// Makes engines for the trials of one stream.
class StepEngines {
 public:
  virtual ~StepEngines() = default;
  // Errors: kInvalidArgument (an architecture it does not have); kResourceExhausted; kUnavailable.
  virtual Result<std::unique_ptr<StepEngine>> make(const sweeps::TrainingSpec& spec,
                                                   const std::vector<RowPart>& parts) = 0;
};

}  // namespace saesweep::worker
