// Any bytes: decoding either refuses them, or they are what encoding makes of what came out.
#include <algorithm>
#include <cstdint>
#include <cstdlib>

#include "storage/chunk_codec.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace saesweep;
  if (size < 4) return 0;
  const std::uint32_t index = data[0] | data[1] << 8 | data[2] << 16 | std::uint32_t{data[3]} << 24;
  const std::span bytes(reinterpret_cast<const std::byte*>(data) + 4, size - 4);
  const auto decoded = storage::decode_chunk(index, bytes);
  if (!decoded) {
    if (decoded.error().code != ErrorCode::kCorrupted) std::abort();
    return 0;
  }
  const auto header = storage::encode_chunk_header(index, decoded->shape, decoded->values);
  if (!std::equal(header.begin(), header.end(), bytes.begin())) std::abort();
  return 0;
}
