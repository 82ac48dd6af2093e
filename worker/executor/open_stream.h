// The activation stream of a run, through the agent's cache where there is one.
#pragma once

#include <cstdint>
#include <memory>

#include "core/result.h"
#include "sweeps/spec.h"
#include "worker/activations/cached_stream.h"
#include "worker/executor/run_tools.h"

namespace saesweep::worker {

// Model and documents of a stream, as EvaluationInputs has them: either the first two or the last.
struct StreamSources {
  std::shared_ptr<const Transformer> model;
  std::shared_ptr<const TokenDocuments> tokens;
  std::shared_ptr<const ActivationDocuments> activations;
  const Documents& documents() const;
};
// Errors: those of loading; kInvalidArgument for a source that this version does not know.
Result<StreamSources> open_sources(const sweeps::StreamSpec& spec, const RunTools& tools);

// The stream is open at the agent, and pinned in its cache, as long as the value lives: one of the
// same stream at a time. So are those of the run's siblings that the cache holds beside it: what is
// harvested of this one is harvested of them. A run with a cache of 0 bytes: every chunk is
// harvested each time it is needed. A cache that fails never fails the stream.
Result<std::unique_ptr<CachedStream>> open_stream(const sweeps::StreamSpec& spec,
                                                  const StreamSources& sources,
                                                  const protocol::Run& run, const RunTools& tools,
                                                  StreamEvents events);

}  // namespace saesweep::worker
