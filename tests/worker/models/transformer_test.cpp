// The forward pass: against plain loops, its hooks, what it may depend on.
#include "worker/models/transformer.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "tests/worker/small_model.h"

namespace saesweep::worker {
namespace {

using test::lively_model;
using test::random_tokens;
using test::same_bytes;
using test::small_config;

// ---- the same in plain loops --------------------------------------------------------------------

using Row = std::vector<double>;
using Rows = std::vector<Row>;

struct SlowTransformer {
  const Transformer& model;
  std::map<std::string, Rows> hooks = {};  // of one sequence

  float weight(const std::string& name, std::int64_t i) const {
    return model.weights().at(name).const_data_ptr<float>()[i];
  }
  Row norm(const Row& x, const std::string& name) const {
    double mean = 0, variance = 0;
    for (const double value : x) mean += value / static_cast<double>(x.size());
    for (const double value : x)
      variance += (value - mean) * (value - mean) / static_cast<double>(x.size());
    Row out;
    for (std::size_t i = 0; i < x.size(); ++i)
      out.push_back((x[i] - mean) / std::sqrt(variance + model.config().layer_norm_epsilon) *
                        weight(name + ".weight", static_cast<std::int64_t>(i)) +
                    weight(name + ".bias", static_cast<std::int64_t>(i)));
    return out;
  }
  // Weights are [in, out].
  Row affine(const Row& x, const std::string& name) const {
    const std::int64_t width = model.weights().at(name + ".bias").size(0);
    Row out;
    for (std::int64_t j = 0; j < width; ++j) {
      double sum = weight(name + ".bias", j);
      for (std::size_t i = 0; i < x.size(); ++i)
        sum += x[i] * weight(name + ".weight", static_cast<std::int64_t>(i) * width + j);
      out.push_back(sum);
    }
    return out;
  }
  double activate(double x) const {
    const std::string& name = model.config().activation;
    if (name == "relu") return x > 0 ? x : 0;
    if (name == "gelu") return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
  }

