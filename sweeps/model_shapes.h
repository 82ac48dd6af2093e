// What planning must know about files that the workers will open: a model's shape, the width of its
// hook points, the shape of somebody's activations; and the digests that name their content.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/json.h"
#include "core/result.h"
#include "sweeps/spec.h"

namespace saesweep::sweeps {

// Of a GPT-2 as Hugging Face writes its config.json.
struct ModelShape {
  std::uint64_t layers = 0, d_model = 0, heads = 0, d_mlp = 0, context = 0, vocabulary = 0;
  bool tied = true;
  Json config;  // the keys that determine the function, for the digest of random weights
};

// Errors: kNotFound (no folder, no config.json), kInvalidArgument naming the key and the value.
Result<ModelShape> read_model_shape(const std::filesystem::path& folder);

// Hook points by TransformerLens' names, in the order of the forward pass.
std::vector<std::string> hook_names(const ModelShape& shape);
// Width of its activations; none for a name that is no hook.
std::optional<std::uint64_t> hook_width(const ModelShape& shape, std::string_view hook);
// The block a hook lies in; none for embeddings and the final norm.
std::optional<std::uint64_t> hook_block(const ModelShape& shape, std::string_view hook);

// Parameters that a forward pass up to `hook` multiplies with (embeddings are look-ups).
std::uint64_t parameters_up_to(const ModelShape& shape, std::string_view hook);

// SHA-256 hex over config.json and model.safetensors; with random weights over shape and seed.
// Reads the weights from the disk each time. Errors: kNotFound, kUnavailable.
Result<std::string> model_digest(const std::filesystem::path& folder, const ModelShape& shape,
                                 bool random_weights, std::uint64_t seed);

// The JSON header of a safetensors file and where its tensors' bytes begin and end in the file.
struct SafetensorsHeader {
  Json tensors;
  std::uint64_t data_begin = 0, file_size = 0;
};
// Errors: kNotFound; kUnavailable; kCorrupted: no safetensors.
Result<SafetensorsHeader> read_safetensors_header(const std::filesystem::path& path);

// Activations harvested by somebody else: a safetensors file, or a folder of them in name order.
struct ActivationFiles {
  std::vector<std::filesystem::path> files;
  std::uint64_t rows = 0, d_in = 0;
};
// Looks at headers only. Errors: kNotFound; kInvalidArgument: no such tensor (with those there
// are), not [n, d], a dtype that is not F32, F16 or BF16, widths that differ; kCorrupted: no
// safetensors.
Result<ActivationFiles> read_activation_files(const std::filesystem::path& path,
                                              const std::string& tensor);
// SHA-256 hex over the files' content, in name order; names do not count.
Result<std::string> files_digest(const std::vector<std::filesystem::path>& files);

}  // namespace saesweep::sweeps
