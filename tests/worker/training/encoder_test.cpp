// A filter of rough products leaves nothing out: against the dot product of every row with every
// latent, for whatever filter, with numbers made to mislead it.
#include "worker/training/encoder.h"

#include <cmath>
#include <functional>
#include <limits>
#include <tuple>

#include "tests/worker/training/trainers.h"
#include "worker/products/isa.h"
#include "worker/training/kernels.h"
#include "worker/training/selection.h"

namespace saesweep::worker::test {
namespace {

using products::Isa;
using products::Numbers;

constexpr std::int64_t kInputs = 77, kLatents = 70, kRows = 41;

using Found = std::vector<std::tuple<std::int32_t, std::int32_t, float>>;  // row, latent, value

std::vector<Numbers> filters() {
  std::vector<Numbers> all{Numbers::kFloat, Numbers::kTiles};
  if (products::current_isa() >= Isa::kAvx512Bf16) all.push_back(Numbers::kPairs);
  return all;
}

struct EncoderTest : testing::Test {
  ThreadPool pool{2};
  at::Tensor x = normal_tensor({kRows, kInputs}, 1);
  at::Tensor w_enc = normal_tensor({kLatents, kInputs}, 2);
  at::Tensor bias = normal_tensor({kLatents}, 3);

  // What is above the threshold, and whether all of it is finite.
  std::pair<Found, bool> filtered(Numbers numbers, const std::vector<float>& thresholds) {
    const Above above =
        collect_above(pack_filter(pool, w_enc.const_data_ptr<float>(), bias.const_data_ptr<float>(),
                                  kLatents, kInputs, numbers),
                      x.const_data_ptr<float>(), thresholds, 0);
    Found found;
    for (const products::Hit& hit : above.hits) found.emplace_back(hit.row, hit.latent, hit.value);
    std::ranges::sort(found);
    return {found, above.finite};
  }
  float value(std::int64_t row, std::int64_t latent) const {
    return kernels::dot(x.const_data_ptr<float>() + row * kInputs,
                        w_enc.const_data_ptr<float>() + latent * kInputs, kInputs) +
           bias.const_data_ptr<float>()[latent];
  }
  std::pair<Found, bool> everything(const std::vector<float>& thresholds) const {
    Found found;
    bool finite = true;
    for (std::int32_t row = 0; row < kRows; ++row)
      for (std::int32_t latent = 0; latent < kLatents; ++latent) {
        const float z = value(row, latent);
        if (z <= thresholds[static_cast<std::size_t>(row)]) continue;
        if (std::isfinite(z))
          found.emplace_back(row, latent, z);
        else
          finite = false;
      }
    return {found, finite};
  }
  void expect_all_found(const std::vector<float>& thresholds) {
    const auto want = everything(thresholds);
    for (const Isa isa : products::runnable_isas()) {
      const products::ForcedIsa forced(isa);
      for (const Numbers numbers : filters())
        EXPECT_TRUE(filtered(numbers, thresholds) == want)
            << to_string(isa) << " filter " << static_cast<int>(numbers);
    }
  }
};

TEST_F(EncoderTest, FindsWhatIsAboveEveryThreshold) {
  for (const float threshold : {-30.0F, 0.0F, 4.0F, 12.0F, 1e9F})
    expect_all_found(std::vector<float>(kRows, threshold));
}

// Each row's threshold is one of its own values, or a hair less.
TEST_F(EncoderTest, DecidesByTheValueAndNotByTheFilter) {
  for (const std::int64_t latent : {0, 33, 69}) {
    std::vector<float> at(kRows), below(kRows);
    for (std::int64_t row = 0; row < kRows; ++row) {
      const auto i = static_cast<std::size_t>(row);
      at[i] = value(row, latent);
      below[i] = std::nextafter(at[i], -1e9F);
    }
    expect_all_found(at);
    expect_all_found(below);
    EXPECT_EQ(everything(below).first.size(), everything(at).first.size() + kRows);
  }
}

// All roundings to bf16 go the same way: the product is 0.8 percent too low, or too high for the
// neighbour that the threshold leaves out.
TEST_F(EncoderTest, AllowsForRoundingsThatAddUp) {
  for (const float number : {1 + 0x1p-8F, 1 + 0x1.8p-7F, 1 + 0x1.01p-8F}) {
    x.fill_(number);
    w_enc.fill_(number);
    bias.zero_();
    const float z = value(0, 0);
    expect_all_found(std::vector<float>(kRows, std::nextafter(z, 0.0F)));
    expect_all_found(std::vector<float>(kRows, z));
    EXPECT_EQ(everything(std::vector<float>(kRows, std::nextafter(z, 0.0F))).first.size(),
              kRows * kLatents);
  }
}

TEST_F(EncoderTest, AllowsForBiasesThatDwarfTheProduct) {
  bias.fill_(1e7);
  bias.narrow(0, 0, 20).fill_(-1e7);
  for (const std::int64_t latent : {5, 50}) {
    std::vector<float> below(kRows);
    for (std::int64_t row = 0; row < kRows; ++row)
      below[static_cast<std::size_t>(row)] = std::nextafter(value(row, latent), -1e9F);
    expect_all_found(below);
  }
}

TEST_F(EncoderTest, LooksAtNumbersBeyondTheRangeOfItsProducts) {
  const float most = std::numeric_limits<float>::max();
  const auto thresholds = std::vector<float>(kRows, 2.0F);
  const at::Tensor plain_x = x.clone(), plain_w = w_enc.clone();
  // In bf16 infinite; products that overflow on one side; subnormal weights and rows.
  const std::vector<std::function<void()>> spoils = {
      [&] { w_enc[3].fill_(most); },
      [&] { w_enc[3][5] = most, x[7][5] = -1.0, x[8][5] = 0.0; },
      [&] { x[7].fill_(1e20), w_enc[9].fill_(1e20); },
      [&] { x[7].fill_(1e-40), w_enc[9].fill_(1e-40); },
      [&] { x.mul_(1e-39), w_enc.mul_(1e-3), bias.fill_(2.0); },
      [&] { x[0][0] = std::numeric_limits<float>::infinity(); },
      [&] { w_enc[69][76] = -std::numeric_limits<float>::infinity(); },
      [&] { x[40][76] = std::numeric_limits<float>::quiet_NaN(); },
      [&] { w_enc[1] = std::numeric_limits<float>::quiet_NaN(); },
  };
  for (const auto& spoil : spoils) {
    x.copy_(plain_x);
    w_enc.copy_(plain_w);
    spoil();
    expect_all_found(thresholds);
  }
}

// Which filter a machine has changes no byte of what is selected.
TEST_F(EncoderTest, SelectsTheSameOnEveryMachineWithFma) {
  std::vector<SparseCodes> selected;
  for (const Isa isa : products::runnable_isas()) {
    const products::ForcedIsa forced(isa);
    for (const Numbers numbers : filters()) {
      const auto encoder = pack_filter(pool, w_enc.const_data_ptr<float>(),
                                       bias.const_data_ptr<float>(), kLatents, kInputs, numbers);
      const CentredRows rows{x.const_data_ptr<float>(), kRows, kInputs, 16};
      for (const float guess : {0.0F, 0.8F, 50.0F}) {
        SelectionHints hints{.of_norm = guess, .of_batch = guess};
        SparseCodes of_rows, of_batch;
        EXPECT_TRUE(select_per_row(pool, rows, encoder, 4, hints, of_rows));
        EXPECT_TRUE(select_per_batch(pool, rows, encoder, 4 * kRows, hints, of_batch));
        selected.push_back(std::move(of_rows));
        selected.push_back(std::move(of_batch));
      }
    }
  }
  const auto same = [](const SparseCodes& a, const SparseCodes& b) {
    return a.row_begin == b.row_begin &&
           std::ranges::equal(a.entries, b.entries, [](const auto& one, const auto& other) {
             return one.latent == other.latent && one.value == other.value;
           });
  };
  for (std::size_t i = 2; i < selected.size(); ++i)
    EXPECT_TRUE(same(selected[i], selected[i % 2])) << i;
  EXPECT_EQ(selected[0].entries.size(), std::size_t{4 * kRows});
}

}  // namespace
}  // namespace saesweep::worker::test
