// bf16 rounding on plain floats.
#include "core/dtype.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace saesweep {
namespace {

float float_of(std::uint32_t bits) { return std::bit_cast<float>(bits); }

TEST(BFloat16Test, EveryBf16ValueComesBackAsItWas) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = from_bf16(static_cast<std::uint16_t>(bits));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(from_bf16(to_bf16(value)))) << bits;
    } else {
      EXPECT_EQ(to_bf16(value), bits);
    }
  }
}

TEST(BFloat16Test, AHalfwayValueGoesToTheEvenNeighbour) {
  EXPECT_EQ(to_bf16(float_of(0x3f808000)), 0x3f80);  // between ...80 and ...81: down
  EXPECT_EQ(to_bf16(float_of(0x3f818000)), 0x3f82);  // between ...81 and ...82: up
  EXPECT_EQ(to_bf16(float_of(0xbf818000)), 0xbf82);
}

TEST(BFloat16Test, AnythingBesideHalfwayGoesToTheNearer) {
  EXPECT_EQ(to_bf16(float_of(0x3f807fff)), 0x3f80);
  EXPECT_EQ(to_bf16(float_of(0x3f808001)), 0x3f81);
}

TEST(BFloat16Test, ValuesPastTheLargestBecomeInfinite) {
  EXPECT_EQ(to_bf16(std::numeric_limits<float>::max()), 0x7f80);
  EXPECT_EQ(to_bf16(std::numeric_limits<float>::infinity()), 0x7f80);
  EXPECT_EQ(to_bf16(-std::numeric_limits<float>::infinity()), 0xff80);
  EXPECT_EQ(to_bf16(float_of(0x7f7f7fff)), 0x7f7f);  // just below halfway to infinity
}

// The payload of the last is in the bits that rounding drops: cut off, it would read as infinity.
TEST(BFloat16Test, NanStaysNan) {
  for (const std::uint32_t bits : {0x7fc00000u, 0xffc00000u, 0x7fffffffu, 0xffffffffu, 0x7f800001u})
    EXPECT_TRUE(std::isnan(from_bf16(to_bf16(float_of(bits))))) << bits;
}

TEST(BFloat16Test, SignedZerosAndTheSmallestValuesKeepTheirSign) {
  EXPECT_EQ(to_bf16(0.0f), 0x0000);
  EXPECT_EQ(to_bf16(-0.0f), 0x8000);
  EXPECT_EQ(to_bf16(float_of(0x00000001)), 0x0000);
  EXPECT_EQ(to_bf16(float_of(0x80000001)), 0x8000);
  EXPECT_EQ(to_bf16(float_of(0x00010000)), 0x0001);  // subnormals are not flushed
}

TEST(DTypeTest, HasASizeAndTheNameOfTheSweepFile) {
  EXPECT_EQ(size_of(DType::kFloat32), 4u);
  EXPECT_EQ(size_of(DType::kBFloat16), 2u);
  EXPECT_EQ(to_string(DType::kFloat32), "fp32");
  EXPECT_EQ(to_string(DType::kBFloat16), "bf16");
}

}  // namespace
}  // namespace saesweep
