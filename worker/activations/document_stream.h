// Whole documents in order, for trials that need what a model says after them. A step's rows are
// consecutive training documents of a pass, the last one cut where the batch is full; the next step
// begins with the document after it. Each pass has an order of its own, drawn from the stream's
// seed.
//
// Rows that the stream's filters drop are none: no reconstruction takes their place, and what the
// model says after them counts nowhere. A filter by norm drops what it drops of the chunks of a
// CachedStream of the same spec: which rows that are is known when all training documents have been
// through the model once, before anything is read.
//
// Nothing is cached or rounded: rows are the model's activations in fp32, not normalised. The bytes
// of a step depend on the stream's spec, the batch and the step, never on threads.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/philox.h"
#include "core/result.h"
#include "sweeps/spec.h"
#include "worker/activations/row_filter.h"
#include "worker/activations/row_stream.h"
#include "worker/activations/spliced_model.h"
#include "worker/data/documents.h"
#include "worker/models/transformer.h"
#include "worker/parallel/thread_pool.h"

namespace saesweep::worker {

class DocumentStream final : public RowStream, public SplicedModel {
 public:
  // `pool` outlives this. `downstream`: whether the residual streams behind the hook will be asked
  // for. Errors: kInvalidArgument for an unknown hook, a stream of several, a model that does not
  // know all tokens, a hook behind which there is no block to ask for; with a filter by norm also
  // kUnavailable (stopping) and kResourceExhausted (memory).
  static Result<std::unique_ptr<DocumentStream>> open(
      const sweeps::StreamSpec& spec, std::shared_ptr<const Transformer> model,
      std::shared_ptr<const TokenDocuments> documents, ThreadPool& pool, bool downstream = false,
      const StreamEvents& events = {});
  // Before steps of so many rows are read.
  // Errors: kInvalidArgument where the training documents have too few.
  Result<void> check_batch(std::uint64_t batch) const;

  std::int64_t d_in() const override { return width_; }
  std::uint64_t rows_per_pass() const override { return rows_; }  // of all training documents
  double norm_factor() const override { return 1; }
  // Bytes that steps of so many rows hold of the model beside the rows; `downstream` as above.
  std::uint64_t splice_bytes(std::uint64_t batch, bool downstream) const;
  double dropped() const;  // share of the rows of training documents that filters drop
  // `first` is a multiple of `count`, which is the batch.
  Result<void> read(std::uint64_t first, std::uint64_t count, float* out) override;
  Said splice(std::uint64_t first, const at::Tensor& reconstruction, double in_to_orig) override;

  // The first held-out rows, at most `max_rows`, [rows, d_in]; none where nothing is held out.
  at::Tensor read_held_out(std::int64_t max_rows);
  Said splice_held_out(std::int64_t first, const at::Tensor& reconstruction,
                       double in_to_orig) override;
  std::vector<std::int64_t> held_out_documents_end() const override;

  // Documents of a step, with how many of their rows it has.
  using Cut = std::pair<std::uint64_t, std::int64_t>;
  std::vector<Cut> documents_of(std::uint64_t first, std::uint64_t count);

 private:
  DocumentStream(const sweeps::StreamSpec& spec, std::shared_ptr<const Transformer> model,
                 std::shared_ptr<const TokenDocuments> documents, ThreadPool& pool,
                 bool downstream);
  Result<void> find_long_rows(const sweeps::StreamSpec& spec, const StreamEvents& events);
  void find_long_rows(std::span<const std::uint64_t> chosen);
  void choose_documents();
  std::uint64_t rows_of(std::uint64_t document) const;  // that filters leave
  // Positions in the order of the pass at which its steps begin.
  const std::vector<std::uint64_t>& starts(std::uint64_t pass, std::uint64_t batch);
  std::uint64_t steps_per_pass(std::uint64_t batch) const;
  Permutation order_of(std::uint64_t pass) const;  // of training_

  // What the model as it is says of a micro-batch, and what the spliced pass starts from.
  struct Clean {
    at::Tensor captured;  // at the hook
    at::Tensor start;     // at start_, if there is one
    at::Tensor logits;
    std::vector<at::Tensor> later;  // at later_
  };
  struct Step {
    std::uint64_t first = 0, count = 0;
    std::vector<Cut> documents;
    std::vector<Clean> clean;  // a micro-batch each, without what was captured
  };
  Clean run(const std::vector<Cut>& documents, std::int64_t piece, bool logits) const;
  void copy_out(const std::vector<Cut>& documents, std::int64_t piece, const at::Tensor& captured,
                float* out) const;
  struct Sums {
    double kl = 0, downstream = 0;  // over rows; of values
  };
  // Of the rows of a micro-batch of documents that have `rows` in all.
  Sums splice_piece(const std::vector<Cut>& documents, std::int64_t piece, const Clean& clean,
                    const at::Tensor& reconstruction, double in_to_orig,
                    at::Tensor& gradient) const;
  template <class CleanOf>
  Said splice_all(const std::vector<Cut>& documents, const CleanOf& clean,
                  const at::Tensor& reconstruction, double in_to_orig) const;
  at::Tensor tokens_of(const std::vector<Cut>& documents, std::int64_t piece) const;
  // Calls visit(index in the micro-batch, position, row) for its rows.
  template <class Visit>
  void for_rows(const std::vector<Cut>& documents, std::int64_t piece, const Visit& visit) const;

  std::string hook_;
  std::uint64_t seed_;
  std::shared_ptr<const Transformer> model_;
  std::shared_ptr<const TokenDocuments> documents_;
  ThreadPool* pool_;
  std::int64_t width_ = 0;
  RowFilter filter_;
  std::string start_;               // where a spliced pass begins; empty: at the tokens
  std::vector<std::string> later_;  // residual streams that are asked for
  // Positions of documents that have some whose rows are too long, ascending.
  std::unordered_map<std::uint64_t, std::vector<std::size_t>> long_rows_;
  std::vector<std::uint64_t> training_;  // documents
  std::uint64_t rows_ = 0, all_rows_ = 0, longest_ = 0;
  // Of the pass that was asked for last, by batch.
  std::map<std::uint64_t, std::pair<std::uint64_t, std::vector<std::uint64_t>>> starts_;
  std::optional<Step> last_;
  std::vector<Cut> held_out_;
};

}  // namespace saesweep::worker
