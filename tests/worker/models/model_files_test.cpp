// Model folders: what is saved loads again, and what is wrong with one is said by name.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <map>
#include <string>

#include "core/files.h"
#include "tests/support/temp_dir.h"
#include "tests/worker/small_model.h"
#include "worker/models/transformer.h"
#include "worker/tensor_bytes.h"

namespace saesweep::worker {
namespace {

using test::lively_model;
using test::random_tokens;
using test::same_bytes;
using test::small_config;
using testing::HasSubstr;

struct ModelFiles : testing::Test {
  ::saesweep::test::TempDir dir;
  Transformer model = lively_model(small_config());
  std::filesystem::path folder = dir.path() / "model";

  void SetUp() override { ASSERT_TRUE(model.save(folder)); }
  std::string read(const char* name) const { return read_file(folder / name).value(); }
  void write(const char* name, const std::string& bytes) const {
    ASSERT_TRUE(write_file_atomically(folder / name, bytes));
  }
  void write_weights(const std::map<std::string, at::Tensor>& weights) const {
    write("model.safetensors", serialize_tensors(weights));
  }
  void edit_config(const std::function<void(Json&)>& edit) const {
    Json json = parse_json(read("config.json")).value();
    edit(json);
    write("config.json", json.dump());
  }
  void expect_refused(ErrorCode code, std::initializer_list<const char*> words) const {
    const auto loaded = Transformer::load(folder);
    ASSERT_FALSE(loaded);
    EXPECT_EQ(loaded.error().code, code) << loaded.error().message;
    for (const char* word : words) EXPECT_THAT(loaded.error().message, HasSubstr(word));
    EXPECT_THAT(loaded.error().message, HasSubstr(folder.string()));
  }
};

TEST_F(ModelFiles, WhatWasSavedLoadsWithTheSameBytes) {
  const Transformer loaded = Transformer::load(folder).value();
  ASSERT_EQ(loaded.weights().size(), model.weights().size());
  for (const auto& [name, weight] : model.weights())
    EXPECT_TRUE(same_bytes(weight, loaded.weights().at(name))) << name;
  const at::Tensor tokens = random_tokens(model.config(), 2, 7);
  EXPECT_TRUE(same_bytes(model.forward(tokens, {}).logits, loaded.forward(tokens, {}).logits));
  ASSERT_TRUE(loaded.save(dir.path() / "again"));
  for (const char* name : {"config.json", "model.safetensors"})
    EXPECT_EQ(read_file(dir.path() / "again" / name).value(), read(name));
}

TEST_F(ModelFiles, EveryKeyOfTheConfigurationComesBack) {
  TransformerConfig config = small_config();
  config.activation = "gelu_new";
  config.tied = true;
  config.bias = false;
  config.layer_norm_epsilon = 1e-6;
  const auto back = TransformerConfig::from_json(config.to_json()).value();
  EXPECT_EQ(back.to_json(), config.to_json());
  EXPECT_EQ(back.activation, "gelu_new");
  EXPECT_TRUE(back.tied);
  EXPECT_FALSE(back.bias);
  EXPECT_EQ(back.layer_norm_epsilon, 1e-6);
}

TEST_F(ModelFiles, WhatGpt2sConfigurationLeavesOutHasItsDefaults) {
  const Json json = {{"n_layer", 1},     {"n_embd", 8},     {"n_head", 2},
                     {"n_positions", 4}, {"vocab_size", 5}, {"n_inner", nullptr}};
  const auto config = TransformerConfig::from_json(json).value();
  EXPECT_EQ(config.d_mlp, 32);
  EXPECT_EQ(config.activation, "gelu_new");
  EXPECT_TRUE(config.tied);
}

TEST_F(ModelFiles, NamesWithThePrefixOfGpt2LmHeadModelAreRead) {
  std::map<std::string, at::Tensor> prefixed;
  for (const auto& [name, weight] : model.weights())
    prefixed[name == "lm_head.weight" ? name : "transformer." + name] = weight;
  write_weights(prefixed);
  const auto loaded = Transformer::load(folder);
  ASSERT_TRUE(loaded) << loaded.error().message;
  EXPECT_TRUE(
      same_bytes(loaded->weights().at("h.1.ln_2.bias"), model.weights().at("h.1.ln_2.bias")));
}

TEST_F(ModelFiles, HalfPrecisionWeightsAreReadAsFp32) {
  std::map<std::string, at::Tensor> half;
  for (const auto& [name, weight] : model.weights()) half[name] = weight.to(at::kBFloat16);
  write_weights(half);
  const Transformer loaded = Transformer::load(folder).value();
  for (const auto& [name, weight] : loaded.weights())
    EXPECT_TRUE(same_bytes(weight, half.at(name).to(at::kFloat))) << name;
}

TEST_F(ModelFiles, RandomWeightsTakeOnlyTheShape) {
  std::filesystem::remove(folder / "model.safetensors");
  const Transformer loaded = Transformer::load_or_random(folder, true, 9).value();
  const Transformer expected = Transformer::random(small_config(), 9).value();
  for (const auto& [name, weight] : expected.weights())
    EXPECT_TRUE(same_bytes(weight, loaded.weights().at(name))) << name;
  EXPECT_FALSE(Transformer::load_or_random(folder, false, 9));
}

TEST_F(ModelFiles, AMissingFileIsNotFound) {
  std::filesystem::remove(folder / "model.safetensors");
  expect_refused(ErrorCode::kNotFound, {"model.safetensors"});
  std::filesystem::remove_all(folder);
  expect_refused(ErrorCode::kNotFound, {"config.json"});
}

TEST_F(ModelFiles, ATruncatedFileIsCorrupted) {
  const std::string whole = read("model.safetensors");
  for (const std::size_t bytes :
       {whole.size() - 1, whole.size() / 2, std::size_t{9}, std::size_t{0}}) {
    write("model.safetensors", whole.substr(0, bytes));
    expect_refused(ErrorCode::kCorrupted, {"model.safetensors"});
  }
}

TEST_F(ModelFiles, ALyingHeaderIsCorrupted) {
  const std::string whole = read("model.safetensors");
  std::string other_shape = whole;
  const std::size_t at = other_shape.find("[16,48]");
  ASSERT_NE(at, std::string::npos);
  other_shape.replace(at, 7, "[16,49]");
  write("model.safetensors", other_shape);
  expect_refused(ErrorCode::kCorrupted, {"model.safetensors", "h.0.attn.c_attn.weight"});
  std::string endless = whole;
  endless[7] = '\x7f';
  write("model.safetensors", endless);
  expect_refused(ErrorCode::kCorrupted, {"header"});
  write("model.safetensors", "\x89PNG and then some bytes that are no header at all");
  expect_refused(ErrorCode::kCorrupted, {"header"});
}

TEST_F(ModelFiles, AMissingTensorIsNamed) {
  auto weights = model.weights();
  weights.erase("h.1.mlp.c_fc.bias");
  write_weights(weights);
  expect_refused(ErrorCode::kInvalidArgument, {"no tensor \"h.1.mlp.c_fc.bias\""});
}

TEST_F(ModelFiles, ATensorOfTheWrongShapeIsNamedWithBothShapes) {
  auto weights = model.weights();
  weights["wpe.weight"] = at::zeros({7, 16});
  write_weights(weights);
  expect_refused(ErrorCode::kInvalidArgument, {"\"wpe.weight\"", "[7, 16]", "[11, 16]"});
}

TEST_F(ModelFiles, AWeightThatIsNotFiniteIsNamed) {
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    auto weights = model.weights();
    weights["h.0.attn.c_proj.bias"] = at::zeros({16});
    weights["h.0.attn.c_proj.bias"].mutable_data_ptr<float>()[15] = bad;
    write_weights(weights);
    expect_refused(ErrorCode::kInvalidArgument, {"\"h.0.attn.c_proj.bias\"", "not finite"});
  }
}

TEST_F(ModelFiles, ATensorOfIntegersIsNamed) {
  auto weights = model.weights();
  weights["ln_f.bias"] = at::zeros({16}, at::kLong);
  write_weights(weights);
  expect_refused(ErrorCode::kInvalidArgument, {"\"ln_f.bias\"", "I64", "model.safetensors"});
}

TEST_F(ModelFiles, AConfigurationThatIsNoJsonIsCorrupted) {
  write("config.json", "{\"n_layer\": 2");
  expect_refused(ErrorCode::kCorrupted, {"config.json"});
  write("config.json", "");
  expect_refused(ErrorCode::kCorrupted, {"config.json"});
  write("config.json", "[1]");
  expect_refused(ErrorCode::kInvalidArgument, {"config.json"});
}

TEST_F(ModelFiles, AKeyThatCannotBeIsNamedWithItsValue) {
  const std::string good = read("config.json");
  const auto expect_key = [&](const char* key, const Json& value) {
    write("config.json", good);
    edit_config([&](Json& json) { json[key] = value; });
    expect_refused(ErrorCode::kInvalidArgument, {key});
  };
  expect_key("n_layer", 0);
  expect_key("n_layer", 1e30);
  expect_key("n_layer", "two");
  expect_key("n_embd", -16);
  expect_key("n_head", 3);  // does not divide n_embd
  expect_key("vocab_size", nullptr);
  expect_key("activation_function", "swish");
  expect_key("model_type", "llama");
  expect_key("layer_norm_epsilon", 0);
  // GPT-2's variants that the forward pass does not compute.
  expect_key("scale_attn_weights", false);
  expect_key("scale_attn_by_inverse_layer_idx", true);
  expect_key("add_cross_attention", true);
  write("config.json", good);
  edit_config([](Json& json) { json.erase("n_positions"); });
  expect_refused(ErrorCode::kInvalidArgument, {"no n_positions"});
}

}  // namespace
}  // namespace saesweep::worker
