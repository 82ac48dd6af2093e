#include "worker/executor/held_out_rows.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <vector>

#include "worker/activations/harvest.h"

namespace saesweep::worker {

Result<at::Tensor> rows_for_calibration(const sweeps::StreamSpec& spec,
                                        const StreamSources& sources, RowStream& stream,
                                        std::uint64_t max_rows, ThreadPool& pool) {
  const Documents& documents = sources.documents();
  std::vector<std::uint64_t> chosen;
  std::uint64_t rows = 0;
  for (const std::uint64_t document : documents.held_out_documents()) {
    if (rows >= max_rows) break;
    chosen.push_back(document);
    rows += documents.rows(document);
  }
  const std::int64_t width = stream.d_in();
  if (rows == 0) {
    const std::uint64_t count = std::min(max_rows, stream.rows_per_pass());
    at::Tensor first = at::empty({static_cast<std::int64_t>(count), width}, at::kFloat);
    SAE_TRY_VOID(stream.read(0, count, first.mutable_data_ptr<float>()));
    return first;
  }
  at::Tensor held_out;
  if (sources.tokens != nullptr) {
    held_out = activations_of(*sources.model, spec.hooks(), *sources.tokens, chosen, pool);
  } else {
    held_out = at::empty({static_cast<std::int64_t>(rows), width}, at::kFloat);
    float* out = held_out.mutable_data_ptr<float>();
    for (const std::uint64_t document : chosen) {
      sources.activations->read(document, out);
      out += documents.rows(document) * static_cast<std::uint64_t>(width);
    }
  }
  held_out = held_out.narrow(0, 0, static_cast<std::int64_t>(std::min(rows, max_rows)));
  if (spec.dtype == DType::kBFloat16) held_out = held_out.to(at::kBFloat16).to(at::kFloat);
  held_out = held_out.contiguous();
  std::int64_t column = 0;
  for (const RowPart& part : stream.parts()) {
    if (part.norm_factor != 1)
      held_out.narrow(1, column, part.width).mul_(static_cast<float>(part.norm_factor));
    column += part.width;
  }
  return held_out;
}

}  // namespace saesweep::worker
