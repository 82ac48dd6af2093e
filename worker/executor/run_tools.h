// What every run of the trial thread works with.
#pragma once

#include <filesystem>

#include "core/clock.h"
#include "worker/device/gpu.h"
#include "worker/executor/agent_link.h"
#include "worker/executor/artifact_store.h"
#include "worker/executor/run_report.h"
#include "worker/executor/warm_cache.h"
#include "worker/parallel/thread_pool.h"

namespace saesweep::worker {

struct RunTools {
  AgentLink& link;
  WarmCache& warm;
  const ArtifactStore& artifacts;
  ThreadPool& pool;
  device::Gpu& gpu;
  const Clock& clock;
  std::filesystem::path state;  // absolute
};

// Each answers every member of the run that the report has open.
void train(RunReport& report, const RunTools& tools);
void evaluate(RunReport& report, const RunTools& tools);
void train_lm(RunReport& report, const RunTools& tools);

}  // namespace saesweep::worker
