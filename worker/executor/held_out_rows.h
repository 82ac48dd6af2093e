// Rows that no trial is trained on, as trials see rows: in the stored dtype, normalised.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "core/result.h"
#include "sweeps/spec.h"
#include "worker/activations/row_stream.h"
#include "worker/executor/open_stream.h"
#include "worker/parallel/thread_pool.h"

namespace saesweep::worker {

// [rows, values of a row] fp32 of the first held-out documents, at most `max_rows`, without those
// that filters drop (a median is that of these documents' rows); no rows where
// nothing is held out. The same for whoever asks. `parts` are those of the stream.
at::Tensor held_out_rows(const sweeps::StreamSpec& spec, const StreamSources& sources,
                         const std::vector<RowPart>& parts, std::uint64_t max_rows,
                         ThreadPool& pool);

// The same; where nothing is held out, the first rows of the stream.
// Errors: those of reading the stream.
Result<at::Tensor> rows_for_calibration(const sweeps::StreamSpec& spec,
                                        const StreamSources& sources, RowStream& stream,
                                        std::uint64_t max_rows, ThreadPool& pool);

}  // namespace saesweep::worker
