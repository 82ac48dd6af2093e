#include "worker/evaluation/sample.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "core/check.h"
#include "worker/activations/harvest.h"

namespace saesweep::worker {
namespace {

// `enough` sees the sample grow and says when it is large enough.
Sample collect(const Documents& documents, double holdout,
               const std::function<bool(const Sample&)>& enough) {
  Sample sample;
  sample.held_out = holdout > 0;
  const auto& held_out = documents.held_out_documents();
  const std::uint64_t count = sample.held_out ? held_out.size() : documents.count();
  for (std::uint64_t i = 0; i < count && !enough(sample); ++i) {
    const std::uint64_t document = sample.held_out ? held_out[i] : i;
    sample.documents.push_back(document);
    sample.tokens += documents.rows(document);
  }
  return sample;
}

const char* kind_of(const Sample& sample) {
  return sample.held_out ? "held-out documents" : "data";
}

}  // namespace

Result<Sample> first_tokens(const Documents& documents, double holdout, std::uint64_t tokens) {
  Sample sample =
      collect(documents, holdout, [&](const Sample& so_far) { return so_far.tokens >= tokens; });
  if (sample.tokens < tokens || sample.documents.empty())
    return fail(ErrorCode::kInvalidArgument,
                "evaluate.core.tokens: {} are more than the {} have: {} in {} documents", tokens,
                kind_of(sample), sample.tokens, sample.documents.size());
  return sample;
}

Result<Sample> first_documents(const Documents& documents, double holdout, std::uint64_t count) {
  Sample sample = collect(documents, holdout,
                          [&](const Sample& so_far) { return so_far.documents.size() >= count; });
  if (sample.documents.size() < count)
    return fail(ErrorCode::kInvalidArgument,
                "evaluate.board.games: {} are more than the {} have: {}", count, kind_of(sample),
                sample.documents.size());
  return sample;
}

TokenBatch token_batch(const TokenDocuments& documents, std::span<const std::uint64_t> chosen) {
  SAE_CHECK(chosen.size() <= static_cast<std::size_t>(kDocumentsPerForward), "{} documents",
            chosen.size());
  const std::int64_t context = documents.context();
  TokenBatch batch;
  batch.tokens = at::zeros({kDocumentsPerForward, context}, at::kLong);
  auto* ids = batch.tokens.mutable_data_ptr<std::int64_t>();
  std::vector<std::int64_t> rows;
  for (std::size_t i = 0; i < chosen.size(); ++i) {
    const auto sequence = documents.tokens(chosen[i]);
    const std::size_t length = documents.rows(chosen[i]);
    batch.lengths.push_back(length);
    for (std::size_t at = 0; at < length; ++at) {
      const std::int64_t row =
          static_cast<std::int64_t>(i) * context + static_cast<std::int64_t>(at);
      ids[row] = sequence[at];
      rows.push_back(row);
      batch.targets.push_back(sequence[at + 1]);
    }
  }
  batch.rows = at::tensor(rows, at::kLong);
  return batch;
}

Result<void> in_waves(ThreadPool& pool, std::size_t count, const std::function<bool()>& stop,
                      const std::function<void(std::size_t)>& piece,
                      const std::function<void(std::size_t first, std::size_t end)>& done) {
  const std::size_t wave = std::size_t{2} * pool.threads();
  for (std::size_t first = 0; first < count; first += wave) {
    if (stop && stop()) return fail(ErrorCode::kUnavailable, "asked to stop");
    const std::size_t end = std::min(count, first + wave);
    pool.run(static_cast<std::int64_t>(end - first),
             [&](std::int64_t i) { piece(first + static_cast<std::size_t>(i)); });
    done(first, end);
  }
  return {};
}

}  // namespace saesweep::worker
