#include "worker/device/session.h"

#include <ATen/core/Tensor.h>

#include <algorithm>

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
  if (spec.k) return make_sparse_engine(*this, spec, parts);
  if (sweeps::is_jumprelu(spec.architecture)) return make_jumprelu_engine(*this, spec, parts);
  using enum sweeps::Architecture;
  const bool is_gated = spec.architecture == kGated || spec.architecture == kGatedPAnneal;
  return is_gated ? make_gated_engine(*this, spec, parts) : make_relu_engine(*this, spec, parts);
}

Result<std::size_t> Findings::take() {
  const auto free = std::find(taken_.begin(), taken_.end(), false);
  if (free != taken_.end()) {
    *free = true;
    return static_cast<std::size_t>(free - taken_.begin());
  }
  Memory slab;
  SAE_TRY_VOID(slab.reserve(*device_, kSlab * sizeof(StepSums)));
  SAE_TRY_VOID(device_->clear(slab.as<void>(), slab.bytes()));
  slabs_.push_back(std::move(slab));
  const std::size_t place = taken_.size();
  taken_.resize(place + kSlab, false);
  here_.resize(taken_.size());
  taken_[place] = true;
  return place;
}

Result<StepSums> Findings::read(std::size_t place) {
  for (std::size_t slab = 0; !are_here_ && slab < slabs_.size(); ++slab)
    SAE_TRY_VOID(device_->download(here_.data() + slab * kSlab, slabs_[slab].as<void>(),
                                   slabs_[slab].bytes()));
  are_here_ = true;
  return here_[place];
}

Result<void> Session::reserve(Memory& memory, std::size_t bytes) {
  if (bytes > memory.bytes()) ++moves_;
  return memory.reserve(*device_, bytes);
}

Result<Rows> Session::upload(const at::Tensor& x, Uploaded& into) {
  SAE_CHECK(x.dim() == 2 && x.is_contiguous(), "rows of {} dimensions", x.dim());
  const std::int64_t rows = x.size(0), width = x.size(1);
  into.count = 0;
  SAE_TRY_VOID(reserve(into.values, x.nbytes()));
  SAE_TRY_VOID(reserve(into.variance, sizeof(double)));
  SAE_TRY_VOID(device_->upload(into.values.as<void>(), x.const_data_ptr(), x.nbytes()));
  SAE_TRY_VOID(variance(into.values.as<float>(), rows, width, width, into.variance.as<double>()));
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
                               chunks * blocks_of(columns, SumColumns::kThreads)));
  return device_->launch(FoldColumns{partial, chunks, columns, out},
                         blocks_of(columns, FoldColumns::kThreads));
}

Result<void> Session::read_fired(std::int64_t latents, std::vector<char>& fired) {
  SAE_TRY(auto* const there, scratch<std::uint8_t>("fired", latents));
  fired.resize(static_cast<std::size_t>(latents));
  return device_->download(fired.data(), there, fired.size());
}

Result<void> Session::variance(const float* matrix, std::int64_t rows, std::int64_t columns,
                               std::int64_t stride, double* out) {
  SAE_TRY(auto* const sums, scratch<double>("column sums of a variance", columns));
  SAE_TRY(auto* const squares, scratch<double>("squares of rows", rows));
  SAE_TRY_VOID(sum_columns(matrix, nullptr, rows, columns, stride, sums));
  SAE_TRY_VOID(device_->launch(SquareRow{matrix, columns, stride, squares}, rows));
  return device_->launch(Variance{sums, squares, rows, columns, out}, 1);
}

}  // namespace saesweep::worker::device
