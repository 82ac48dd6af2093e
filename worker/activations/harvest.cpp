#include "worker/activations/harvest.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <optional>
#include <vector>

#include "core/check.h"
#include "core/log.h"
#include "worker/activations/row_filter.h"

namespace saesweep::worker {
namespace {

// Rounds fp32 values to the stored dtype.
void store_values(const float* values, std::size_t count, DType dtype, std::byte* out) {
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
    store_values(values + row * width, width, dtype, out);
    out += width * size_of(dtype);
  }
  return static_cast<std::uint32_t>(rows.size());
}

class ModelHarvester final : public Harvester {
 public:
  ModelHarvester(const sweeps::StreamSpec& stream, std::shared_ptr<const Transformer> model,
                 std::shared_ptr<const TokenDocuments> documents, ThreadPool& pool)
      : model_(std::move(model)), documents_(std::move(documents)), pool_(&pool) {
    members_.push_back(member_of(stream));
  }

  // False if the stream cannot be harvested along.
  bool add_sibling(const sweeps::StreamSpec& stream) {
    const auto is_known = [this](const std::string& hook) {
      return bool(model_->check_hook(hook));
    };
    if (stream.family() != members_[0].spec.family() ||
        !std::ranges::all_of(stream.hooks(), is_known))
      return false;
    Member member = member_of(stream);
    if (std::ranges::any_of(members_, [&](const Member& other) {
          return other.spec.cache_name() == member.spec.cache_name();
        }))
      return false;
    // Chunks of another size are cut into other micro-batches, which changes no byte only if a row
    // is the same in whichever it lies.
    if (member.documents_per_chunk != members_[0].documents_per_chunk &&
        !model_->rows_stand_alone())
      return false;
    member.chunks = chunks_of(member);
    if (member.chunks == 0) return false;
    members_.push_back(std::move(member));
    return true;
  }

  std::int64_t d_in() const override { return members_[0].width; }
  std::vector<std::int64_t> widths() const override {
    return widths_of(*model_, members_[0].hooks);
  }
  const Documents& documents() const override { return *documents_; }
  std::uint64_t rows(std::uint64_t document) const override {
    return members_[0].filter.rows(*documents_, document);
  }
  bool drops_by_norm() const override { return members_[0].filter.by_norm(); }

  std::vector<Sibling> siblings() const override {
    std::vector<Sibling> all;
    for (const Member& member : std::span(members_).subspan(1))
      all.push_back(
          {member.spec, member.width, member.documents_per_chunk * documents_->max_rows()});
    return all;
  }

  std::vector<MemberChunk> beside(std::uint32_t index) const override {
    std::uint64_t unit = 0;  // documents: those of the largest chunk
    for (const Member& member : members_) unit = std::max(unit, member.documents_per_chunk);
    const std::uint64_t first = index * members_[0].documents_per_chunk / unit * unit;
    const std::uint64_t last = std::min(first + unit, documents_->count());
    std::vector<MemberChunk> all;
    for (std::size_t i = 0; i < members_.size(); ++i) {
      const std::uint64_t each = members_[i].documents_per_chunk;
      for (std::uint64_t at = first / each; at * each < last; ++at) {
        const MemberChunk chunk{i, static_cast<std::uint32_t>(at)};
        if (at < members_[i].chunks && chunk != MemberChunk{0, index}) all.push_back(chunk);
      }
    }
    return all;
  }

