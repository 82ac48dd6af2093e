#include "worker/models/transformer.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <set>
#include <string_view>
#include <utility>

#include "core/check.h"
#include "core/files.h"
#include "core/philox.h"
#include "storage/formats/safetensors.h"
#include "worker/products/isa.h"
#include "worker/tensor_bytes.h"

namespace saesweep::worker {
namespace {

using Shape = std::vector<std::int64_t>;

std::map<std::string, Shape> weight_shapes(const TransformerConfig& c) {
  const std::int64_t d = c.d_model, m = c.d_mlp;
  std::map<std::string, Shape> shapes = {{"wte.weight", {c.vocabulary, d}},
                                         {"wpe.weight", {c.context, d}},
                                         {"ln_f.weight", {d}},
                                         {"ln_f.bias", {d}}};
  if (!c.tied) shapes["lm_head.weight"] = {c.vocabulary, d};
  for (int layer = 0; layer < c.layers; ++layer) {
    const std::string block = fmt::format("h.{}.", layer);
    shapes[block + "ln_1.weight"] = shapes[block + "ln_1.bias"] = {d};
    shapes[block + "ln_2.weight"] = shapes[block + "ln_2.bias"] = {d};
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

bool ends_with(const std::string& text, std::string_view tail) {
  return text.size() >= tail.size() &&
         text.compare(text.size() - tail.size(), tail.size(), tail) == 0;
}

// The hooks of one block in the order in which the forward pass reaches them.
constexpr std::string_view kBlockHooks[] = {
    "hook_resid_pre",      "ln1.hook_normalized", "attn.hook_q",   "attn.hook_k",
    "attn.hook_v",         "attn.hook_z",         "hook_attn_out", "hook_resid_mid",
    "ln2.hook_normalized", "mlp.hook_pre",        "mlp.hook_post", "hook_mlp_out",
    "hook_resid_post"};

// The residual stream before a block's attention, between it and the MLP, and after both.
constexpr std::string_view kResiduals[] = {"hook_resid_pre", "hook_resid_mid", "hook_resid_post"};

// Of a hook in the residual stream, its name there; empty for others.
std::string_view residual_kind(const std::string& hook) {
  for (const std::string_view kind : kResiduals)
    if (ends_with(hook, kind)) return kind;
  return {};
}

std::vector<std::string> all_hooks(const TransformerConfig& config) {
  std::vector<std::string> hooks = {"hook_embed", "hook_pos_embed"};
  for (int layer = 0; layer < config.layers; ++layer)
    for (const std::string_view hook : kBlockHooks)
      hooks.push_back(fmt::format("blocks.{}.{}", layer, hook));
  hooks.emplace_back("ln_final.hook_normalized");
  return hooks;
}

// Position in the order of the forward pass, -1 for a name that is no hook.
int hook_order(const TransformerConfig& config, const std::string& hook) {
  const auto hooks = all_hooks(config);
  const auto found = std::find(hooks.begin(), hooks.end(), hook);
  return found == hooks.end() ? -1 : static_cast<int>(found - hooks.begin());
}

std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t above = row[j];
      row[j] = std::min({above + 1, row[j - 1] + 1, diagonal + (a[i - 1] == b[j - 1] ? 0 : 1)});
      diagonal = above;
    }
  }
  return row[b.size()];
}

Result<std::int64_t> integer(const Json& json, const char* key, std::int64_t low,
                             std::int64_t high) {
  const auto found = json.find(key);
  if (found == json.end()) return fail(ErrorCode::kInvalidArgument, "config.json: no {}", key);
  if (!found->is_number_integer() || found->get<std::int64_t>() < low ||
      found->get<std::int64_t>() > high)
    return fail(ErrorCode::kInvalidArgument, "config.json: {} is {}; {} to {} would be right", key,
                found->dump(), low, high);
  return found->get<std::int64_t>();
}

// Carries one forward pass: captures, replaces, and knows when to stop.
struct Pass {
  const ForwardRequest& request;
  ForwardResult result;
  std::size_t wanted;  // captures still to come
  bool stopped = false;

