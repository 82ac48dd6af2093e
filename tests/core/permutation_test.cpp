// The keyed bijection: whole for every size, and as mixed as a permutation drawn at random.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <map>
#include <numeric>
#include <string>
#include <unordered_set>
#include <vector>

#include "core/philox.h"

namespace saesweep {
namespace {

std::vector<std::uint64_t> table_of(const Permutation& permutation) {
  std::vector<std::uint64_t> table(permutation.size());
  for (std::uint64_t i = 0; i < table.size(); ++i) table[i] = permutation(i);
  return table;
}

TEST(PermutationTest, MeetsEveryValueOnceForManySizes) {
  std::vector<std::uint64_t> sizes(300);
  std::iota(sizes.begin(), sizes.end(), 0);
  for (const std::uint64_t size :
       {1000ull, 1023ull, 1024ull, 1025ull, 4097ull, 65535ull, 65536ull, 65537ull, 200003ull})
    sizes.push_back(size);
  for (const std::uint64_t size : sizes) {
    SCOPED_TRACE(size);
    std::vector<bool> met(size);
    for (const std::uint64_t value : table_of(Permutation(size, 1, "order"))) {
      ASSERT_LT(value, size);
      ASSERT_FALSE(met[value]);
      met[value] = true;
    }
  }
}

TEST(PermutationTest, StaysInRangeAndApartWhereNoTableWouldFit) {
  for (const std::uint64_t size :
       {(std::uint64_t{1} << 40) + 1, (std::uint64_t{1} << 63) + 5, ~std::uint64_t{0}}) {
    SCOPED_TRACE(size);
    const Permutation permutation(size, 2, "order");
    std::unordered_set<std::uint64_t> met;
    for (std::uint64_t i = 0; i < 20000; ++i) {
      ASSERT_LT(permutation(i), size);
      ASSERT_LT(permutation(size - 1 - i), size);
      met.insert(permutation(i));
      met.insert(permutation(size - 1 - i));
    }
    EXPECT_EQ(met.size(), 40000u);
  }
}

TEST(PermutationDeathTest, APositionOutsideIsOurBug) {
  EXPECT_DEATH(Permutation(0, 1, "order")(0), "position 0 of 0");
  EXPECT_DEATH(Permutation(5, 1, "order")(5), "position 5 of 5");
}

TEST(PermutationTest, DependsOnSeedPurposeAndIndex) {
  const auto base = table_of(Permutation(1000, 1, "order", 0));
  EXPECT_EQ(base, table_of(Permutation(1000, 1, "order", 0)));
  EXPECT_NE(base, table_of(Permutation(1000, 2, "order", 0)));
  EXPECT_NE(base, table_of(Permutation(1000, 1, "rows", 0)));
  EXPECT_NE(base, table_of(Permutation(1000, 1, "order", 1)));
}

// In a random permutation of n the number of values left in place is close to Poisson with mean 1,
// whatever n is: over many keys its mean and variance are 1.
TEST(PermutationTest, LeavesOneValueInPlaceOnAverage) {
  for (const std::uint64_t size : {5ull, 30ull, 100ull, 1000ull, 4096ull}) {
    SCOPED_TRACE(size);
    constexpr int kKeys = 400;
    double sum = 0;
    double squares = 0;
    for (int key = 0; key < kKeys; ++key) {
      const auto table = table_of(Permutation(size, static_cast<std::uint64_t>(key), "fixed"));
      double fixed = 0;
      for (std::uint64_t i = 0; i < size; ++i) fixed += table[i] == i ? 1 : 0;
      sum += fixed;
      squares += fixed * fixed;
    }
    const double mean = sum / kKeys;
    EXPECT_NEAR(mean, 1, 5 / std::sqrt(double{kKeys}));
    // The variance of a Poisson's sample variance is about 3/n.
    EXPECT_NEAR(squares / kKeys - mean * mean, 1, 5 * std::sqrt(3.0 / kKeys));
  }
}

// |i - p(i)| of a random permutation of n has mean (n^2 - 1) / 3n and, summed, variance close to
// 2 n^3 / 45 (Spearman's footrule; source: Diaconis and Graham, 1977).
TEST(PermutationTest, MovesValuesAsFarAsARandomOneDoes) {
  for (const std::uint64_t size : {1000ull, 65537ull, 131072ull}) {
    const double n = static_cast<double>(size);
    for (std::uint64_t key = 0; key < 4; ++key) {
      SCOPED_TRACE(std::to_string(size) + " key " + std::to_string(key));
      const auto table = table_of(Permutation(size, key, "displacement"));
      double footrule = 0;
      for (std::uint64_t i = 0; i < size; ++i)
        footrule += std::abs(static_cast<double>(table[i]) - static_cast<double>(i));
      EXPECT_NEAR(footrule, (n * n - 1) / 3, 5 * std::sqrt(2 * n * n * n / 45));
    }
  }
}

// Correlation of p(i) with i, and with p(i + lag), deviates from 0 by about 1/sqrt(n).
TEST(PermutationTest, NeighboursAreNotCorrelatedAtAnyLag) {
  for (const std::uint64_t size : {1000ull, 65537ull, 131072ull}) {
    const double n = static_cast<double>(size);
    const double centre = (n - 1) / 2;
    const double variance = (n * n - 1) / 12;
    const auto table = table_of(Permutation(size, 11, "correlation"));
    const auto deviation = [&](std::uint64_t i) {
      return static_cast<double>(table[i % size]) - centre;
    };
    double with_position = 0;
    for (std::uint64_t i = 0; i < size; ++i)
      with_position += (static_cast<double>(i) - centre) * deviation(i);
    EXPECT_LT(std::abs(with_position / n / variance), 5 / std::sqrt(n)) << size;
    for (const std::uint64_t lag : {1ull, 2ull, 3ull, 16ull, 256ull}) {
      double sum = 0;
      for (std::uint64_t i = 0; i < size; ++i) sum += deviation(i) * deviation(i + lag);
      EXPECT_LT(std::abs(sum / n / variance), 5 / std::sqrt(n)) << size << " lag " << lag;
    }
  }
}

// What a shuffle is for: the first block of positions draws evenly from all of the range.
TEST(PermutationTest, ABlockOfPositionsDrawsEvenlyFromTheWholeRange) {
  constexpr std::uint64_t kSize = 1 << 18;
  const Permutation permutation(kSize, 12, "blocks");
  std::vector<double> cells(64);
  constexpr std::uint64_t kBlock = 1 << 12;
  for (std::uint64_t i = 0; i < kBlock; ++i) ++cells[permutation(i) / (kSize / cells.size())];
  double chi_square = 0;
  constexpr double kExpected = double{kBlock} / 64;
  for (const double count : cells)
    chi_square += (count - kExpected) * (count - kExpected) / kExpected;
  EXPECT_LT(chi_square, 63 + 5 * std::sqrt(2.0 * 63));
}

// The smallest sizes have the fewest bits to mix: all orders of three come equally often.
TEST(PermutationTest, EveryOrderOfThreeIsEquallyLikely) {
  std::map<std::vector<std::uint64_t>, double> seen;
  constexpr int kKeys = 6000;
  for (std::uint64_t key = 0; key < kKeys; ++key)
    seen[table_of(Permutation(3, key, "orders"))] += 1;
  ASSERT_EQ(seen.size(), 6u);
  double chi_square = 0;
  for (const auto& [order, count] : seen) chi_square += (count - 1000) * (count - 1000) / 1000;
  EXPECT_LT(chi_square, 5 + 5 * std::sqrt(2.0 * 5));
}

TEST(PermutationTest, KeepsTheOrderOfTheFirstVersion) {
  EXPECT_EQ(table_of(Permutation(10, 0, "golden")),
            (std::vector<std::uint64_t>{9, 2, 6, 7, 3, 0, 1, 8, 4, 5}));
}

}  // namespace
}  // namespace saesweep
