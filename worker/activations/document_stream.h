// Whole documents in order, for trials that need what a model says after them. A step's rows are
// consecutive training documents of a pass, the last one cut where the batch is full; the next step
// begins with the document after it. Each pass has an order of its own, drawn from the stream's
// seed.
//
// Nothing is cached or rounded: rows are the model's activations in fp32, not normalised. The bytes
// of a step depend on the stream's spec, the batch and the step, never on threads.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/philox.h"
#include "core/result.h"
#include "sweeps/spec.h"
#include "worker/activations/row_stream.h"
#include "worker/activations/spliced_model.h"
#include "worker/data/documents.h"
#include "worker/models/transformer.h"
#include "worker/parallel/thread_pool.h"

namespace saesweep::worker {

class DocumentStream final : public RowStream, public SplicedModel {
 public:
  // `pool` outlives this. Errors: kInvalidArgument for an unknown hook, a stream of several, or a
  // model that does not know all tokens.
  static Result<std::unique_ptr<DocumentStream>> open(
      const sweeps::StreamSpec& spec, std::shared_ptr<const Transformer> model,
      std::shared_ptr<const TokenDocuments> documents, ThreadPool& pool);
  // Before steps of so many rows are read.
  // Errors: kInvalidArgument where the training documents have too few.
  Result<void> check_batch(std::uint64_t batch) const;

  std::int64_t d_in() const override { return width_; }
  std::uint64_t rows_per_pass() const override { return rows_; }  // of all training documents
  double norm_factor() const override { return 1; }
  // `first` is a multiple of `count`, which is the batch.
  Result<void> read(std::uint64_t first, std::uint64_t count, float* out) override;
  Said splice(std::uint64_t first, const at::Tensor& reconstruction) override;

  // Documents of a step, with how many of their rows it has.
  using Cut = std::pair<std::uint64_t, std::int64_t>;
  std::vector<Cut> documents_of(std::uint64_t first, std::uint64_t count);

 private:
  DocumentStream(const sweeps::StreamSpec& spec, std::shared_ptr<const Transformer> model,
                 std::shared_ptr<const TokenDocuments> documents, ThreadPool& pool);
  // Positions in the order of the pass at which its steps begin.
  const std::vector<std::uint64_t>& starts(std::uint64_t pass, std::uint64_t batch);
  std::uint64_t steps_per_pass(std::uint64_t batch) const;
  Permutation order_of(std::uint64_t pass) const;  // of training_

  struct Step {
    std::uint64_t first = 0, count = 0;
    std::vector<Cut> documents;
    std::vector<at::Tensor> logits;  // of the model as it is, a micro-batch each
  };
  at::Tensor tokens_of(const Step& step, std::int64_t piece) const;
  // Calls row(index in the micro-batch, first row of the step, rows) for its documents.
  template <class Visit>
  void visit(const Step& step, std::int64_t piece, const Visit& row) const;

  std::string hook_;
  std::uint64_t seed_;
  std::shared_ptr<const Transformer> model_;
  std::shared_ptr<const TokenDocuments> documents_;
  ThreadPool* pool_;
  std::int64_t width_ = 0;
  std::vector<std::uint64_t> training_;  // documents
  std::uint64_t rows_ = 0, longest_ = 0;
  // Of the pass that was asked for last, by batch.
  std::map<std::uint64_t, std::pair<std::uint64_t, std::vector<std::uint64_t>>> starts_;
  std::optional<Step> last_;
};

}  // namespace saesweep::worker
