#include "worker/activations/harvest.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "core/dtype.h"
#include "core/files.h"
#include "tests/support/temp_dir.h"
#include "tests/worker/small_model.h"
#include "worker/activations/cached_stream.h"
#include "worker/tensor_bytes.h"

namespace saesweep::worker {
namespace {

using test::lively_model;
using test::same_bytes;
using test::small_config;
using test::small_games;
using testing::HasSubstr;

const std::string kHook = "blocks.1.hook_resid_pre";

struct Scene {
  std::shared_ptr<const Transformer> model =
      std::make_shared<const Transformer>(lively_model(small_config()));
  std::shared_ptr<const TokenDocuments> games = small_games(400, 0.1);
  sweeps::StreamSpec spec = [] {
    sweeps::StreamSpec stream;
    stream.hook = kHook;
    stream.tokens = 1500;
    stream.dtype = DType::kFloat32;
    return stream;
  }();

  std::unique_ptr<Harvester> harvester(ThreadPool& pool) const {
    return make_harvester(spec, model, games, pool).value();
  }
};

std::vector<std::byte> chunk_bytes(Harvester& harvester, const ChunkPlan& plan, std::uint32_t chunk,
                                   DType dtype, std::byte fill = {}) {
  std::vector<std::byte> out(
      plan.max_chunk_rows() * static_cast<std::size_t>(harvester.d_in()) * size_of(dtype), fill);
  const auto rows = harvester.harvest(plan, chunk, out);
  EXPECT_TRUE(rows);
  out.resize(*rows * static_cast<std::size_t>(harvester.d_in()) * size_of(dtype));
  return out;
}

TEST(Harvest, AChunkHasTheSameBytesForAnyNumberOfThreads) {
  Scene scene;
  ThreadPool one(1), two(2), three(3);
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    scene.spec.dtype = dtype;
    const auto harvester = scene.harvester(one);
    EXPECT_EQ(harvester->d_in(), 16);
    const ChunkPlan plan = ChunkPlan::make(scene.spec, *scene.games, 16).value();
    const auto bytes = chunk_bytes(*harvester, plan, 0, dtype);
    EXPECT_GT(bytes.size(), 1000u);
    EXPECT_EQ(chunk_bytes(*harvester, plan, 0, dtype, std::byte{0xff}), bytes) << "again";
    EXPECT_EQ(chunk_bytes(*scene.harvester(two), plan, 0, dtype), bytes);
    EXPECT_EQ(chunk_bytes(*scene.harvester(three), plan, 0, dtype), bytes);
  }
}

// The same chunk, whatever else the stream asks for.
TEST(Harvest, AChunkHasTheSameBytesInStreamsThatReadDifferentAmountsOfIt) {
  Scene scene;
  ThreadPool pool(1);
  const auto harvester = scene.harvester(pool);
  const ChunkPlan more = ChunkPlan::make(scene.spec, *scene.games, 16).value();
  scene.spec.tokens = 40;
  scene.spec.shuffle_rows = 8;
  const ChunkPlan less = ChunkPlan::make(scene.spec, *scene.games, 16).value();
  EXPECT_EQ(chunk_bytes(*harvester, more, 0, DType::kFloat32),
            chunk_bytes(*harvester, less, 0, DType::kFloat32));
}

TEST(Harvest, RowsAreTheActivationsOfEachDocumentInOrder) {
  const Scene scene;
  ThreadPool pool(2);
  const auto harvester = scene.harvester(pool);
  const ChunkPlan plan = ChunkPlan::make(scene.spec, *scene.games, 16).value();
  const auto bytes = chunk_bytes(*harvester, plan, 0, DType::kFloat32);
  const float* at = reinterpret_cast<const float*>(bytes.data());
  std::size_t rows = 0;
  for (const std::uint64_t document : plan.documents_of(0)) {
    ASSERT_FALSE(scene.games->held_out(document));
    const auto tokens = scene.games->tokens(document);
    const auto length = static_cast<std::int64_t>(tokens.size()) - 1;
    at::Tensor ids = at::empty({1, length}, at::kLong);
    for (std::int64_t i = 0; i < length; ++i) ids[0][i] = tokens[static_cast<std::size_t>(i)];
    ForwardRequest request;
    request.capture = {kHook};
    const at::Tensor alone = scene.model->forward(ids, request).captured.at(kHook)[0].contiguous();
    for (std::int64_t i = 0; i < alone.numel(); ++i, ++at)
      ASSERT_NEAR(*at, alone.const_data_ptr<float>()[i], 2e-5) << "document " << document;
    rows += static_cast<std::size_t>(length);
    if (rows > 500) break;
  }
}

// ---- several streams in one forward pass
// ---------------------------------------------------------

struct Family : testing::Test {
  Scene scene;
  ThreadPool pool{2};
  std::shared_ptr<const Transformer> prepared = [] {
    Transformer model = lively_model(small_config());
    model.prepare(sweeps::Precision::kFloat32);
    return std::make_shared<const Transformer>(std::move(model));
  }();
  Family() {
    scene.games = small_games(9000, 0.1);  // several chunks, even of the narrowest rows
    scene.spec.model.emplace();
    scene.spec.model->digest = "the model";
    scene.spec.tokens = 60'000;
    scene.model = prepared;
  }

