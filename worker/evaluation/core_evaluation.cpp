#include "worker/evaluation/core_evaluation.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <utility>

#include "worker/activations/harvest.h"

namespace saesweep::worker {
namespace {

static_assert(metrics::kDocumentsPerBatch == static_cast<std::size_t>(kDocumentsPerForward),
              "a batch of the scores is a batch of the model");

std::span<const float> row_of(const at::Tensor& rows, std::size_t index) {
  const auto width = static_cast<std::size_t>(rows.size(1));
  return {rows.const_data_ptr<float>() + index * width, width};
}

at::Tensor chosen_rows(const at::Tensor& values, const TokenBatch& batch) {
  return values.reshape({-1, values.size(2)}).index_select(0, batch.rows);
}

struct CleanBatch {
  at::Tensor x;       // [rows, values of a row]
  at::Tensor logits;  // [rows, vocabulary]; undefined where nothing is replaced
};

// Batches of a sample of games.
class Games {
 public:
  Games(const EvaluationInputs& inputs, const Sample& sample, const std::string& hook)
      : model_(*inputs.model),
        documents_(*inputs.tokens),
        hooks_(inputs.stream.hooks()),
        hook_(hook),
        sample_(sample) {}

  TokenBatch batch(std::size_t index) const {
    const std::size_t first = index * metrics::kDocumentsPerBatch;
    const std::size_t count =
        std::min(metrics::kDocumentsPerBatch, sample_.documents.size() - first);
    return token_batch(documents_, std::span(sample_.documents).subspan(first, count));
  }

  CleanBatch clean(const TokenBatch& batch) const {
    ForwardRequest request;
    request.capture = hooks_;
    request.logits = !hook_.empty();
    const ForwardResult result = model_.forward(batch.tokens, request);
    std::vector<at::Tensor> parts;
    for (const std::string& hook : hooks_)
      parts.push_back(chosen_rows(result.captured.at(hook), batch));
    return {parts.size() == 1 ? parts.front() : at::cat(parts, 1),
            request.logits ? chosen_rows(result.logits, batch) : at::Tensor()};
  }

  // Logits with the hook replaced.
  at::Tensor replaced(const TokenBatch& batch, HookReplacement replacement) const {
    ForwardRequest request;
    request.replace_hook = hook_;
    request.replacement = std::move(replacement);
    return chosen_rows(model_.forward(batch.tokens, request).logits, batch);
  }