  // Every activation goes through here; what comes back is what the model goes on with.
  at::Tensor at_hook(const std::string& hook, at::Tensor value) {
    if (std::find(request.capture.begin(), request.capture.end(), hook) != request.capture.end() &&
        result.captured.emplace(hook, value).second)
      --wanted;
    if (!request.replace_hook.empty() && hook == request.replace_hook) {
      at::Tensor replaced = request.replacement(value);
      SAE_CHECK(replaced.sizes() == value.sizes(), "replacement of {} changed its shape", hook);
      value = std::move(replaced);
    }
    if (!request.logits && wanted == 0) stopped = true;
    return value;
  }
};

enum class Rounding { kNone, kOperands, kOperandsAndResult };

at::Tensor affine(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                  Rounding rounding) {
  auto shape = x.sizes().vec();
  shape.back() = weight.size(1);
  const at::Tensor rows = x.reshape({-1, weight.size(0)});
  if (rounding == Rounding::kNone) return at::addmm(bias, rows, weight).view(shape);
  const at::Tensor rounded = rows.to(at::kBFloat16), rounded_weight = weight.to(at::kBFloat16);
  if (rounding == Rounding::kOperands)
    return at::addmm(bias, rounded.to(at::kFloat), rounded_weight.to(at::kFloat)).view(shape);
  return (at::mm(rounded, rounded_weight).to(at::kFloat) + bias).view(shape);
}

// The products of a block.
constexpr std::array kBlockProducts = {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"};

at::Tensor activate(const std::string& name, const at::Tensor& x) {
  if (name == "relu") return at::relu(x);
  return at::gelu(x, name == "gelu" ? "none" : "tanh");
}

}  // namespace

Json TransformerConfig::to_json() const {
  return {{"architectures", {"GPT2LMHeadModel"}},
          {"model_type", "gpt2"},
          {"activation_function", activation},
          {"n_layer", layers},
          {"n_embd", d_model},
          {"n_head", heads},
          {"n_inner", d_mlp},
          {"n_positions", context},
          {"n_ctx", context},
          {"vocab_size", vocabulary},
          {"layer_norm_epsilon", layer_norm_epsilon},
          {"tie_word_embeddings", tied},
          {"scale_attn_weights", true},
          {"attn_pdrop", 0.0},
          {"embd_pdrop", 0.0},
          {"resid_pdrop", 0.0},
          {"bos_token_id", nullptr},
          {"eos_token_id", nullptr},
          {"torch_dtype", "float32"},
          {"saesweep_bias", bias}};
}

Result<TransformerConfig> TransformerConfig::from_json(const Json& json) {
  if (!json.is_object()) return fail(ErrorCode::kInvalidArgument, "config.json is not an object");
  const std::string type = json.value("model_type", Json("gpt2")).is_string()
                               ? json.value("model_type", "gpt2")
                               : std::string("?");
  if (type != "gpt2")
    return fail(ErrorCode::kInvalidArgument, "config.json: model_type \"{}\"; gpt2 would be right",
                type);
  TransformerConfig config;
  SAE_TRY(const std::int64_t layers, integer(json, "n_layer", 1, 1024));
  SAE_TRY(const std::int64_t d_model, integer(json, "n_embd", 1, 1 << 20));
  SAE_TRY(const std::int64_t heads, integer(json, "n_head", 1, 1 << 16));
  SAE_TRY(const std::int64_t context, integer(json, "n_positions", 1, 1 << 24));
  SAE_TRY(const std::int64_t vocabulary, integer(json, "vocab_size", 1, 1 << 24));
  std::int64_t d_mlp = 4 * d_model;
  if (json.contains("n_inner") && !json["n_inner"].is_null()) {
    SAE_TRY(d_mlp, integer(json, "n_inner", 1, 1 << 22));
  }
  if (d_model % heads != 0)
    return fail(ErrorCode::kInvalidArgument,
                "config.json: n_embd {} is not a multiple of n_head {}", d_model, heads);
  config.layers = static_cast<int>(layers);
  config.d_model = static_cast<int>(d_model);
  config.heads = static_cast<int>(heads);
  config.d_mlp = static_cast<int>(d_mlp);
  config.context = static_cast<int>(context);
  config.vocabulary = static_cast<int>(vocabulary);
  try {
    config.activation = json.value("activation_function", "gelu_new");
    config.tied = json.value("tie_word_embeddings", true);
    config.bias = json.value("saesweep_bias", true);
    config.layer_norm_epsilon = json.value("layer_norm_epsilon", 1e-5);
  } catch (const Json::exception& error) {
    return fail(ErrorCode::kInvalidArgument, "config.json: {}", error.what());
  }
  if (config.activation != "gelu" && config.activation != "gelu_new" && config.activation != "relu")
    return fail(ErrorCode::kInvalidArgument,
                "config.json: activation_function \"{}\"; gelu, gelu_new or relu would be right",
                config.activation);
  if (!(config.layer_norm_epsilon > 0))
    return fail(ErrorCode::kInvalidArgument, "config.json: layer_norm_epsilon {}",
                config.layer_norm_epsilon);
  // Variants of GPT-2 that this forward pass does not compute.
  const std::pair<const char*, bool> computed[] = {{"scale_attn_weights", true},
                                                   {"scale_attn_by_inverse_layer_idx", false},
                                                   {"add_cross_attention", false}};
  for (const auto& [key, value] : computed)
    if (json.contains(key) && json[key] != value)
      return fail(ErrorCode::kInvalidArgument, "config.json: {} is {}; {} would be right", key,
                  json[key].dump(), value);
  return config;
}

namespace {

Result<TransformerConfig> read_config(const std::filesystem::path& directory) {
  const auto path = directory / "config.json";
  SAE_TRY(const std::string text, read_file(path, 1 << 20));
  const auto named = [&](const Error& error) {
    return fail(error.code, "{}: {}", path.string(), error.message);
  };
  const auto json = parse_json(text);
  if (!json) return named(json.error());
  auto config = TransformerConfig::from_json(*json);
  if (!config) return named(config.error());
  return config;
}

}  // namespace

Result<Transformer> Transformer::load(const std::filesystem::path& directory) {
  SAE_TRY(const TransformerConfig config, read_config(directory));
  const auto path = directory / "model.safetensors";
  SAE_TRY(const storage::Safetensors file, storage::Safetensors::open(path));
  Transformer model(config);
  for (const auto& [name, shape] : weight_shapes(config)) {
    const storage::TensorView* view = file.find(name);
    if (view == nullptr) view = file.find("transformer." + name);  // as GPT2LMHeadModel saves it
    if (view == nullptr)
      return fail(ErrorCode::kInvalidArgument, "{}: no tensor \"{}\"", path.string(), name);
    if (view->shape != shape)
      return fail(ErrorCode::kInvalidArgument,
                  "{}: tensor \"{}\" has shape [{}]; [{}] would be right", path.string(), name,
                  fmt::join(view->shape, ", "), fmt::join(shape, ", "));
    auto read = to_float_tensor(*view, name);
    if (!read) return fail(read.error().code, "{}: {}", path.string(), read.error().message);
    at::Tensor tensor = std::move(*read);
    if (!at::isfinite(tensor).all().item<bool>())
      return fail(ErrorCode::kInvalidArgument, "{}: tensor \"{}\" has a weight that is not finite",
                  path.string(), name);
    model.weights_.emplace(name, std::move(tensor));
  }
  return model;
}

Result<Transformer> Transformer::random(const TransformerConfig& config, std::uint64_t seed) {
  Transformer model(config);
  const double residual_scale = 1 / std::sqrt(2.0 * config.layers);
  for (const auto& [name, shape] : weight_shapes(config)) {
    at::Tensor tensor = at::zeros(shape, at::kFloat);
    const bool is_norm = name.find("ln_") != std::string::npos;
    if (is_norm && ends_with(name, "weight")) {
      tensor.fill_(1);
    } else if (!is_norm && ends_with(name, "weight")) {
      // GPT-2: N(0, 0.02), projections into the residual stream scaled down by sqrt(2 layers).
      Rng rng(seed, "model." + name);
      const double scale = 0.02 * (ends_with(name, "c_proj.weight") ? residual_scale : 1.0);
      float* values = tensor.mutable_data_ptr<float>();
      for (std::int64_t i = 0; i < tensor.numel(); ++i)
        values[i] = static_cast<float>(scale * rng.normal());
    }
    model.weights_.emplace(name, std::move(tensor));
  }
  return model;
}

Result<Transformer> Transformer::load_or_random(const std::filesystem::path& directory,
                                                bool random_weights, std::uint64_t seed) {
  if (!random_weights) return load(directory);
  SAE_TRY(const TransformerConfig config, read_config(directory));
  return random(config, seed);
}

Result<void> Transformer::check_hook(const std::string& hook) const {
  const auto hooks = all_hooks(config_);
  if (std::find(hooks.begin(), hooks.end(), hook) != hooks.end()) return {};
  std::string nearest;
  std::size_t best = std::numeric_limits<std::size_t>::max();
  for (const auto& candidate : hooks)
    if (const std::size_t distance = edit_distance(hook, candidate); distance < best) {
      best = distance;
      nearest = candidate;
    }
  return fail(ErrorCode::kInvalidArgument, "no hook \"{}\"; the nearest is {}", hook, nearest);
}

std::int64_t Transformer::hook_width(const std::string& hook) const {
  return ends_with(hook, "mlp.hook_pre") || ends_with(hook, "mlp.hook_post") ? config_.d_mlp
                                                                             : config_.d_model;
}

int Transformer::hook_block(const std::string& hook) const {
  if (hook.rfind("blocks.", 0) != 0) return hook.rfind("ln_final", 0) == 0 ? config_.layers : -1;
  return std::atoi(hook.c_str() + 7);
}

std::string Transformer::start_of(const std::string& hook) const {
  const auto hooks = all_hooks(config_);
  for (int at = hook_order(config_, hook); at >= 0; --at)
    if (!residual_kind(hooks[static_cast<std::size_t>(at)]).empty())
      return hooks[static_cast<std::size_t>(at)];
  return {};
}

std::vector<std::string> Transformer::residuals_after(const std::string& hook) const {
  std::vector<std::string> later = all_hooks(config_);
  later.erase(later.begin(), later.begin() + hook_order(config_, hook) + 1);
  std::erase_if(later, [](const auto& each) { return residual_kind(each) != kResiduals[2]; });
  return later;
}

ForwardResult Transformer::forward(const at::Tensor& tokens, const ForwardRequest& request) const {
  SAE_CHECK(tokens.dim() == 2 && tokens.size(1) <= config_.context, "tokens of {} positions",
            tokens.size(1));
  for (const auto& hook : request.capture)
    SAE_CHECK(hook_order(config_, hook) >= 0, "no hook {}", hook);
  SAE_CHECK(request.replace_hook.empty() || hook_order(config_, request.replace_hook) >= 0,
            "no hook {}", request.replace_hook);
  const std::int64_t batch = tokens.size(0), length = tokens.size(1);
  SAE_CHECK(request.start.empty() ||
                (check_hook(request.start) && !residual_kind(request.start).empty() &&
                 request.start_value.sizes() == at::IntArrayRef{batch, length, config_.d_model}),
            "a pass cannot start at {} with these values", request.start);
  const std::int64_t d = config_.d_model, heads = config_.heads, d_head = d / heads;
  const std::set<std::string> distinct(request.capture.begin(), request.capture.end());
  Pass pass{request, {}, distinct.size()};
  const auto weight = [&](const std::string& name) -> const at::Tensor& {
    return weights_.at(name);
  };
  const auto norm = [&](const at::Tensor& x, const std::string& name) {
    return at::layer_norm(x, {d}, weight(name + ".weight"), weight(name + ".bias"),
                          config_.layer_norm_epsilon);
  };

  const auto multiply = [&](const at::Tensor& x, const std::string& name) {
    const at::Tensor& matrix = weight(name + ".weight");
    const at::Tensor& bias = weight(name + ".bias");
    const bool differentiates =
        c10::GradMode::is_enabled() && (x.requires_grad() || matrix.requires_grad());
    if (packed_ != nullptr && !differentiates) return packed_->affine(x, name, bias);
    return affine(x, matrix, bias,
                  request.bf16_products                        ? Rounding::kOperandsAndResult
                  : precision_ == sweeps::Precision::kBFloat16 ? Rounding::kOperands
                                                               : Rounding::kNone);
  };

  at::Tensor residual;  // [batch, length, d_model]
  // The first hook of the residual stream that is reached, in the order of kResiduals.
  int first_layer = 0;
  std::string_view first = kResiduals[0];
  if (request.start.empty()) {
    const at::Tensor embedded =
        pass.at_hook("hook_embed", at::embedding(weight("wte.weight"), tokens));
    if (pass.stopped) return std::move(pass.result);
    const at::Tensor positions = pass.at_hook(
        "hook_pos_embed",
        weight("wpe.weight").narrow(0, 0, length).unsqueeze(0).expand({batch, length, d}));
    if (pass.stopped) return std::move(pass.result);
    residual = embedded + positions;
  } else {
    residual = request.start_value;
    first_layer = hook_block(request.start);
    first = residual_kind(request.start);
  }

  for (int layer = first_layer; layer < config_.layers; ++layer, first = kResiduals[0]) {
    const std::string block = fmt::format("h.{}.", layer);
    const std::string hooks = fmt::format("blocks.{}.", layer);
    // Each line stops the pass once the deepest captured hook was reached.
    const auto at_hook = [&](const char* hook, at::Tensor value) {
      return pass.stopped ? value : pass.at_hook(hooks + hook, std::move(value));
    };
    if (first == kResiduals[0]) {
      residual = at_hook("hook_resid_pre", residual);
      if (pass.stopped) break;
      const at::Tensor normed = at_hook("ln1.hook_normalized", norm(residual, block + "ln_1"));
      if (pass.stopped) break;
      const auto qkv =
          multiply(normed, block + "attn.c_attn").chunk(3, -1);  // 3 x [batch, length, d_model]
      const at::Tensor q = at_hook("attn.hook_q", qkv[0]);
      const at::Tensor k = at_hook("attn.hook_k", qkv[1]);
      const at::Tensor v = at_hook("attn.hook_v", qkv[2]);
      if (pass.stopped) break;
      const auto split = [&](const at::Tensor& x) {
        return x.reshape({batch, length, heads, d_head}).transpose(1, 2);
      };
      at::Tensor z = at::scaled_dot_product_attention(split(q), split(k), split(v), {}, 0.0,
                                                      /*is_causal=*/true);
      z = at_hook("attn.hook_z", z.transpose(1, 2).reshape({batch, length, d}));
      if (pass.stopped) break;
      const at::Tensor attended = at_hook("hook_attn_out", multiply(z, block + "attn.c_proj"));
      if (pass.stopped) break;
      residual = residual + attended;
    }
    if (first != kResiduals[2]) {
      residual = at_hook("hook_resid_mid", residual);
      if (pass.stopped) break;
      const at::Tensor normed_mid = at_hook("ln2.hook_normalized", norm(residual, block + "ln_2"));
      if (pass.stopped) break;
      const at::Tensor before = at_hook("mlp.hook_pre", multiply(normed_mid, block + "mlp.c_fc"));
      if (pass.stopped) break;
      const at::Tensor after = at_hook("mlp.hook_post", activate(config_.activation, before));
      if (pass.stopped) break;
      const at::Tensor mlp_out = at_hook("hook_mlp_out", multiply(after, block + "mlp.c_proj"));
      if (pass.stopped) break;
      residual = residual + mlp_out;
    }
    residual = at_hook("hook_resid_post", residual);
    if (pass.stopped) break;
  }
  if (pass.stopped) return std::move(pass.result);
  const at::Tensor final_norm = pass.at_hook("ln_final.hook_normalized", norm(residual, "ln_f"));
  if (pass.stopped || !request.logits) return std::move(pass.result);
  const at::Tensor& head = config_.tied ? weight("wte.weight") : weight("lm_head.weight");
  pass.result.logits =
      at::mm(final_norm.reshape({-1, d}), head.t()).view({batch, length, config_.vocabulary});
  return std::move(pass.result);
}

void Transformer::prepare(sweeps::Precision precision) {
  precision_ = precision;
  // Without vector instructions of our own LibTorch's products are the faster ones.
  if (precision == sweeps::Precision::kFloat32 && products::current_isa() == products::Isa::kPlain)
    return;
  auto packed = std::make_shared<PackedWeights>(precision == sweeps::Precision::kFloat32
                                                    ? products::Numbers::kFloat
                                                    : products::bf16_numbers());
  for (int layer = 0; layer < config_.layers; ++layer)
    for (const char* product : kBlockProducts) {
      const std::string name = fmt::format("h.{}.{}", layer, product);
      packed->add(name, weights_.at(name + ".weight"));
    }
  packed_ = std::move(packed);
}

std::uint64_t Transformer::bytes() const {
  std::uint64_t sum = packed_ == nullptr ? 0 : packed_->bytes();
  for (const auto& [name, weight] : weights_) sum += weight.nbytes();
  return sum;
}

Result<void> Transformer::save(const std::filesystem::path& directory) const {
  SAE_TRY_VOID(make_directories(directory));
  std::map<std::string, at::Tensor> tensors;
  for (const auto& [name, tensor] : weights_) tensors.emplace(name, tensor.detach().contiguous());
  SAE_TRY_VOID(write_file_atomically(directory / "model.safetensors", serialize_tensors(tensors)));
  return write_file_atomically(directory / "config.json", pretty_json(config_.to_json()));
}

}  // namespace saesweep::worker
