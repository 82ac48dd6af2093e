// Any bytes given to --filter and --sort are a filter or an error, never a crash; a filter can be
// applied to rows.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "scheduler/leaderboard/filter.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace saesweep;  // NOLINT(google-build-using-namespace): a fuzz target's own scope
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  scheduler::LeaderboardRow row;
  row.params = {{"d_sae", 512}, {"k", 8}};
  row.scores["core.l0"] = {.value = 3};
  if (const auto filter = scheduler::parse_filter(text)) {
    scheduler::matches(*filter, row);
    (void)scheduler::check_fields(*filter, {row});
  }
  if (const auto key = scheduler::parse_sort(text)) {
    std::vector<scheduler::LeaderboardRow> rows{row, {}};
    scheduler::sort_rows(rows, *key);
  }
  (void)scheduler::parse_curve_csv(text);
  return 0;
}