  Result<std::uint32_t> harvest(const ChunkPlan& plan, std::uint32_t chunk,
                                std::span<std::byte> out, std::span<ChunkOrder> beside) override {
    ChunkOrder asked{{0, chunk}, out};
    std::vector<ChunkOrder*> orders{&asked};
    for (ChunkOrder& order : beside) orders.push_back(&order);
    try {
      fill(plan, orders);
      return asked.rows;
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
  struct Member {
    sweeps::StreamSpec spec;
    std::vector<std::string> hooks;
    std::int64_t width = 0;
    RowFilter filter;
    std::uint64_t documents_per_chunk = 0;
    std::uint64_t chunks = ~std::uint64_t{0};  // that it needs; of the stream itself: all there are
  };
  Member member_of(const sweeps::StreamSpec& spec) const {
    const std::vector<std::string> hooks = spec.hooks();
    const std::int64_t width = width_of(*model_, hooks);
    return {.spec = spec,
            .hooks = hooks,
            .width = width,
            .filter = RowFilter(spec.filters, widths_of(*model_, hooks)),
            .documents_per_chunk = ChunkPlan::documents_per_chunk(spec, *documents_, width)};
  }

  // How many a sibling needs; 0 if there are too few documents. Filters by norm may leave fewer
  // rows, and then it needs a few more.
  std::uint64_t chunks_of(const Member& member) const {
    for (const Member& other : std::span(members_).subspan(1))
      if (other.spec.tokens == member.spec.tokens &&
          other.documents_per_chunk == member.documents_per_chunk)
        return other.chunks;
    const auto plan = ChunkPlan::make(
        member.spec, *documents_, member.width, [&](const ChunkPlan& grid, std::uint32_t chunk) {
          std::uint64_t rows = 0;
          for (const std::uint64_t document : grid.documents_of(chunk))
            rows += member.filter.rows(*documents_, document);
          return Result<std::uint64_t>(rows);
        });
    return plan ? plan->chunks() : 0;
  }

  void fill(const ChunkPlan& plan, std::span<ChunkOrder* const> orders) const {
    // All documents of the orders, and whose columns a row has, one member after another.
    std::uint64_t first = ~std::uint64_t{0}, last = 0;
    std::vector<std::string> hooks;
    std::vector<std::optional<std::int64_t>> columns(members_.size());
    std::int64_t width = 0;
    for (const ChunkOrder* order : orders) {
      const Member& member = members_[order->chunk.member];
      const std::uint64_t begin = order->chunk.index * member.documents_per_chunk;
      first = std::min(first, begin);
      last = std::max(last, begin + member.documents_per_chunk);
      if (columns[order->chunk.member]) continue;
      columns[order->chunk.member] = width;
      width += member.width;
      hooks.insert(hooks.end(), member.hooks.begin(), member.hooks.end());
    }
    const at::Tensor rows =
        activations_of(*model_, hooks, *documents_, plan.documents_between(first, last), *pool_);
    for (ChunkOrder* order : orders) {
      const Member& member = members_[order->chunk.member];
      const std::uint64_t begin = order->chunk.index * member.documents_per_chunk;
      const auto chosen = plan.documents_between(begin, begin + member.documents_per_chunk);
      const std::int64_t before = rows_of(plan.documents_between(first, begin));
      const at::Tensor own = rows.narrow(0, before, rows_of(chosen))
                                 .narrow(1, *columns[order->chunk.member], member.width)
                                 .contiguous();
      order->rows = store(member, chosen, own, order->out);
    }
  }

  std::int64_t rows_of(std::span<const std::uint64_t> chosen) const {
    std::int64_t rows = 0;
    for (const std::uint64_t document : chosen)
      rows += static_cast<std::int64_t>(documents_->rows(document));
    return rows;
  }

  std::uint32_t store(const Member& member, std::span<const std::uint64_t> chosen,
                      const at::Tensor& rows, std::span<std::byte> out) const {
    const DType dtype = member.spec.dtype;
    const auto count = static_cast<std::size_t>(rows.numel());
    SAE_CHECK(count * size_of(dtype) <= out.size(), "a chunk of {} has {} values",
              member.spec.label(), count);
    const float* values = rows.const_data_ptr<float>();
    if (member.spec.filters.any())
      return store_rows(values, static_cast<std::size_t>(member.width),
                        member.filter.kept(*documents_, chosen, values), dtype, out.data());
    store_values(values, count, dtype, out.data());
    return static_cast<std::uint32_t>(rows.size(0));
  }

  std::shared_ptr<const Transformer> model_;
  std::shared_ptr<const TokenDocuments> documents_;
  ThreadPool* pool_;
  std::vector<Member> members_;  // the stream itself, then siblings
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
                                std::span<std::byte> out, std::span<ChunkOrder>) override {
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
                                                  ThreadPool& pool,
                                                  std::span<const sweeps::StreamSpec> siblings) {
  for (const std::string& hook : stream.hooks()) SAE_TRY_VOID(model->check_hook(hook));
  if (model->config().vocabulary < documents->vocabulary())
    return fail(ErrorCode::kInvalidArgument,
                "the model knows {} tokens, but `data` needs {}: was it trained on another board?",
                model->config().vocabulary, documents->vocabulary());
  auto harvester =
      std::make_unique<ModelHarvester>(stream, std::move(model), std::move(documents), pool);
  for (const sweeps::StreamSpec& sibling : siblings)
    if (!harvester->add_sibling(sibling))
      log::info("harvest.not_along hook={} sibling={}", stream.label(), sibling.label());
  return std::unique_ptr<Harvester>(std::move(harvester));
}

Result<std::unique_ptr<Harvester>> make_harvester(
    const sweeps::StreamSpec& stream, std::shared_ptr<const ActivationDocuments> documents) {
  return std::unique_ptr<Harvester>(std::make_unique<FileHarvester>(stream, std::move(documents)));
}

}  // namespace saesweep::worker
