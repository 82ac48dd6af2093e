// A transformer and games small enough for tests, with weights large enough that every one shows.
#pragma once

#include <ATen/ATen.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "core/philox.h"
#include "worker/data/documents.h"
#include "worker/models/transformer.h"

namespace saesweep::worker::test {

inline TransformerConfig small_config() {
  TransformerConfig config;
  config.layers = 2;
  config.d_model = 16;
  config.heads = 4;
  config.d_mlp = 24;
  config.context = 11;
  config.vocabulary = 13;
  return config;
}

// GPT-2's initial weights are near zero, so errors would hide: these are of order 1 / sqrt(width),
// biases and norms included.
inline Transformer lively_model(const TransformerConfig& config, std::uint64_t seed = 1) {
  Transformer model = Transformer::random(config, seed).value();
  for (auto& [name, weight] : model.weights()) {
    Rng rng(seed, "test.weights." + name);
    const bool is_norm_scale = name.find("ln_") != std::string::npos && name.ends_with("weight");
    const double scale = weight.dim() > 1 && !name.starts_with("w") ? 0.3 : 0.5;
    float* values = weight.mutable_data_ptr<float>();
    for (std::int64_t i = 0; i < weight.numel(); ++i)
      values[i] = static_cast<float>((is_norm_scale ? 1 : 0) + scale * rng.normal());
  }
  return model;
}

inline at::Tensor random_tokens(const TransformerConfig& config, std::int64_t batch,
                                std::int64_t length, std::uint64_t seed = 1) {
  Rng rng(seed, "test.tokens");
  at::Tensor tokens = at::empty({batch, length}, at::kLong);
  std::int64_t* values = tokens.mutable_data_ptr<std::int64_t>();
  for (std::int64_t i = 0; i < tokens.numel(); ++i)
    values[i] = rng.below(static_cast<std::uint32_t>(config.vocabulary));
  return tokens;
}

inline std::shared_ptr<const TokenDocuments> small_games(std::uint64_t count, double holdout = 0.1,
                                                         int context = 11) {
  sweeps::DataSpec data;
  data.source = "othello";
  data.board = 4;
  data.games = count;
  return TokenDocuments::open(data, holdout, context, 1).value();
}

// The very same bytes, NaN and sign of zero included.
inline bool same_bytes(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor x = a.contiguous(), y = b.contiguous();
  return x.sizes() == y.sizes() && x.scalar_type() == y.scalar_type() &&
         std::memcmp(x.const_data_ptr(), y.const_data_ptr(), x.nbytes()) == 0;
}

}  // namespace saesweep::worker::test
