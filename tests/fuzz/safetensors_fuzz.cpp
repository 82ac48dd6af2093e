// Any bytes: parsing either refuses them or gives tensors whose views lie inside and fit their
// shape.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "storage/formats/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto parsed =
      saesweep::storage::Safetensors::parse(std::string(reinterpret_cast<const char*>(data), size));
  if (!parsed) {
    if (parsed.error().code != saesweep::ErrorCode::kCorrupted) std::abort();
    return 0;
  }
  unsigned sum = 0;
  for (const auto& [name, view] : parsed->tensors()) {
    for (const std::byte byte : view.bytes) sum += std::to_integer<unsigned>(byte);
  }
  static volatile unsigned sink;
  sink = sum;
  return 0;
}
