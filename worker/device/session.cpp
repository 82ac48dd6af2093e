#include "worker/device/session.h"

#include <ATen/core/Tensor.h>

#include "core/check.h"
#include "worker/device/engine_base.h"

namespace saesweep::worker::device {

Result<std::unique_ptr<StepEngine>> Session::make(const sweeps::TrainingSpec& spec,
                                                  const std::vector<RowPart>& parts) {
  if (!sweeps::trains_on_gpu(spec.architecture))
    return fail(ErrorCode::kInvalidArgument,
                "{} is not trained on a GPU; train.device: cpu would "
                "be right",
                to_string(spec.architecture));
  const std::int64_t d_in = parts.front().width;
  if (spec.k) return make_sparse_engine(*this, spec, d_in);
  if (spec.architecture == sweeps::Architecture::kJumpRelu)
    return make_jumprelu_engine(*this, spec, d_in);
  return make_relu_engine(*this, spec, d_in);
}

Result<Rows> Session::upload(const at::Tensor& x, Uploaded& into) {
  SAE_CHECK(x.dim() == 2 && x.is_contiguous(), "rows of {} dimensions", x.dim());
  const std::int64_t rows = x.size(0), width = x.size(1);
  into.count = 0;
  SAE_TRY_VOID(into.values.reserve(*device_, x.nbytes()));
  SAE_TRY_VOID(into.variance.reserve(*device_, sizeof(double)));
  SAE_TRY_VOID(device_->upload(into.values.as<void>(), x.const_data_ptr(), x.nbytes()));
  SAE_TRY_VOID(variance(into.values.as<float>(), rows, width, into.variance.as<double>()));
  into.count = rows;
  return Rows{into.values.as<float>(), rows, width, into.variance.as<double>()};
}

Result<Rows> Session::stream_rows(const at::Tensor& x, std::uint64_t first) {
  if (stream_.count == x.size(0) && stream_.first == first)
    return Rows{stream_.values.as<float>(), x.size(0), x.size(1), stream_.variance.as<double>()};
  SAE_TRY(const Rows rows, upload(x, stream_));
  stream_.first = first;
  return rows;
}

Result<Rows> Session::other_rows(const at::Tensor& x) { return upload(x, other_); }

Result<void> Session::sum_columns(const float* matrix, const float* weights, std::int64_t rows,
                                  std::int64_t columns, std::int64_t stride, double* out) {
  const std::int64_t chunks = blocks_of(rows, SumColumns::kRows);
  SAE_TRY(auto* const partial, scratch<double>("partial sums", chunks * columns));
  SAE_TRY_VOID(device_->launch(SumColumns{matrix, weights, rows, columns, stride, partial},
                               chunks * SumColumns::tiles(columns)));
  return device_->launch(FoldColumns{partial, chunks, columns, out},
                         blocks_of(columns, FoldColumns::kThreads));
}

Result<void> Session::read_fired(std::int64_t latents, std::vector<char>& fired) {
  SAE_TRY(auto* const there, scratch<std::uint8_t>("fired", latents));
  fired.resize(static_cast<std::size_t>(latents));
  return device_->download(fired.data(), there, fired.size());
}

Result<void> Session::variance(const float* matrix, std::int64_t rows, std::int64_t columns,
                               double* out) {
  SAE_TRY(auto* const sums, scratch<double>("column sums of a variance", columns));
  SAE_TRY(auto* const squares, scratch<double>("squares of rows", rows));
  SAE_TRY_VOID(sum_columns(matrix, nullptr, rows, columns, columns, sums));
  SAE_TRY_VOID(device_->launch(SquareRow{matrix, columns, columns, squares}, rows));
  return device_->launch(Variance{sums, squares, rows, columns, out}, 1);
}

}  // namespace saesweep::worker::device
