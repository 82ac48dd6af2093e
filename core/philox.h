// Counter-based randomness: Philox 4x32-10, keyed by (seed, purpose, index). A draw depends on
// nothing but its key and its position, so any worker can redo any piece and get the same bytes.
// Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); the constants and
// the known-answer tests are those of the authors' Random123 library.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>

namespace saesweep {

// One block: 128 random bits for a 128-bit counter under a 64-bit key.
std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter,
                                        std::array<std::uint32_t, 2> key);

// A stream of draws. Two streams of different (seed, purpose, index) are independent.
class Rng {
 public:
  // `purpose` names what the numbers are for ("init.w_enc", "othello.game"); `index` tells apart
  // pieces of one purpose (game number, pass).
  Rng(std::uint64_t seed, std::string_view purpose, std::uint64_t index = 0);

  std::uint32_t next_u32();
  std::uint64_t next_u64();
  // Uniform in [0, bound), exactly (by rejection). bound > 0.
  std::uint32_t below(std::uint32_t bound);
  std::uint64_t below64(std::uint64_t bound);
  // Uniform in [0, 1), 53 bits.
  double uniform();
  // Standard normal (Box-Muller; a pair of draws makes a pair of values).
  double normal();

 private:
  std::array<std::uint32_t, 2> key_;
  std::array<std::uint32_t, 4> counter_;
  std::array<std::uint32_t, 4> block_{};
  unsigned used_ = 4;
  double spare_ = 0;
  bool has_spare_ = false;
};

// A bijection of [0, size) keyed by (seed, purpose, index), evaluated point by point without a
// table: a balanced Feistel network whose round keys come from Philox, walked until the value falls
// in range.
class Permutation {
 public:
  Permutation(std::uint64_t size, std::uint64_t seed, std::string_view purpose,
              std::uint64_t index = 0);
  std::uint64_t size() const { return size_; }
  // The image of `position`; position < size().
  std::uint64_t operator()(std::uint64_t position) const;

 private:
  std::uint64_t size_;
  unsigned half_bits_;
  std::array<std::uint32_t, 8> round_keys_;
};

}  // namespace saesweep
