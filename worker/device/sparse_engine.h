// The TopK family on a GPU (worker/training/topk_trainer.cpp is the same on the CPU):
// pre-activations of all latents from one product, then only what is kept.
#pragma once

#include <cstdint>
#include <memory>

#include "worker/device/session.h"

namespace saesweep::worker::device {

Result<std::unique_ptr<StepEngine>> make_sparse_engine(Session& session,
                                                       const sweeps::TrainingSpec& spec,
                                                       std::int64_t d_in);

}  // namespace saesweep::worker::device
