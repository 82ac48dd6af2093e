#include "worker/training/sae_trainer.h"

#include <ATen/ATen.h>

#include <new>

#include "worker/training/trainer_base.h"

namespace saesweep::worker {
namespace {

Result<void> check_parts(const sweeps::TrainingSpec& spec, const std::vector<RowPart>& parts) {
  const bool joint = sweeps::is_joint(spec.architecture);
  const bool fits = sweeps::is_transcoder(spec.architecture) ? parts.size() == 2
                    : joint                                  ? !parts.empty()
                                                             : parts.size() == 1;
  if (!fits)
    return fail(ErrorCode::kInvalidArgument, "{} of {} hooks; {} would be right",
                to_string(spec.architecture), parts.size(),
                sweeps::is_transcoder(spec.architecture) ? "2"
                : joint                                  ? "2 or more"
                                                         : "1");
  if (sweeps::is_crosscoder(spec.architecture))
    for (const RowPart& part : parts)
      if (part.width != parts.front().width)
        return fail(ErrorCode::kInvalidArgument, "a crosscoder of hooks {} and {} wide",
                    parts.front().width, part.width);
  return {};
}

Result<std::unique_ptr<SaeTrainer>> create_here(const sweeps::TrainingSpec& spec,
                                                const std::vector<RowPart>& parts, ThreadPool& pool,
                                                SplicedModel* model) {
  if (sweeps::is_end_to_end(spec.architecture) && model == nullptr)
    return fail(ErrorCode::kInvalidArgument, "{} needs a model", to_string(spec.architecture));
  const std::int64_t d_in = parts.front().width;
  const double norm_factor = parts.front().norm_factor;
  if (spec.d_sae < 1 || spec.batch < 1 || d_in < 1)
    return fail(ErrorCode::kInvalidArgument, "d_sae {}, batch {}, d_in {}: all must be at least 1",
                spec.d_sae, spec.batch, d_in);
  try {
    switch (spec.architecture) {
      case sweeps::Architecture::kTopK:
      case sweeps::Architecture::kBatchTopK:
      case sweeps::Architecture::kBatchTopKCrosscoder:
        return make_topk_trainer(spec, parts, pool);
      case sweeps::Architecture::kStandard:
      case sweeps::Architecture::kStandardBricken:
      case sweeps::Architecture::kPAnneal:
      case sweeps::Architecture::kCrosscoder:
        return make_relu_trainer(spec, parts, pool);
      case sweeps::Architecture::kTranscoder:
      case sweeps::Architecture::kSkipTranscoder:
        return make_transcoder_trainer(spec, parts, pool);
      case sweeps::Architecture::kGated:
      case sweeps::Architecture::kGatedPAnneal:
        return make_gated_trainer(spec, d_in, norm_factor, pool);
      case sweeps::Architecture::kJumpRelu:
      case sweeps::Architecture::kJumpReluTranscoder:
        return make_jumprelu_trainer(spec, parts, pool);
      case sweeps::Architecture::kEndToEnd:
        return make_end_to_end_trainer(spec, parts.front(), *model, pool);
      case sweeps::Architecture::kMatryoshka:
        return make_matryoshka_trainer(spec, d_in, norm_factor, pool);
    }
  } catch (const std::bad_alloc&) {
  } catch (const c10::Error&) {
    // LibTorch's allocator speaks this way.
  }
  return fail(ErrorCode::kResourceExhausted, "out of memory for an SAE of d_sae {} on d_in {}",
              spec.d_sae, d_in);
}

}  // namespace

Result<std::unique_ptr<SaeTrainer>> SaeTrainer::create(const sweeps::TrainingSpec& spec,
                                                       const std::vector<RowPart>& parts,
                                                       ThreadPool& pool, SplicedModel* model,
                                                       StepEngines* gpu) {
  SAE_TRY_VOID(check_parts(spec, parts));
  if (spec.device != "cuda") return create_here(spec, parts, pool, model);
  if (gpu == nullptr)
    return fail(ErrorCode::kInvalidArgument, "device cuda, and no GPU is given to this trainer");
  SAE_TRY(auto trainer, create_here(spec, parts, pool, model));
  SAE_TRY(auto engine, gpu->make(spec, parts));
  // All trainers are made of it.
  static_cast<TrainerBase&>(*trainer).use(std::move(engine));
  return trainer;
}

std::uint64_t training_memory_bytes(const sweeps::TrainingSpec& spec, std::int64_t d_in) {
  // Of a transcoder's row about one half is read and one half predicted.
  const bool halved = sweeps::is_transcoder(spec.architecture);
  const bool skips = spec.architecture == sweeps::Architecture::kSkipTranscoder;
  const auto d =
      halved ? static_cast<std::uint64_t>(d_in + 1) / 2 : static_cast<std::uint64_t>(d_in);
  const std::uint64_t parameters = 2 * d * spec.d_sae + spec.d_sae + d + (skips ? d * d : 0);
  const bool dense = !spec.k;
  const std::uint64_t prefixes = spec.group_fractions.size();  // a gradient each
  // Weights, gradients and two moments, and the weights packed as operands; of a batch the rows,
  // centred, reconstructed, differentiated and packed. Dense families keep codes and what they came
  // from, the others what was selected, twice over; and tiles of 256 rows, a few at a time, of
  // dense families with all latents.
  const std::uint64_t packed = d * spec.d_sae * (dense ? 3 : 1);
  const std::uint64_t of_batch =
      spec.batch * ((8 + prefixes) * d + (dense ? 2 * spec.d_sae : 24 * spec.k.value_or(0)));
  const std::uint64_t tiles = 8 * 256 * (dense ? spec.d_sae + 2 * d : 2 * d);
  return 4 * (4 * parameters + packed + of_batch + tiles) + (std::uint64_t{16} << 20);
}

}  // namespace saesweep::worker
