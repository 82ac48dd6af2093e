// A decoder-only transformer (learned positions, pre-norm, causal attention) with hook points named
// as in TransformerLens: capture any of them, stop after the deepest one needed, or replace one.
//
// Files are Hugging Face's GPT-2: config.json, model.safetensors (h.0.attn.c_attn.weight [in, out]
// ...; untied lm_head.weight). `transformers` loads them.
//
// Gradients are on only if the weights require them (train_lm). Otherwise results are
// deterministic: they depend on the tokens of the batch handed in, never on threads.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/json.h"
#include "core/result.h"
#include "sweeps/spec.h"
#include "worker/models/packed_weights.h"

namespace saesweep::worker {

struct TransformerConfig {
  int layers = 0, d_model = 0, heads = 0, d_mlp = 0, context = 0, vocabulary = 0;
  std::string activation = "gelu";  // gelu (erf) | gelu_new (tanh) | relu
  bool tied = false;
  bool bias = true;  // absent biases are zeros in the file
  double layer_norm_epsilon = 1e-5;

  Json to_json() const;  // Hugging Face's GPT2Config
  // Errors: kInvalidArgument naming the key and the value.
  static Result<TransformerConfig> from_json(const Json& json);
};

// A function of the activation at a hook, for a batch: [batch, length, width] -> the same shape.
using HookReplacement = std::function<at::Tensor(const at::Tensor&)>;

struct ForwardRequest {
  std::vector<std::string> capture;  // hooks to return
  bool logits = true;                // false: stop after the deepest captured hook
  std::string replace_hook;          // empty: none. Captures at the same hook see the old value.
  HookReplacement replacement;
  // A hook_resid_pre, _mid or _post where the pass begins with this value, [batch, length,
  // d_model]; what lies before is not computed. Empty: with the tokens.
  std::string start;
  at::Tensor start_value;
  // Inputs and results of the products of the blocks in bf16, everything else in fp32: for
  // training.
  bool bf16_products = false;
};

struct ForwardResult {
  at::Tensor logits;                           // [batch, length, vocabulary], if asked for
  std::map<std::string, at::Tensor> captured;  // [batch, length, width]
};

class Transformer {
 public:
  // Errors: kNotFound; kCorrupted (truncated, lying header); kInvalidArgument (a tensor missing or
  // of the wrong shape, a weight that is not finite), each naming file and tensor.
  static Result<Transformer> load(const std::filesystem::path& directory);
  // The shape of `directory` with weights drawn from `seed` as GPT-2 initialises them.
  static Result<Transformer> random(const TransformerConfig& config, std::uint64_t seed);
  // `model.random_weights` decides which of the two.
  static Result<Transformer> load_or_random(const std::filesystem::path& directory,
                                            bool random_weights, std::uint64_t seed);

  const TransformerConfig& config() const { return config_; }
  std::map<std::string, at::Tensor>& weights() { return weights_; }  // by file name
  const std::map<std::string, at::Tensor>& weights() const { return weights_; }

  // Errors: kInvalidArgument for a name that is no hook, with the nearest one.
  Result<void> check_hook(const std::string& hook) const;
  std::int64_t hook_width(const std::string& hook) const;  // of a hook that check_hook accepts
  int hook_block(const std::string& hook) const;           // -1 before the first block
  // The last value of the residual stream that a hook is computed from, as a pass may start with
  // it: of one in the residual stream itself. Empty for embeddings.
  std::string start_of(const std::string& hook) const;
  std::vector<std::string> residuals_after(const std::string& hook) const;  // hook_resid_post

  // tokens: [batch, length] int64, length <= context, ids < vocabulary. Only their number counts if
  // the pass starts further on.
  ForwardResult forward(const at::Tensor& tokens, const ForwardRequest& request) const;

  // Packs the weights of the blocks, after which passes without gradients multiply with products of
  // our own; kBFloat16: all passes round both operands to bf16 and sum in fp32. The weights stay as
  // they are from then on.
  void prepare(sweeps::Precision precision);
  // What a pass without gradients computes of a document does not depend on what else is in the
  // batch, nor on where in it the document is. Before prepare() nobody promises that.
  bool rows_stand_alone() const { return packed_ != nullptr; }
  std::uint64_t bytes() const;  // of the weights and what prepare() made of them

  Result<void> save(const std::filesystem::path& directory) const;

 private:
  explicit Transformer(TransformerConfig config) : config_(std::move(config)) {}
  TransformerConfig config_;
  std::map<std::string, at::Tensor> weights_;  // fp32
  sweeps::Precision precision_ = sweeps::Precision::kFloat32;
  std::shared_ptr<const PackedWeights> packed_;  // once prepared
};

}  // namespace saesweep::worker
