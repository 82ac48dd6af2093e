// Whole documents in order, and what the model says when something else stands in for its
// activations.
#include "worker/activations/document_stream.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <vector>

#include "tests/worker/small_model.h"
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
  std::shared_ptr<const Transformer> model =
      std::make_shared<const Transformer>(lively_model(small_config()));
  std::shared_ptr<const TokenDocuments> games = small_games(400, 0.1);
  sweeps::StreamSpec spec = [] {
    sweeps::StreamSpec stream;
    stream.hook = "blocks.1.hook_resid_pre";
    stream.seed = 3;
    return stream;
  }();

  std::unique_ptr<DocumentStream> open(ThreadPool& pool) const {
    return DocumentStream::open(spec, model, games, pool).value();
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
  const auto said = stream->splice(0, rows);
  EXPECT_NEAR(said.kl, 0, 1e-9);
  EXPECT_LT(said.gradient.abs().max().item<double>(), 1e-7);
}

TEST(DocumentStream, TheGradientIsThatOfTheDivergence) {
  const Scene scene;
  ThreadPool pool(2);
  const auto stream = scene.open(pool);
  at::Tensor rows = Scene::read(*stream, kBatch);
  rows = rows * 0.7;
  const auto said = stream->splice(kBatch, rows);
  EXPECT_GT(said.kl, 1e-4);
  at::Tensor direction = at::empty_like(rows);
  Rng rng(5, "test.direction");
  for (std::int64_t i = 0; i < direction.numel(); ++i)
    direction.mutable_data_ptr<float>()[i] = static_cast<float>(rng.normal());
  constexpr double kStep = 1e-2;
  const double ahead = stream->splice(kBatch, rows + kStep * direction).kl;
  const double behind = stream->splice(kBatch, rows - kStep * direction).kl;
  const double slope = (said.gradient * direction).sum(at::kDouble).item<double>();
  EXPECT_NEAR((ahead - behind) / (2 * kStep), slope, 0.02 * std::abs(slope) + 1e-6);
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
  const auto said = stream->splice(0, other);
  const double scale = want.abs().max().item<double>();
  EXPECT_LT((said.gradient.to(at::kDouble) - want).abs().max().item<double>(), 1e-5 * scale);
  EXPECT_NEAR(said.kl, (p * (p.log() - q.log())).sum(1).mean().item<double>(), 1e-6);
}

TEST(DocumentStream, BytesDoNotDependOnTheNumberOfThreads) {
  const Scene scene;
  ThreadPool one(1), three(3);
  const auto alone = scene.open(one), together = scene.open(three);
  const at::Tensor rows = Scene::read(*alone, 0);
  EXPECT_TRUE(same_bytes(rows, Scene::read(*together, 0)));
  const at::Tensor half = rows * 0.5;
  const auto said = alone->splice(0, half), also = together->splice(0, half);
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
  const auto stream = scene.open(pool);
  EXPECT_TRUE(stream->check_batch(kBatch));
  EXPECT_THAT(stream->check_batch(1'000'000).error().message, HasSubstr("a batch of 1000000"));
}

}  // namespace
}  // namespace saesweep::worker
