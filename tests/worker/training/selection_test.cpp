// Which activations are kept: against the whole matrix sorted, whatever the threshold was guessed
// to be and whatever computes the product.
#include "worker/training/selection.h"

#include <algorithm>
#include <limits>
#include <tuple>

#include "tests/worker/training/trainers.h"
#include "worker/products/isa.h"

namespace saesweep::worker::test {
namespace {

using products::Isa;
using products::Numbers;

constexpr std::int64_t kInputs = 70, kLatents = 150, kRows = 300, kTile = 64;

using Kept = std::vector<std::tuple<std::int64_t, std::int32_t, float>>;  // row, latent, value

Kept kept(const SparseCodes& codes) {
  Kept list;
  for (std::int64_t row = 0; row < codes.rows(); ++row)
    for (std::int64_t at = codes.begin(row); at < codes.end(row); ++at) {
      const auto& code = codes.entries[static_cast<std::size_t>(at)];
      list.emplace_back(row, code.latent, code.value);
    }
  return list;
}

struct SelectionTest : testing::Test {
  ThreadPool pool{2};
  at::Tensor x = normal_tensor({kRows, kInputs}, 1);
  at::Tensor w_enc = normal_tensor({kLatents, kInputs}, 2);
  at::Tensor bias = normal_tensor({kLatents}, 3);

  PackedEncoder encoder(Numbers numbers = Numbers::kFloat, const float* floors = nullptr) {
    return pack_encoder(pool, w_enc.const_data_ptr<float>(), bias.const_data_ptr<float>(), floors,
                        kLatents, kInputs, numbers);
  }
  CentredRows rows() const { return {x.const_data_ptr<float>(), kRows, kInputs, kTile}; }

