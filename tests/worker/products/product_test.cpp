// Products in blocks: against sums in double, and the instruction sets against each other.
#include "worker/products/product.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "core/philox.h"
#include "worker/products/isa.h"

namespace saesweep::worker::products {
namespace {

struct Matrix {
  std::int64_t rows, columns;
  std::vector<float> values;
  float at(std::int64_t row, std::int64_t column) const {
    return values[static_cast<std::size_t>(row * columns + column)];
  }
  Source by_rows() const { return {values.data(), columns, 1}; }
  Source by_columns() const { return {values.data(), 1, columns}; }
};

Matrix normal(std::int64_t rows, std::int64_t columns, std::uint64_t seed) {
  Matrix matrix{rows, columns, std::vector<float>(static_cast<std::size_t>(rows * columns))};
  Rng rng(seed, "test.normal");
  for (float& value : matrix.values) value = static_cast<float>(rng.normal());
  return matrix;
}

Panels packed(const Source& source, std::int64_t lanes, std::int64_t depth, std::int64_t width,
              Numbers numbers) {
  Panels panels(lanes, depth, width, numbers);
  panels.pack_all(source);
  return panels;
}

// left [rows, depth] x right [columns, depth] transposed.
std::vector<float> product(const Matrix& left, const Matrix& right, Numbers numbers) {
  const Panels a = packed(left.by_rows(), left.rows, left.columns, left_width(numbers), numbers);
  const Panels b = packed(right.by_rows(), right.rows, right.columns, kBlockColumns, numbers);
  std::vector<float> out(static_cast<std::size_t>(left.rows * right.rows), -7.0F);
  multiply(a, b, out.data(), right.rows);
  return out;
}

bool same_bytes(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Largest error relative to what rounding of `unit` may make of sums of this depth.
double error_in_units(const std::vector<float>& got, const Matrix& left, const Matrix& right,
                      double unit) {
  double worst = 0;
  for (std::int64_t i = 0; i < left.rows; ++i)
    for (std::int64_t j = 0; j < right.rows; ++j) {
      double sum = 0, size = 0;
      for (std::int64_t k = 0; k < left.columns; ++k) {
        const double term = double{left.at(i, k)} * right.at(j, k);
        sum += term;
        size += std::abs(term);
      }
      const double error = std::abs(got[static_cast<std::size_t>(i * right.rows + j)] - sum);
      worst = std::max(worst, error / (unit * size));
    }
  return worst;
}

struct Shape {
  std::int64_t rows, columns, depth;
};
// Whole blocks, ragged edges, odd depths, several chunks, one element.
constexpr Shape kShapes[] = {{8, 32, 64}, {64, 96, 512}, {13, 45, 77}, {21, 33, 1111}, {1, 1, 1}};

TEST(Products, AreTheSumsOfTheirTermsOnEveryInstructionSet) {
  for (const Isa isa : runnable_isas()) {
    const ForcedIsa forced(isa);
    for (const Shape& shape : kShapes) {
      const Matrix left = normal(shape.rows, shape.depth, 1);
      const Matrix right = normal(shape.columns, shape.depth, 2);
      EXPECT_LT(error_in_units(product(left, right, Numbers::kFloat), left, right, 0x1p-20), 1)
          << to_string(isa) << " depth " << shape.depth;
      // Two factors rounded to 8 bits.
      for (const Numbers numbers : {bf16_numbers(), Numbers::kTiles})
        EXPECT_LT(error_in_units(product(left, right, numbers), left, right, 0x1p-7), 1)
            << to_string(isa) << " depth " << shape.depth;
    }
  }
}

TEST(Products, OfTheVectorInstructionsAreTheSameBytes) {
  if (best_isa() < Isa::kAvx512) GTEST_SKIP() << "this machine has one vector path";
  for (const Shape& shape : kShapes) {
    const Matrix left = normal(shape.rows, shape.depth, 3);
    const Matrix right = normal(shape.columns, shape.depth, 4);
    std::vector<std::vector<float>> results;
    for (const Isa isa : {Isa::kAvx2, Isa::kAvx512}) {
      const ForcedIsa forced(isa);
      results.push_back(product(left, right, Numbers::kFloat));
    }
    EXPECT_TRUE(same_bytes(results[0], results[1])) << "depth " << shape.depth;
  }
}

TEST(Products, OfBFloat16AreThoseOfRoundedOperands) {
  const Matrix left = normal(19, 700, 5), right = normal(40, 700, 6);
  Matrix left_rounded = left, right_rounded = right;
  for (float& value : left_rounded.values) value = from_bf16(to_bf16(value));
  for (float& value : right_rounded.values) value = from_bf16(to_bf16(value));
  for (const Isa isa : runnable_isas()) {
    const ForcedIsa forced(isa);
    for (const Numbers numbers : {bf16_numbers(), Numbers::kTiles}) {
      const auto got = product(left, right, numbers);
      EXPECT_LT(error_in_units(got, left_rounded, right_rounded, 0x1p-20), 1) << to_string(isa);
      EXPECT_GT(error_in_units(got, left, right, 0x1p-20), 10) << "nothing was rounded";
    }
  }
}

TEST(Products, BlockByBlockAreThoseOfTheWhole) {
  const Matrix left = normal(30, 1500, 7), right = normal(70, 1500, 8);
  for (const Isa isa : runnable_isas()) {
    const ForcedIsa forced(isa);
    for (const Numbers numbers : {Numbers::kFloat, bf16_numbers(), Numbers::kTiles}) {
      const auto want = product(left, right, numbers);
      std::vector<float> got(want.size());
      for_each_block(packed(left.by_rows(), 30, 1500, left_width(numbers), numbers),
                     packed(right.by_rows(), 70, 1500, kBlockColumns, numbers),
                     [&](std::int64_t row, std::int64_t column, const float* block) {
                       for (std::int64_t i = 0; i < kBlockRows; ++i)
                         for (std::int64_t j = 0; j < kBlockColumns; ++j) {
                           const float value = block[i * kBlockColumns + j];
                           if (row + i < 30 && column + j < 70)
                             got[static_cast<std::size_t>((row + i) * 70 + column + j)] = value;
                           else
                             EXPECT_EQ(value, 0);
                         }
                     });
      EXPECT_TRUE(same_bytes(got, want)) << to_string(isa);
    }
  }
}

// What a row is among does not matter: the second look at a row finds the first one's bytes.
TEST(Products, OfARowDoNotDependOnItsNeighbours) {
  const Matrix left = normal(24, 600, 9), right = normal(64, 600, 10);
  for (const Isa isa : runnable_isas()) {
    const ForcedIsa forced(isa);
    for (const Numbers numbers : {Numbers::kFloat, bf16_numbers(), Numbers::kTiles}) {
      const auto together = product(left, right, numbers);
      for (std::int64_t row = 0; row < 24; ++row) {
        const Matrix alone{
            1, 600, {left.values.begin() + row * 600, left.values.begin() + (row + 1) * 600}};
        const auto got = product(alone, right, numbers);
        EXPECT_EQ(std::memcmp(got.data(), together.data() + row * 64, 64 * sizeof(float)), 0);
      }
    }
  }
}

TEST(Panels, FromRowsFromColumnsAndChunkByChunkAreTheSame) {
  const Matrix matrix = normal(45, 1200, 11);
  Matrix transposed{1200, 45, std::vector<float>(matrix.values.size())};
  for (std::int64_t i = 0; i < 45; ++i)
    for (std::int64_t k = 0; k < 1200; ++k)
      transposed.values[static_cast<std::size_t>(k * 45 + i)] = matrix.at(i, k);
  for (const Numbers numbers :
       {Numbers::kFloat, Numbers::kRounded, Numbers::kPairs, Numbers::kTiles})
    for (const std::int64_t width : {left_width(numbers), kBlockColumns}) {
      const Panels a = packed(matrix.by_rows(), 45, 1200, width, numbers);
      const Panels b = packed(transposed.by_columns(), 45, 1200, width, numbers);
      Panels c(45, 1200, width, numbers);
      for (std::int64_t chunk = 0; chunk < c.chunks(); ++chunk)
        c.pack_chunk({matrix.values.data() + chunk * kDepthChunk, 1200, 1}, chunk);
      const auto bytes = static_cast<std::size_t>(a.count() * a.steps() * width) * sizeof(float);
      EXPECT_EQ(std::memcmp(a.panel(0), b.panel(0), bytes), 0);
      EXPECT_EQ(std::memcmp(a.panel(0), c.panel(0), bytes), 0);
    }
}

TEST(Products, OfNumbersThatAreNotFiniteAreNotFinite) {
  for (const Isa isa : runnable_isas()) {
    const ForcedIsa forced(isa);
    for (const Numbers numbers : {Numbers::kFloat, bf16_numbers(), Numbers::kTiles})
      for (const float bad :
           {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
        Matrix left = normal(9, 50, 12);
        const Matrix right = normal(40, 50, 13);
        left.values[3 * 50 + 7] = bad;
        const auto got = product(left, right, numbers);
        for (std::int64_t i = 0; i < 9; ++i)
          for (std::int64_t j = 0; j < 40; ++j)
            EXPECT_EQ(std::isfinite(got[static_cast<std::size_t>(i * 40 + j)]), i != 3);
      }
  }
}

TEST(Scratch, IsReusedAndNeverKeepsMoreThanWasUsed) {
  const float* first = nullptr;
  {
    const Scratch a(3 << 20);
    first = a.data();
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(first) % 64, 0U);
  }
  const std::size_t idle = Scratch::idle_bytes();
  EXPECT_GE(idle, std::size_t{3 << 22});
  {
    const Scratch again(3 << 20);
    EXPECT_EQ(again.data(), first);
    const Scratch other(3 << 20);
    EXPECT_NE(other.data(), first);
  }
  // Sizes that never recur do not pile up.
  for (std::int64_t i = 1; i < 40; ++i) const Scratch odd(i << 20);
  EXPECT_LE(Scratch::idle_bytes(), std::size_t{60 << 22});
  Scratch::drop_idle();
  EXPECT_EQ(Scratch::idle_bytes(), 0U);
}

}  // namespace
}  // namespace saesweep::worker::products
