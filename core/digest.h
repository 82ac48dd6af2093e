// Digests: SHA-256 names things (identities, artifacts), XXH3-64 checks bytes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "core/result.h"

namespace saesweep {

// 32 bytes, shown as 64 hex digits; the first 12 are what people see.
struct Sha256 {
  std::array<std::uint8_t, 32> bytes{};
  std::string hex() const;
  std::string short_hex() const { return hex().substr(0, 12); }
  auto operator<=>(const Sha256&) const = default;
};

class Sha256Stream {
 public:
  Sha256Stream();
  ~Sha256Stream();
  void update(std::span<const std::byte> bytes);
  Sha256 finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

Sha256 sha256(std::span<const std::byte> bytes);
Sha256 sha256(std::string_view text);
// Errors: kNotFound; kUnavailable if the file cannot be read.
Result<Sha256> sha256_file(const std::filesystem::path& path);

std::uint64_t xxh3_64(std::span<const std::byte> bytes, std::uint64_t seed = 0);
// CRC-32C (Castagnoli), as frame headers carry it.
std::uint32_t crc32c(std::span<const std::byte> bytes);
// The same on any CPU.
std::uint32_t crc32c_portable(std::span<const std::byte> bytes);

}  // namespace saesweep
