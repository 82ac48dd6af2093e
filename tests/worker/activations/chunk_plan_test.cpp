// Which rows a stream has and in which order: properties over many shapes, and how well it
// shuffles.
#include "worker/activations/chunk_plan.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <set>
#include <vector>

#include "tests/worker/activations/synthetic_stream.h"

namespace saesweep::worker {
namespace {

using sweeps::Shuffle;
using test::RowName;
using test::rows_of_chunk;
using test::rows_of_pass;
using test::stream_spec;
using test::SyntheticDocuments;
using testing::HasSubstr;

// 8 rows of 4096 fp32 values are 128 KiB: 8 documents a chunk.
constexpr std::int64_t kWide = 4096;

ChunkPlan plan_of(const sweeps::StreamSpec& spec, const Documents& documents,
                  std::int64_t d_in = kWide) {
  return ChunkPlan::make(spec, documents, d_in).value();
}

// The first `count` rows of chunks 0, 1, 2, ...
std::vector<RowName> first_rows(const ChunkPlan& plan, const Documents& documents,
                                std::uint64_t count) {
  std::vector<RowName> rows;
  for (std::uint32_t chunk = 0; rows.size() < count; ++chunk)
    for (const RowName& row : rows_of_chunk(plan, documents, chunk)) rows.push_back(row);
  rows.resize(count);
  return rows;
}

TEST(ChunkPlan, EveryPassHasTheRowsOfTheStreamOnceAndNoHeldOutOne) {
  int plans = 0;
  for (std::uint64_t seed = 0; seed < 6; ++seed)
    for (const Shuffle shuffle : {Shuffle::kFull, Shuffle::kWindow, Shuffle::kNone})
      for (const std::uint64_t group :
           {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{37}, std::uint64_t{100'000}}) {
        const SyntheticDocuments documents(150 + 13 * seed, 8, 0.2, true, seed);
        const std::uint64_t all = documents.training_rows();
        for (const std::uint64_t tokens : {all, all - 3, all / 2, std::uint64_t{1}}) {
          auto spec = stream_spec(tokens, group);
          spec.shuffle = shuffle;
          spec.seed = seed;
          const ChunkPlan plan = plan_of(spec, documents);
          ++plans;
          ASSERT_EQ(plan.rows(), tokens);
          auto expected = first_rows(plan, documents, tokens);
          std::sort(expected.begin(), expected.end());
          ASSERT_EQ(std::adjacent_find(expected.begin(), expected.end()), expected.end());
          for (const RowName& row : expected) ASSERT_FALSE(documents.held_out(row.first));
          for (const std::uint64_t pass : {0, 1, 5}) {
            auto read = rows_of_pass(plan, documents, pass);
            std::sort(read.begin(), read.end());
            ASSERT_EQ(read, expected);
          }
        }
        // All that is asked for, and it is all there is.
        const ChunkPlan whole = plan_of(stream_spec(all, group), documents);
        EXPECT_EQ(first_rows(whole, documents, all).size(), all);
      }
  EXPECT_EQ(plans, 6 * 3 * 4 * 4);
}

TEST(ChunkPlan, TheOrderDependsOnSeedAndPassAlone) {
  const SyntheticDocuments documents(200, 8, 0.1);
  auto spec = stream_spec(600, 100);
  const ChunkPlan plan = plan_of(spec, documents), again = plan_of(spec, documents);
  EXPECT_EQ(rows_of_pass(plan, documents, 3), rows_of_pass(again, documents, 3));
  spec.normalize = sweeps::Normalize::kSqrtD;
  EXPECT_EQ(rows_of_pass(plan, documents, 3), rows_of_pass(plan_of(spec, documents), documents, 3));
  EXPECT_NE(rows_of_pass(plan, documents, 0), rows_of_pass(plan, documents, 1));
  spec.seed = 1;
  EXPECT_NE(rows_of_pass(plan, documents, 0), rows_of_pass(plan_of(spec, documents), documents, 0));
}

TEST(ChunkPlan, ChunksAreTheSameHoweverMuchOfThemIsRead) {
  const SyntheticDocuments documents(300, 8, 0.1);
  const ChunkPlan more = plan_of(stream_spec(1000), documents);
  const ChunkPlan less = plan_of(stream_spec(123, 16), documents);
  EXPECT_LT(less.chunks(), more.chunks());
  for (std::uint32_t chunk = 0; chunk < less.chunks(); ++chunk)
    EXPECT_EQ(less.documents_of(chunk), more.documents_of(chunk)) << "so that they share a cache";
}

TEST(ChunkPlan, AChunkIsTheLargestPowerOfTwoOfDocumentsThatFits) {
  for (const std::int64_t d_in : {1, 3, 64, 500, 4096, 1 << 20})
    for (const std::uint64_t longest : {1, 31, 59, 1024})
      for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
        const SyntheticDocuments documents(5, longest, 0, false);
        const ChunkPlan plan = plan_of(stream_spec(1, 0, dtype), documents, d_in);
        const std::uint64_t bytes = static_cast<std::uint64_t>(d_in) * longest * size_of(dtype);
        const std::uint64_t in_chunk = plan.max_chunk_rows() / longest;
        EXPECT_TRUE(std::has_single_bit(in_chunk));
        EXPECT_TRUE(in_chunk == 1 || in_chunk * bytes <= sweeps::kChunkBytes);
        EXPECT_GT(2 * in_chunk * bytes, sweeps::kChunkBytes);
      }
}

TEST(ChunkPlan, FullPermutesDocumentNumbersAndTheOthersKeepThem) {
  const SyntheticDocuments documents(256, 8, 0.2);
  auto spec = stream_spec(documents.training_rows());
  const auto chunks = [&](Shuffle shuffle) {
    spec.shuffle = shuffle;
    const ChunkPlan plan = plan_of(spec, documents);
    std::vector<std::vector<std::uint64_t>> all;
    for (std::uint32_t chunk = 0; chunk < plan.chunks(); ++chunk)
      all.push_back(plan.documents_of(chunk));
    return all;
  };
  const auto window = chunks(Shuffle::kWindow);
  EXPECT_EQ(chunks(Shuffle::kNone), window);
  for (std::size_t chunk = 0; chunk < window.size(); ++chunk)
    for (const std::uint64_t document : window[chunk]) EXPECT_EQ(document / 8, chunk);

  const auto full = chunks(Shuffle::kFull);
  const Permutation order(256, spec.seed, "activations.documents");
  ASSERT_EQ(full.size(), 32u);
  for (std::size_t chunk = 0; chunk < 32; ++chunk) {
    std::vector<std::uint64_t> expected;
    for (std::uint64_t i = 8 * chunk; i < 8 * chunk + 8; ++i)
      if (!documents.held_out(order(i))) expected.push_back(order(i));
    EXPECT_EQ(full[chunk], expected);
  }
}

TEST(ChunkPlan, NoneIsFileOrderInEveryPass) {
  const SyntheticDocuments documents(100, 8, 0.2);
  auto spec = stream_spec(200, 64);
  spec.shuffle = Shuffle::kNone;
  const ChunkPlan plan = plan_of(spec, documents);
  std::vector<RowName> expected;
  for (std::uint64_t document = 0; document < 100; ++document)
    for (std::uint64_t row = 0; row < documents.rows(document); ++row)
      if (!documents.held_out(document)) expected.emplace_back(document, row);
  expected.resize(200);
  EXPECT_EQ(rows_of_pass(plan, documents, 0), expected);
  EXPECT_EQ(rows_of_pass(plan, documents, 1), expected);
}

TEST(ChunkPlan, GroupsAreCutFromThePassAndHaveTheirOwnOrder) {
  const SyntheticDocuments documents(200, 8, 0);
  const ChunkPlan plan = plan_of(stream_spec(500, 128), documents);
  EXPECT_EQ(plan.group_rows(), 128u);
  EXPECT_EQ(plan.rows_of_group(0), 128u);
  EXPECT_EQ(plan.rows_of_group(3), 500u - 3 * 128u);
  const auto order = [&](std::uint64_t pass, std::uint64_t group) {
    const Permutation permutation = plan.order_of_group(pass, group);
    std::vector<std::uint64_t> images;
    for (std::uint64_t i = 0; i < permutation.size(); ++i) images.push_back(permutation(i));
    return images;
  };
  EXPECT_EQ(order(0, 3).size(), plan.rows_of_group(3));
  EXPECT_NE(order(0, 0), order(0, 1));
  EXPECT_NE(order(0, 0), order(1, 0));
  EXPECT_NE(order(0, 1), order(1, 0));
}

TEST(ChunkPlan, TheDefaultGroupIsAMillionRowsOrAGibibyte) {
  const SyntheticDocuments documents(1100, 1024, 0, false);
  const auto rows = [&](std::uint64_t tokens, std::int64_t d_in, DType dtype = DType::kFloat32) {
    return plan_of(stream_spec(tokens, 0, dtype), documents, d_in).group_rows();
  };
  EXPECT_EQ(rows(1'100'000, 4), std::uint64_t{1} << 20);
  EXPECT_EQ(rows(1'100'000, 768), std::uint64_t{1} << 18);
  EXPECT_EQ(rows(1'100'000, 768, DType::kBFloat16), std::uint64_t{1} << 19);
  EXPECT_EQ(rows(1'100'000, 512, DType::kBFloat16), std::uint64_t{1} << 20) << "exactly";
  EXPECT_EQ(rows(1'000'000, 4), 1'000'000u) << "the whole stream, which is smaller";
}

TEST(ChunkPlan, AChunkOfHeldOutDocumentsOnlyIsNeverRead) {
  const SyntheticDocuments documents(60, 1024, 0.5);  // one document a chunk
  const ChunkPlan plan = plan_of(stream_spec(documents.training_rows(), 1000), documents);
  std::set<std::uint32_t> read;
  for (std::uint64_t group = 0; group * plan.group_rows() < plan.rows(); ++group)
    for (const auto& piece : plan.pieces_of_group(0, group)) {
      EXPECT_GT(piece.count, 0u);
      read.insert(piece.chunk);
    }
  for (std::uint32_t chunk = 0; chunk < plan.chunks(); ++chunk)
    EXPECT_EQ(read.contains(chunk), !plan.documents_of(chunk).empty());
  EXPECT_LT(read.size(), plan.chunks());
}

TEST(ChunkPlan, TooFewRowsAreAnErrorThatSaysHowManyThereAre) {
  const SyntheticDocuments documents(100, 8, 0.2);
  const std::uint64_t all = documents.training_rows();
  const auto refused = ChunkPlan::make(stream_spec(all + 1), documents, kWide);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kInvalidArgument);
  EXPECT_THAT(refused.error().message, HasSubstr(fmt::format("{} asked for", all + 1)));
  EXPECT_THAT(refused.error().message, HasSubstr(fmt::format("have {}", all)));
  EXPECT_FALSE(ChunkPlan::make(stream_spec(0), documents, kWide));
  const SyntheticDocuments none_left(20, 8, 1);
  EXPECT_FALSE(ChunkPlan::make(stream_spec(1), none_left, kWide));
}

// ---- how well it shuffles -----------------------------------------------------------------------

constexpr std::uint64_t kDocuments = 2048, kLength = 32, kRows = kDocuments * kLength;
constexpr std::uint64_t kBatch = 256;

struct Quality {
  double same_document = 0;  // pairs of rows of one document in a batch, mean over batches
  double same_region = 0;    // pairs of rows less than 32 documents apart
  double rank = 0;           // Spearman's correlation of the position in the file and as read
};

Quality quality_of(const std::vector<RowName>& rows) {
  Quality quality;
  const std::size_t batches = rows.size() / kBatch;
  for (std::size_t batch = 0; batch < batches; ++batch)
    for (std::size_t i = batch * kBatch; i < (batch + 1) * kBatch; ++i)
      for (std::size_t j = i + 1; j < (batch + 1) * kBatch; ++j) {
        const std::uint64_t a = rows[i].first, b = rows[j].first;
        quality.same_document += a == b ? 1 : 0;
        quality.same_region += std::max(a, b) - std::min(a, b) < 32 ? 1 : 0;
      }
  quality.same_document /= static_cast<double>(batches);
  quality.same_region /= static_cast<double>(batches);
  const auto count = static_cast<double>(rows.size());
  double squares = 0;
  for (std::size_t i = 0; i < rows.size(); ++i)
    squares += std::pow(
        static_cast<double>(rows[i].first * kLength + rows[i].second) - static_cast<double>(i), 2);
  quality.rank = 1 - 6 * squares / (count * (count * count - 1));
  return quality;
}

Quality measure(Shuffle shuffle, std::uint64_t group, std::uint64_t pass = 0) {
  const SyntheticDocuments documents(kDocuments, kLength, 0, false);
  auto spec = stream_spec(kRows, group);
  spec.shuffle = shuffle;
  // 32 rows of 1024 fp32 values are 128 KiB: chunks of 8 documents, 256 of them.
  const Quality quality = quality_of(rows_of_pass(plan_of(spec, documents, 1024), documents, pass));
  fmt::print(
      "{} in groups of {}: {:.1f} pairs of a document a batch, {:.0f} of a region, rank {:.3f}\n",
      sweeps::to_string(shuffle), group, quality.same_document, quality.same_region, quality.rank);
  return quality;
}

Quality of_a_full_permutation() {
  const Permutation order(kRows, 0, "test.order");
  std::vector<RowName> rows;
  for (std::uint64_t i = 0; i < kRows; ++i)
    rows.emplace_back(order(i) / kLength, order(i) % kLength);
  return quality_of(rows);
}

TEST(ShuffleQuality, InOneGroupItIsThatOfAFullPermutation) {
  const Quality ideal = of_a_full_permutation();
  // Expected: 256 * 255 / 2 pairs, each of one document with probability 31 / 65535.
  EXPECT_NEAR(ideal.same_document, 15.44, 0.8);
  for (const Shuffle shuffle : {Shuffle::kFull, Shuffle::kWindow}) {
    const Quality found = measure(shuffle, 0);
    EXPECT_NEAR(found.same_document / ideal.same_document, 1, 0.06);
    EXPECT_NEAR(found.same_region / ideal.same_region, 1, 0.03);
    EXPECT_LT(std::abs(found.rank), 0.012) << "three deviations of chance";
  }
}

TEST(ShuffleQuality, HalfAStreamAtATimeIsWithinThreeTimesOfAFullPermutation) {
  const Quality ideal = of_a_full_permutation();
  for (const std::uint64_t pass : {0, 1}) {
    const Quality found = measure(Shuffle::kFull, kRows / 2, pass);
    EXPECT_LT(found.same_document / ideal.same_document, 3);
    EXPECT_NEAR(found.same_region / ideal.same_region, 1, 0.1) << "regions are torn apart";
    EXPECT_LT(std::abs(found.rank), 0.06);
  }
}

TEST(ShuffleQuality, InSmallGroupsFullTearsRegionsApartAndWindowDoesNot) {
  const Quality ideal = of_a_full_permutation();
  const Quality full = measure(Shuffle::kFull, kRows / 16);
  const Quality window = measure(Shuffle::kWindow, kRows / 16);
  const Quality none = measure(Shuffle::kNone, 0);
  // A group holds whole documents: 16 times as many pairs, whatever is permuted.
  EXPECT_NEAR(full.same_document / ideal.same_document, 16, 1.5);
  EXPECT_NEAR(window.same_document / ideal.same_document, 16, 1.5);
  EXPECT_LT(full.same_region / ideal.same_region, 1.6);
  EXPECT_GT(window.same_region / full.same_region, 2);
  EXPECT_LT(std::abs(full.rank), 0.1);
  EXPECT_LT(std::abs(window.rank), 0.2) << "chunks are permuted at least";
  EXPECT_GT(none.rank, 0.9999);
  EXPECT_NEAR(none.same_document, 8 * 31 * 32 / 2.0, 0.1) << "eight whole documents a batch";
}

TEST(ShuffleQuality, PassesDoNotFollowOneAnother) {
  const SyntheticDocuments documents(512, 32, 0, false);
  const ChunkPlan plan = plan_of(stream_spec(512 * 32, 4096), documents, 1024);
  const auto first = rows_of_pass(plan, documents, 0), second = rows_of_pass(plan, documents, 1);
  std::vector<std::size_t> position(512 * 32);
  for (std::size_t i = 0; i < first.size(); ++i)
    position[first[i].first * 32 + first[i].second] = i;
  const auto count = static_cast<double>(first.size());
  double squares = 0;
  for (std::size_t i = 0; i < second.size(); ++i)
    squares += std::pow(static_cast<double>(position[second[i].first * 32 + second[i].second]) -
                            static_cast<double>(i),
                        2);
  // 64 chunks are what is permuted across groups: chance alone reaches .13 or so.
  EXPECT_LT(std::abs(1 - 6 * squares / (count * (count * count - 1))), 0.3);
}

}  // namespace
}  // namespace saesweep::worker
