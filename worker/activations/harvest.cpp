#include "worker/activations/harvest.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <vector>

#include "core/check.h"
#include "worker/activations/row_filter.h"

namespace saesweep::worker {
namespace {

// Rounds fp32 values to the stored dtype.
void store(const float* values, std::size_t count, DType dtype, std::byte* out) {
  if (dtype == DType::kFloat32) {
    std::memcpy(out, values, count * sizeof(float));
    return;
  }
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint16_t bits = to_bf16(values[i]);
    std::memcpy(out + 2 * i, &bits, 2);
  }
}

// The same of the rows that are numbered; returns how many.
std::uint32_t store_rows(const float* values, std::size_t width,
                         const std::vector<std::size_t>& rows, DType dtype, std::byte* out) {
  for (const std::size_t row : rows) {
    store(values + row * width, width, dtype, out);
    out += width * size_of(dtype);
  }
  return static_cast<std::uint32_t>(rows.size());
}

class ModelHarvester final : public Harvester {
 public:
  ModelHarvester(const sweeps::StreamSpec& stream, std::shared_ptr<const Transformer> model,
                 std::shared_ptr<const TokenDocuments> documents, ThreadPool& pool)
      : hooks_(stream.hooks()),
        dtype_(stream.dtype),
        model_(std::move(model)),
        documents_(std::move(documents)),
        pool_(&pool),
        filter_(stream.filters, widths()),
        filters_(stream.filters.any()) {}

  std::int64_t d_in() const override { return width_of(*model_, hooks_); }
  std::vector<std::int64_t> widths() const override { return widths_of(*model_, hooks_); }
  const Documents& documents() const override { return *documents_; }
  std::uint64_t rows(std::uint64_t document) const override {
    return filter_.rows(*documents_, document);
  }
  bool drops_by_norm() const override { return filter_.by_norm(); }

  Result<std::uint32_t> harvest(const ChunkPlan& plan, std::uint32_t chunk,
                                std::span<std::byte> out) override {
    const auto chosen = plan.documents_of(chunk);
    try {
      const at::Tensor rows = activations_of(*model_, hooks_, *documents_, chosen, *pool_);
      const auto count = static_cast<std::size_t>(rows.numel());
      SAE_CHECK(count * size_of(dtype_) <= out.size(), "chunk {} has {} values", chunk, count);
      const float* values = rows.const_data_ptr<float>();
      if (filters_)
        return store_rows(values, static_cast<std::size_t>(rows.size(1)),
                          filter_.kept(*documents_, chosen, values), dtype_, out.data());
      store(values, count, dtype_, out.data());
      return static_cast<std::uint32_t>(rows.size(0));
    } catch (const c10::Error& error) {
      // Names and shapes were checked before; what is left to go wrong is an allocation, which on a
      // CPU is no c10::OutOfMemoryError.
      return fail(ErrorCode::kResourceExhausted, "harvest of chunk {}: {}", chunk,
                  error.what_without_backtrace());
    } catch (const std::bad_alloc&) {
      return fail(ErrorCode::kResourceExhausted, "harvest of chunk {}: out of memory", chunk);
    }
  }

 private:
  std::vector<std::string> hooks_;
  DType dtype_;
  std::shared_ptr<const Transformer> model_;
  std::shared_ptr<const TokenDocuments> documents_;
  ThreadPool* pool_;
  RowFilter filter_;
  bool filters_;
};

class FileHarvester final : public Harvester {
 public:
  FileHarvester(const sweeps::StreamSpec& stream,
                std::shared_ptr<const ActivationDocuments> documents)
      : dtype_(stream.dtype),
        documents_(std::move(documents)),
        filter_(stream.filters, {documents_->d_in()}) {}

  std::int64_t d_in() const override { return documents_->d_in(); }
  const Documents& documents() const override { return *documents_; }
  bool drops_by_norm() const override { return filter_.by_norm(); }

  Result<std::uint32_t> harvest(const ChunkPlan& plan, std::uint32_t chunk,
                                std::span<std::byte> out) override {
    const auto width = static_cast<std::size_t>(d_in());
    const auto chosen = plan.documents_of(chunk);
    std::size_t count = 0;
    for (const std::uint64_t document : chosen) count += documents_->rows(document);
    SAE_CHECK(count * width * size_of(dtype_) <= out.size(), "chunk {}", chunk);
    try {
      std::vector<float> rows(count * width);
      float* at = rows.data();
      for (const std::uint64_t document : chosen) {
        documents_->read(document, at);
        at += documents_->rows(document) * width;
      }
      return store_rows(rows.data(), width, filter_.kept(count, rows.data()), dtype_, out.data());
    } catch (const std::bad_alloc&) {
      return fail(ErrorCode::kResourceExhausted, "rows of chunk {}: out of memory", chunk);
    }
  }

