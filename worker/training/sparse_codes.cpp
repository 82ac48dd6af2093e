#include "worker/training/sparse_codes.h"

#include "core/check.h"

namespace saesweep::worker {

void SparseCodes::assign(const std::vector<std::int64_t>& counts,
                         const std::vector<std::vector<kernels::Code>>& tiles) {
  row_begin.resize(counts.size() + 1);
  row_begin[0] = 0;
  for (std::size_t row = 0; row < counts.size(); ++row)
    row_begin[row + 1] = row_begin[row] + counts[row];
  entries.clear();
  entries.reserve(static_cast<std::size_t>(row_begin.back()));
  for (const auto& tile : tiles) entries.insert(entries.end(), tile.begin(), tile.end());
  SAE_CHECK(entries.size() == static_cast<std::size_t>(row_begin.back()), "{} entries of {}",
            entries.size(), row_begin.back());
}

float SparseCodes::keep_largest(std::size_t wanted) {
  SAE_CHECK(wanted >= 1 && wanted < entries.size(), "{} of {}", wanted, entries.size());
  std::vector<float> values;
  values.reserve(entries.size());
  for (const auto& code : entries) values.push_back(code.value);
  const auto [smallest, larger] =
      kernels::kth_largest(values.data(), std::ssize(values), static_cast<std::int64_t>(wanted));
  std::int64_t ties = static_cast<std::int64_t>(wanted) - larger;
  std::size_t kept = 0;
  for (std::int64_t row = 0; row < rows(); ++row) {
    const std::int64_t first = begin(row), last = end(row);
    row_begin[static_cast<std::size_t>(row)] = static_cast<std::int64_t>(kept);
    for (std::int64_t at = first; at < last; ++at) {
      const kernels::Code code = entries[static_cast<std::size_t>(at)];
      if (code.value < smallest) continue;
      if (code.value == smallest) {
        if (ties == 0) continue;
        --ties;
      }
      entries[kept++] = code;
    }
  }
  row_begin.back() = static_cast<std::int64_t>(kept);
  entries.resize(kept);
  return smallest;
}

}  // namespace saesweep::worker
