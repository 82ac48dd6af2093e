#include "sweeps/model_shapes.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <fstream>

#include "core/digest.h"
#include "core/files.h"

namespace saesweep::sweeps {
namespace {

namespace fs = std::filesystem;

constexpr std::array<std::string_view, 13> kBlockHooks{
    "hook_resid_pre",      "ln1.hook_normalized", "attn.hook_q",   "attn.hook_k",
    "attn.hook_v",         "attn.hook_z",         "hook_attn_out", "hook_resid_mid",
    "ln2.hook_normalized", "mlp.hook_pre",        "mlp.hook_post", "hook_mlp_out",
    "hook_resid_post"};

Result<std::uint64_t> dimension(const Json& config, const char* key, const std::string& where,
                                std::uint64_t low, std::uint64_t high) {
  const auto found = config.find(key);
  if (found == config.end())
    return fail(ErrorCode::kInvalidArgument, "{} has no key '{}'; a GPT-2 config.json has it",
                where, key);
  if (!found->is_number_unsigned() || found->get<std::uint64_t>() < low ||
      found->get<std::uint64_t>() > high)
    return fail(ErrorCode::kInvalidArgument,
                "{}: '{}' is {}; a whole number from {} to {} would be "
                "right",
                where, key, canonical_json(*found).substr(0, 60), low, high);
  return found->get<std::uint64_t>();
}

// "blocks.3.mlp.hook_pre" -> (3, "mlp.hook_pre")
std::optional<std::pair<std::uint64_t, std::string_view>> split_block(std::string_view hook) {
  if (!hook.starts_with("blocks.")) return std::nullopt;
  hook.remove_prefix(7);
  std::uint64_t block = 0;
  std::size_t digits = 0;
  while (digits < hook.size() && hook[digits] >= '0' && hook[digits] <= '9' && digits < 6)
    block = block * 10 + static_cast<std::uint64_t>(hook[digits++] - '0');
  if (digits == 0 || digits >= hook.size() || hook[digits] != '.') return std::nullopt;
  if (digits > 1 && hook[0] == '0') return std::nullopt;
  return std::pair{block, hook.substr(digits + 1)};
}

struct TensorShape {
  std::string dtype;
  std::uint64_t rows = 0, d_in = 0;
};

Result<TensorShape> tensor_shape(const fs::path& path, const std::string& name) {
  SAE_TRY(const SafetensorsHeader file, read_safetensors_header(path));
  const Json& header = file.tensors;
  const auto found = header.find(name);
  if (found == header.end()) {
    std::vector<std::string> names;
    for (const auto& [key, value] : header.items())
      if (key != "__metadata__" && names.size() < 8) names.push_back(key);
    return fail(ErrorCode::kInvalidArgument, "{} has no tensor '{}'; it has {}", path.string(),
                name,
                names.empty() ? std::string("none") : fmt::format("{}", fmt::join(names, ", ")));
  }
  TensorShape shape;
  const Json& tensor = *found;
  if (tensor.is_object() && tensor.value("dtype", Json()).is_string())
    shape.dtype = tensor["dtype"].get<std::string>();
  if (shape.dtype != "F32" && shape.dtype != "F16" && shape.dtype != "BF16")
    return fail(ErrorCode::kInvalidArgument,
                "{}: tensor '{}' is of dtype '{}'; F32, F16 or BF16 "
                "would be right",
                path.string(), name, shape.dtype);
  const Json dims = tensor.value("shape", Json());
  if (!dims.is_array() || dims.size() != 2 || !dims[0].is_number_unsigned() ||
      !dims[1].is_number_unsigned() || dims[1] == 0u)
    return fail(ErrorCode::kInvalidArgument,
                "{}: tensor '{}' has the shape {}; [n, d] would be "
                "right",
                path.string(), name, canonical_json(dims).substr(0, 60));
  shape.rows = dims[0].get<std::uint64_t>();
  shape.d_in = dims[1].get<std::uint64_t>();
  return shape;
}

}  // namespace

Result<ModelShape> read_model_shape(const fs::path& folder) {
  std::error_code ignored;
  if (!fs::is_directory(folder, ignored))
    return fail(ErrorCode::kNotFound,
                "there is no folder '{}'; a folder with config.json and "
                "model.safetensors would be right (train_lm makes one)",
                folder.string());
  const fs::path file = folder / "config.json";
  auto text = read_file(file, std::uint64_t{16} << 20);
  if (!text)
    return fail(text.error().code, "the folder '{}' has no readable config.json: {}",
                folder.string(), text.error().message);
  auto json = parse_json(*text);
  if (!json || !json->is_object())
    return fail(ErrorCode::kInvalidArgument, "{} is no JSON object", file.string());
  const std::string where = file.string();
  constexpr std::uint64_t kWide = 1 << 20;
  ModelShape shape;
  SAE_TRY(shape.layers, dimension(*json, "n_layer", where, 1, 4096));
  SAE_TRY(shape.d_model, dimension(*json, "n_embd", where, 1, kWide));
  SAE_TRY(shape.heads, dimension(*json, "n_head", where, 1, 65536));
  SAE_TRY(shape.context, dimension(*json, "n_positions", where, 1, std::uint64_t{1} << 24));
  SAE_TRY(shape.vocabulary, dimension(*json, "vocab_size", where, 1, std::uint64_t{1} << 28));
  // GPT-2's convention: an absent or null n_inner means four times the width.
  shape.d_mlp = 4 * shape.d_model;
  if (const auto inner = json->find("n_inner"); inner != json->end() && !inner->is_null()) {
    SAE_TRY(shape.d_mlp, dimension(*json, "n_inner", where, 1, 16 * kWide));
  }
  if (shape.d_model % shape.heads != 0)
    return fail(ErrorCode::kInvalidArgument, "{}: n_embd {} is no multiple of n_head {}", where,
                shape.d_model, shape.heads);
  if (const auto activation = json->find("activation_function"); activation != json->end())
    if (*activation != "gelu" && *activation != "gelu_new" && *activation != "relu")
      return fail(ErrorCode::kInvalidArgument,
                  "{}: 'activation_function' is {}; gelu, gelu_new or "
                  "relu would be right",
                  where, canonical_json(*activation).substr(0, 60));
  if (const auto tied = json->find("tie_word_embeddings");
      tied != json->end() && tied->is_boolean())
    shape.tied = tied->get<bool>();
  shape.config = {{"n_layer", shape.layers},
                  {"n_embd", shape.d_model},
                  {"n_head", shape.heads},
                  {"n_inner", shape.d_mlp},
                  {"n_positions", shape.context},
                  {"vocab_size", shape.vocabulary},
                  {"tie_word_embeddings", shape.tied}};
  for (const char* key : {"activation_function", "layer_norm_epsilon", "scale_attn_weights",
                          "scale_attn_by_inverse_layer_idx"})
    if (json->contains(key)) shape.config[key] = json->at(key);
  return shape;
}

std::vector<std::string> hook_names(const ModelShape& shape) {
  std::vector<std::string> names{"hook_embed", "hook_pos_embed"};
  for (std::uint64_t block = 0; block < shape.layers; ++block)
    for (const std::string_view hook : kBlockHooks)
      names.push_back(fmt::format("blocks.{}.{}", block, hook));
  names.emplace_back("ln_final.hook_normalized");
  return names;
}

std::optional<std::uint64_t> hook_width(const ModelShape& shape, std::string_view hook) {
  if (hook == "hook_embed" || hook == "hook_pos_embed" || hook == "ln_final.hook_normalized")
    return shape.d_model;
  const auto split = split_block(hook);
  if (!split || split->first >= shape.layers) return std::nullopt;
  if (std::find(kBlockHooks.begin(), kBlockHooks.end(), split->second) == kBlockHooks.end())
    return std::nullopt;
  return split->second.starts_with("mlp.") ? shape.d_mlp : shape.d_model;
}

std::optional<std::uint64_t> hook_block(const ModelShape& shape, std::string_view hook) {
  if (!hook_width(shape, hook)) return std::nullopt;
  const auto split = split_block(hook);
  if (!split) return std::nullopt;
  return split->first;
}

std::uint64_t parameters_up_to(const ModelShape& shape, std::string_view hook) {
  const std::uint64_t d = shape.d_model;
  const std::uint64_t block = 4 * d * d + 2 * d * shape.d_mlp;
  if (hook == "ln_final.hook_normalized") return shape.layers * block;
  const auto in_block = hook_block(shape, hook);
  if (!in_block) return 0;
  const std::string_view name = split_block(hook)->second;
  std::uint64_t inside = 0;
  if (name.starts_with("attn.")) inside = 3 * d * d;
  if (name == "hook_attn_out" || name == "hook_resid_mid" || name.starts_with("ln2"))
    inside = 4 * d * d;
  if (name.starts_with("mlp.")) inside = 4 * d * d + d * shape.d_mlp;
  if (name == "hook_mlp_out" || name == "hook_resid_post") inside = block;
  return *in_block * block + inside;
}

Result<std::string> model_digest(const fs::path& folder, const ModelShape& shape,
                                 bool random_weights, std::uint64_t seed) {
  if (random_weights)
    return sha256(canonical_json({{"shape", shape.config}, {"seed", seed}})).hex();
  SAE_TRY(const Sha256 config, sha256_file(folder / "config.json"));
  auto weights = sha256_file(folder / "model.safetensors");
  if (!weights)
    return fail(weights.error().code,
                "the folder '{}' has no readable model.safetensors; one, or "
                "random_weights: true, would be right",
                folder.string());
  return sha256(canonical_json({{"config", config.hex()}, {"weights", weights->hex()}})).hex();
}

Result<SafetensorsHeader> read_safetensors_header(const fs::path& path) {
  constexpr std::uint64_t kMaxHeader = std::uint64_t{100} << 20;  // as the reference reader allows
  std::error_code error;
  const std::uint64_t size = fs::file_size(path, error);
  if (error)
    return fail(ErrorCode::kNotFound, "cannot read {}: {}", path.string(), error.message());
  std::ifstream file(path, std::ios::binary);
  std::array<unsigned char, 8> length_bytes{};
  file.read(reinterpret_cast<char*>(length_bytes.data()), 8);
  std::uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = length << 8 | length_bytes[static_cast<std::size_t>(i)];
  if (!file || length > kMaxHeader || length + 8 > size)
    return fail(ErrorCode::kCorrupted, "{} is no safetensors file", path.string());
  std::string text(length, '\0');
  file.read(text.data(), static_cast<std::streamsize>(length));
  if (!file) return fail(ErrorCode::kUnavailable, "cannot read {}", path.string());
  auto header = parse_json(text);
  if (!header || !header->is_object())
    return fail(ErrorCode::kCorrupted, "{} is no safetensors file: its header is no JSON object",
                path.string());
  return SafetensorsHeader{std::move(*header), length + 8, size};
}

Result<ActivationFiles> read_activation_files(const fs::path& path, const std::string& tensor) {
  ActivationFiles result;
  std::error_code error;
  if (fs::is_directory(path, error)) {
    for (auto entry = fs::directory_iterator(path, error);
         !error && entry != fs::directory_iterator(); entry.increment(error))
      if (entry->path().extension() == ".safetensors") result.files.push_back(entry->path());
    std::sort(result.files.begin(), result.files.end());
    if (result.files.empty())
      return fail(ErrorCode::kNotFound, "the folder '{}' holds no .safetensors file",
                  path.string());
  } else if (fs::exists(path, error)) {
    result.files.push_back(path);
  } else {
    return fail(ErrorCode::kNotFound,
                "there is no file or folder '{}'; a safetensors file, or a "
                "folder of them, would be right",
                path.string());
  }
  for (const fs::path& file : result.files) {
    SAE_TRY(const TensorShape shape, tensor_shape(file, tensor));
    if (result.d_in != 0 && shape.d_in != result.d_in)
      return fail(ErrorCode::kInvalidArgument,
                  "{}: tensor '{}' is {} wide; the files before it are "
                  "{} wide",
                  file.string(), tensor, shape.d_in, result.d_in);
    result.d_in = shape.d_in;
    result.rows += shape.rows;
  }
  return result;
}

Result<std::string> files_digest(const std::vector<fs::path>& files) {
  Json digests = Json::array();
  for (const fs::path& file : files) {
    SAE_TRY(const Sha256 digest, sha256_file(file));
    digests.push_back(digest.hex());
  }
  return sha256(canonical_json(digests)).hex();
}

}  // namespace saesweep::sweeps
