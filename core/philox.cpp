#include "core/philox.h"

#include <bit>
#include <cmath>
#include <numbers>

#include "core/check.h"
#include "core/digest.h"

namespace saesweep {
namespace {

constexpr std::uint32_t kMultiplier0 = 0xD2511F53;
constexpr std::uint32_t kMultiplier1 = 0xCD9E8D57;
constexpr std::uint32_t kWeyl0 = 0x9E3779B9;
constexpr std::uint32_t kWeyl1 = 0xBB67AE85;

// 192 bits of key material from what names the stream.
struct StreamKey {
  std::array<std::uint32_t, 2> key;
  std::array<std::uint32_t, 2> high;  // upper half of the counter
};

StreamKey derive(std::uint64_t seed, std::string_view purpose, std::uint64_t index) {
  const std::uint64_t purpose_hash = xxh3_64(std::as_bytes(std::span(purpose)), seed);
  return {
      {static_cast<std::uint32_t>(purpose_hash), static_cast<std::uint32_t>(purpose_hash >> 32)},
      {static_cast<std::uint32_t>(index), static_cast<std::uint32_t>(index >> 32)}};
}

}  // namespace

std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter,
                                        std::array<std::uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product0 = std::uint64_t{kMultiplier0} * counter[0];
    const std::uint64_t product1 = std::uint64_t{kMultiplier1} * counter[2];
    counter = {static_cast<std::uint32_t>(product1 >> 32) ^ counter[1] ^ key[0],
               static_cast<std::uint32_t>(product1),
               static_cast<std::uint32_t>(product0 >> 32) ^ counter[3] ^ key[1],
               static_cast<std::uint32_t>(product0)};
    key[0] += kWeyl0;
    key[1] += kWeyl1;
  }
  return counter;
}

Rng::Rng(std::uint64_t seed, std::string_view purpose, std::uint64_t index) {
  const StreamKey stream = derive(seed, purpose, index);
  key_ = stream.key;
  counter_ = {0, 0, stream.high[0], stream.high[1]};
}

std::uint32_t Rng::next_u32() {
  if (used_ == 4) {
    block_ = philox4x32(counter_, key_);
    if (++counter_[0] == 0) ++counter_[1];
    used_ = 0;
  }
  return block_[used_++];
}

std::uint64_t Rng::next_u64() {
  const std::uint64_t low = next_u32();
  return low | std::uint64_t{next_u32()} << 32;
}

std::uint32_t Rng::below(std::uint32_t bound) {
  SAE_CHECK(bound > 0, "bound 0");
  // Lemire's multiply-and-reject.
  std::uint64_t product = std::uint64_t{next_u32()} * bound;
  if (static_cast<std::uint32_t>(product) < bound) {
    const std::uint32_t threshold = (0u - bound) % bound;
    while (static_cast<std::uint32_t>(product) < threshold)
      product = std::uint64_t{next_u32()} * bound;
  }
  return static_cast<std::uint32_t>(product >> 32);
}

std::uint64_t Rng::below64(std::uint64_t bound) {
  SAE_CHECK(bound > 0, "bound 0");
  const std::uint64_t limit = (0ull - bound) % bound;  // 2^64 mod bound
  std::uint64_t value = next_u64();
  while (value < limit) value = next_u64();
  return value % bound;
}

double Rng::uniform() { return static_cast<double>(next_u64() >> 11) * 0x1.0p-53; }

double Rng::normal() {
  if (has_spare_) {
    has_spare_ = false;
    return spare_;
  }
  const double radius = std::sqrt(-2.0 * std::log1p(-uniform()));
  const double angle = 2.0 * std::numbers::pi * uniform();
  spare_ = radius * std::sin(angle);
  has_spare_ = true;
  return radius * std::cos(angle);
}

Permutation::Permutation(std::uint64_t size, std::uint64_t seed, std::string_view purpose,
                         std::uint64_t index)
    : size_(size) {
  const unsigned bits = size <= 1 ? 0 : static_cast<unsigned>(std::bit_width(size - 1));
  half_bits_ = (bits + 1) / 2;
  Rng rng(seed, purpose, index);
  for (auto& key : round_keys_) key = rng.next_u32();
}

std::uint64_t Permutation::operator()(std::uint64_t position) const {
  SAE_CHECK(position < size_, "position {} of {}", position, size_);
  if (size_ <= 1) return 0;
  const std::uint64_t mask = (std::uint64_t{1} << half_bits_) - 1;
  std::uint64_t value = position;
  do {
    std::uint64_t left = value >> half_bits_;
    std::uint64_t right = value & mask;
    for (std::size_t round = 0; round < round_keys_.size(); ++round) {
      // The finaliser of MurmurHash3 as the round function, keyed per round.
      std::uint64_t hash = right ^ (std::uint64_t{round_keys_[round]} << 16 | (round + 1));
      hash ^= hash >> 33;
      hash *= 0xff51afd7ed558ccdULL;
      hash ^= hash >> 33;
      hash *= 0xc4ceb9fe1a85ec53ULL;
      hash ^= hash >> 33;
      const std::uint64_t next = left ^ (hash & mask);
      left = right;
      right = next;
    }
    value = left << half_bits_ | right;
  } while (value >= size_);
  return value;
}

}  // namespace saesweep
