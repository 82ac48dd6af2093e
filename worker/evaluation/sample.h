// The documents an evaluation reads: the first held-out ones, or, where nothing is held out, the
// first of all.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "core/result.h"
#include "worker/data/documents.h"
#include "worker/models/transformer.h"
#include "worker/parallel/thread_pool.h"

namespace saesweep::worker {

struct Sample {
  std::vector<std::uint64_t> documents;
  std::uint64_t tokens = 0;  // rows of all of them
  bool held_out = true;
};

// As many whole documents as `tokens` rows need.
// Errors: kInvalidArgument if there are fewer rows, with how many there are.
Result<Sample> first_tokens(const Documents& documents, double holdout, std::uint64_t tokens);
// Errors: kInvalidArgument if there are fewer documents, with how many there are.
Result<Sample> first_documents(const Documents& documents, double holdout, std::uint64_t count);

// Documents as the model reads them: one row each, padded at the end to the full context; always
// kDocumentsPerForward rows, so that a document's bytes do not depend on its neighbours' number.
struct TokenBatch {
  at::Tensor tokens;                 // [kDocumentsPerForward, context] int64
  at::Tensor rows;                   // of the flattened batch that are inputs, in order
  std::vector<std::size_t> lengths;  // inputs of each document
  std::vector<std::size_t> targets;  // the next token of each input
};
TokenBatch token_batch(const TokenDocuments& documents, std::span<const std::uint64_t> chosen);

// Rows of a dictionary's product at once: bounds memory, and part of the numerics.
inline constexpr std::int64_t kRowsPerEncode = 512;

// Calls piece(i) for i in [0, count) side by side, a few at a time; after each few calls
// done(first, end) in order on this thread.
// Errors: kUnavailable when `stop` said so in between.
Result<void> in_waves(ThreadPool& pool, std::size_t count, const std::function<bool()>& stop,
                      const std::function<void(std::size_t)>& piece,
                      const std::function<void(std::size_t first, std::size_t end)>& done);

}  // namespace saesweep::worker
