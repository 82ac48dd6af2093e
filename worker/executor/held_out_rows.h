// Rows that no trial is trained on, as trials see rows: in the stored dtype, normalised.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "core/result.h"
#include "sweeps/spec.h"
#include "worker/activations/row_stream.h"
#include "worker/executor/open_stream.h"
#include "worker/parallel/thread_pool.h"

namespace saesweep::worker {

// [rows, d_in] fp32 of the first held-out documents, at most `max_rows`. Where nothing is held out:
// the first rows of the stream.
// Errors: those of reading the stream.
Result<at::Tensor> rows_for_calibration(const sweeps::StreamSpec& spec,
                                        const StreamSources& sources, RowStream& stream,
                                        std::uint64_t max_rows, ThreadPool& pool);

}  // namespace saesweep::worker
