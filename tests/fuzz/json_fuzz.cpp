// Any bytes: parse_json answers, never throws, never overflows the stack; what it accepts reads
// back from its canonical form unchanged.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "core/check.h"
#include "core/json.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto value =
      saesweep::parse_json(std::string_view(reinterpret_cast<const char*>(data), size));
  if (!value) return 0;
  const std::string canonical = saesweep::canonical_json(*value);
  const auto again = saesweep::parse_json(canonical);
  SAE_CHECK(again.has_value(), "{}", canonical);
  SAE_CHECK(*again == *value, "{}", canonical);
  SAE_CHECK(saesweep::canonical_json(*again) == canonical, "{}", canonical);
  return 0;
}
