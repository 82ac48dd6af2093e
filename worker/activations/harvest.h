// Computes the bytes of activation chunks: a forward pass of the subject model up to the hook, or a
// copy of rows that somebody else harvested.
//
// A chunk always has the same bytes: documents go through the model in fixed micro-batches padded
// to the full context, one thread each, and values are rounded to the stored dtype.
//
// One forward pass yields the rows of every hook up to the deepest one, so chunks of other streams
// of the same family (sweeps::StreamSpec::family) can be harvested beside one: those of the same
// documents. Streams of wider rows take fewer documents a chunk. Numbers of documents a chunk are
// powers of two, so the chunks of all streams nest.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/result.h"
#include "sweeps/spec.h"
#include "worker/activations/chunk_order.h"
#include "worker/activations/chunk_plan.h"
#include "worker/data/documents.h"
#include "worker/models/transformer.h"
#include "worker/parallel/thread_pool.h"

namespace saesweep::worker {

using sweeps::kDocumentsPerForward;

// The model's activations at `hook` for whole documents, rows in order: fp32
// [sum of rows(document), width]. Micro-batches of kDocumentsPerForward run side by side.
at::Tensor activations_of(const Transformer& model, const std::string& hook,
                          const TokenDocuments& documents, std::span<const std::uint64_t> chosen,
                          ThreadPool& pool);
// At several hooks, in one forward pass: a row holds the values of each in turn.
at::Tensor activations_of(const Transformer& model, std::span<const std::string> hooks,
                          const TokenDocuments& documents, std::span<const std::uint64_t> chosen,
                          ThreadPool& pool);
std::int64_t width_of(const Transformer& model, std::span<const std::string> hooks);
std::vector<std::int64_t> widths_of(const Transformer& model, std::span<const std::string> hooks);

class Harvester {
 public:
  virtual ~Harvester() = default;
  virtual std::int64_t d_in() const = 0;                                 // values of a row
  virtual std::vector<std::int64_t> widths() const { return {d_in()}; }  // of each hook
  virtual const Documents& documents() const = 0;
  // How many rows of a document filters by token leave.
  virtual std::uint64_t rows(std::uint64_t document) const { return documents().rows(document); }
  // True if how many rows a chunk has is known only when it is harvested.
  virtual bool drops_by_norm() const { return false; }
  // The rows of the chunk's documents that no filter drops into `out`, in the stored dtype; returns
  // how many. Any thread, one at a time.
  // Errors: kResourceExhausted (memory).
  Result<std::uint32_t> harvest(const ChunkPlan& plan, std::uint32_t chunk,
                                std::span<std::byte> out) {
    return harvest(plan, chunk, out, {});
  }
  // And those of `beside` in the same forward pass.
  virtual Result<std::uint32_t> harvest(const ChunkPlan& plan, std::uint32_t chunk,
                                        std::span<std::byte> out, std::span<ChunkOrder> beside) = 0;

  // Other streams of the family.
  struct Sibling {
    sweeps::StreamSpec spec;
    std::int64_t d_in = 0;
    std::uint64_t max_chunk_rows = 0;
  };
  virtual std::vector<Sibling> siblings() const { return {}; }
  // What can be harvested beside a chunk.
  virtual std::vector<MemberChunk> beside(std::uint32_t) const { return {}; }
};

// Of `siblings` those count that are of the stream's family and can be harvested beside it.
// Errors: those of opening model and data, kInvalidArgument for an unknown hook of the stream.
Result<std::unique_ptr<Harvester>> make_harvester(
    const sweeps::StreamSpec& stream, std::shared_ptr<const Transformer> model,
    std::shared_ptr<const TokenDocuments> documents, ThreadPool& pool,
    std::span<const sweeps::StreamSpec> siblings = {});
Result<std::unique_ptr<Harvester>> make_harvester(
    const sweeps::StreamSpec& stream, std::shared_ptr<const ActivationDocuments> documents);

}  // namespace saesweep::worker