  sweeps::StreamSpec at(const std::string& hook, std::vector<std::string> joined = {}) const {
    sweeps::StreamSpec spec = scene.spec;
    spec.hook = hook;
    spec.joined = std::move(joined);
    return spec;
  }
  std::unique_ptr<Harvester> together(const std::vector<sweeps::StreamSpec>& all) {
    return make_harvester(all[0], scene.model, scene.games, pool, std::span(all).subspan(1))
        .value();
  }
  ChunkPlan plan_of(const sweeps::StreamSpec& spec) {
    return ChunkPlan::make(spec, *scene.games, width_of(*scene.model, spec.hooks())).value();
  }
  std::vector<std::byte> alone(const sweeps::StreamSpec& spec, std::uint32_t chunk) {
    const auto harvester = together({spec});
    return chunk_bytes(*harvester, plan_of(spec), chunk, spec.dtype);
  }
  // A chunk of the first stream and all that comes beside it is what each stream has alone.
  void expect_same_as_alone(const std::vector<sweeps::StreamSpec>& all, std::uint32_t chunk) {
    const auto harvester = together(all);
    const auto row_bytes = [&](std::size_t member) {
      return static_cast<std::size_t>(width_of(*scene.model, all[member].hooks())) *
             size_of(all[member].dtype);
    };
    std::vector<std::vector<std::byte>> bytes;
    std::vector<ChunkOrder> orders;
    for (const MemberChunk& each : harvester->beside(chunk)) {
      bytes.emplace_back(plan_of(all[each.member]).max_chunk_rows() * row_bytes(each.member));
      orders.push_back({each, bytes.back()});
    }
    std::vector<std::byte> own(plan_of(all[0]).max_chunk_rows() * row_bytes(0));
    const auto rows = harvester->harvest(plan_of(all[0]), chunk, own, orders);
    ASSERT_TRUE(rows) << rows.error().message;
    own.resize(*rows * row_bytes(0));
    EXPECT_EQ(own, alone(all[0], chunk));
    for (std::size_t i = 0; i < orders.size(); ++i) {
      const auto [member, index] = orders[i].chunk;
      bytes[i].resize(orders[i].rows * row_bytes(member));
      EXPECT_EQ(bytes[i], alone(all[member], index))
          << all[member].label() << " chunk " << index << " beside " << all[0].label();
    }
  }
};

const std::string kDeeper = "blocks.1.hook_resid_post";
const std::string kWide = "blocks.0.mlp.hook_post";  // 24 values, others have 16

TEST_F(Family, AnotherHooksChunkOfTheSameDocumentsIsTheOneItHasAlone) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    scene.spec.dtype = dtype;
    for (const std::uint32_t chunk : {0, 1})
      expect_same_as_alone({at(kHook), at(kDeeper), at("blocks.0.hook_attn_out")}, chunk);
  }
  EXPECT_EQ(together({at(kHook), at(kDeeper)})->beside(1), (std::vector<MemberChunk>{{1, 1}}));
}

TEST_F(Family, RowsOfOtherWidthsLieInMoreOrFewerChunks) {
  const auto joint = at(kHook, {kDeeper});
  ASSERT_GT(plan_of(at(kHook)).max_chunk_rows(), plan_of(joint).max_chunk_rows());
  for (const std::uint32_t chunk : {0, 1}) {
    expect_same_as_alone({at(kHook), joint, at(kWide)}, chunk);
    expect_same_as_alone({joint, at(kDeeper)}, chunk);
  }
  // Two chunks of wide rows have the documents of one of narrow rows.
  EXPECT_EQ(together({at(kHook), joint})->beside(1), (std::vector<MemberChunk>{{1, 2}, {1, 3}}));
  EXPECT_EQ(together({joint, at(kHook)})->beside(3), (std::vector<MemberChunk>{{0, 2}, {1, 1}}));
}

TEST_F(Family, WithoutProductsOfOurOwnOnlyChunksOfTheSameSizeComeAlong) {
  scene.model = std::make_shared<const Transformer>(lively_model(small_config()));
  const auto harvester = together({at(kHook), at(kHook, {kDeeper}), at(kDeeper)});
  ASSERT_EQ(harvester->siblings().size(), 1u);
  EXPECT_EQ(harvester->siblings()[0].spec.hook, kDeeper);
}

