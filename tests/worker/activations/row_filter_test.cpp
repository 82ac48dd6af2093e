#include "worker/activations/row_filter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <vector>

#include "core/files.h"
#include "tests/support/temp_dir.h"
#include "tests/worker/activations/synthetic_stream.h"
#include "tests/worker/small_model.h"
#include "worker/activations/cached_stream.h"
#include "worker/tensor_bytes.h"

namespace saesweep::worker {
namespace {

using test::lively_model;
using test::small_config;
using test::small_games;
using testing::ElementsAre;
using testing::HasSubstr;

const std::string kHook = "blocks.1.hook_resid_pre";

// ---- which rows ---------------------------------------------------------------------------------

TEST(RowFilter, DropsTheFirstTokenOfEachDocumentAndTheTokensThatAreNamed) {
  const auto games = small_games(20);
  const std::vector<std::uint64_t> chosen = {3, 7, 11};
  const std::uint64_t token = games->tokens(7)[2];
  const RowFilter bos({.remove_bos = true}, {1}), named({.exclude_special_tokens = {token}}, {1}),
      both({.remove_bos = true, .exclude_special_tokens = {token}}, {1});
  std::vector<std::size_t> without_bos, without_token, without_both;
  std::size_t row = 0;
  for (const std::uint64_t document : chosen)
    for (std::size_t at = 0; at < games->rows(document); ++at, ++row) {
      const bool is_token = games->tokens(document)[at] == token;
      if (at != 0) without_bos.push_back(row);
      if (!is_token) without_token.push_back(row);
      if (at != 0 && !is_token) without_both.push_back(row);
    }
  ASSERT_LT(without_both.size(), without_bos.size());
  EXPECT_EQ(bos.kept(*games, chosen, nullptr), without_bos);
  EXPECT_EQ(named.kept(*games, chosen, nullptr), without_token);
  EXPECT_EQ(both.kept(*games, chosen, nullptr), without_both);
  for (const RowFilter* filter : {&bos, &named, &both})
    for (const std::uint64_t document : chosen) {
      const std::vector<std::uint64_t> one{document};
      EXPECT_EQ(filter->rows(*games, document), filter->kept(*games, one, nullptr).size());
    }
}

TEST(RowFilter, DropsRowsThatAreLongerThanTheMultipleOfTheMedian) {
  // Norms 5, 1, 2, 20, 20.5, 3, of which the lower of the two in the middle is 3.
  const std::vector<float> values = {3, 4, 1, 0, 0, -2, 12, 16, 20.5F, 0, 0, 3};
  const auto kept = [&](double multiple) {
    return RowFilter({.max_activation_norm_multiple = multiple}, {2}).kept(6, values.data());
  };
  EXPECT_THAT(kept(1.5), ElementsAre(1, 2, 5));
  EXPECT_THAT(kept(5.0 / 3), ElementsAre(0, 1, 2, 5)) << "as long as the limit is short enough";
  EXPECT_THAT(kept(6.7), ElementsAre(0, 1, 2, 3, 5));
  EXPECT_THAT(kept(7), ElementsAre(0, 1, 2, 3, 4, 5));
  EXPECT_EQ(RowFilter({}, {2}).kept(6, values.data()).size(), 6u);
}

TEST(RowFilter, OneLongHookOfAJointRowDropsIt) {
  // First hook of width 1, second of width 2; medians 1 and 2.
  const std::vector<float> values = {1, 0, 2, 1, 2, 0, 9, 0, 2, 1, 0, 30, 1, 2, 0};
  const RowFilter filter({.max_activation_norm_multiple = 8}, {1, 2});
  EXPECT_THAT(filter.kept(5, values.data()), ElementsAre(0, 1, 4));
  // The same values as one hook: nothing is more than 8 times sqrt(5).
  EXPECT_THAT(RowFilter({.max_activation_norm_multiple = 14}, {3}).kept(5, values.data()),
              ElementsAre(0, 1, 2, 3, 4));
}

TEST(RowFilter, RowsThatAreNotFiniteAreTooLong) {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::nanf("");
  const std::vector<float> values = {1, inf, 2, nan, 1};
  EXPECT_THAT(RowFilter({.max_activation_norm_multiple = 10}, {1}).kept(5, values.data()),
              ElementsAre(0, 2, 4));
}

TEST(RowFilter, TheMedianIsThatOfTheRowsThatTokensLeave) {
  const auto games = small_games(2, 0);
  const std::vector<std::uint64_t> chosen = {0, 1};
  const std::size_t first = games->rows(0), count = first + games->rows(1);
  // First tokens are long. With them and the 3 the median is 1; without, the 3 is still too long.
  std::vector<float> values(count, 1);
  values[0] = values[first] = 1000;
  values[2] = 3;
  const RowFilter filter({.remove_bos = true, .max_activation_norm_multiple = 2}, {1});
  const auto kept = filter.kept(*games, chosen, values.data());
  EXPECT_EQ(kept.size(), count - 3);
  for (const std::size_t row : {std::size_t{0}, std::size_t{2}, first})
    EXPECT_THAT(kept, testing::Not(testing::Contains(row)));
}

// ---- streams ------------------------------------------------------------------------------------

struct Scene {
  std::shared_ptr<const Transformer> model =
      std::make_shared<const Transformer>(lively_model(small_config()));
  std::shared_ptr<const TokenDocuments> games = small_games(400, 0.1);
  ThreadPool pool{2};
  sweeps::StreamSpec spec = [] {
    sweeps::StreamSpec stream;
    stream.hook = kHook;
    stream.tokens = 2500;
    stream.dtype = DType::kFloat32;
    return stream;
  }();

