// Small models, games and dictionaries for the tests of evaluations.
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <memory>
#include <utility>

#include "core/files.h"
#include "core/philox.h"
#include "tests/support/temp_dir.h"
#include "worker/evaluation/evaluate.h"
#include "worker/tensor_bytes.h"

namespace saesweep::worker {

constexpr const char* kHook = "blocks.0.hook_resid_post";

// A model with random weights, louder than GPT-2's so that replacing a hook changes its output.
inline std::shared_ptr<const Transformer> loud_model(int board, int d_model = 16) {
  TransformerConfig config;
  config.layers = 2;
  config.d_model = d_model;
  config.heads = 2;
  config.d_mlp = 2 * d_model;
  config.context = board * board - 5;
  config.vocabulary = board * board - 3;
  Transformer model = Transformer::random(config, 7).value();
  for (auto& [name, weight] : model.weights())
    if (name.find("ln_") == std::string::npos) weight.mul_(12);
  return std::make_shared<const Transformer>(std::move(model));
}

inline std::shared_ptr<const TokenDocuments> games(int board, std::uint64_t count, double holdout) {
  sweeps::DataSpec data;
  data.source = "othello";
  data.board = board;
  data.games = count;
  return TokenDocuments::open(data, holdout, board * board - 5, 1).value();
}

// Everything an evaluation of a small model needs; the pool outlives the inputs.
struct Scene {
  explicit Scene(int board = 4, std::uint64_t count = 200, double holdout = 0.5,
                 unsigned threads = 1)
      : pool(threads) {
    inputs.model = loud_model(board);
    inputs.tokens = games(board, count, holdout);
    inputs.stream.hook = kHook;
    inputs.stream.holdout = holdout;
    inputs.stream.data.source = "othello";
    inputs.pool = &pool;
  }
  ThreadPool pool;
  EvaluationInputs inputs;
};

inline at::Tensor normal(std::vector<std::int64_t> shape, std::uint64_t seed) {
  at::Tensor values = at::empty(shape, at::kFloat);
  Rng rng(seed, "test.evaluation");
  float* data = values.mutable_data_ptr<float>();
  for (std::int64_t i = 0; i < values.numel(); ++i) data[i] = static_cast<float>(rng.normal());
  return values;
}

// f = W_enc x, x_hat = W_dec f, without biases.
inline Sae linear_sae(at::Tensor w_enc, at::Tensor w_dec,
                      Sae::Selection selection = Sae::Selection::kLinear) {
  Sae sae;
  sae.name = "test";
  sae.selection = selection;
  sae.b_enc = at::zeros({w_enc.size(0)}, at::kFloat);
  sae.b_dec = at::zeros({w_dec.size(1)}, at::kFloat);
  sae.w_enc = std::move(w_enc);
  sae.w_dec = std::move(w_dec);
  return sae;
}

inline Sae random_relu(std::int64_t d_in, std::int64_t d_sae, std::uint64_t seed = 1) {
  const at::Tensor rows = normal({d_sae, d_in}, seed);
  const at::Tensor unit = rows / rows.norm(2, {1}, true);
  return linear_sae(unit, unit * .3, Sae::Selection::kRelu);
}

inline Sae identity() {
  Sae sae;
  sae.selection = Sae::Selection::kIdentity;
  return sae;
}

inline sweeps::EvaluationSpec core(std::uint64_t tokens) { return {"core", tokens, 0}; }
inline sweeps::EvaluationSpec board(std::uint64_t count) { return {"board", 0, count}; }

inline double score(const Json& result, const std::string& name) {
  const auto& scores = result.at("scores");
  if (!scores.contains(name) || !scores[name]["value"].is_number()) {
    ADD_FAILURE() << "no number " << name << " in " << scores.dump();
    return 0;
  }
  return scores[name]["value"].get<double>();
}

// Activations as somebody else left them: a safetensors file with tensor "x".
inline std::shared_ptr<const ActivationDocuments> activations(const std::filesystem::path& folder,
                                                              const at::Tensor& x, double holdout) {
  sweeps::DataSpec data;
  data.source = "activations";
  data.path = (folder / "acts.safetensors").string();
  data.tensor = "x";
  EXPECT_TRUE(write_file_atomically(data.path, serialize_tensors({{"x", x}})));
  return ActivationDocuments::open(data, holdout).value();
}

// Rows of a tensor as a training stream.
class TensorStream final : public RowStream {
 public:
  explicit TensorStream(at::Tensor rows, double factor = 1)
      : rows_(std::move(rows)), factor_(factor) {}
  std::int64_t d_in() const override { return rows_.size(1); }
  std::uint64_t rows_per_pass() const override { return static_cast<std::uint64_t>(rows_.size(0)); }
  double norm_factor() const override { return factor_; }
  Result<void> read(std::uint64_t first, std::uint64_t count, float* out) override {
    const at::Tensor piece =
        (rows_.narrow(0, static_cast<std::int64_t>(first), static_cast<std::int64_t>(count)) *
         static_cast<float>(factor_))
            .contiguous();
    std::memcpy(out, piece.const_data_ptr<float>(),
                static_cast<std::size_t>(piece.numel()) * sizeof(float));
    return {};
  }

 private:
  at::Tensor rows_;
  double factor_;
};

}  // namespace saesweep::worker
