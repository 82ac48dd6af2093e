#include "worker/activations/document_stream.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

#include "core/check.h"
#include "worker/activations/harvest.h"

namespace saesweep::worker {
namespace {

std::int64_t pieces_of(std::size_t documents) {
  return (static_cast<std::int64_t>(documents) + kDocumentsPerForward - 1) / kDocumentsPerForward;
}

}  // namespace

DocumentStream::DocumentStream(const sweeps::StreamSpec& spec,
                               std::shared_ptr<const Transformer> model,
                               std::shared_ptr<const TokenDocuments> documents, ThreadPool& pool)
    : hook_(spec.hook),
      seed_(spec.seed),
      model_(std::move(model)),
      documents_(std::move(documents)),
      pool_(&pool),
      width_(model_->hook_width(hook_)) {
  for (std::uint64_t document = 0; document < documents_->count(); ++document) {
    if (documents_->held_out(document) || documents_->rows(document) == 0) continue;
    training_.push_back(document);
    rows_ += documents_->rows(document);
    longest_ = std::max(longest_, documents_->rows(document));
  }
}

Result<std::unique_ptr<DocumentStream>> DocumentStream::open(
    const sweeps::StreamSpec& spec, std::shared_ptr<const Transformer> model,
    std::shared_ptr<const TokenDocuments> documents, ThreadPool& pool) {
  if (!spec.joined.empty())
    return fail(ErrorCode::kInvalidArgument, "{}: documents are read at one hook", spec.label());
  SAE_TRY_VOID(model->check_hook(spec.hook));
  if (model->config().vocabulary < documents->vocabulary())
    return fail(ErrorCode::kInvalidArgument,
                "the model knows {} tokens, but `data` needs {}: was it trained on another board?",
                model->config().vocabulary, documents->vocabulary());
  return std::unique_ptr<DocumentStream>(
      new DocumentStream(spec, std::move(model), std::move(documents), pool));
}

Result<void> DocumentStream::check_batch(std::uint64_t batch) const {
  if (steps_per_pass(batch) > 0) return {};
  return fail(ErrorCode::kInvalidArgument,
              "the training documents have {} rows; a batch of {} needs at least {}", rows_, batch,
              batch + longest_);
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
      rows += documents_->rows(training_[order(position)]);
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
    const std::uint64_t own = std::min(documents_->rows(document), count - rows);
    documents.emplace_back(document, static_cast<std::int64_t>(own));
    rows += own;
  }
  return documents;
}

at::Tensor DocumentStream::tokens_of(const Step& step, std::int64_t piece) const {
  at::Tensor tokens = at::zeros({kDocumentsPerForward, documents_->context()}, at::kLong);
  auto ids = tokens.accessor<std::int64_t, 2>();
  visit(step, piece, [&](std::int64_t index, std::int64_t, const Cut& cut) {
    const auto sequence = documents_->tokens(cut.first);
    for (std::int64_t at = 0; at < cut.second; ++at)
      ids[index][at] = sequence[static_cast<std::size_t>(at)];
  });
  return tokens;
}

template <class Visit>
void DocumentStream::visit(const Step& step, std::int64_t piece, const Visit& row) const {
  std::int64_t first = 0;
  const auto begin = static_cast<std::size_t>(piece * kDocumentsPerForward);
  const std::size_t end = std::min(step.documents.size(), begin + kDocumentsPerForward);
  for (std::size_t i = 0; i < begin; ++i) first += step.documents[i].second;
  for (std::size_t i = begin; i < end; ++i) {
    row(static_cast<std::int64_t>(i - begin), first, step.documents[i]);
    first += step.documents[i].second;
  }
}

Result<void> DocumentStream::read(std::uint64_t first, std::uint64_t count, float* out) {
  last_.reset();
  Step step{first, count, documents_of(first, count), {}};
  step.logits.resize(static_cast<std::size_t>(pieces_of(step.documents.size())));
  const std::int64_t length = documents_->context();
  try {
    pool_->run(pieces_of(step.documents.size()), [&](std::int64_t piece) {
      ForwardRequest request;
      request.capture = {hook_};
      ForwardResult passed = model_->forward(tokens_of(step, piece), request);
      const at::Tensor captured = passed.captured.at(hook_).contiguous();
      visit(step, piece, [&](std::int64_t index, std::int64_t row, const Cut& cut) {
        std::memcpy(out + row * width_, captured.const_data_ptr<float>() + index * length * width_,
                    static_cast<std::size_t>(cut.second * width_) * sizeof(float));
      });
      step.logits[static_cast<std::size_t>(piece)] = std::move(passed.logits);
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

SplicedModel::Said DocumentStream::splice(std::uint64_t first, const at::Tensor& reconstruction) {
  SAE_CHECK(last_ && last_->first == first &&
                reconstruction.size(0) == static_cast<std::int64_t>(last_->count) &&
                reconstruction.size(1) == width_ && reconstruction.is_contiguous(),
            "a reconstruction of other rows than were read");
  const Step& step = *last_;
  const std::int64_t length = documents_->context();
  const double inverse_rows = 1.0 / static_cast<double>(step.count);
  Said said;
  said.gradient = at::empty_like(reconstruction);
  std::vector<double> sums(step.logits.size(), 0);
  pool_->run(pieces_of(step.documents.size()), [&](std::int64_t piece) {
    at::Tensor spliced = at::zeros({kDocumentsPerForward, length, width_}, at::kFloat);
    at::Tensor is_row = at::zeros({kDocumentsPerForward, length, 1}, at::kFloat);
    visit(step, piece, [&](std::int64_t index, std::int64_t row, const Cut& cut) {
      std::memcpy(spliced.mutable_data_ptr<float>() + index * length * width_,
                  reconstruction.const_data_ptr<float>() + row * width_,
                  static_cast<std::size_t>(cut.second * width_) * sizeof(float));
      is_row.narrow(0, index, 1).narrow(1, 0, cut.second).fill_(1);
    });
    const c10::AutoGradMode with_gradients(true);  // the model's own weights ask for none
    spliced.requires_grad_(true);
    ForwardRequest request;
    request.replace_hook = hook_;
    request.replacement = [&](const at::Tensor&) { return spliced; };
    const at::Tensor logits = model_->forward(tokens_of(step, piece), request).logits;
    at::Tensor of_logits;
    {
      const c10::AutoGradMode no_gradients(false);
      const at::Tensor was = at::log_softmax(step.logits[static_cast<std::size_t>(piece)], -1);
      const at::Tensor is = at::log_softmax(logits, -1);
      const at::Tensor p = was.exp();
      sums[static_cast<std::size_t>(piece)] =
          (p * (was - is)).mul_(is_row).sum(at::kDouble).item<double>();
      // d KL / d logits = Q - P, of rows alone.
      of_logits = (is.exp() - p).mul_(is_row).mul_(inverse_rows);
    }
    const at::Tensor gradient =
        torch::autograd::grad({logits}, {spliced}, {of_logits})[0].contiguous();
    visit(step, piece, [&](std::int64_t index, std::int64_t row, const Cut& cut) {
      std::memcpy(said.gradient.mutable_data_ptr<float>() + row * width_,
                  gradient.const_data_ptr<float>() + index * length * width_,
                  static_cast<std::size_t>(cut.second * width_) * sizeof(float));
    });
  });
  for (const double sum : sums) said.kl += sum;
  said.kl *= inverse_rows;
  return said;
}

}  // namespace saesweep::worker
