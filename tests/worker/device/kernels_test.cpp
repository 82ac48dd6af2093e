// Kernels against plain loops, on what is hard for them: ties, values that are not finite, rows
// without a positive value, sizes that divide nothing.
#include "tests/worker/device/kernels.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <vector>

#include "core/philox.h"

namespace saesweep::worker::device {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

class Selections : public Kernels {
 protected:
  struct Code {
    std::int32_t latent;
    float value;
    bool operator==(const Code&) const = default;
  };
  std::vector<std::vector<Code>> read(const CodeLists& codes, std::int64_t rows,
                                      std::int64_t entries) {
    const auto begin = get(codes.begin, static_cast<std::size_t>(rows));
    const auto count = get(codes.count, static_cast<std::size_t>(rows));
    const auto latent = get(codes.latent, static_cast<std::size_t>(entries));
    const auto value = get(codes.value, static_cast<std::size_t>(entries));
    std::vector<std::vector<Code>> all(static_cast<std::size_t>(rows));
    for (std::size_t row = 0; row < all.size(); ++row)
      for (std::int32_t i = 0; i < count[row]; ++i) {
        const auto at = static_cast<std::size_t>(begin[row] + i);
        EXPECT_LT(at, latent.size());
        all[row].push_back({latent[at], value[at]});
      }
    return all;
  }
};

struct Matrix {
  std::int64_t rows, width;
  std::vector<float> z, bias;
  float at(std::int64_t row, std::int64_t i) const {
    return z[static_cast<std::size_t>(row * width + i)] + bias[static_cast<std::size_t>(i)];
  }
};

// Of all kinds by turns: few distinct values, all equal, nothing positive, not finite, normal.
Matrix hard_rows(std::int64_t rows, std::int64_t width, std::uint64_t seed) {
  Matrix made{rows, width, {}, std::vector<float>(static_cast<std::size_t>(width), 0)};
  Rng rng(seed, "test.rows");
  for (std::int64_t row = 0; row < rows; ++row)
    for (std::int64_t i = 0; i < width; ++i) {
      const double normal = rng.normal();
      switch (row % 7) {
        case 0:
          made.z.push_back(static_cast<float>(std::floor(3 * normal)));
          break;
        case 1:
          made.z.push_back(2.5F);
          break;
        case 2:
          made.z.push_back(static_cast<float>(-std::abs(normal)));
          break;
        case 3:
          made.z.push_back(i % 5 == 0 ? kNan : i % 7 == 0 ? kInfinity : static_cast<float>(normal));
          break;
        case 4:  // differ in the last bits alone, or are denormal
          made.z.push_back(i % 2 == 0 ? 1.0F + static_cast<float>(i % 3) * 1.1920929e-7F
                                      : 1e-42F * static_cast<float>(i % 4));
          break;
        default:
          made.z.push_back(static_cast<float>(normal));
      }
    }
  return made;
}

struct Choice {
  std::int64_t row;
  std::int32_t latent;
  float value;
};
// The `wanted` largest positive ones in order of rows and latents; ties to the first.
std::vector<Choice> largest(const Matrix& from, std::int64_t first_row, std::int64_t end_row,
                            std::size_t wanted) {
  std::vector<Choice> all;
  for (std::int64_t row = first_row; row < end_row; ++row)
    for (std::int64_t i = 0; i < from.width; ++i)
      if (from.at(row, i) > 0) all.push_back({row, static_cast<std::int32_t>(i), from.at(row, i)});
  std::ranges::stable_sort(all, std::greater{}, &Choice::value);
  if (all.size() > wanted) all.resize(wanted);
  std::ranges::sort(all, {}, [](const Choice& one) { return std::pair(one.row, one.latent); });
  return all;
}

TEST_F(Selections, TheLargestOfEachRow) {
  for (const std::int64_t width : {1, 7, 256, 1000, 33000})
    for (const std::int64_t k : {0, 1, 5, 300, 40000}) {
      if (k > width) continue;
      const Matrix from = hard_rows(14, width, static_cast<std::uint64_t>(width));
      const CodeLists codes = lists(from.rows, from.rows * std::max<std::int64_t>(1, k));
      float* smallest = room<float>(14);
      auto* fired = zeros<std::uint8_t>(static_cast<std::size_t>(width));
      auto* not_finite = zeros<std::uint32_t>(1);
      ASSERT_TRUE(device_->launch(SelectRow{{put(from.z), put(from.bias), width, nullptr, 0},
                                            k,
                                            k,
                                            nullptr,
                                            codes,
                                            smallest,
                                            fired,
                                            not_finite},
                                  from.rows));
      const auto found = read(codes, from.rows, from.rows * std::max<std::int64_t>(1, k));
      const auto least = get(smallest, 14);
      const auto active = get(fired, static_cast<std::size_t>(width));
      std::vector<std::uint8_t> expected_active(active.size(), 0);
      for (std::int64_t row = 0; row < from.rows; ++row) {
        std::vector<Code> expected;
        float expected_least = kInfinity;
        for (const Choice& one : largest(from, row, row + 1, static_cast<std::size_t>(k))) {
          expected.push_back({one.latent, one.value});
          expected_least = std::min(expected_least, one.value);
          expected_active[static_cast<std::size_t>(one.latent)] = 1;
        }
        EXPECT_TRUE(found[static_cast<std::size_t>(row)] == expected)
            << "row " << row << " of width " << width << ", k " << k;
        EXPECT_EQ(least[static_cast<std::size_t>(row)], expected_least);
      }
      EXPECT_EQ(active, expected_active);
      EXPECT_EQ(get(not_finite, 1)[0], 1U);  // rows 3 and 10 have some
    }
}

TEST_F(Selections, TheLargestOfTheSilent) {
  const Matrix from = hard_rows(14, 500, 9);
  std::vector<std::int64_t> silence(500);
  Matrix masked = from;
  std::uint32_t dead = 0;
  for (std::size_t i = 0; i < silence.size(); ++i) {
    silence[i] = static_cast<std::int64_t>(i % 3) * 50;
    if (silence[i] >= 100)
      ++dead;
    else
      for (std::int64_t row = 0; row < 14; ++row)
        masked.z[static_cast<std::size_t>(row * 500) + i] = -1;
  }
  for (const std::uint32_t most : {0U, 3U, dead}) {
    const CodeLists codes = lists(14, 14 * 40);
    ASSERT_TRUE(device_->launch(SelectRow{{put(from.z), put(from.bias), 500, put(silence), 100},
                                          40,
                                          40,
                                          put(std::vector<std::uint32_t>{most}),
                                          codes,
                                          room<float>(14),
                                          nullptr,
                                          nullptr},
                                14));
    const auto found = read(codes, 14, 14 * 40);
    for (std::int64_t row = 0; row < 14; ++row) {
      std::vector<Code> expected;
      for (const Choice& one : largest(masked, row, row + 1, std::min<std::size_t>(40, most)))
        expected.push_back({one.latent, one.value});
      EXPECT_TRUE(found[static_cast<std::size_t>(row)] == expected) << row << " of " << most;
    }
  }
}

TEST_F(Selections, TheLargestOfABatch) {
  for (const std::int64_t rows : {1, 7, 300})
    for (const std::int64_t wanted : {0, 1, 11, 500, 20000, 1000000}) {
      const std::int64_t width = 77;
      const Matrix from = hard_rows(rows, width, static_cast<std::uint64_t>(rows));
      const Candidates all{put(from.z), put(from.bias), width, nullptr, 0};
      const auto count = static_cast<std::size_t>(rows);
      const CodeLists codes = lists(rows, std::max<std::int64_t>(1, wanted));
      auto* cut = room<Cut>(1);
      auto* histogram = room<std::uint32_t>(Radix::kBins);
      auto* above = room<std::uint32_t>(count);
      auto* equal = room<std::uint32_t>(count);
      auto* not_finite = zeros<std::uint32_t>(1);
      float* smallest = room<float>(count);
      ASSERT_TRUE(device_->launch(BeginCut{cut, histogram, static_cast<std::uint64_t>(wanted)}, 1));
      for (std::int32_t look = 0; look < Radix::kLooks; ++look) {
        ASSERT_TRUE(device_->launch(CountBins{all, rows, cut, histogram, not_finite, look},
                                    (rows + CountBins::kRows - 1) / CountBins::kRows));
        ASSERT_TRUE(device_->launch(NarrowCut{cut, histogram, look}, 1));
      }
      ASSERT_TRUE(device_->launch(CountKept{all, cut, above, equal}, rows));
      ASSERT_TRUE(device_->launch(PlaceRows{rows, cut, above, equal, codes.begin}, 1));
      ASSERT_TRUE(device_->launch(
          WriteKept{all, cut, equal, codes, smallest, zeros<std::uint8_t>(77)}, rows));
      const auto found = read(codes, rows, std::max<std::int64_t>(1, wanted));
      std::vector<std::vector<Code>> expected(count);
      for (const Choice& one : largest(from, 0, rows, static_cast<std::size_t>(wanted)))
        expected[static_cast<std::size_t>(one.row)].push_back({one.latent, one.value});
      EXPECT_TRUE(found == expected) << wanted << " of " << rows << " rows";
      EXPECT_EQ(get(not_finite, 1)[0], rows > 3 ? 1U : 0U);
    }
}

TEST_F(Kernels, GradientsOfTheLatentsThatRowsTouch) {
  const std::int64_t rows = 70, latents = 300, d = 9, k = 6;
  // A latent of every row, some of none.
  std::vector<std::int32_t> latent, count;
  std::vector<std::int64_t> begin;
  std::vector<float> value, pull, g, read_rows;
  Rng rng(3, "test.codes");
  for (std::int64_t row = 0; row < rows; ++row) {
    begin.push_back(row * k);
    count.push_back(static_cast<std::int32_t>(row % (k + 1)));
    for (std::int64_t i = 0; i < k; ++i) {
      latent.push_back(static_cast<std::int32_t>(i == 0 ? 5 : 10 + 40 * i + row % 40));
      value.push_back(static_cast<float>(rng.normal()));
      pull.push_back(static_cast<float>(rng.normal()));
    }
    for (std::int64_t j = 0; j < d; ++j) {
      g.push_back(static_cast<float>(rng.normal()));
      read_rows.push_back(static_cast<float>(rng.normal()));
    }
  }
  const CodeLists codes{put(begin), put(count), put(latent), put(value), put(pull)};
  const TouchLists touches{room<std::uint32_t>(static_cast<std::size_t>(words_of(rows) * 300)),
                           room<std::int64_t>(301), room<Touch>(420), latents};
  float *w_enc = room<float>(2700), *b_enc = room<float>(300), *w_dec = room<float>(2700);
  std::vector<double> enc(2700, 0), bias(300, 0), dec(2700, 0);
  for (const bool add : {false, true}) {
    ASSERT_TRUE(device_->launch(ClearBits{touches, nullptr}, words_of(rows)));
    ASSERT_TRUE(device_->launch(SetBits{codes, touches}, rows));
    ASSERT_TRUE(device_->launch(CountTouches{touches, words_of(rows), nullptr}, 2));
    ASSERT_TRUE(device_->launch(PlaceLatents{touches, nullptr}, 1));
    ASSERT_TRUE(device_->launch(WriteTouches{codes, touches}, rows));
    ASSERT_TRUE(device_->launch(GatherGradients{touches, put(g), put(read_rows), d, d, 1, nullptr,
                                                w_enc, b_enc, w_dec, add, nullptr},
                                latents));
    for (std::size_t row = 0; row < 70; ++row)
      for (std::size_t i = 0; i < static_cast<std::size_t>(count[row]); ++i) {
        const std::size_t at = row * 6 + i;
        const auto one = static_cast<std::size_t>(latent[at]);
        bias[one] += pull[at];
        for (std::size_t j = 0; j < 9; ++j) {
          dec[one * 9 + j] += static_cast<double>(value[at]) * g[row * 9 + j];
          enc[one * 9 + j] += static_cast<double>(pull[at]) * read_rows[row * 9 + j];
        }
      }
    const auto found_enc = get(w_enc, 2700), found_dec = get(w_dec, 2700);
    const auto found_bias = get(b_enc, 300);
    for (std::size_t i = 0; i < 2700; ++i) {
      EXPECT_NEAR(found_enc[i], enc[i], 1e-4);
      EXPECT_NEAR(found_dec[i], dec[i], 1e-4);
    }
    for (std::size_t i = 0; i < 300; ++i) EXPECT_NEAR(found_bias[i], bias[i], 1e-4);
    // Of each latent in order of rows, so that sums are always the same.
    const auto places = get(touches.begin, 301);
    const auto all = get(touches.touches, static_cast<std::size_t>(places[300]));
    EXPECT_EQ(places[300], std::accumulate(count.begin(), count.end(), std::int64_t{0}));
    for (std::size_t i = 0; i < 300; ++i)
      for (auto at = static_cast<std::size_t>(places[i]);
           at + 1 < static_cast<std::size_t>(places[i + 1]); ++at)
        EXPECT_LT(all[at].row, all[at + 1].row);
  }
}

TEST_F(Kernels, ValuesAreRounded) {
  std::vector<float> values;
  Rng rng(1, "test.bf16");
  while (values.size() < 5000) values.push_back(static_cast<float>(rng.normal()));
  auto* rounded = room<std::uint16_t>(values.size());
  ASSERT_TRUE(device_->launch(
      RoundValues{put(values), rounded, static_cast<std::int64_t>(values.size())}, 2));
  const auto found = get(rounded, values.size());
  for (std::size_t i = 0; i < values.size(); ++i) EXPECT_EQ(found[i], bfloat16_bits(values[i]));
}

TEST_F(Kernels, VarianceOfRows) {
  const std::int64_t rows = 600, columns = 300;
  std::vector<float> matrix;
  Rng rng(7, "test.rows");
  for (std::int64_t i = 0; i < rows * columns; ++i)
    matrix.push_back(static_cast<float>(5 + rng.normal()));
  const float* x = put(matrix);
  const std::int64_t chunks = (rows + SumColumns::kRows - 1) / SumColumns::kRows;
  auto* partial = room<double>(static_cast<std::size_t>(chunks * columns));
  auto* sums = room<double>(300);
  auto* squares = room<double>(600);
  auto* out = room<double>(1);
  ASSERT_TRUE(
      device_->launch(SumColumns{x, nullptr, rows, columns, columns, partial},
                      chunks * ((columns + SumColumns::kThreads - 1) / SumColumns::kThreads)));
  ASSERT_TRUE(device_->launch(FoldColumns{partial, chunks, columns, sums}, 2));
  ASSERT_TRUE(device_->launch(SquareRow{x, columns, columns, squares}, rows));
  ASSERT_TRUE(device_->launch(Variance{sums, squares, rows, columns, out}, 1));
  double expected = 0;
  for (std::size_t j = 0; j < 300; ++j) {
    double mean = 0;
    for (std::size_t row = 0; row < 600; ++row) mean += matrix[row * 300 + j] / 600.0;
    for (std::size_t row = 0; row < 600; ++row)
      expected += (matrix[row * 300 + j] - mean) * (matrix[row * 300 + j] - mean);
  }
  EXPECT_NEAR(get(out, 1)[0], expected, 1e-6 * expected);
}

TEST_F(Kernels, MoreMemoryThanThereIsIsSaidAndForgotten) {
  Memory memory;
  const auto reserved = memory.reserve(*device_, std::size_t{1} << 40);
  ASSERT_FALSE(reserved);
  EXPECT_EQ(reserved.error().code, ErrorCode::kResourceExhausted);
  EXPECT_FALSE(device_->is_broken());
  EXPECT_TRUE(memory.reserve(*device_, 16));
}

// Who asks for less would meet the same device again.
TEST_F(Kernels, AFailedDeviceIsNotOutOfMemory) {
  Memory memory;
  call("saesweep_emulate_failure", true);
  const auto reserved = memory.reserve(*device_, 16);
  call("saesweep_emulate_failure", false);
  ASSERT_FALSE(reserved);
  EXPECT_EQ(reserved.error().code, ErrorCode::kUnavailable);
  EXPECT_TRUE(device_->is_broken());
}

// On a GPU it would have to wait for what is not being done.
TEST_F(Kernels, MemoryThatGoesWhileWorkIsNotedSpoilsTheNotes) {
  auto* flag = room<std::uint32_t>(1);
  const auto clear = [&] { return device_->clear(flag, sizeof *flag); };
  EXPECT_TRUE(device_->note(clear));
  EXPECT_FALSE(device_->note([&] {
    memories_.clear();
    return clear();
  }));
}

TEST(Module, WhatIsNoModuleIsRefused) {
  EXPECT_EQ(load_module("/nowhere/libsaesweep_cuda.so").error().code, ErrorCode::kNotFound);
  EXPECT_EQ(load_module("/proc/self/exe").error().code, ErrorCode::kUnavailable);
}

}  // namespace
}  // namespace saesweep::worker::device
