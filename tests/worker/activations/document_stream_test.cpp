// Whole documents in order, and what the model says when something else stands in for its
// activations.
#include "worker/activations/document_stream.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "tests/worker/small_model.h"
#include "worker/activations/cached_stream.h"
#include "worker/activations/harvest.h"

namespace saesweep::worker {
namespace {

using test::lively_model;
using test::same_bytes;
using test::small_config;
using test::small_games;
using testing::HasSubstr;

constexpr std::uint64_t kBatch = 100;

struct Scene {
  std::shared_ptr<Transformer> model = std::make_shared<Transformer>(lively_model(small_config()));
  std::shared_ptr<const TokenDocuments> games = small_games(400, 0.1);
  sweeps::StreamSpec spec = [] {
    sweeps::StreamSpec stream;
    stream.hook = "blocks.1.hook_resid_pre";
    stream.seed = 3;
    return stream;
  }();

  std::unique_ptr<DocumentStream> open(ThreadPool& pool, bool downstream = false) const {
    return DocumentStream::open(spec, model, games, pool, downstream).value();
  }
  // Of a function of rows, along a direction: its difference and what the gradient says.
  template <class Of>
  static void expect_slope(const Of& of, const at::Tensor& rows, const at::Tensor& gradient) {
    at::Tensor direction = at::empty_like(rows);
    Rng rng(5, "test.direction");
    for (std::int64_t i = 0; i < direction.numel(); ++i)
      direction.mutable_data_ptr<float>()[i] = static_cast<float>(rng.normal());
    constexpr double kStep = 1e-2;
    const double ahead = of(rows + kStep * direction), behind = of(rows - kStep * direction);
    const double slope = (gradient * direction).sum(at::kDouble).item<double>();
    EXPECT_NEAR((ahead - behind) / (2 * kStep), slope, 0.02 * std::abs(slope) + 1e-6);
  }
  static at::Tensor read(DocumentStream& stream, std::uint64_t first) {
    at::Tensor rows = at::empty({static_cast<std::int64_t>(kBatch), stream.d_in()}, at::kFloat);
    EXPECT_TRUE(stream.read(first, kBatch, rows.mutable_data_ptr<float>()));
    return rows;
  }
};

TEST(DocumentStream, ReadsWholeTrainingDocumentsOneAfterAnother) {
  const Scene scene;
  ThreadPool pool(2);
  const auto stream = scene.open(pool);
  std::set<std::uint64_t> seen;
  for (std::uint64_t step = 0; step < 3; ++step) {
    const auto cuts = stream->documents_of(step * kBatch, kBatch);
    std::vector<std::uint64_t> documents;
    std::int64_t rows = 0;
    for (const auto& [document, own] : cuts) {
      EXPECT_FALSE(scene.games->held_out(document));
      EXPECT_TRUE(seen.insert(document).second) << "twice in a pass";
      documents.push_back(document);
      if (&cuts.back().first != &document) {
        EXPECT_EQ(own, scene.games->rows(document));
      }
      rows += own;
    }
    EXPECT_EQ(rows, static_cast<std::int64_t>(kBatch));
    const at::Tensor whole =
        activations_of(*scene.model, scene.spec.hook, *scene.games, documents, pool);
    EXPECT_TRUE(
        same_bytes(Scene::read(*stream, step * kBatch), whole.narrow(0, 0, rows).contiguous()));
  }
}

TEST(DocumentStream, EveryPassHasAnOrderOfItsOwnAndTheSameOneAgain) {
  const Scene scene;
  ThreadPool pool(1);
  const auto stream = scene.open(pool);
  const std::uint64_t far = 1000 * kBatch;
  const auto first = stream->documents_of(0, kBatch), later = stream->documents_of(far, kBatch);
  EXPECT_NE(first, later);
  EXPECT_EQ(scene.open(pool)->documents_of(far, kBatch), later) << "whatever was read before";
  EXPECT_EQ(stream->documents_of(0, kBatch), first);
}

TEST(DocumentStream, TheActivationsThemselvesChangeNothing) {
  const Scene scene;
  ThreadPool pool(2);
  const auto stream = scene.open(pool);
  const at::Tensor rows = Scene::read(*stream, 0);
  const auto said = stream->splice(0, rows, 0);
  EXPECT_NEAR(said.kl, 0, 1e-9);
  EXPECT_LT(said.gradient.abs().max().item<double>(), 1e-7);
}

TEST(DocumentStream, TheGradientIsThatOfTheDivergence) {
  const Scene scene;
  ThreadPool pool(2);
  const auto stream = scene.open(pool);
  at::Tensor rows = Scene::read(*stream, kBatch);
  rows = rows * 0.7;
  const auto said = stream->splice(kBatch, rows, 0);
  EXPECT_GT(said.kl, 1e-4);
  Scene::expect_slope([&](const at::Tensor& at) { return stream->splice(kBatch, at, 0).kl; }, rows,
                      said.gradient);
}

// d KL / d logits = (Q - P) / N, which sums to 0 over the vocabulary: at the last hook the rest is
// one product.
TEST(DocumentStream, AtTheLastHookTheGradientIsQMinusPThroughTheHead) {
  Scene scene;
  scene.spec.hook = "ln_final.hook_normalized";
  ThreadPool pool(1);
  const auto stream = scene.open(pool);
  const at::Tensor rows = Scene::read(*stream, 0);
  const at::Tensor other = rows * 0.5 + 0.1;
  const at::Tensor& head =
      scene.model->weights().at(scene.model->config().tied ? "wte.weight" : "lm_head.weight");
  const at::Tensor p = at::softmax(at::mm(rows, head.t()).to(at::kDouble), -1);
  const at::Tensor q = at::softmax(at::mm(other, head.t()).to(at::kDouble), -1);
  const at::Tensor of_logits = (q - p) / static_cast<double>(kBatch);
  EXPECT_LT(of_logits.sum(1).abs().max().item<double>(), 1e-12);
  const at::Tensor want = at::mm(of_logits, head.to(at::kDouble));
  const auto said = stream->splice(0, other, 0);
  const double scale = want.abs().max().item<double>();
  EXPECT_LT((said.gradient.to(at::kDouble) - want).abs().max().item<double>(), 1e-5 * scale);
  EXPECT_NEAR(said.kl, (p * (p.log() - q.log())).sum(1).mean().item<double>(), 1e-6);
}

// Wherever the hook lies; only what follows it is run, so weights before it may be no numbers.
TEST(DocumentStream, SplicesAtEveryHookAndRunsNothingBefore) {
  for (const char* hook :
       {"hook_embed", "blocks.0.hook_resid_mid", "blocks.1.hook_resid_pre", "blocks.1.attn.hook_z",
        "blocks.1.hook_attn_out", "blocks.1.mlp.hook_post", "blocks.1.hook_mlp_out",
        "blocks.1.hook_resid_post"}) {
    SCOPED_TRACE(hook);
    Scene scene;
    scene.spec.hook = hook;
    ThreadPool pool(2);
    const auto stream = scene.open(pool);
    const at::Tensor rows = Scene::read(*stream, 0);
    EXPECT_NEAR(stream->splice(0, rows, 0).kl, 0, 1e-9);
    // The last norm forgets a scale.
    const at::Tensor other = (rows * 0.7 + rows.roll(1, 1) * 0.3).contiguous();
    const auto before = stream->splice(0, other, 0);
    // The whole model, with the rows put in place by hand.
    double kl = 0;
    std::int64_t row = 0;
    for (const auto& [document, own] : stream->documents_of(0, kBatch)) {
      const auto ids = scene.games->tokens(document);
      at::Tensor tokens = at::empty({1, own}, at::kLong);
      for (std::int64_t i = 0; i < own; ++i) tokens[0][i] = ids[static_cast<std::size_t>(i)];
      ForwardRequest request;
      const at::Tensor p = scene.model->forward(tokens, request).logits.log_softmax(-1);
      request.replace_hook = hook;
      request.replacement = [&](const at::Tensor&) {
        return other.narrow(0, row, own).unsqueeze(0);
      };
      const at::Tensor q = scene.model->forward(tokens, request).logits.log_softmax(-1);
      kl += (p.exp() * (p - q)).sum(at::kDouble).item<double>() / double{kBatch};
      row += own;
    }
    EXPECT_NEAR(before.kl, kl, 1e-4 * kl);
    if (std::string(hook) != "hook_embed")
      for (auto& [name, weight] : scene.model->weights())
        if (name.starts_with("w") ||
            (name.starts_with("h.0.") && std::string(hook).starts_with("blocks.1")))
          weight.fill_(std::nan(""));
    const auto after = stream->splice(0, other, 0);
    EXPECT_EQ(after.kl, before.kl);
    EXPECT_TRUE(same_bytes(after.gradient, before.gradient));
  }
}

TEST(DocumentStream, DownstreamIsTheErrorOfLaterResidualStreamsAndHasItsGradient) {
  Scene scene;
  scene.spec.hook = "blocks.0.hook_mlp_out";
  ThreadPool pool(2);
  const auto stream = scene.open(pool, /*downstream=*/true);
  const at::Tensor rows = Scene::read(*stream, kBatch);
  EXPECT_NEAR(stream->splice(kBatch, rows, 2).downstream, 0, 1e-12);
  const at::Tensor other = rows * 0.7;
  double error = 0;
  std::int64_t row = 0;
  for (const auto& [document, own] : stream->documents_of(kBatch, kBatch)) {
    const auto ids = scene.games->tokens(document);
    at::Tensor tokens = at::empty({1, own}, at::kLong);
    for (std::int64_t i = 0; i < own; ++i) tokens[0][i] = ids[static_cast<std::size_t>(i)];
    ForwardRequest request;
    request.capture = {"blocks.0.hook_resid_post", "blocks.1.hook_resid_post"};
    const auto clean = scene.model->forward(tokens, request).captured;
    request.replace_hook = scene.spec.hook;
    request.replacement = [&](const at::Tensor&) { return other.narrow(0, row, own).unsqueeze(0); };
    const auto moved = scene.model->forward(tokens, request).captured;
    for (const auto& [hook, value] : clean)
      error += (moved.at(hook) - value).square().sum(at::kDouble).item<double>();
    row += own;
  }
  const auto said = stream->splice(kBatch, other, 2);
  const double mean = error / (2.0 * kBatch * 16);
  EXPECT_NEAR(said.downstream, mean, 1e-5 * mean);
  EXPECT_NEAR(said.kl, stream->splice(kBatch, other, 0).kl, 1e-9);
  Scene::expect_slope(
      [&](const at::Tensor& at) {
        const auto here = stream->splice(kBatch, at, 2);
        return here.kl + 2 * here.downstream;
      },
      other, said.gradient);
  // The term alone, so that the divergence does not hide it.
  Scene::expect_slope(
      [&](const at::Tensor& at) { return 1e4 * stream->splice(kBatch, at, 1e4).downstream; }, other,
      stream->splice(kBatch, other, 1e4).gradient - stream->splice(kBatch, other, 0).gradient);
}

class DroppedRows : public testing::TestWithParam<double> {};

// By token, and by token and norm: all documents are one chunk here.
TEST_P(DroppedRows, AreNoneAndStayAsTheyAre) {
  Scene scene;
  scene.spec.filters = {.remove_bos = true,
                        .exclude_special_tokens = {3, 5},
                        .max_activation_norm_multiple = GetParam()};
  ThreadPool pool(2);
  const auto is_row = [](const at::Tensor& tokens, std::int64_t position) {
    const auto token = tokens[0][position].item<std::int64_t>();
    return position > 0 && token != 3 && token != 5;
  };
  const auto stream = scene.open(pool, /*downstream=*/true);
  EXPECT_GT(stream->dropped(), 0.1);
  const at::Tensor rows = Scene::read(*stream, 0), other = rows * 0.7;
  const auto said = stream->splice(0, other, 1);
  const auto tokens_of = [&](std::uint64_t document) {
    const auto ids = scene.games->tokens(document);
    const auto length = static_cast<std::int64_t>(scene.games->rows(document));
    at::Tensor tokens = at::empty({1, length}, at::kLong);
    for (std::int64_t i = 0; i < length; ++i) tokens[0][i] = ids[static_cast<std::size_t>(i)];
    return tokens;
  };
  const auto norms_of = [&](std::uint64_t document) {
    return activations_of(*scene.model, scene.spec.hook, *scene.games, std::span(&document, 1),
                          pool)
        .to(at::kDouble)
        .norm(2, {1});
  };
  double limit = std::numeric_limits<double>::infinity();
  if (GetParam() > 0) {
    std::vector<double> norms;
    for (std::uint64_t document = 0; document < scene.games->count(); ++document) {
      if (scene.games->held_out(document)) continue;
      const at::Tensor tokens = tokens_of(document), own = norms_of(document);
      for (std::int64_t i = 0; i < own.size(0); ++i)
        if (is_row(tokens, i)) norms.push_back(own[i].item<double>());
    }
    std::ranges::sort(norms);
    limit = GetParam() * norms[(norms.size() - 1) / 2];
  }
  double kl = 0;
  std::int64_t row = 0, too_long = 0;
  for (const auto& [document, own] : stream->documents_of(0, kBatch)) {
    const at::Tensor tokens = tokens_of(document), norms = norms_of(document);
    std::vector<std::int64_t> kept;
    for (std::int64_t i = 0; i < tokens.size(1) && std::ssize(kept) < own; ++i) {
      if (!is_row(tokens, i)) continue;
      if (norms[i].item<double>() > limit)
        ++too_long;
      else
        kept.push_back(i);
    }
    const at::Tensor at = at::tensor(kept, at::kLong);
    ForwardRequest request;
    request.capture = {scene.spec.hook};
    const auto clean = scene.model->forward(tokens, request);
    EXPECT_LT((clean.captured.at(scene.spec.hook)[0].index_select(0, at) - rows.narrow(0, row, own))
                  .abs()
                  .max()
                  .item<double>(),
              1e-5);
    request.replace_hook = scene.spec.hook;
    request.replacement = [&](const at::Tensor& value) {
      at::Tensor replaced = value.clone();
      replaced[0].index_copy_(0, at, other.narrow(0, row, own));
      return replaced;
    };
    const at::Tensor p = clean.logits.log_softmax(-1)[0].index_select(0, at);
    const at::Tensor q =
        scene.model->forward(tokens, request).logits.log_softmax(-1)[0].index_select(0, at);
    kl += (p.exp() * (p - q)).sum(at::kDouble).item<double>() / double{kBatch};
    row += own;
  }
  EXPECT_EQ(row, static_cast<std::int64_t>(kBatch));
  EXPECT_EQ(too_long > 5, GetParam() > 0);
  EXPECT_NEAR(said.kl, kl, 1e-4 * kl);
}

INSTANTIATE_TEST_SUITE_P(DocumentStream, DroppedRows, testing::Values(0, 1.2));

// Of several chunks, each with a median of its own.
TEST(DocumentStream, AFilterByNormLeavesTheRowsThatACachedStreamHas) {
  Scene scene;
  scene.games = small_games(3000, 0.1);
  scene.spec.dtype = DType::kFloat32;
  scene.spec.filters = {.remove_bos = true, .max_activation_norm_multiple = 1.2};
  ThreadPool pool(2);
  std::uint64_t brought = 0, loaded = 0, total = 0;
  StreamEvents events;
  events.harvested = [&](std::uint64_t rows) { brought += rows; };
  events.loading = [&](std::uint64_t done, std::uint64_t of) {
    loaded = done;
    total = of;
  };
  const auto stream =
      DocumentStream::open(scene.spec, scene.model, scene.games, pool, false, events).value();
  EXPECT_EQ(brought, loaded);
  EXPECT_EQ(loaded, total);
  EXPECT_GT(brought, stream->rows_per_pass());
  auto spec = scene.spec;
  spec.tokens = stream->rows_per_pass();
  const auto cached =
      CachedStream::open(spec, make_harvester(spec, scene.model, scene.games, pool).value())
          .value();
  ASSERT_GE(cached->plan().chunks(), 2u);
  EXPECT_NEAR(cached->plan().dropped(), stream->dropped(), 1e-12);
  const auto width = static_cast<std::size_t>(stream->d_in());
  std::vector<float> values(spec.tokens * width);
  ASSERT_TRUE(cached->read(0, spec.tokens, values.data()));
  std::map<std::vector<float>, int> left;
  const auto row_at = [&](const float* all, std::uint64_t row) {
    return std::vector<float>(all + row * width, all + (row + 1) * width);
  };
  for (std::uint64_t row = 0; row < spec.tokens; ++row) ++left[row_at(values.data(), row)];
  const std::uint64_t steps = spec.tokens / (kBatch + 31);
  for (std::uint64_t step = 0; step < steps; ++step) {
    const at::Tensor rows = Scene::read(*stream, step * kBatch);
    for (std::uint64_t row = 0; row < kBatch; ++row)
      EXPECT_GE(--left[row_at(rows.const_data_ptr<float>(), row)], 0);
  }

  events.stop = [] { return true; };
  const auto stopped =
      DocumentStream::open(scene.spec, scene.model, scene.games, pool, false, events);
  ASSERT_FALSE(stopped);
  EXPECT_EQ(stopped.error().code, ErrorCode::kUnavailable);
}

TEST(DocumentStream, HeldOutRowsPassTheFilterByNormAmongThemselves) {
  Scene scene;
  ThreadPool pool(2);
  const at::Tensor all = scene.open(pool)->read_held_out(150);
  scene.spec.filters.max_activation_norm_multiple = 1.2;
  const auto stream = scene.open(pool);
  const at::Tensor kept = stream->read_held_out(150);
  EXPECT_LT(kept.size(0), 145);
  EXPECT_EQ(stream->held_out_documents_end().back(), kept.size(0));
  EXPECT_NEAR(stream->splice_held_out(0, kept, 0).kl, 0, 1e-9);
  // As many whole documents as were asked for by their tokens.
  std::vector<std::uint64_t> chosen;
  std::uint64_t rows = 0;
  for (const std::uint64_t document : scene.games->held_out_documents()) {
    if (rows >= 150) break;
    chosen.push_back(document);
    rows += scene.games->rows(document);
  }
  const at::Tensor whole =
      activations_of(*scene.model, scene.spec.hook, *scene.games, chosen, pool);
  const at::Tensor norms = whole.to(at::kDouble).norm(2, {1});
  const at::Tensor expected =
      whole.index_select(0, norms.le(1.2 * norms.median()).nonzero().squeeze(1));
  EXPECT_TRUE(same_bytes(kept, expected.narrow(0, 0, kept.size(0)).contiguous()));
  EXPECT_EQ(kept.size(0), std::min<std::int64_t>(150, expected.size(0)));
}

TEST(DocumentStream, HeldOutRowsAreSplicedDocumentByDocumentAndLeaveTheStepAlone) {
  const Scene scene;
  ThreadPool pool(2);
  const auto stream = scene.open(pool);
  const at::Tensor rows = Scene::read(*stream, 0);
  const at::Tensor half = rows * 0.5;
  const auto before = stream->splice(0, half, 0);
  const at::Tensor apart = stream->read_held_out(150);
  EXPECT_EQ(apart.size(0), 150);
  const auto& held_out = scene.games->held_out_documents();
  const at::Tensor whole = activations_of(*scene.model, scene.spec.hook, *scene.games,
                                          std::span(held_out).subspan(0, 20), pool);
  EXPECT_TRUE(same_bytes(apart, whole.narrow(0, 0, 150).contiguous()));
  const auto ends = stream->held_out_documents_end();
  ASSERT_EQ(ends.back(), 150);
  EXPECT_NEAR(stream->splice_held_out(0, apart, 0).kl, 0, 1e-9);
  const at::Tensor other = (apart * 0.5).contiguous();
  const auto together = stream->splice_held_out(0, other, 0);
  double kl = 0;
  std::int64_t first = 0;
  for (const std::int64_t end : ends) {
    const auto said =
        stream->splice_held_out(first, other.narrow(0, first, end - first).contiguous(), 0);
    kl += said.kl * static_cast<double>(end - first) / 150;
    first = end;
  }
  EXPECT_GT(kl, 1e-4);
  EXPECT_NEAR(together.kl, kl, 1e-5 * kl);
  const auto after = stream->splice(0, half, 0);
  EXPECT_EQ(after.kl, before.kl);
  EXPECT_TRUE(same_bytes(after.gradient, before.gradient));
}

TEST(DocumentStream, BytesDoNotDependOnTheNumberOfThreads) {
  const Scene scene;
  ThreadPool one(1), three(3);
  const auto alone = scene.open(one), together = scene.open(three);
  const at::Tensor rows = Scene::read(*alone, 0);
  EXPECT_TRUE(same_bytes(rows, Scene::read(*together, 0)));
  const at::Tensor half = rows * 0.5;
  const auto said = alone->splice(0, half, 0), also = together->splice(0, half, 0);
  EXPECT_EQ(said.kl, also.kl);
  EXPECT_TRUE(same_bytes(said.gradient, also.gradient));
}

TEST(DocumentStream, RefusesWhatCannotBe) {
  const Scene scene;
  ThreadPool pool(1);
  const auto opened = [&](const sweeps::StreamSpec& spec) {
    return DocumentStream::open(spec, scene.model, scene.games, pool);
  };
  auto spec = scene.spec;
  spec.joined = {"blocks.0.hook_resid_pre"};
  EXPECT_THAT(opened(spec).error().message, HasSubstr("one hook"));
  spec = scene.spec;
  spec.hook = "blocks.7.hook_resid_pre";
  EXPECT_THAT(opened(spec).error().message, HasSubstr("no hook"));
  spec = scene.spec;
  spec.hook = "blocks.1.hook_resid_post";
  EXPECT_THAT(DocumentStream::open(spec, scene.model, scene.games, pool, true).error().message,
              HasSubstr("no block behind it"));
  const auto stream = scene.open(pool);
  EXPECT_TRUE(stream->check_batch(kBatch));
  EXPECT_THAT(stream->check_batch(1'000'000).error().message, HasSubstr("a batch of 1000000"));
}

}  // namespace
}  // namespace saesweep::worker
