#include "worker/activations/document_stream.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <new>
#include <utility>

#include "core/check.h"
#include "sweeps/estimates.h"
#include "worker/activations/chunk_plan.h"
#include "worker/activations/harvest.h"

namespace saesweep::worker {
namespace {

std::int64_t pieces_of(std::size_t documents) {
  return (static_cast<std::int64_t>(documents) + kDocumentsPerForward - 1) / kDocumentsPerForward;
}

}  // namespace

DocumentStream::DocumentStream(const sweeps::StreamSpec& spec,
                               std::shared_ptr<const Transformer> model,
                               std::shared_ptr<const TokenDocuments> documents, ThreadPool& pool,
                               bool downstream)
    : hook_(spec.hook),
      seed_(spec.seed),
      model_(std::move(model)),
      documents_(std::move(documents)),
      pool_(&pool),
      width_(model_->hook_width(hook_)),
      filter_(spec.filters, {width_}),
      start_(model_->start_of(hook_)),
      later_(downstream ? model_->residuals_after(hook_) : std::vector<std::string>{}) {
  for (std::uint64_t document = 0; document < documents_->count(); ++document)
    if (!documents_->held_out(document)) all_rows_ += documents_->rows(document);
}

void DocumentStream::choose_documents() {
  for (std::uint64_t document = 0; document < documents_->count(); ++document) {
    if (documents_->held_out(document)) continue;
    const std::uint64_t own = rows_of(document);
    if (own == 0) continue;
    training_.push_back(document);
    rows_ += own;
    longest_ = std::max(longest_, own);
  }
}

// ---- rows that are too long ---------------------------------------------------------------------

Result<void> DocumentStream::find_long_rows(const sweeps::StreamSpec& spec,
                                            const StreamEvents& events) {
  sweeps::StreamSpec all = spec;
  all.tokens = all_rows_;
  SAE_TRY(const ChunkPlan plan, ChunkPlan::make(all, *documents_, width_));
  std::uint64_t done = 0, by_token = 0, left = 0;
  for (std::uint32_t chunk = 0; chunk < plan.chunks(); ++chunk) {
    if (events.stop && events.stop()) return fail(ErrorCode::kUnavailable, "stopping");
    const std::vector<std::uint64_t> chosen = plan.documents_of(chunk);
    try {
      find_long_rows(chosen);
    } catch (const c10::Error& error) {
      return fail(ErrorCode::kResourceExhausted, "norms of chunk {}: {}", chunk,
                  error.what_without_backtrace());
    } catch (const std::bad_alloc&) {
      return fail(ErrorCode::kResourceExhausted, "norms of chunk {}: out of memory", chunk);
    }
    std::uint64_t rows = 0;
    for (const std::uint64_t document : chosen) {
      rows += documents_->rows(document);
      by_token += filter_.rows(*documents_, document);
      left += rows_of(document);
    }
    done += rows;
    if (events.harvested) events.harvested(rows);
    if (events.loading) events.loading(done, all_rows_);
  }
  warn_of_long_rows(spec, by_token, left);
  return {};
}

void DocumentStream::find_long_rows(std::span<const std::uint64_t> chosen) {
  const at::Tensor values = activations_of(*model_, hook_, *documents_, chosen, *pool_);
  const auto kept = filter_.kept(*documents_, chosen, values.const_data_ptr<float>());
  auto next = kept.begin();
  std::size_t row = 0;
  for (const std::uint64_t document : chosen) {
    const auto tokens = documents_->tokens(document);
    std::vector<std::size_t> too_long;
    for (std::size_t position = 0; position < documents_->rows(document); ++position, ++row) {
      if (next != kept.end() && *next == row)
        ++next;
      else if (filter_.keeps(position, tokens[position]))
        too_long.push_back(position);
    }
    if (!too_long.empty()) long_rows_[document] = std::move(too_long);
  }
}

std::uint64_t DocumentStream::rows_of(std::uint64_t document) const {
  const auto too_long = long_rows_.find(document);
  return filter_.rows(*documents_, document) -
         (too_long == long_rows_.end() ? 0 : too_long->second.size());
}

// ---- documents in order -------------------------------------------------------------------------

Result<std::unique_ptr<DocumentStream>> DocumentStream::open(
    const sweeps::StreamSpec& spec, std::shared_ptr<const Transformer> model,
    std::shared_ptr<const TokenDocuments> documents, ThreadPool& pool, bool downstream,
    const StreamEvents& events) {
  if (!spec.joined.empty())
    return fail(ErrorCode::kInvalidArgument, "{}: documents are read at one hook", spec.label());
  SAE_TRY_VOID(model->check_hook(spec.hook));
  if (downstream && model->residuals_after(spec.hook).empty())
    return fail(ErrorCode::kInvalidArgument, "{}: there is no block behind it for in_to_orig",
                spec.hook);
  if (model->config().vocabulary < documents->vocabulary())
    return fail(ErrorCode::kInvalidArgument,
                "the model knows {} tokens, but `data` needs {}: was it trained on another board?",
                model->config().vocabulary, documents->vocabulary());
  std::unique_ptr<DocumentStream> stream(
      new DocumentStream(spec, std::move(model), std::move(documents), pool, downstream));
  if (spec.filters.by_norm() && stream->all_rows_ > 0)
    SAE_TRY_VOID(stream->find_long_rows(spec, events));
  stream->choose_documents();
  return stream;
}

Result<void> DocumentStream::check_batch(std::uint64_t batch) const {
  if (steps_per_pass(batch) > 0) return {};
  return fail(ErrorCode::kInvalidArgument,
              "the training documents have {} rows; a batch of {} needs at least {}", rows_, batch,
              batch + longest_);
}

double DocumentStream::dropped() const {
  return static_cast<double>(all_rows_ - rows_) / static_cast<double>(all_rows_);
}

std::uint64_t DocumentStream::splice_bytes(std::uint64_t batch, bool downstream) const {
  const TransformerConfig& config = model_->config();
  sweeps::ModelShape shape;
  shape.layers = static_cast<std::uint64_t>(config.layers);
  shape.d_model = static_cast<std::uint64_t>(config.d_model);
  shape.d_mlp = static_cast<std::uint64_t>(config.d_mlp);
  shape.context = static_cast<std::uint64_t>(config.context);
  shape.vocabulary = static_cast<std::uint64_t>(config.vocabulary);
  const double mean = static_cast<double>(rows_) / static_cast<double>(training_.size());
  return sweeps::estimated_splice_memory(shape, {hook_, batch, mean, downstream}, pool_->threads());
}

// However they are ordered, so many steps fit: each takes less than a document more than its batch.
std::uint64_t DocumentStream::steps_per_pass(std::uint64_t batch) const {
  return rows_ / (batch + longest_);
}

Permutation DocumentStream::order_of(std::uint64_t pass) const {
  return Permutation(training_.size(), seed_, "documents.order", pass);
}

const std::vector<std::uint64_t>& DocumentStream::starts(std::uint64_t pass, std::uint64_t batch) {
  auto& [of_pass, found] = starts_[batch];
  if (!found.empty() && of_pass == pass) return found;
  of_pass = pass;
  found.clear();
  const Permutation order = order_of(pass);
  std::uint64_t position = 0;
  while (found.size() < steps_per_pass(batch)) {
    found.push_back(position);
    for (std::uint64_t rows = 0; rows < batch; ++position)
      rows += rows_of(training_[order(position)]);
  }
  return found;
}

std::vector<DocumentStream::Cut> DocumentStream::documents_of(std::uint64_t first,
                                                              std::uint64_t count) {
  SAE_CHECK(count > 0 && first % count == 0 && steps_per_pass(count) > 0,
            "rows {} to {} are no step", first, first + count);
  const std::uint64_t step = first / count, pass = step / steps_per_pass(count);
  std::uint64_t position = starts(pass, count)[step % steps_per_pass(count)];
  const Permutation order = order_of(pass);
  std::vector<Cut> documents;
  for (std::uint64_t rows = 0; rows < count; ++position) {
    const std::uint64_t document = training_[order(position)];
    const std::uint64_t own = std::min(rows_of(document), count - rows);
    documents.emplace_back(document, static_cast<std::int64_t>(own));
    rows += own;
  }
  return documents;
}

at::Tensor DocumentStream::tokens_of(const std::vector<Cut>& documents, std::int64_t piece) const {
  at::Tensor tokens = at::zeros({kDocumentsPerForward, documents_->context()}, at::kLong);
  auto ids = tokens.accessor<std::int64_t, 2>();
  for (std::int64_t index = 0; index < kDocumentsPerForward; ++index) {
    const auto at = static_cast<std::size_t>(piece * kDocumentsPerForward + index);
    if (at >= documents.size()) break;
    const auto sequence = documents_->tokens(documents[at].first);
    const std::uint64_t length = documents_->rows(documents[at].first);
    for (std::size_t position = 0; position < length; ++position)
      ids[index][static_cast<std::int64_t>(position)] = sequence[position];
  }
  return tokens;
}

template <class Visit>
void DocumentStream::for_rows(const std::vector<Cut>& documents, std::int64_t piece,
                              const Visit& visit) const {
  std::int64_t row = 0;
  const auto begin = static_cast<std::size_t>(piece * kDocumentsPerForward);
  const std::size_t end = std::min(documents.size(), begin + kDocumentsPerForward);
  for (std::size_t i = 0; i < begin; ++i) row += documents[i].second;
  for (std::size_t i = begin; i < end; ++i) {
    const auto sequence = documents_->tokens(documents[i].first);
    const auto found = long_rows_.find(documents[i].first);
    const std::span<const std::size_t> too_long =
        found == long_rows_.end() ? std::span<const std::size_t>() : found->second;
    const std::int64_t last = row + documents[i].second;
    for (std::size_t position = 0; row < last; ++position)
      if (filter_.keeps(position, sequence[position]) &&
          !std::ranges::binary_search(too_long, position))
        visit(static_cast<std::int64_t>(i - begin), static_cast<std::int64_t>(position), row++);
  }
}

DocumentStream::Clean DocumentStream::run(const std::vector<Cut>& documents, std::int64_t piece,
                                          bool logits) const {
  ForwardRequest request;
  request.capture = {hook_};
  request.logits = logits;
  if (logits) {
    request.capture.insert(request.capture.end(), later_.begin(), later_.end());
    if (!start_.empty()) request.capture.push_back(start_);
  }
  ForwardResult passed = model_->forward(tokens_of(documents, piece), request);
  Clean clean{passed.captured.at(hook_), {}, std::move(passed.logits), {}};
  if (!logits) return clean;
  if (!start_.empty()) clean.start = passed.captured.at(start_);
  for (const std::string& each : later_) clean.later.push_back(passed.captured.at(each));
  return clean;
}

void DocumentStream::copy_out(const std::vector<Cut>& documents, std::int64_t piece,
                              const at::Tensor& captured, float* out) const {
  const at::Tensor values = captured.contiguous();
  const std::int64_t length = values.size(1);
  for_rows(documents, piece, [&](std::int64_t index, std::int64_t position, std::int64_t row) {
    std::copy_n(values.const_data_ptr<float>() + (index * length + position) * width_, width_,
                out + row * width_);
  });
}

Result<void> DocumentStream::read(std::uint64_t first, std::uint64_t count, float* out) {
  last_.reset();
  Step step{first, count, documents_of(first, count), {}};
  step.clean.resize(static_cast<std::size_t>(pieces_of(step.documents.size())));
  try {
    pool_->run(pieces_of(step.documents.size()), [&](std::int64_t piece) {
      Clean& clean = step.clean[static_cast<std::size_t>(piece)];
      clean = run(step.documents, piece, /*logits=*/true);
      copy_out(step.documents, piece, clean.captured, out);
      clean.captured.reset();
    });
  } catch (const c10::Error& error) {
    // Names and shapes were checked before; what is left to go wrong is an allocation.
    return fail(ErrorCode::kResourceExhausted, "documents of row {}: {}", first,
                error.what_without_backtrace());
  } catch (const std::bad_alloc&) {
    return fail(ErrorCode::kResourceExhausted, "documents of row {}: out of memory", first);
  }
  last_ = std::move(step);
  return {};
}

at::Tensor DocumentStream::read_held_out(std::int64_t max_rows) {
  held_out_.clear();
  std::vector<std::uint64_t> chosen;
  std::int64_t by_token = 0, rows = 0;
  for (const std::uint64_t document : documents_->held_out_documents()) {
    if (by_token >= max_rows) break;
    chosen.push_back(document);
    by_token += static_cast<std::int64_t>(filter_.rows(*documents_, document));
  }
  // Their median is their own, as in the rows that others see.
  if (filter_.by_norm() && by_token > 0) find_long_rows(chosen);
  for (const std::uint64_t document : chosen) {
    const std::int64_t own =
        std::min(static_cast<std::int64_t>(rows_of(document)), max_rows - rows);
    if (own > 0) held_out_.emplace_back(document, own);
    rows += own;
  }
  at::Tensor values = at::empty({rows, width_}, at::kFloat);
  pool_->run(pieces_of(held_out_.size()), [&](std::int64_t piece) {
    copy_out(held_out_, piece, run(held_out_, piece, /*logits=*/false).captured,
             values.mutable_data_ptr<float>());
  });
  return values;
}

std::vector<std::int64_t> DocumentStream::held_out_documents_end() const {
  std::vector<std::int64_t> ends;
  for (const Cut& cut : held_out_) ends.push_back((ends.empty() ? 0 : ends.back()) + cut.second);
  return ends;
}

DocumentStream::Sums DocumentStream::splice_piece(const std::vector<Cut>& documents,
                                                  std::int64_t piece, const Clean& clean,
                                                  const at::Tensor& reconstruction,
                                                  double in_to_orig, at::Tensor& gradient) const {
  const std::int64_t length = documents_->context();
  const double inverse_rows = 1.0 / static_cast<double>(reconstruction.size(0));
  const auto place = [&](std::int64_t index, std::int64_t position) {
    return (index * length + position) * width_;
  };
  at::Tensor is_row = at::zeros({kDocumentsPerForward, length, 1}, at::kFloat);
  at::Tensor spliced;
  // What is no row stays as it is.
  const auto with_rows = [&](const at::Tensor& value) {
    spliced = value.detach().clone(at::MemoryFormat::Contiguous);
    for_rows(documents, piece, [&](std::int64_t index, std::int64_t position, std::int64_t row) {
      std::copy_n(reconstruction.const_data_ptr<float>() + row * width_, width_,
                  spliced.mutable_data_ptr<float>() + place(index, position));
      is_row.mutable_data_ptr<float>()[index * length + position] = 1;
    });
    return spliced.requires_grad_(true);
  };
  const c10::AutoGradMode with_gradients(true);  // the model's own weights ask for none
  ForwardRequest request;
  request.start = start_;
  if (hook_ == start_) {
    request.start_value = with_rows(clean.start);
  } else {
    request.start_value = clean.start;
    request.replace_hook = hook_;
    request.replacement = with_rows;
  }
  if (in_to_orig > 0) request.capture = later_;
  const ForwardResult passed = model_->forward(tokens_of(documents, piece), request);
  Sums sums;
  std::vector<at::Tensor> outputs{passed.logits}, of_outputs;
  {
    const c10::AutoGradMode no_gradients(false);
    const at::Tensor was = at::log_softmax(clean.logits, -1);
    const at::Tensor is = at::log_softmax(passed.logits, -1);
    const at::Tensor p = was.exp();
    sums.kl = (p * (was - is)).mul_(is_row).sum(at::kDouble).item<double>();
    // d KL / d logits = Q - P, of rows alone.
    of_outputs.push_back((is.exp() - p).mul_(is_row).mul_(inverse_rows));
    for (std::size_t i = 0; i < request.capture.size(); ++i) {
      const at::Tensor& moved = passed.captured.at(later_[i]);
      const at::Tensor error = (moved - clean.later[i]).mul_(is_row);
      const double share =
          inverse_rows /
          static_cast<double>(later_.size() * static_cast<std::size_t>(moved.size(2)));
      sums.downstream += share * error.square().sum(at::kDouble).item<double>();
      outputs.push_back(moved);
      of_outputs.push_back(error * (2 * in_to_orig * share));
    }
  }
  const at::Tensor of_spliced =
      torch::autograd::grad(outputs, {spliced}, of_outputs)[0].contiguous();
  for_rows(documents, piece, [&](std::int64_t index, std::int64_t position, std::int64_t row) {
    std::copy_n(of_spliced.const_data_ptr<float>() + place(index, position), width_,
                gradient.mutable_data_ptr<float>() + row * width_);
  });
  return sums;
}

template <class CleanOf>
SplicedModel::Said DocumentStream::splice_all(const std::vector<Cut>& documents,
                                              const CleanOf& clean,
                                              const at::Tensor& reconstruction,
                                              double in_to_orig) const {
  SAE_CHECK(in_to_orig == 0 || !later_.empty(), "nothing behind {} was kept", hook_);
  Said said;
  said.gradient = at::empty_like(reconstruction);
  std::vector<Sums> sums(static_cast<std::size_t>(pieces_of(documents.size())));
  pool_->run(pieces_of(documents.size()), [&](std::int64_t piece) {
    sums[static_cast<std::size_t>(piece)] =
        splice_piece(documents, piece, clean(piece), reconstruction, in_to_orig, said.gradient);
  });
  for (const Sums& sum : sums) {
    said.kl += sum.kl;
    said.downstream += sum.downstream;
  }
  said.kl /= static_cast<double>(reconstruction.size(0));
  return said;
}

SplicedModel::Said DocumentStream::splice(std::uint64_t first, const at::Tensor& reconstruction,
                                          double in_to_orig) {
  SAE_CHECK(last_ && last_->first == first &&
                reconstruction.size(0) == static_cast<std::int64_t>(last_->count) &&
                reconstruction.size(1) == width_ && reconstruction.is_contiguous(),
            "a reconstruction of other rows than were read");
  return splice_all(
      last_->documents,
      [this](std::int64_t piece) -> const Clean& {
        return last_->clean[static_cast<std::size_t>(piece)];
      },
      reconstruction, in_to_orig);
}

SplicedModel::Said DocumentStream::splice_held_out(std::int64_t first,
                                                   const at::Tensor& reconstruction,
                                                   double in_to_orig) {
  std::vector<Cut> documents;
  std::int64_t row = 0;
  const std::int64_t end = first + reconstruction.size(0);
  for (const Cut& cut : held_out_) {
    if (row >= first && row < end) documents.push_back(cut);
    row += cut.second;
    SAE_CHECK(
        (row <= first || row - cut.second >= first) && (row <= end || row - cut.second >= end),
        "held-out rows {} to {} are no whole documents", first, end);
  }
  SAE_CHECK(!documents.empty() && end <= row && reconstruction.size(1) == width_ &&
                reconstruction.is_contiguous(),
            "a reconstruction of other rows than are held out");
  return splice_all(
      documents, [&](std::int64_t piece) { return run(documents, piece, /*logits=*/true); },
      reconstruction, in_to_orig);
}

}  // namespace saesweep::worker