TEST_F(Family, FiltersDropTheRowsOfEachHookByItsOwnNorms) {
  scene.spec.filters = {.remove_bos = true, .max_activation_norm_multiple = 1.2};
  const auto rows = [&](const sweeps::StreamSpec& spec) {
    return alone(spec, 0).size() / (16 * size_of(spec.dtype));
  };
  ASSERT_NE(rows(at(kHook)), rows(at(kDeeper)));
  expect_same_as_alone({at(kHook), at(kDeeper)}, 0);
}

TEST_F(Family, OnlyStreamsOfTheFamilyAndOnlyWhatTheyNeedComesAlong) {
  auto seed = at(kDeeper), model = at(kDeeper), same = at(kHook), unknown = at("blocks.7.nothing"),
       less = at(kDeeper);
  seed.seed = 5;
  model.model->digest = "another";
  same.tokens = 100;
  less.tokens = 100;
  const auto harvester = together({at(kHook), seed, model, same, unknown, less, less});
  ASSERT_EQ(harvester->siblings().size(), 1u);
  EXPECT_EQ(harvester->beside(0), (std::vector<MemberChunk>{{1, 0}}));
  EXPECT_TRUE(harvester->beside(1).empty()) << "100 tokens lie in the first chunk";
}

TEST(Harvest, Bf16RowsAreTheFp32RowsRounded) {
  Scene scene;
  ThreadPool pool(1);
  const ChunkPlan plan = ChunkPlan::make(scene.spec, *scene.games, 16).value();
  const auto exact = chunk_bytes(*scene.harvester(pool), plan, 0, DType::kFloat32);
  // The same documents: this plan's chunks, stored in the other dtype.
  scene.spec.dtype = DType::kBFloat16;
  const auto rounded = chunk_bytes(*scene.harvester(pool), plan, 0, DType::kBFloat16);
  ASSERT_EQ(exact.size(), 2 * rounded.size());
  for (std::size_t i = 0; i < rounded.size() / 2; ++i) {
    float value = 0;
    std::uint16_t bits = 0;
    std::memcpy(&value, exact.data() + 4 * i, 4);
    std::memcpy(&bits, rounded.data() + 2 * i, 2);
    ASSERT_EQ(bits, to_bf16(value));
  }
}

TEST(Harvest, ActivationsOfChosenDocumentsAreTheirRowsOneAfterTheOther) {
  const Scene scene;
  ThreadPool pool(2);
  const std::vector<std::uint64_t> chosen = {5, 3, 3, 77, 100, 2, 9,  8, 7, 6,
                                             5, 4, 3, 2,  1,   0, 20, 21};  // more than one batch
  const at::Tensor all = activations_of(*scene.model, kHook, *scene.games, chosen, pool);
  std::int64_t first = 0;
  for (const std::uint64_t document : chosen) {
    const auto rows = static_cast<std::int64_t>(scene.games->rows(document));
    const at::Tensor alone =
        activations_of(*scene.model, kHook, *scene.games, std::vector{document}, pool);
    EXPECT_TRUE(at::allclose(all.narrow(0, first, rows), alone, 1e-5, 1e-5));
    first += rows;
  }
  EXPECT_EQ(all.size(0), first);
  EXPECT_EQ(activations_of(*scene.model, kHook, *scene.games, {}, pool).size(0), 0);
}

// One pass for all hooks of a joint stream, whose values stand side by side in a row.
TEST(Harvest, ARowOfAJointStreamHoldsTheValuesOfEachHookInTurn) {
  Scene scene;
  ThreadPool pool(2);
  const std::vector<std::uint64_t> chosen = {5, 3, 77, 100, 2,  9,  8,  7, 6,
                                             4, 1, 0,  20,  21, 22, 23, 24};
  const std::vector<std::string> hooks = {"blocks.1.mlp.hook_post", kHook, "blocks.0.hook_mlp_out"};
  const at::Tensor joint = activations_of(*scene.model, hooks, *scene.games, chosen, pool);
  std::int64_t column = 0;
  for (const std::string& hook : hooks) {
    const at::Tensor alone = activations_of(*scene.model, hook, *scene.games, chosen, pool);
    EXPECT_TRUE(same_bytes(joint.narrow(1, column, alone.size(1)).contiguous(), alone)) << hook;
    column += alone.size(1);
  }
  EXPECT_EQ(joint.size(1), column);

  scene.spec.hook = hooks[0];
  scene.spec.joined = {hooks[1], hooks[2]};
  const auto harvester = scene.harvester(pool);
  EXPECT_EQ(harvester->d_in(), column);
  EXPECT_THAT(harvester->widths(), testing::ElementsAre(column - 32, 16, 16));
  scene.spec.joined[1] = "blocks.0.hook_mlp_ot";
  EXPECT_FALSE(make_harvester(scene.spec, scene.model, scene.games, pool));
}