 private:
  const Transformer& model_;
  const TokenDocuments& documents_;
  std::vector<std::string> hooks_;
  const std::string& hook_;  // replaced
  const Sample& sample_;
};

// The columns of a target, row by row.
at::Tensor columns_of(const at::Tensor& x, const Target& target) {
  return x.narrow(1, target.first, target.width).contiguous();
}

// Calls body(document of the batch, row of the batch) for each input.
template <class Body>
void for_each_row(const std::vector<std::size_t>& lengths, const Body& body) {
  std::size_t row = 0;
  for (std::size_t document = 0; document < lengths.size(); ++document)
    for (std::size_t i = 0; i < lengths[document]; ++i) body(document, row++);
}

Result<std::shared_ptr<const CoreReference>> make_reference(
    const EvaluationInputs& inputs, const Sample& sample, const Target& target,
    std::uint64_t kept_bytes, std::size_t batches, const std::function<void(std::size_t)>& step) {
  const Games games(inputs, sample, target.hook);
  auto reference = std::make_shared<CoreReference>();
  reference->model = inputs.model;
  reference->tokens = inputs.tokens;
  reference->hooks = inputs.stream.hooks();
  reference->hook = target.hook;
  reference->documents = sample.documents;
  reference->sums.resize(sample.documents.size());
  const std::uint64_t bytes = sample.tokens * sizeof(float) *
                              static_cast<std::uint64_t>(width_of(*inputs.model, reference->hooks) +
                                                         inputs.model->config().vocabulary);
  const bool keep = bytes <= kept_bytes;
  if (keep) {
    reference->x.resize(batches);
    reference->logits.resize(batches);
  }
  std::vector<at::Tensor> batch_sum(batches);
  at::Tensor mean = at::zeros({target.width}, at::kDouble);
  SAE_TRY_VOID(in_waves(
      *inputs.pool, batches, inputs.stop,
      [&](std::size_t index) {
        const TokenBatch batch = games.batch(index);
        const CleanBatch clean = games.clean(batch);
        const at::Tensor zero =
            games.replaced(batch, [](const at::Tensor& x) { return at::zeros_like(x); });
        metrics::DocumentSums* sums = &reference->sums[index * metrics::kDocumentsPerBatch];
        for_each_row(batch.lengths, [&](std::size_t document, std::size_t row) {
          const auto clean_row = row_of(clean.logits, row), zero_row = row_of(zero, row);
          metrics::DocumentSums& sum = sums[document];
          sum.ce_clean += metrics::cross_entropy(clean_row, batch.targets[row]);
          sum.ce_zero += metrics::cross_entropy(zero_row, batch.targets[row]);
          const metrics::Divergence kl = metrics::divergence(clean_row, zero_row);
          sum.kl_zero.value += kl.value;
          sum.kl_zero.legacy += kl.legacy;
        });
        batch_sum[index] = columns_of(clean.x, target).to(at::kDouble).sum(0);
        if (keep) {
          reference->x[index] = clean.x;
          reference->logits[index] = clean.logits;
        }
      },
      [&](std::size_t first, std::size_t end) {
        for (std::size_t index = first; index < end; ++index) mean += batch_sum[index];
        step(end - first);
      }));
  const at::Tensor centre = (mean / static_cast<double>(sample.tokens)).to(at::kFloat);
  SAE_TRY_VOID(in_waves(
      *inputs.pool, batches, inputs.stop,
      [&](std::size_t index) {
        const TokenBatch batch = games.batch(index);
        const at::Tensor logits = games.replaced(
            batch, [&](const at::Tensor& x) { return centre.expand_as(x).contiguous(); });
        metrics::DocumentSums* sums = &reference->sums[index * metrics::kDocumentsPerBatch];
        for_each_row(batch.lengths, [&](std::size_t document, std::size_t row) {
          sums[document].ce_mean += metrics::cross_entropy(row_of(logits, row), batch.targets[row]);
        });
      },
      [&](std::size_t first, std::size_t end) { step(end - first); }));
  return std::shared_ptr<const CoreReference>(std::move(reference));
}

bool is_of(const CoreReference* reference, const EvaluationInputs& inputs, const Sample& sample,
           const Target& target) {
  return reference != nullptr && reference->model == inputs.model &&
         reference->tokens == inputs.tokens && reference->hooks == inputs.stream.hooks() &&
         reference->hook == target.hook && reference->documents == sample.documents;
}

// What one batch adds to the sums that are kept by block.
struct BatchSums {
  std::map<std::size_t, std::vector<double>> sum_x;
  std::map<std::size_t, std::vector<std::uint32_t>> fired;
  std::vector<std::uint32_t> documents_fired;
};

// Codes of a batch's rows, and what the dictionary makes of the target, into the sums of its
// documents.
at::Tensor reconstruct(const Sae& sae, const at::Tensor& stream_rows, const Target& target,
                       const std::vector<std::size_t>& lengths, std::size_t first_document,
                       metrics::CoreSums& sums, BatchSums& batch) {
  const at::Tensor x = columns_of(stream_rows, target);
  const bool reads_all = sae.selection == Sae::Selection::kIdentity;
  const at::Tensor read = reads_all ? stream_rows : stream_rows.narrow(1, 0, sae.d_in());
  const auto rows = static_cast<std::size_t>(x.size(0));
  const std::size_t d_in = sums.d_in, d_sae = sums.d_sae;
  std::vector<std::size_t> document_of(rows);
  for_each_row(lengths,
               [&](std::size_t document, std::size_t row) { document_of[row] = document; });
  const auto block_of = [&](std::size_t document) {
    return metrics::block_of(first_document + document, sums.documents.size());
  };
  for (std::size_t document = 0; document < lengths.size(); ++document) {
    batch.sum_x[block_of(document)].resize(d_in, 0);
    batch.fired[block_of(document)].resize(d_sae, 0);
  }
  batch.documents_fired.assign(d_sae, 0);
  std::vector<std::size_t> last_fired(d_sae, std::numeric_limits<std::size_t>::max());

  at::Tensor x_hat = at::empty_like(x);
  for (std::int64_t begin = 0; begin < x.size(0); begin += kRowsPerEncode) {
    const std::int64_t count = std::min(kRowsPerEncode, x.size(0) - begin);
    const at::Tensor some = read.narrow(0, begin, count);
    const at::Tensor codes = sae.encode(some).contiguous();
    x_hat.narrow(0, begin, count)
        .copy_(sae.reconstruct(some, codes).narrow(1, target.reconstructed, target.width));
    for (std::int64_t i = 0; i < count; ++i) {
      const std::size_t document = document_of[static_cast<std::size_t>(begin + i)];
      std::uint32_t* fired = batch.fired[block_of(document)].data();
      const float* f = codes.const_data_ptr<float>() + static_cast<std::size_t>(i) * d_sae;
      double l0 = 0, l1 = 0;
      for (std::size_t latent = 0; latent < d_sae; ++latent) {
        if (f[latent] == 0) continue;
        l0 += 1;
        l1 += f[latent];
        if (!(f[latent] > 0)) continue;
        ++fired[latent];
        if (last_fired[latent] != document) ++batch.documents_fired[latent];
        last_fired[latent] = document;
      }
      sums.documents[first_document + document].l0 += l0;
      sums.documents[first_document + document].l1 += l1;
    }
  }

  std::vector<double> mean(d_in, 0);
  for (std::size_t row = 0; row < rows; ++row) {
    const auto values = row_of(x, row);
    std::vector<double>& sum = batch.sum_x[block_of(document_of[row])];
    for (std::size_t j = 0; j < d_in; ++j) {
      sum[j] += values[j];
      mean[j] += values[j];
    }
  }
  for (double& each : mean) each /= static_cast<double>(rows);
  for (std::size_t row = 0; row < rows; ++row) {
    const auto in = row_of(x, row), out = row_of(x_hat, row);
    metrics::DocumentSums& sum = sums.documents[first_document + document_of[row]];
    metrics::add_reconstruction(sum, in, out);
    double error = 0, around_mean = 0;
    for (std::size_t j = 0; j < d_in; ++j) {
      const double residual = static_cast<double>(in[j]) - out[j], off = in[j] - mean[j];
      error += residual * residual;
      around_mean += off * off;
    }
    sum.mse += error / static_cast<double>(rows);
    sum.legacy += 1 - error / around_mean;
  }
  return x_hat;
}

}  // namespace

Result<std::vector<Target>> targets_of(const Sae& sae, const EvaluationInputs& inputs) {
  const bool has_model = inputs.model != nullptr && inputs.tokens != nullptr;
  const auto hooks = inputs.stream.hooks();
  const std::int64_t width =
      has_model ? width_of(*inputs.model, hooks) : inputs.activations->d_in();
  const bool identity = sae.selection == Sae::Selection::kIdentity;
  const std::int64_t wanted = sae.predicts ? sae.d_in() + sae.d_out() : sae.d_in();
  if (!identity && wanted != width)
    return fail(ErrorCode::kInvalidArgument,
                "the dictionary reads {} values, but the activations have {}", wanted, width);
  const auto expected = static_cast<std::size_t>(sae.predicts ? 2 : sae.sources);
  if (hooks.size() != expected)
    return fail(ErrorCode::kInvalidArgument, "a dictionary of {} hooks on a stream of {}", expected,
                hooks.size());
  const auto hook_of = [&](std::size_t index) { return has_model ? hooks[index] : std::string(); };
  if (sae.predicts) return std::vector<Target>{{sae.d_in(), sae.d_out(), 0, hook_of(1)}};
  std::vector<Target> targets;
  const std::int64_t own = width / sae.sources;
  for (std::int64_t i = 0; i < sae.sources; ++i)
    targets.push_back({i * own, own, i * own, hook_of(static_cast<std::size_t>(i))});
  return targets;
}

Result<metrics::CoreSums> core_sums(const Sae& sae, const EvaluationInputs& inputs,
                                    const Sample& sample, const Target& target,
                                    std::uint64_t kept_bytes,
                                    std::shared_ptr<const CoreReference>& reference) {
  const bool has_tokens = inputs.model != nullptr && inputs.tokens != nullptr;
  const bool has_model = has_tokens && !target.hook.empty();
  const std::size_t batches =
      (sample.documents.size() + metrics::kDocumentsPerBatch - 1) / metrics::kDocumentsPerBatch;
  const std::int64_t width = target.width;
  const bool identity = sae.selection == Sae::Selection::kIdentity;

  const bool has_reference = has_model && is_of(reference.get(), inputs, sample, target);
  const std::size_t steps = batches * (has_model && !has_reference ? 3 : 1);
  std::size_t steps_done = 0;
  const auto step = [&](std::size_t count) {
    steps_done += count;
    if (inputs.progress) inputs.progress(sample.tokens * steps_done / steps, sample.tokens);
  };
  if (has_model && !has_reference) {
    reference.reset();  // two need not fit at once
    SAE_TRY(reference, make_reference(inputs, sample, target, kept_bytes, batches, step));
  }

  metrics::CoreSums sums(sample.documents.size(), static_cast<std::size_t>(width),
                         static_cast<std::size_t>(identity ? width : sae.d_sae()));
  sums.has_model = has_model;
  if (has_model) sums.documents = reference->sums;
  std::vector<BatchSums> of_batch(batches);
  const auto piece = [&](std::size_t index) {
    const std::size_t first = index * metrics::kDocumentsPerBatch;
    if (has_tokens) {
      const Games games(inputs, sample, target.hook);
      const TokenBatch batch = games.batch(index);
      const CleanBatch clean = !has_model || reference->x.empty()
                                   ? games.clean(batch)
                                   : CleanBatch{reference->x[index], reference->logits[index]};
      const at::Tensor x_hat =
          reconstruct(sae, clean.x, target, batch.lengths, first, sums, of_batch[index]);
      if (!has_model) return;
      const at::Tensor logits = games.replaced(batch, [&](const at::Tensor& x) {
        at::Tensor spliced = x.clone(at::MemoryFormat::Contiguous);
        spliced.view({-1, width}).index_copy_(0, batch.rows, x_hat);
        return spliced;
      });
      for_each_row(batch.lengths, [&](std::size_t document, std::size_t row) {
        const auto clean_row = row_of(clean.logits, row), sae_row = row_of(logits, row);
        metrics::DocumentSums& sum = sums.documents[first + document];
        sum.ce_sae += metrics::cross_entropy(sae_row, batch.targets[row]);
        const metrics::Divergence kl = metrics::divergence(clean_row, sae_row);
        sum.kl_sae.value += kl.value;
        sum.kl_sae.legacy += kl.legacy;
      });
      return;
    }
    const std::size_t end = std::min(sample.documents.size(), first + metrics::kDocumentsPerBatch);
    std::vector<std::size_t> lengths;
    std::int64_t rows = 0;
    for (std::size_t i = first; i < end; ++i) {
      lengths.push_back(inputs.activations->rows(sample.documents[i]));
      rows += static_cast<std::int64_t>(lengths.back());
    }
    const std::int64_t of_row = inputs.activations->d_in();
    const at::Tensor x = at::empty({rows, of_row}, at::kFloat);
    float* out = x.mutable_data_ptr<float>();
    for (std::size_t i = first; i < end; ++i) {
      inputs.activations->read(sample.documents[i], out);
      out += lengths[i - first] * static_cast<std::size_t>(of_row);
    }
    reconstruct(sae, x, target, lengths, first, sums, of_batch[index]);
  };
  const auto done = [&](std::size_t first, std::size_t end) {
    for (std::size_t index = first; index < end; ++index) {
      BatchSums& batch = of_batch[index];
      for (const auto& [block, values] : batch.sum_x)
        for (std::size_t j = 0; j < values.size(); ++j) sums.sum_x[block][j] += values[j];
      for (const auto& [block, counts] : batch.fired)
        for (std::size_t i = 0; i < counts.size(); ++i) sums.fired[block][i] += counts[i];
      for (std::size_t i = 0; i < sums.d_sae; ++i)
        sums.documents_fired[i] += batch.documents_fired[i];
      batch = {};
    }
    step(end - first);
  };
  SAE_TRY_VOID(in_waves(*inputs.pool, batches, inputs.stop, piece, done));
  add_weight_statistics(sums, sae, *inputs.pool);
  return sums;
}

void add_weight_statistics(metrics::CoreSums& sums, const Sae& sae, ThreadPool& pool) {
  const auto width = static_cast<std::int64_t>(sums.d_sae);
  const bool identity = sae.selection == Sae::Selection::kIdentity;
  const at::Tensor encoder = identity ? at::eye(width, at::kFloat) : sae.w_enc;
  const at::Tensor decoder = identity ? encoder : sae.w_dec;
  // Of gated dictionaries SAEBench takes the magnitude's.
  const at::Tensor own_bias = sae.selection == Sae::Selection::kGated ? sae.b_mag : sae.b_enc;
  const at::Tensor bias = identity ? at::zeros({width}, at::kFloat) : own_bias;
  const auto to_vector = [](const at::Tensor& tensor) {
    const at::Tensor values = tensor.to(at::kDouble).contiguous();
    const double* data = values.const_data_ptr<double>();
    return std::vector<double>(data, data + values.numel());
  };
  constexpr std::int64_t kRows = 128;  // of the matrix of cosines at once
  const std::int64_t pieces = (width + kRows - 1) / kRows;
  at::Tensor unit_encoder, unit_decoder;
  pool.run(1, [&](std::int64_t) {
    const at::Tensor norms = encoder.norm(2, {1});
    unit_encoder = encoder / norms.unsqueeze(1);
    // A transcoder's latent that was never heard writes nothing, in no direction.
    unit_decoder = decoder / decoder.norm(2, {1}).clamp_min(1e-30).unsqueeze(1);
    sums.encoder_bias = to_vector(bias);
    sums.encoder_norm = to_vector(norms);
    // What is read and what is predicted live in different spaces.
    if (!sae.predicts)
      sums.encoder_decoder_cosine = to_vector((unit_encoder * unit_decoder).sum(1));
  });
  for (const auto& [unit, target] : {std::pair{&unit_encoder, &sums.max_encoder_cosine},
                                     {&unit_decoder, &sums.max_decoder_cosine}}) {
    target->resize(sums.d_sae);
    pool.run(pieces, [&, unit = unit, target = target](std::int64_t piece) {
      const std::int64_t first = piece * kRows, count = std::min(kRows, width - first);
      at::Tensor cosines = at::mm(unit->narrow(0, first, count), unit->t());  // [count, d_sae]
      // A feature is not its own neighbour.
      cosines.narrow(1, first, count).diagonal().fill_(-std::numeric_limits<float>::infinity());
      const std::vector<double> largest = to_vector(cosines.amax(1));
      std::copy(largest.begin(), largest.end(), target->begin() + first);
    });
  }
}

}  // namespace saesweep::worker