  Result<std::unique_ptr<CachedStream>> open(FetchChunk fetch = {}, StreamEvents events = {}) {
    return CachedStream::open(spec, make_harvester(spec, model, games, pool).value(),
                              std::move(fetch), std::move(events));
  }
  std::vector<std::uint64_t> training() const {
    std::vector<std::uint64_t> all;
    for (std::uint64_t i = 0; i < games->count(); ++i)
      if (!games->held_out(i)) all.push_back(i);
    return all;
  }
  // Every row the training documents have, and how often.
  std::map<std::vector<float>, int> rows(const RowFilter* filter = nullptr) {
    const auto chosen = training();
    const auto hooks = spec.hooks();
    const at::Tensor all = activations_of(*model, hooks, *games, chosen, pool);
    const auto width = static_cast<std::size_t>(all.size(1));
    const float* values = all.const_data_ptr<float>();
    std::map<std::vector<float>, int> found;
    const auto add = [&](std::size_t row) {
      ++found[{values + row * width, values + (row + 1) * width}];
    };
    if (filter != nullptr)
      for (const std::size_t row : filter->kept(*games, chosen, values)) add(row);
    else
      for (std::size_t row = 0; row < static_cast<std::size_t>(all.size(0)); ++row) add(row);
    return found;
  }
  static std::map<std::vector<float>, int> read(CachedStream& stream, std::uint64_t first,
                                                std::uint64_t count) {
    const auto width = static_cast<std::size_t>(stream.d_in());
    std::vector<float> values(count * width);
    EXPECT_TRUE(stream.read(first, count, values.data()));
    std::map<std::vector<float>, int> found;
    for (std::size_t row = 0; row < count; ++row)
      ++found[{values.begin() + static_cast<std::ptrdiff_t>(row * width),
               values.begin() + static_cast<std::ptrdiff_t>((row + 1) * width)}];
    return found;
  }
};

// All rows that are left are asked for: each pass has exactly those.
TEST(FilteredStream, HasTheRowsThatFiltersLeaveAndNoOther) {
  Scene scene;
  const std::uint64_t token = scene.games->tokens(0)[5];
  for (const std::vector<std::string>& joined : {std::vector<std::string>{}, {"hook_embed"}}) {
    scene.spec.joined = joined;
    for (const sweeps::RowFilters& filters :
         {sweeps::RowFilters{.remove_bos = true},
          sweeps::RowFilters{.exclude_special_tokens = {token}},
          sweeps::RowFilters{.remove_bos = true, .exclude_special_tokens = {token}}}) {
      scene.spec.filters = {};
      const RowFilter filter(filters, widths_of(*scene.model, scene.spec.hooks()));
      const auto expected = scene.rows(&filter);
      std::uint64_t count = 0, all = 0;
      for (const auto& [row, times] : expected) count += static_cast<std::uint64_t>(times);
      for (const std::uint64_t document : scene.training()) all += scene.games->rows(document);
      scene.spec.filters = filters;
      scene.spec.tokens = count;
      const auto stream = scene.open().value();
      EXPECT_EQ(stream->rows_per_pass(), count);
      EXPECT_NEAR(stream->plan().dropped(),
                  static_cast<double>(all - count) / static_cast<double>(all), 1e-12);
      EXPECT_EQ(scene.read(*stream, 0, count), expected);
      EXPECT_EQ(scene.read(*stream, count, count), expected) << "and the pass after it";
      scene.spec.tokens = count + 1;
      const auto too_long = scene.open();
      ASSERT_FALSE(too_long);
      EXPECT_THAT(too_long.error().message, HasSubstr("activations.tokens"));
    }
  }
}

// The median is that of a chunk, so the expected rows come from chunks that the plan names.
TEST(FilteredStream, DropsByNormChunkByChunkWhateverTheCacheHas) {
  Scene scene;
  scene.games = small_games(3000, 0.1);  // chunks of 1024
  constexpr std::uint64_t kTokens = 12'000;
  scene.spec.filters = {.max_activation_norm_multiple = 1.2};
  scene.spec.tokens = kTokens;
  std::map<std::uint32_t, std::vector<std::byte>> cache;
  std::map<std::uint32_t, std::uint32_t> cached_rows;
  std::uint64_t harvested = 0;
  StreamEvents events;
  events.harvested = [&](std::uint64_t rows) { harvested += rows; };
  const FetchChunk fetch = [&](std::uint32_t index, std::span<std::byte> out, const auto& harvest,
                               Duration) -> Result<std::uint32_t> {
    if (!cache.contains(index)) {
      SAE_TRY(cached_rows[index], harvest(out, {}));
      cache[index].assign(out.begin(), out.end());
    }
    std::copy(cache[index].begin(), cache[index].end(), out.begin());
    return cached_rows[index];
  };
  const auto stream = scene.open(fetch, events).value();
  EXPECT_EQ(stream->rows_per_pass(), kTokens);
  const std::uint64_t once = harvested;
  EXPECT_GE(once, kTokens);
  EXPECT_GE(stream->plan().chunks(), 2u);

  std::map<std::vector<float>, int> expected;
  std::uint64_t left = kTokens, kept = 0, all = 0;
  for (std::uint32_t chunk = 0; chunk < stream->plan().chunks(); ++chunk) {
    const auto chosen = stream->plan().documents_of(chunk);
    const at::Tensor rows =
        activations_of(*scene.model, scene.spec.hooks(), *scene.games, chosen, scene.pool);
    const at::Tensor norms = rows.to(at::kDouble).norm(2, {1});
    // Of an even number torch's median is the lower of the two in the middle.
    const double limit = 1.2 * norms.median().item<double>();
    for (std::int64_t row = 0; row < rows.size(0); ++row) {
      ++all;
      if (norms[row].item<double>() > limit) continue;
      ++kept;
      if (left == 0) continue;
      --left;
      const float* values = rows.const_data_ptr<float>() + row * rows.size(1);
      ++expected[{values, values + rows.size(1)}];
    }
  }
  EXPECT_EQ(left, 0u);
  EXPECT_NEAR(stream->plan().dropped(), static_cast<double>(all - kept) / static_cast<double>(all),
              1e-12);
  EXPECT_GT(stream->plan().dropped(), 0.05);
  const auto rows = scene.read(*stream, 0, kTokens);
  EXPECT_EQ(rows, expected);
  EXPECT_EQ(harvested, once) << "counting them harvested them";

  const auto plain = scene.open().value();
  EXPECT_EQ(scene.read(*plain, 0, kTokens), rows);
  const auto again = scene.open(fetch, events).value();
  EXPECT_EQ(scene.read(*again, 0, kTokens), rows);
  EXPECT_EQ(harvested, once);
}

TEST(FilteredStream, TheFactorIsMeasuredOnTheRowsThatAreLeft) {
  Scene scene;
  scene.spec.tokens = 2000;
  scene.spec.normalize = sweeps::Normalize::kUnitMeanSquare;
  scene.spec.filters = {.remove_bos = true, .max_activation_norm_multiple = 1.2};
  const auto stream = scene.open().value();
  double squares = 0;
  const auto scaled = scene.read(*stream, 0, 2000);
  for (const auto& [row, times] : scaled)
    for (const float value : row) squares += times * static_cast<double>(value) * value;
  EXPECT_NEAR(squares / 2000, 1, 1e-5);
  scene.spec.filters = {};
  EXPECT_NE(scene.open().value()->norm_factor(), stream->norm_factor());
}

TEST(FilteredStream, StopsWhileItCountsAndGoesOnWhenItIsOpenedAgain) {
  Scene scene;
  scene.spec.filters = {.max_activation_norm_multiple = 1.2};
  StreamEvents events;
  events.stop = [] { return true; };
  const auto stopped = scene.open({}, events);
  ASSERT_FALSE(stopped);
  EXPECT_EQ(stopped.error().code, ErrorCode::kUnavailable);
  EXPECT_TRUE(scene.open());
}

TEST(FilteredStream, RowsOfAFileAreDroppedByTheirNorm) {
  ::saesweep::test::TempDir dir;
  at::Tensor rows = at::ones({3000, 4}, at::kFloat);
  rows.select(0, 17).fill_(100);
  rows.select(0, 2500).fill_(-7);
  rows.select(0, 2501).fill_(2);
  ASSERT_TRUE(
      write_file_atomically(dir.path() / "a.safetensors", serialize_tensors({{"x", rows}})));
  sweeps::StreamSpec spec;
  spec.data.source = "activations";
  spec.data.path = (dir.path() / "a.safetensors").string();
  spec.data.tensor = "x";
  spec.tokens = 2998;
  spec.shuffle = sweeps::Shuffle::kNone;
  spec.filters.max_activation_norm_multiple = 3;
  const std::shared_ptr<const ActivationDocuments> documents =
      ActivationDocuments::open(spec.data, 0).value();
  const auto stream = CachedStream::open(spec, make_harvester(spec, documents).value()).value();
  std::vector<float> values(2998 * 4);
  ASSERT_TRUE(stream->read(0, 2998, values.data()));
  EXPECT_EQ(std::ranges::count(values, 1.F), 2997 * 4);
  EXPECT_EQ(std::ranges::count(values, 2.F), 4);
  EXPECT_NEAR(stream->plan().dropped(), 2.0 / 3000, 1e-12);
}

}  // namespace
}  // namespace saesweep::worker
