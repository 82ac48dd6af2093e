// The ReLU family on a GPU (worker/training/relu_trainer.cpp is the same on the CPU): five matrix
// products a pass, and what stands between them.
#pragma once

#include <cstdint>
#include <memory>

#include "worker/device/session.h"

namespace saesweep::worker::device {

Result<std::unique_ptr<StepEngine>> make_dense_engine(Session& session,
                                                      const sweeps::TrainingSpec& spec,
                                                      std::int64_t d_in);

}  // namespace saesweep::worker::device
