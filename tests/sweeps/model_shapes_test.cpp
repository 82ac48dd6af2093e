#include "sweeps/model_shapes.h"

#include <gmock/gmock.h>

#include "sweeps/model_weights.h"
#include "tests/sweeps/sweep_words.h"

namespace saesweep::sweeps {
namespace {

using testing::Contains;
using testing::HasSubstr;
using testing::SizeIs;

class ModelShapesTest : public SweepTest {
 protected:
  std::filesystem::path folder() const { return dir.path() / "model"; }
  void configure(const char* key, const Json& value) {
    Json config = tiny_config();
    config[key] = value;
    write("model/config.json", config.dump());
  }
};

TEST_F(ModelShapesTest, AGpt2IsReadFromItsConfig) {
  const ModelShape shape = read_model_shape(folder()).value();
  EXPECT_EQ(shape.layers, 3u);
  EXPECT_EQ(shape.d_model, 8u);
  EXPECT_EQ(shape.d_mlp, 16u);
  EXPECT_EQ(shape.context, 31u);
  EXPECT_EQ(shape.vocabulary, 33u);
  EXPECT_FALSE(shape.tied);
  configure("n_inner", nullptr);
  EXPECT_EQ(read_model_shape(folder())->d_mlp, 32u);
}

TEST_F(ModelShapesTest, HooksHaveTransformerLensNamesAndWidths) {
  const ModelShape shape = read_model_shape(folder()).value();
  EXPECT_THAT(hook_names(shape), SizeIs(2 + 3 * 13 + 1));
  for (const std::string& name : hook_names(shape)) EXPECT_TRUE(hook_width(shape, name)) << name;
  EXPECT_EQ(hook_width(shape, "blocks.2.hook_resid_post"), 8u);
  EXPECT_EQ(hook_width(shape, "blocks.0.mlp.hook_post"), 16u);
  EXPECT_EQ(hook_block(shape, "blocks.2.mlp.hook_pre"), 2u);
  EXPECT_EQ(hook_block(shape, "hook_embed"), std::nullopt);
  for (const char* name : {"blocks.3.hook_resid_post", "blocks.00.hook_resid_post", "blocks..x",
                           "blocks.1", "blocks.1.", "", "blocks.99999999999999.hook_resid_post"})
    EXPECT_EQ(hook_width(shape, name), std::nullopt) << name;
}

TEST_F(ModelShapesTest, ADeeperHookNeedsMoreParameters) {
  const ModelShape shape = read_model_shape(folder()).value();
  std::uint64_t before = 0;
  for (const std::string& name : hook_names(shape)) {
    EXPECT_GE(parameters_up_to(shape, name), before) << name;
    before = parameters_up_to(shape, name);
  }
  EXPECT_EQ(before, 3u * (4 * 64 + 2 * 8 * 16));
}

TEST_F(ModelShapesTest, ConfigsThatAreWrongAreRefusedByKey) {
  for (const auto& [key, value, expected] : std::vector<std::tuple<const char*, Json, const char*>>{
           {"n_head", 3, "n_embd 8 is no multiple of n_head 3"},
           {"n_layer", -1, "'n_layer' is -1"},
           {"n_embd", "8", "'n_embd' is \"8\""},
           {"vocab_size", 1e30, "'vocab_size' is 1e+30"},
           {"n_positions", nullptr, "'n_positions' is null"},
           {"activation_function", "silu", "'activation_function' is \"silu\""}}) {
    configure(key, value);
    EXPECT_THAT(read_model_shape(folder()).error().message, HasSubstr(expected));
  }
  write("model/config.json", "[]");
  EXPECT_THAT(read_model_shape(folder()).error().message, HasSubstr("is no JSON object"));
  std::filesystem::remove(folder() / "config.json");
  EXPECT_EQ(read_model_shape(folder()).error().code, ErrorCode::kNotFound);
  EXPECT_THAT(read_model_shape(dir.path() / "no").error().message, HasSubstr("there is no folder"));
}

TEST_F(ModelShapesTest, RandomWeightsAreNamedByShapeAndSeedAlone) {
  const ModelShape shape = read_model_shape(folder()).value();
  const auto digest = [&](bool random, std::uint64_t seed) {
    return model_digest(folder(), shape, random, seed).value();
  };
  const std::string zero = digest(true, 0);
  EXPECT_NE(digest(true, 1), zero);
  EXPECT_NE(digest(false, 0), zero);
  EXPECT_EQ(digest(false, 0), digest(false, 1));
  write("model/model.safetensors", safetensors_of(tiny_shapes(), 2.0F));
  EXPECT_EQ(digest(true, 0), zero);
}

TEST_F(ModelShapesTest, WeightsMayCarryThePrefixOfHuggingFace) {
  const ModelShape shape = read_model_shape(folder()).value();
  Shapes prefixed;
  for (const auto& [name, dims] : tiny_shapes()) prefixed["transformer." + name] = dims;
  write("model/model.safetensors", safetensors_of(prefixed));
  EXPECT_TRUE(check_model_weights(folder(), shape));
}

TEST_F(ModelShapesTest, ShardsOfActivationsAreReadInNameOrderAndMustAgree) {
  std::filesystem::create_directory(dir.path() / "acts");
  write("acts/b.safetensors", safetensors_of({{"x", {10, 4}}}));
  write("acts/a.safetensors", safetensors_of({{"x", {7, 4}}}));
  write("acts/notes.txt", "not read");
  const auto files = read_activation_files(dir.path() / "acts", "x").value();
  EXPECT_EQ(files.rows, 17u);
  EXPECT_EQ(files.d_in, 4u);
  EXPECT_EQ(files.files[0].filename(), "a.safetensors");
  write("acts/c.safetensors", safetensors_of({{"x", {3, 5}}}));
  EXPECT_THAT(read_activation_files(dir.path() / "acts", "x").error().message,
              HasSubstr("is 5 wide; the files before it are 4 wide"));
  write("acts/c.safetensors", safetensors_of({{"x", {3}}}));
  EXPECT_THAT(read_activation_files(dir.path() / "acts", "x").error().message,
              HasSubstr("has the shape [3]; [n, d]"));
}

}  // namespace
}  // namespace saesweep::sweeps