 private:
  DType dtype_;
  std::shared_ptr<const ActivationDocuments> documents_;
  RowFilter filter_;
};

}  // namespace

std::int64_t width_of(const Transformer& model, std::span<const std::string> hooks) {
  std::int64_t width = 0;
  for (const std::int64_t own : widths_of(model, hooks)) width += own;
  return width;
}

std::vector<std::int64_t> widths_of(const Transformer& model, std::span<const std::string> hooks) {
  std::vector<std::int64_t> widths;
  for (const std::string& hook : hooks) widths.push_back(model.hook_width(hook));
  return widths;
}

at::Tensor activations_of(const Transformer& model, const std::string& hook,
                          const TokenDocuments& documents, std::span<const std::uint64_t> chosen,
                          ThreadPool& pool) {
  return activations_of(model, std::span(&hook, 1), documents, chosen, pool);
}

at::Tensor activations_of(const Transformer& model, std::span<const std::string> hooks,
                          const TokenDocuments& documents, std::span<const std::uint64_t> chosen,
                          ThreadPool& pool) {
  const std::int64_t width = width_of(model, hooks);
  std::vector<std::int64_t> first_row(chosen.size() + 1, 0);
  for (std::size_t i = 0; i < chosen.size(); ++i)
    first_row[i + 1] = first_row[i] + static_cast<std::int64_t>(documents.rows(chosen[i]));
  at::Tensor rows = at::empty({first_row.back(), width}, at::kFloat);
  const auto count = static_cast<std::int64_t>(chosen.size());
  const std::int64_t length = documents.context();
  pool.run((count + kDocumentsPerForward - 1) / kDocumentsPerForward, [&](std::int64_t piece) {
    const std::int64_t begin = piece * kDocumentsPerForward;
    const std::int64_t end = std::min(count, begin + kDocumentsPerForward);
    at::Tensor tokens = at::zeros({kDocumentsPerForward, length}, at::kLong);
    auto ids = tokens.accessor<std::int64_t, 2>();
    for (std::int64_t i = begin; i < end; ++i) {
      const auto document = chosen[static_cast<std::size_t>(i)];
      const auto sequence = documents.tokens(document);
      for (std::size_t at = 0; at < documents.rows(document); ++at)
        ids[i - begin][static_cast<std::int64_t>(at)] = sequence[at];
    }
    ForwardRequest request;
    request.capture.assign(hooks.begin(), hooks.end());
    request.logits = false;
    const ForwardResult passed = model.forward(tokens, request);
    std::int64_t column = 0;
    for (const std::string& hook : hooks) {
      const at::Tensor captured = passed.captured.at(hook).contiguous();  // [16, length, own]
      const std::int64_t own = captured.size(2);
      for (std::int64_t i = begin; i < end; ++i) {
        const float* from = captured.const_data_ptr<float>() + (i - begin) * length * own;
        for (std::int64_t row = first_row[static_cast<std::size_t>(i)];
             row < first_row[static_cast<std::size_t>(i) + 1]; ++row, from += own)
          std::memcpy(rows.mutable_data_ptr<float>() + row * width + column, from,
                      static_cast<std::size_t>(own) * sizeof(float));
      }
      column += own;
    }
  });
  return rows;
}

Result<std::unique_ptr<Harvester>> make_harvester(const sweeps::StreamSpec& stream,
                                                  std::shared_ptr<const Transformer> model,
                                                  std::shared_ptr<const TokenDocuments> documents,
                                                  ThreadPool& pool) {
  for (const std::string& hook : stream.hooks()) SAE_TRY_VOID(model->check_hook(hook));
  if (model->config().vocabulary < documents->vocabulary())
    return fail(ErrorCode::kInvalidArgument,
                "the model knows {} tokens, but `data` needs {}: was it trained on another board?",
                model->config().vocabulary, documents->vocabulary());
  return std::unique_ptr<Harvester>(
      std::make_unique<ModelHarvester>(stream, std::move(model), std::move(documents), pool));
}

Result<std::unique_ptr<Harvester>> make_harvester(
    const sweeps::StreamSpec& stream, std::shared_ptr<const ActivationDocuments> documents) {
  return std::unique_ptr<Harvester>(std::make_unique<FileHarvester>(stream, std::move(documents)));
}

}  // namespace saesweep::worker