// Each hook of a joint stream is scaled by its own factor, that which it has alone.
TEST(Harvest, HooksOfAJointStreamAreNormalisedEachByItself) {
  Scene scene;
  ThreadPool pool(1);
  const std::vector<std::string> hooks = {"blocks.1.mlp.hook_post", kHook};
  for (const auto normalize : {sweeps::Normalize::kUnitMeanSquare, sweeps::Normalize::kSqrtD}) {
    scene.spec.normalize = normalize;
    std::vector<double> alone;
    scene.spec.joined.clear();
    for (const std::string& hook : hooks) {
      scene.spec.hook = hook;
      alone.push_back(CachedStream::open(scene.spec, scene.harvester(pool)).value()->norm_factor());
    }
    scene.spec.hook = hooks[0];
    scene.spec.joined = {hooks[1]};
    const auto stream = CachedStream::open(scene.spec, scene.harvester(pool)).value();
    const auto parts = stream->parts();
    ASSERT_EQ(parts.size(), 2u);
    for (std::size_t i = 0; i < 2; ++i)
      EXPECT_NEAR(parts[i].norm_factor, alone[i], 1e-6 * alone[i]);
    EXPECT_NE(parts[0].norm_factor, parts[1].norm_factor);
    // Rows are scaled so.
    const std::int64_t rows = 1500, width = stream->d_in();
    at::Tensor x = at::empty({rows, width}, at::kFloat);
    ASSERT_TRUE(stream->read(0, rows, x.mutable_data_ptr<float>()));
    std::int64_t column = 0;
    for (const RowPart& part : parts) {
      const at::Tensor norms = x.narrow(1, column, part.width).to(at::kDouble).norm(2, {1});
      if (normalize == sweeps::Normalize::kUnitMeanSquare)
        EXPECT_NEAR(norms.square().mean().item<double>(), 1, 1e-4);
      else
        EXPECT_NEAR(norms.mean().item<double>(), std::sqrt(static_cast<double>(part.width)), 1e-3);
      column += part.width;
    }
  }
}

TEST(Harvest, AnUnknownHookAndAModelOfAnotherBoardAreRefused) {
  Scene scene;
  ThreadPool pool(1);
  scene.spec.hook = "blocks.1.hook_resid_per";
  const auto misspelt = make_harvester(scene.spec, scene.model, scene.games, pool);
  ASSERT_FALSE(misspelt);
  EXPECT_THAT(misspelt.error().message, HasSubstr("blocks.1.hook_resid_pre"));

  scene.spec.hook = kHook;
  TransformerConfig fewer = small_config();
  fewer.vocabulary = 12;
  const auto small = std::make_shared<const Transformer>(lively_model(fewer));
  const auto other_board = make_harvester(scene.spec, small, scene.games, pool);
  ASSERT_FALSE(other_board);
  EXPECT_EQ(other_board.error().code, ErrorCode::kInvalidArgument);
  EXPECT_THAT(other_board.error().message, HasSubstr("13"));
}

TEST(Harvest, ActivationsFromAFileAreItsRowsInTheDtypeOfTheStream) {
  ::saesweep::test::TempDir dir;
  const at::Tensor rows = at::arange(3000 * 4, at::kFloat).view({3000, 4}) / 7;
  ASSERT_TRUE(
      write_file_atomically(dir.path() / "a.safetensors", serialize_tensors({{"x", rows}})));
  sweeps::StreamSpec spec;
  spec.data.source = "activations";
  spec.data.path = (dir.path() / "a.safetensors").string();
  spec.data.tensor = "x";
  spec.tokens = 3000;
  spec.shuffle = sweeps::Shuffle::kNone;
  const std::shared_ptr<const ActivationDocuments> documents =
      ActivationDocuments::open(spec.data, 0).value();
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    spec.dtype = dtype;
    const auto harvester = make_harvester(spec, documents).value();
    EXPECT_EQ(harvester->d_in(), 4);
    const ChunkPlan plan = ChunkPlan::make(spec, *documents, 4).value();
    ASSERT_EQ(plan.chunks(), 1u);
    const auto bytes = chunk_bytes(*harvester, plan, 0, dtype);
    const at::Tensor expected =
        dtype == DType::kFloat32 ? rows : rows.to(at::kBFloat16).contiguous();
    ASSERT_EQ(bytes.size(), expected.nbytes());
    EXPECT_EQ(std::memcmp(bytes.data(), expected.const_data_ptr(), bytes.size()), 0);
  }
}

}  // namespace
}  // namespace saesweep::worker
