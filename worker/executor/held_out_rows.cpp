#include "worker/executor/held_out_rows.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "worker/activations/harvest.h"
#include "worker/activations/row_filter.h"

namespace saesweep::worker {

at::Tensor held_out_rows(const sweeps::StreamSpec& spec, const StreamSources& sources,
                         const std::vector<RowPart>& parts, std::uint64_t max_rows,
                         ThreadPool& pool) {
  const Documents& documents = sources.documents();
  std::vector<std::int64_t> widths;
  for (const RowPart& part : parts) widths.push_back(part.width);
  const std::int64_t width = std::accumulate(widths.begin(), widths.end(), std::int64_t{0});
  const RowFilter filter(spec.filters, widths);
  std::vector<std::uint64_t> chosen;
  std::uint64_t all = 0, rows = 0;  // of the chosen documents; those that their tokens leave
  for (const std::uint64_t document : documents.held_out_documents()) {
    if (rows >= max_rows) break;
    chosen.push_back(document);
    all += documents.rows(document);
    rows += sources.tokens != nullptr ? filter.rows(*sources.tokens, document)
                                      : documents.rows(document);
  }
  if (rows == 0) return at::empty({0, width}, at::kFloat);
  at::Tensor held_out;
  std::vector<std::size_t> kept;
  if (sources.tokens != nullptr) {
    held_out = activations_of(*sources.model, spec.hooks(), *sources.tokens, chosen, pool);
    kept = filter.kept(*sources.tokens, chosen, held_out.const_data_ptr<float>());
  } else {
    held_out = at::empty({static_cast<std::int64_t>(all), width}, at::kFloat);
    float* out = held_out.mutable_data_ptr<float>();
    for (const std::uint64_t document : chosen) {
      sources.activations->read(document, out);
      out += documents.rows(document) * static_cast<std::uint64_t>(width);
    }
    kept = filter.kept(all, held_out.const_data_ptr<float>());
  }
  kept.resize(std::min<std::size_t>(kept.size(), max_rows));
  held_out = held_out.index_select(
      0, at::tensor(std::vector<std::int64_t>(kept.begin(), kept.end()), at::kLong));
  if (spec.dtype == DType::kBFloat16) held_out = held_out.to(at::kBFloat16).to(at::kFloat);
  held_out = held_out.contiguous();
  std::int64_t column = 0;
  for (const RowPart& part : parts) {
    if (part.norm_factor != 1)
      held_out.narrow(1, column, part.width).mul_(static_cast<float>(part.norm_factor));
    column += part.width;
  }
  return held_out;
}

Result<at::Tensor> rows_for_calibration(const sweeps::StreamSpec& spec,
                                        const StreamSources& sources, RowStream& stream,
                                        std::uint64_t max_rows, ThreadPool& pool) {
  at::Tensor rows = held_out_rows(spec, sources, stream.parts(), max_rows, pool);
  if (rows.size(0) > 0) return rows;
  const std::uint64_t count = std::min(max_rows, stream.rows_per_pass());
  rows = at::empty({static_cast<std::int64_t>(count), stream.d_in()}, at::kFloat);
  SAE_TRY_VOID(stream.read(0, count, rows.mutable_data_ptr<float>()));
  return rows;
}

}  // namespace saesweep::worker
