// Which rows a stream leaves out: by their token, and by their norm.
//
// Tokens go first. Of the rows they leave, in all documents that are filtered together (a chunk),
// one is dropped whose norm at some hook exceeds the multiple of the median norm there; of an even
// number of norms the median is the lower of the two in the middle. A norm that is not finite is
// too large. Source: max_activation_norm_multiple and remove_bos of dictionary_learning's
// ActivationBuffer, which takes the median over a batch of the model; exclude_special_tokens of
// SAELens.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "sweeps/spec.h"
#include "worker/data/documents.h"

namespace saesweep::worker {

class RowFilter {
 public:
  // `widths`: values of a row at each hook.
  RowFilter(sweeps::RowFilters filters, std::vector<std::int64_t> widths)
      : filters_(std::move(filters)), widths_(std::move(widths)) {}

  bool by_norm() const { return filters_.by_norm(); }
  // Whether the token at a position of a document leaves its row.
  bool keeps(std::size_t position, std::uint64_t token) const;
  // How many rows of a document its tokens leave.
  std::uint64_t rows(const TokenDocuments& documents, std::uint64_t document) const;
  // Of all rows of the `chosen` documents one after another, the numbers of those that stay,
  // ascending. `values`: the rows, fp32 [n, sum of widths].
  std::vector<std::size_t> kept(const TokenDocuments& documents,
                                std::span<const std::uint64_t> chosen, const float* values) const;
  // The same of `count` rows without tokens.
  std::vector<std::size_t> kept(std::size_t count, const float* values) const;

 private:
  void drop_long(std::vector<std::size_t>& rows, const float* values) const;

  sweeps::RowFilters filters_;
  std::vector<std::int64_t> widths_;
};

// Says so in the log where a filter by norm left suspiciously few of the rows that tokens left.
void warn_of_long_rows(const sweeps::StreamSpec& spec, std::uint64_t by_token, std::uint64_t left);

}  // namespace saesweep::worker
