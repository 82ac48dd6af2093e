#include "worker/training/sae_trainer.h"

#include <ATen/ATen.h>

#include <new>

#include "worker/training/trainer_base.h"

namespace saesweep::worker {

Result<std::unique_ptr<SaeTrainer>> SaeTrainer::create(const sweeps::TrainingSpec& spec,
                                                       std::int64_t d_in, double norm_factor,
                                                       ThreadPool& pool) {
  if (spec.d_sae < 1 || spec.batch < 1 || d_in < 1)
    return fail(ErrorCode::kInvalidArgument, "d_sae {}, batch {}, d_in {}: all must be at least 1",
                spec.d_sae, spec.batch, d_in);
  try {
    switch (spec.architecture) {
      case sweeps::Architecture::kTopK:
      case sweeps::Architecture::kBatchTopK:
        return make_topk_trainer(spec, d_in, norm_factor, pool);
      case sweeps::Architecture::kStandard:
      case sweeps::Architecture::kStandardBricken:
      case sweeps::Architecture::kPAnneal:
        return make_relu_trainer(spec, d_in, norm_factor, pool);
    }
  } catch (const std::bad_alloc&) {
  } catch (const c10::Error&) {
    // LibTorch's allocator speaks this way.
  }
  return fail(ErrorCode::kResourceExhausted, "out of memory for an SAE of d_sae {} on d_in {}",
              spec.d_sae, d_in);
}

std::uint64_t training_memory_bytes(const sweeps::TrainingSpec& spec, std::int64_t d_in) {
  const auto d = static_cast<std::uint64_t>(d_in);
  const std::uint64_t parameters = 2 * d * spec.d_sae + spec.d_sae + d;
  const bool dense = spec.architecture != sweeps::Architecture::kTopK &&
                     spec.architecture != sweeps::Architecture::kBatchTopK;
  // Weights, gradients and two moments; a batch, its error and gradients; dense families keep codes
  // and their gradients, the others a tile a thread and what was selected.
  const std::uint64_t of_batch =
      spec.batch * (4 * d + (dense ? 2 * spec.d_sae : 16 * spec.k.value_or(0)));
  return 4 * (4 * parameters + of_batch + 4 * 256 * spec.d_sae) + (std::uint64_t{16} << 20);
}

}  // namespace saesweep::worker
