#include "worker/activations/row_filter.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/log.h"

namespace saesweep::worker {

bool RowFilter::keeps(std::size_t position, std::uint64_t token) const {
  if (filters_.remove_bos && position == 0) return false;
  return !std::ranges::binary_search(filters_.exclude_special_tokens, token);
}

std::uint64_t RowFilter::rows(const TokenDocuments& documents, std::uint64_t document) const {
  const std::uint64_t all = documents.rows(document);
  if (!filters_.by_token()) return all;
  const auto tokens = documents.tokens(document);
  std::uint64_t kept = 0;
  for (std::size_t at = 0; at < all; ++at) kept += keeps(at, tokens[at]) ? 1 : 0;
  return kept;
}

std::vector<std::size_t> RowFilter::kept(const TokenDocuments& documents,
                                         std::span<const std::uint64_t> chosen,
                                         const float* values) const {
  std::vector<std::size_t> rows;
  std::size_t row = 0;
  for (const std::uint64_t document : chosen) {
    const auto tokens = documents.tokens(document);
    const std::uint64_t all = documents.rows(document);
    for (std::size_t at = 0; at < all; ++at, ++row)
      if (keeps(at, tokens[at])) rows.push_back(row);
  }
  drop_long(rows, values);
  return rows;
}

std::vector<std::size_t> RowFilter::kept(std::size_t count, const float* values) const {
  std::vector<std::size_t> rows(count);
  std::iota(rows.begin(), rows.end(), std::size_t{0});
  drop_long(rows, values);
  return rows;
}

void RowFilter::drop_long(std::vector<std::size_t>& rows, const float* values) const {
  if (!filters_.by_norm() || rows.empty()) return;
  const auto width =
      static_cast<std::size_t>(std::accumulate(widths_.begin(), widths_.end(), std::int64_t{0}));
  std::vector<bool> drops(rows.size(), false);
  std::vector<double> norms(rows.size()), sorted;
  std::size_t first = 0;  // column of the hook
  for (const std::int64_t own : widths_) {
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const float* row = values + rows[i] * width + first;
      double square = 0;
      for (std::int64_t j = 0; j < own; ++j) square += static_cast<double>(row[j]) * row[j];
      norms[i] =
          std::isfinite(square) ? std::sqrt(square) : std::numeric_limits<double>::infinity();
    }
    sorted = norms;
    const auto middle = sorted.begin() + static_cast<std::ptrdiff_t>((sorted.size() - 1) / 2);
    std::ranges::nth_element(sorted, middle);
    const double limit = filters_.max_activation_norm_multiple * *middle;
    for (std::size_t i = 0; i < rows.size(); ++i)
      if (norms[i] > limit || std::isinf(norms[i])) drops[i] = true;
    first += static_cast<std::size_t>(own);
  }
  std::size_t kept = 0;
  for (std::size_t i = 0; i < rows.size(); ++i)
    if (!drops[i]) rows[kept++] = rows[i];
  rows.resize(kept);
}

void warn_of_long_rows(const sweeps::StreamSpec& spec, std::uint64_t by_token, std::uint64_t left) {
  constexpr double kMany = 0.01;
  if (by_token == 0) return;
  const double share = static_cast<double>(by_token - left) / static_cast<double>(by_token);
  if (share > kMany)
    log::warn("stream.many_long_rows hook={} share={:.4f} multiple={}", spec.label(), share,
              spec.filters.max_activation_norm_multiple);
}

}  // namespace saesweep::worker