  Rows logits(const std::vector<std::int64_t>& tokens) {
    const auto& c = model.config();
    const auto d = static_cast<std::size_t>(c.d_model), heads = static_cast<std::size_t>(c.heads);
    const std::size_t length = tokens.size(), d_head = d / heads;
    Rows residual(length, Row(d));
    for (std::size_t t = 0; t < length; ++t)
      for (std::size_t i = 0; i < d; ++i)
        residual[t][i] =
            weight("wte.weight", tokens[t] * c.d_model + static_cast<std::int64_t>(i)) +
            weight("wpe.weight", static_cast<std::int64_t>(t * d + i));
    for (int layer = 0; layer < c.layers; ++layer) {
      const std::string block = fmt::format("h.{}.", layer), at = fmt::format("blocks.{}.", layer);
      hooks[at + "hook_resid_pre"] = residual;
      Rows qkv;
      for (const Row& row : residual)
        qkv.push_back(affine(norm(row, block + "ln_1"), block + "attn.c_attn"));
      Rows z(length, Row(d, 0));
      for (std::size_t head = 0; head < heads; ++head)
        for (std::size_t t = 0; t < length; ++t) {
          Row scores(t + 1);
          double largest = -1e300, total = 0;
          for (std::size_t s = 0; s <= t; ++s) {
            for (std::size_t i = 0; i < d_head; ++i)
              scores[s] += qkv[t][head * d_head + i] * qkv[s][d + head * d_head + i];
            scores[s] /= std::sqrt(static_cast<double>(d_head));
            largest = std::max(largest, scores[s]);
          }
          for (double& score : scores) total += score = std::exp(score - largest);
          for (std::size_t s = 0; s <= t; ++s)
            for (std::size_t i = 0; i < d_head; ++i)
              z[t][head * d_head + i] += scores[s] / total * qkv[s][2 * d + head * d_head + i];
        }
      hooks[at + "attn.hook_z"] = z;
      Rows post, mlp;
      for (std::size_t t = 0; t < length; ++t) {
        const Row out = affine(z[t], block + "attn.c_proj");
        for (std::size_t i = 0; i < d; ++i) residual[t][i] += out[i];
        Row hidden = affine(norm(residual[t], block + "ln_2"), block + "mlp.c_fc");
        for (double& value : hidden) value = activate(value);
        post.push_back(hidden);
        mlp.push_back(affine(hidden, block + "mlp.c_proj"));
      }
      hooks[at + "hook_resid_mid"] = residual;
      hooks[at + "mlp.hook_post"] = post;
      hooks[at + "hook_mlp_out"] = mlp;
      for (std::size_t t = 0; t < length; ++t)
        for (std::size_t i = 0; i < d; ++i) residual[t][i] += mlp[t][i];
      hooks[at + "hook_resid_post"] = residual;
    }
    Rows out;
    const std::string head = c.tied ? "wte.weight" : "lm_head.weight";
    for (const Row& row : residual) {
      const Row normed = norm(row, "ln_f");
      hooks["ln_final.hook_normalized"].push_back(normed);
      Row& logits = out.emplace_back();
      for (int token = 0; token < c.vocabulary; ++token) {
        double sum = 0;
        for (std::size_t i = 0; i < d; ++i)
          sum += normed[i] * weight(head, token * c.d_model + static_cast<std::int64_t>(i));
        logits.push_back(sum);
      }
    }
    return out;
  }
};

void expect_near(const at::Tensor& found, const Rows& expected, const std::string& what) {
  ASSERT_EQ(found.size(0), static_cast<std::int64_t>(expected.size()));
  ASSERT_EQ(found.size(1), static_cast<std::int64_t>(expected[0].size()));
  const at::Tensor plain = found.contiguous();
  const float* values = plain.const_data_ptr<float>();
  for (std::size_t t = 0; t < expected.size(); ++t)
    for (std::size_t i = 0; i < expected[t].size(); ++i)
      ASSERT_NEAR(values[t * expected[t].size() + i], expected[t][i],
                  1e-5 * std::max(1.0, std::abs(expected[t][i])))
          << what << " at position " << t;
}

struct Variant {
  const char* activation;
  bool tied;
};
class TransformerProducts : public testing::TestWithParam<std::tuple<Variant, bool>> {};
INSTANTIATE_TEST_SUITE_P(Kinds, TransformerProducts,
                         testing::Combine(testing::Values(Variant{"gelu", false},
                                                          Variant{"gelu_new", true},
                                                          Variant{"relu", false}),
                                          testing::Bool()));

TEST_P(TransformerProducts, EqualPlainLoopsAtEveryHook) {
  const auto& [variant, prepared] = GetParam();
  TransformerConfig config = small_config();
  config.activation = variant.activation;
  config.tied = variant.tied;
  Transformer model = lively_model(config);
  if (prepared) model.prepare(sweeps::Precision::kFloat32);
  EXPECT_EQ(model.weights().contains("lm_head.weight"), !config.tied);
  const at::Tensor tokens = random_tokens(config, 3, 9);
  for (std::int64_t row = 0; row < 3; ++row) {
    SlowTransformer slow{model};
    std::vector<std::int64_t> sequence;
    for (std::int64_t t = 0; t < 9; ++t) sequence.push_back(tokens[row][t].item<std::int64_t>());
    const Rows expected = slow.logits(sequence);
    ForwardRequest request;
    for (const auto& [hook, rows] : slow.hooks) request.capture.push_back(hook);
    const ForwardResult found = model.forward(tokens, request);
    expect_near(found.logits[row], expected, "logits");
    for (const auto& [hook, rows] : slow.hooks)
      expect_near(found.captured.at(hook)[row], rows, hook);
  }
}

// ---- products of our own -----------------------------------------------------------------------

at::Tensor at_hook(const Transformer& model, const at::Tensor& tokens, const std::string& hook) {
  return model.forward(tokens, {.capture = {hook}, .logits = false}).captured.at(hook);
}

// A sequence's values are its own, whatever is computed beside it.
TEST(PreparedTransformer, GivesASequenceTheSameBytesInEveryBatch) {
  for (const auto precision : {sweeps::Precision::kFloat32, sweeps::Precision::kBFloat16}) {
    Transformer model = lively_model(small_config());
    model.prepare(precision);
    const at::Tensor tokens = random_tokens(model.config(), 15, 11);
    const at::Tensor together = at_hook(model, tokens, "blocks.1.hook_resid_post");
    for (const std::int64_t row : {0, 7, 14})
      EXPECT_TRUE(same_bytes(at_hook(model, tokens.narrow(0, row, 1), "blocks.1.hook_resid_post"),
                             together.narrow(0, row, 1)));
  }
}

TEST(PreparedTransformer, RoundsOperandsToBf16IfAskedTo) {
  const Transformer plain = lively_model(small_config());
  Transformer model = lively_model(small_config());
  model.prepare(sweeps::Precision::kBFloat16);
  const at::Tensor tokens = random_tokens(model.config(), 6, 11);
  // Of one product the operands are known.
  const at::Tensor normed = at_hook(model, tokens, "blocks.0.ln2.hook_normalized");
  const auto rounded = [](const at::Tensor& x) { return x.to(at::kBFloat16).to(at::kDouble); };
  const at::Tensor want =
      at::matmul(rounded(normed), rounded(model.weights().at("h.0.mlp.c_fc.weight"))) +
      model.weights().at("h.0.mlp.c_fc.bias");
  const at::Tensor got = at_hook(model, tokens, "blocks.0.mlp.hook_pre");
  EXPECT_LT((got - want).abs().max().item<double>(), 1e-5 * want.abs().max().item<double>());
  const at::Tensor of_plain = at_hook(plain, tokens, "blocks.1.hook_resid_post");
  const at::Tensor of_model = at_hook(model, tokens, "blocks.1.hook_resid_post");
  const double distance = ((of_model - of_plain).norm() / of_plain.norm()).item<double>();
  EXPECT_GT(distance, 1e-5) << "nothing was rounded";
  EXPECT_LT(distance, 2e-2);
}

// end_to_end differentiates through the model: the same function, by the library's products.
TEST(PreparedTransformer, IsTheSameFunctionWhereGradientsAreAskedFor) {
  for (const auto precision : {sweeps::Precision::kFloat32, sweeps::Precision::kBFloat16}) {
    Transformer model = lively_model(small_config());
    model.prepare(precision);
    const at::Tensor tokens = random_tokens(model.config(), 3, 11);
    const at::Tensor want = model.forward(tokens, {}).logits;
    at::Tensor leaf;
    ForwardRequest request;
    request.replace_hook = "blocks.0.hook_resid_post";
    request.replacement = [&](const at::Tensor& value) {
      return leaf = value.detach().clone().requires_grad_();
    };
    const at::Tensor got = model.forward(tokens, request).logits;
    EXPECT_LT(((got - want).norm() / want.norm()).item<double>(),
              precision == sweeps::Precision::kFloat32 ? 1e-5 : 2e-3);
    got.square().sum().backward();
    EXPECT_GT(leaf.grad().abs().sum().item<double>(), 0);
  }
}

// ---- what the output may depend on --------------------------------------------------------------

TEST(Transformer, ALaterTokenChangesNothingBeforeIt) {
  const Transformer model = lively_model(small_config());
  const at::Tensor tokens = random_tokens(model.config(), 2, 11);
  at::Tensor changed = tokens.clone();
  changed.select(1, 7).add_(1).remainder_(model.config().vocabulary);
  const at::Tensor before = model.forward(tokens, {}).logits;
  const at::Tensor after = model.forward(changed, {}).logits;
  EXPECT_TRUE(same_bytes(before.narrow(1, 0, 7), after.narrow(1, 0, 7)));
  for (std::int64_t t = 7; t < 11; ++t)
    EXPECT_FALSE(at::equal(before.select(1, t), after.select(1, t))) << t;
}

TEST(Transformer, RepeatsItsBytes) {
  const Transformer model = lively_model(small_config());
  const at::Tensor tokens = random_tokens(model.config(), 16, 11);
  EXPECT_TRUE(same_bytes(model.forward(tokens, {}).logits, model.forward(tokens, {}).logits));
}

TEST(Transformer, RandomWeightsDependOnSeedAndShapeOnly) {
  const TransformerConfig config = small_config();
  const Transformer a = Transformer::random(config, 5).value(),
                    b = Transformer::random(config, 5).value(),
                    other = Transformer::random(config, 6).value();
  for (const auto& [name, weight] : a.weights()) {
    EXPECT_TRUE(same_bytes(weight, b.weights().at(name))) << name;
    if (weight.dim() > 1) {
      EXPECT_FALSE(at::equal(weight, other.weights().at(name))) << name;
    }
  }
  // More layers leave the weights of the first ones as they are, but for the residual scale.
  TransformerConfig deeper = config;
  deeper.layers = 5;
  EXPECT_TRUE(same_bytes(Transformer::random(deeper, 5).value().weights().at("h.1.mlp.c_fc.weight"),
                         a.weights().at("h.1.mlp.c_fc.weight")));
}

TEST(Transformer, RandomWeightsHaveTheDeviationsOfGpt2) {
  TransformerConfig config = small_config();
  config.layers = 8;
  config.d_model = 64;
  config.d_mlp = 256;
  const Transformer model = Transformer::random(config, 0).value();
  const auto deviation = [&](const char* name) {
    return model.weights().at(name).std().item<double>();
  };
  EXPECT_NEAR(deviation("h.3.attn.c_attn.weight"), 0.02, 0.001);
  EXPECT_NEAR(deviation("h.3.mlp.c_proj.weight"), 0.02 / 4, 0.0003);
  EXPECT_TRUE(at::equal(model.weights().at("ln_f.weight"), at::ones({64})));
  EXPECT_TRUE(at::equal(model.weights().at("h.0.mlp.c_fc.bias"), at::zeros({256})));
}

// ---- hooks --------------------------------------------------------------------------------------

// Hook names of one model, in the order of the forward pass, with widths.
std::vector<std::pair<std::string, std::int64_t>> all_hooks(const TransformerConfig& c) {
  std::vector<std::pair<std::string, std::int64_t>> hooks = {{"hook_embed", c.d_model},
                                                             {"hook_pos_embed", c.d_model}};
  for (int layer = 0; layer < c.layers; ++layer)
    for (const char* name :
         {"hook_resid_pre", "ln1.hook_normalized", "attn.hook_q", "attn.hook_k", "attn.hook_v",
          "attn.hook_z", "hook_attn_out", "hook_resid_mid", "ln2.hook_normalized", "mlp.hook_pre",
          "mlp.hook_post", "hook_mlp_out", "hook_resid_post"})
      hooks.emplace_back(fmt::format("blocks.{}.{}", layer, name),
                         std::string(name).starts_with("mlp.") ? c.d_mlp : c.d_model);
  hooks.emplace_back("ln_final.hook_normalized", c.d_model);
  return hooks;
}

TEST(TransformerHooks, HaveTheNamesAndWidthsOfTransformerLens) {
  const Transformer model = lively_model(small_config());
  const at::Tensor tokens = random_tokens(model.config(), 2, 5);
  for (const auto& [hook, width] : all_hooks(model.config())) {
    EXPECT_TRUE(model.check_hook(hook)) << hook;
    EXPECT_EQ(model.hook_width(hook), width) << hook;
    ForwardRequest request;
    request.capture = {hook};
    request.logits = false;
    EXPECT_EQ(model.forward(tokens, request).captured.at(hook).sizes(),
              (std::vector<std::int64_t>{2, 5, width}))
        << hook;
  }
  EXPECT_EQ(model.hook_block("hook_embed"), -1);
  EXPECT_EQ(model.hook_block("blocks.1.mlp.hook_post"), 1);
  EXPECT_EQ(model.hook_block("ln_final.hook_normalized"), 2);
}

TEST(TransformerHooks, AnUnknownNameIsRefusedWithTheNearest) {
  const Transformer model = lively_model(small_config());
  const std::map<std::string, std::string> nearest = {
      {"blocks.1.hook_resid_pots", "blocks.1.hook_resid_post"},
      {"blocks.0.mlp.hook_pots", "blocks.0.mlp.hook_post"},
      {"blocks.7.hook_resid_pre", "hook_resid_pre"},
      {"", "hook_embed"}};
  for (const auto& [wrong, right] : nearest) {
    const auto checked = model.check_hook(wrong);
    ASSERT_FALSE(checked) << wrong;
    EXPECT_EQ(checked.error().code, ErrorCode::kInvalidArgument);
    EXPECT_THAT(checked.error().message, testing::HasSubstr("\"" + wrong + "\""));
    EXPECT_THAT(checked.error().message, testing::HasSubstr(right));
  }
}

TEST(TransformerHooks, StoppingAtTheDeepestGivesTheBytesOfTheFullPass) {
  const Transformer model = lively_model(small_config());
  const at::Tensor tokens = random_tokens(model.config(), 4, 11);
  const auto hooks = all_hooks(model.config());
  ForwardRequest everything;
  for (const auto& [hook, width] : hooks) everything.capture.push_back(hook);
  const ForwardResult full = model.forward(tokens, everything);
  EXPECT_TRUE(full.logits.defined());
  for (std::size_t i = 0; i < hooks.size(); ++i) {
    ForwardRequest request;
    request.capture = {hooks[i].first, hooks[i / 2].first, hooks[i].first};
    request.logits = false;
    const ForwardResult stopped = model.forward(tokens, request);
    EXPECT_FALSE(stopped.logits.defined());
    EXPECT_EQ(stopped.captured.size(), i / 2 == i ? 1u : 2u);
    for (const auto& [hook, value] : stopped.captured)
      EXPECT_TRUE(same_bytes(value, full.captured.at(hook))) << hook;
  }
}

// A hook that nothing goes through would let the logits pass unchanged.
TEST(TransformerHooks, EveryOneCanBeReplaced) {
  const Transformer model = lively_model(small_config());
  const at::Tensor tokens = random_tokens(model.config(), 3, 8);
  const at::Tensor plain = model.forward(tokens, {}).logits;
  for (const auto& [hook, width] : all_hooks(model.config())) {
    ForwardRequest itself;
    itself.replace_hook = hook;
    itself.replacement = [](const at::Tensor& value) { return value.clone(); };
    EXPECT_TRUE(same_bytes(model.forward(tokens, itself).logits, plain)) << hook;
    ForwardRequest zeros = itself;
    zeros.replacement = [](const at::Tensor& value) { return at::zeros_like(value); };
    EXPECT_FALSE(at::allclose(model.forward(tokens, zeros).logits, plain)) << hook;
  }
}

TEST(TransformerHooks, ACaptureSeesTheValueBeforeItsReplacement) {
  const Transformer model = lively_model(small_config());
  const at::Tensor tokens = random_tokens(model.config(), 2, 6);
  const std::string hook = "blocks.0.hook_resid_post";
  ForwardRequest request;
  request.capture = {hook, "blocks.1.hook_resid_pre"};
  const ForwardResult plain = model.forward(tokens, request);
  request.replace_hook = hook;
  request.replacement = [](const at::Tensor& value) { return value * 2; };
  const ForwardResult replaced = model.forward(tokens, request);
  EXPECT_TRUE(same_bytes(replaced.captured.at(hook), plain.captured.at(hook)));
  EXPECT_TRUE(same_bytes(replaced.captured.at("blocks.1.hook_resid_pre"),
                         plain.captured.at("blocks.1.hook_resid_pre") * 2));
}

// The weights of what lies before are not numbers: whoever reads them has none either.
TEST(TransformerHooks, APassThatStartsInTheResidualStreamHasTheBytesOfTheWholeAndNothingBefore) {
  const Transformer model = lively_model(small_config());
  const at::Tensor tokens = random_tokens(model.config(), 3, 11);
  ForwardRequest whole;
  whole.capture = {"blocks.0.hook_resid_pre",  "blocks.0.hook_resid_mid",
                   "blocks.0.hook_resid_post", "blocks.1.hook_resid_pre",
                   "blocks.1.hook_resid_mid",  "blocks.1.hook_resid_post"};
  const ForwardResult full = model.forward(tokens, whole);
  const std::map<std::string, std::vector<std::string>> before = {
      {"blocks.0.hook_resid_pre", {"wte", "wpe"}},
      {"blocks.0.hook_resid_mid", {"wte", "wpe", "h.0.ln_1", "h.0.attn"}},
      {"blocks.0.hook_resid_post", {"wte", "wpe", "h.0"}},
      {"blocks.1.hook_resid_pre", {"wte", "wpe", "h.0"}},
      {"blocks.1.hook_resid_mid", {"wte", "wpe", "h.0", "h.1.ln_1", "h.1.attn"}},
      {"blocks.1.hook_resid_post", {"wte", "wpe", "h.0", "h.1"}}};
  for (const auto& [hook, names] : before) {
    SCOPED_TRACE(hook);
    Transformer rest = lively_model(small_config());
    for (auto& [name, weight] : rest.weights())
      for (const std::string& start : names)
        if (name.starts_with(start)) weight.fill_(std::nan(""));
    ForwardRequest request;
    request.start = hook;
    request.start_value = full.captured.at(hook);
    request.capture = {hook, "blocks.1.hook_resid_post"};
    const ForwardResult late = rest.forward(tokens, request);
    EXPECT_TRUE(same_bytes(late.logits, full.logits));
    EXPECT_TRUE(same_bytes(late.captured.at(hook), full.captured.at(hook)));
    EXPECT_TRUE(same_bytes(late.captured.at("blocks.1.hook_resid_post"),
                           full.captured.at("blocks.1.hook_resid_post")));
  }
}

TEST(TransformerHooks, KnowWhatTheyAreComputedFromAndWhatFollows) {
  const Transformer model = lively_model(small_config());
  EXPECT_EQ(model.start_of("hook_embed"), "");
  EXPECT_EQ(model.start_of("blocks.1.hook_resid_pre"), "blocks.1.hook_resid_pre");
  EXPECT_EQ(model.start_of("blocks.1.attn.hook_z"), "blocks.1.hook_resid_pre");
  EXPECT_EQ(model.start_of("blocks.1.mlp.hook_post"), "blocks.1.hook_resid_mid");
  EXPECT_EQ(model.start_of("ln_final.hook_normalized"), "blocks.1.hook_resid_post");
  const std::vector<std::string> both{"blocks.0.hook_resid_post", "blocks.1.hook_resid_post"};
  EXPECT_EQ(model.residuals_after("blocks.0.hook_mlp_out"), both);
  EXPECT_EQ(model.residuals_after("blocks.0.hook_resid_post"), std::vector(1, both[1]));
  EXPECT_TRUE(model.residuals_after("blocks.1.hook_resid_post").empty());
}

TEST(TransformerHooks, AreTheBlocksOfAResidualStream) {
  const Transformer model = lively_model(small_config());
  ForwardRequest request;
  for (const auto& [hook, width] : all_hooks(model.config())) request.capture.push_back(hook);
  const auto at = model.forward(random_tokens(model.config(), 2, 6), request).captured;
  EXPECT_TRUE(at::allclose(at.at("blocks.0.hook_resid_pre"),
                           at.at("hook_embed") + at.at("hook_pos_embed")));
  for (const std::string block : {"blocks.0.", "blocks.1."}) {
    EXPECT_TRUE(at::allclose(at.at(block + "hook_resid_mid"),
                             at.at(block + "hook_resid_pre") + at.at(block + "hook_attn_out")));
    EXPECT_TRUE(at::allclose(at.at(block + "hook_resid_post"),
                             at.at(block + "hook_resid_mid") + at.at(block + "hook_mlp_out")));
  }
}

}  // namespace
}  // namespace saesweep::worker