  // All positive entries, then the best of each row or of all, by value, row, latent.
  Kept best(std::size_t wanted, bool per_row, Numbers numbers = Numbers::kFloat) {
    SparseCodes codes;
    select_above(pool, rows(), encoder(numbers), 0, codes);
    Kept all = kept(codes), chosen;
    const auto better = [](const auto& a, const auto& b) {
      if (std::get<2>(a) != std::get<2>(b)) return std::get<2>(a) > std::get<2>(b);
      return std::tie(std::get<0>(a), std::get<1>(a)) < std::tie(std::get<0>(b), std::get<1>(b));
    };
    if (per_row)
      std::ranges::stable_sort(all, [&](const auto& a, const auto& b) {
        return std::get<0>(a) != std::get<0>(b) ? std::get<0>(a) < std::get<0>(b) : better(a, b);
      });
    else
      std::ranges::sort(all, better);
    std::vector<std::size_t> of_row(kRows, 0);
    for (const auto& entry : all) {
      std::size_t& taken = of_row[per_row ? static_cast<std::size_t>(std::get<0>(entry)) : 0];
      if (taken++ < wanted) chosen.push_back(entry);
    }
    std::ranges::sort(chosen);
    return chosen;
  }
};

TEST_F(SelectionTest, SeesTheProductsThatAreAboveTheThreshold) {
  const at::Tensor want = at::addmm(bias, x, w_enc.t());
  for (const Isa isa : products::runnable_isas()) {
    const products::ForcedIsa forced(isa);
    for (const float threshold : {0.0F, 9.5F, 1e9F}) {
      SparseCodes codes;
      EXPECT_TRUE(select_above(pool, rows(), encoder(), threshold, codes));
      at::Tensor got = at::zeros_like(want);
      for (const auto& [row, latent, value] : kept(codes)) {
        EXPECT_GT(value, threshold);
        got[row][latent] = value;
      }
      EXPECT_LT(relative_distance(got, want * want.gt(threshold)), 1e-5) << to_string(isa);
    }
  }
}

TEST_F(SelectionTest, SeesWhatIsAboveTheFloorOfItsLatent) {
  const at::Tensor floors = normal_tensor({kLatents}, 4) * 5;
  const at::Tensor want = at::addmm(bias, x, w_enc.t());
  for (const Isa isa : products::runnable_isas()) {
    const products::ForcedIsa forced(isa);
    SparseCodes codes;
    EXPECT_TRUE(select_above(pool, rows(), encoder(Numbers::kFloat, floors.const_data_ptr<float>()),
                             0, codes));
    at::Tensor got = at::zeros_like(want);
    for (const auto& [row, latent, value] : kept(codes)) {
      EXPECT_GT(value, floors[latent].item<float>());
      got[row][latent] = value;
    }
    EXPECT_LT(relative_distance(got, want * want.gt(floors)), 1e-5) << to_string(isa);
  }
}

TEST_F(SelectionTest, OfRowsIsTheSameWhateverWasGuessed) {
  for (const Isa isa : products::runnable_isas()) {
    const products::ForcedIsa forced(isa);
    for (const Numbers numbers : {Numbers::kFloat, products::bf16_numbers(), Numbers::kTiles})
      for (const std::int64_t k : {1, 7, 40, 150}) {
        const Kept want = best(static_cast<std::size_t>(k), true, numbers);
        // Unknown, low, about right, too high for some rows, too high for all.
        for (const float guess : {0.0F, 0.1F, 1.0F, 1.7F, 100.0F}) {
          SelectionHints hints{.of_norm = guess};
          SparseCodes codes;
          EXPECT_TRUE(select_per_row(pool, rows(), encoder(numbers), k, hints, codes));
          EXPECT_TRUE(kept(codes) == want) << to_string(isa) << " k " << k << " guess " << guess;
          if (k < 40) EXPECT_GT(hints.of_norm, 0);  // known for the next batch
        }
      }
  }
}

TEST_F(SelectionTest, OfTheBatchIsTheSameWhateverWasGuessed) {
  for (const Isa isa : products::runnable_isas()) {
    const products::ForcedIsa forced(isa);
    for (const Numbers numbers : {Numbers::kFloat, products::bf16_numbers(), Numbers::kTiles})
      for (const std::size_t wanted : {1, 3000, 9000, 1'000'000}) {
        const Kept want = best(wanted, false, numbers);
        for (const float guess : {0.0F, 1.0F, 10.0F, 1e9F}) {
          SelectionHints hints{.of_batch = guess};
          SparseCodes codes;
          EXPECT_TRUE(select_per_batch(pool, rows(), encoder(numbers), wanted, hints, codes));
          EXPECT_TRUE(kept(codes) == want) << to_string(isa) << " " << wanted << " " << guess;
        }
      }
  }
}

TEST_F(SelectionTest, OfRowsDoesNotDependOnTilesOrThreads) {
  SelectionHints hints;
  SparseCodes want;
  select_per_row(pool, rows(), encoder(), 7, hints, want);
  ThreadPool one(1);
  for (const std::int64_t tile : {1, 17, 256, 1000}) {
    CentredRows other = rows();
    other.rows_per_tile = tile;
    SelectionHints none;
    SparseCodes codes;
    select_per_row(one, other, encoder(), 7, none, codes);
    EXPECT_TRUE(kept(codes) == kept(want)) << tile;
  }
}

TEST_F(SelectionTest, GivesTiesToTheFirstRowAndTheLowestLatent) {
  w_enc.zero_();
  bias.fill_(0.5);
  SelectionHints hints;
  SparseCodes codes;
  ASSERT_TRUE(select_per_row(pool, rows(), encoder(), 3, hints, codes));
  ASSERT_EQ(codes.entries.size(), std::size_t{3 * kRows});
  for (std::size_t i = 0; i < codes.entries.size(); ++i)
    ASSERT_EQ(codes.entries[i].latent, static_cast<std::int32_t>(i % 3));
  ASSERT_TRUE(select_per_batch(pool, rows(), encoder(), kLatents + 2, hints, codes));
  EXPECT_EQ(codes.end(0), kLatents);
  EXPECT_EQ(codes.end(1), kLatents + 2);
  EXPECT_EQ(codes.end(kRows - 1), kLatents + 2);
}

TEST_F(SelectionTest, ReportsWhatIsNotFinite) {
  for (const Isa isa : products::runnable_isas()) {
    const products::ForcedIsa forced(isa);
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      at::Tensor poisoned = x.clone();
      poisoned[77][5] = bad;
      const CentredRows of{poisoned.const_data_ptr<float>(), kRows, kInputs, kTile};
      for (const float guess : {0.0F, 1.0F, 50.0F}) {
        SelectionHints hints{.of_norm = guess, .of_batch = guess};
        SparseCodes codes;
        EXPECT_FALSE(select_per_row(pool, of, encoder(), 5, hints, codes)) << to_string(isa);
        EXPECT_FALSE(select_per_batch(pool, of, encoder(), 1500, hints, codes)) << to_string(isa);
        for (const auto& code : codes.entries) EXPECT_TRUE(std::isfinite(code.value));
      }
    }
  }
}

}  // namespace
}  // namespace saesweep::worker::test
