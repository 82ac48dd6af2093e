// A folder with a model in it, and short ways to plan a sweep from text.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <bit>
#include <cstring>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "core/files.h"
#include "core/json.h"
#include "sweeps/sweep_plan.h"
#include "tests/support/temp_dir.h"

namespace saesweep::sweeps {

// A GPT-2 for 6x6 Othello: 3 blocks, 8 wide, MLP 16 wide.
inline Json tiny_config() {
  return {{"model_type", "gpt2"},
          {"n_layer", 3},
          {"n_embd", 8},
          {"n_head", 2},
          {"n_inner", 16},
          {"n_positions", 31},
          {"vocab_size", 33},
          {"activation_function", "gelu"},
          {"tie_word_embeddings", false}};
}

using Shapes = std::map<std::string, std::vector<std::uint64_t>>;

inline Shapes tiny_shapes() {
  const std::uint64_t d = 8, m = 16;
  Shapes shapes{{"wte.weight", {33, d}},
                {"wpe.weight", {31, d}},
                {"ln_f.weight", {d}},
                {"ln_f.bias", {d}},
                {"lm_head.weight", {33, d}}};
  for (int layer = 0; layer < 3; ++layer) {
    const std::string block = fmt::format("h.{}.", layer);
    for (const char* norm : {"ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias"})
      shapes[block + norm] = {d};
    shapes[block + "attn.c_attn.weight"] = {d, 3 * d};
    shapes[block + "attn.c_attn.bias"] = {3 * d};
    shapes[block + "attn.c_proj.weight"] = {d, d};
    shapes[block + "attn.c_proj.bias"] = {d};
    shapes[block + "mlp.c_fc.weight"] = {d, m};
    shapes[block + "mlp.c_fc.bias"] = {m};
    shapes[block + "mlp.c_proj.weight"] = {m, d};
    shapes[block + "mlp.c_proj.bias"] = {d};
  }
  return shapes;
}

// safetensors of fp32 tensors, every value `value`.
inline std::string safetensors_of(const Shapes& shapes, float value = 0.5F) {
  Json header = Json::object();
  std::string data;
  for (const auto& [name, shape] : shapes) {
    std::uint64_t count = 1;
    for (const std::uint64_t each : shape) count *= each;
    const std::uint64_t begin = data.size();
    for (std::uint64_t i = 0; i < count; ++i) {
      char bytes[4];
      std::memcpy(bytes, &value, 4);
      data.append(bytes, 4);
    }
    header[name] = {{"dtype", "F32"}, {"shape", shape}, {"data_offsets", {begin, data.size()}}};
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  std::string length(8, '\0');
  const std::uint64_t size = text.size();
  std::memcpy(length.data(), &size, 8);
  return length + text + data;
}

class SweepTest : public testing::Test {
 protected:
  SweepTest() {
    std::filesystem::create_directory(dir.path() / "model");
    write("model/config.json", tiny_config().dump());
    write("model/model.safetensors", safetensors_of(tiny_shapes()));
  }

  void write(const std::string& name, const std::string& bytes) {
    ASSERT_TRUE(write_file_atomically(dir.path() / name, bytes));
  }

  // A whole sweep file; `trials` and `more` are YAML.
  static std::string sweep(std::string_view trials = "[{arch: topk, d_sae: 64, k: 4}]",
                           std::string_view more = "", std::string_view train = "") {
    return fmt::format(R"(model: {{path: model}}
data: {{source: othello, board: 6, games: 20k}}
activations: {{hooks: [blocks.1.hook_resid_post], tokens: 100k}}
train: {{tokens: 1M, batch: 256{}}}
trials: {}
{})",
                       train, trials, more);
  }

  tl::expected<SweepPlan, std::vector<SweepFileError>> try_plan(const std::string& text,
                                                                const PlanOptions& options = {}) {
    return plan_sweep_text(text, "sweep.yaml", dir.path(), options);
  }

  SweepPlan plan(const std::string& text, const PlanOptions& options = {}) {
    auto result = try_plan(text, options);
    if (!result) {
      for (const SweepFileError& error : result.error()) ADD_FAILURE() << error.to_string();
      return {};
    }
    return std::move(*result);
  }

  // What is wrong, a line an error.
  std::vector<std::string> errors(const std::string& text, const PlanOptions& options = {}) {
    std::vector<std::string> lines;
    auto result = try_plan(text, options);
    if (!result)
      for (const SweepFileError& error : result.error()) lines.push_back(error.to_string());
    return lines;
  }
  // The one error.
  std::string error(const std::string& text, const PlanOptions& options = {}) {
    const auto lines = errors(text, options);
    if (lines.size() != 1)
      ADD_FAILURE() << lines.size() << " errors: " << fmt::format("{}", fmt::join(lines, "\n"));
    return lines.empty() ? "" : lines[0];
  }

  test::TempDir dir;
};

}  // namespace saesweep::sweeps
