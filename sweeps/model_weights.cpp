#include "sweeps/model_weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <fstream>
#include <map>
#include <string>
#include <vector>

namespace saesweep::sweeps {
namespace {

namespace fs = std::filesystem;
using Dimensions = std::vector<std::uint64_t>;

// Names and layout of Hugging Face's GPT-2.
std::map<std::string, Dimensions> weights_of(const ModelShape& shape) {
  const std::uint64_t d = shape.d_model, m = shape.d_mlp;
  std::map<std::string, Dimensions> weights{{"wte.weight", {shape.vocabulary, d}},
                                            {"wpe.weight", {shape.context, d}},
                                            {"ln_f.weight", {d}},
                                            {"ln_f.bias", {d}}};
  if (!shape.tied) weights["lm_head.weight"] = {shape.vocabulary, d};
  for (std::uint64_t layer = 0; layer < shape.layers; ++layer) {
    const std::string block = fmt::format("h.{}.", layer);
    for (const char* norm : {"ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias"})
      weights[block + norm] = {d};
    weights[block + "attn.c_attn.weight"] = {d, 3 * d};
    weights[block + "attn.c_attn.bias"] = {3 * d};
    weights[block + "attn.c_proj.weight"] = {d, d};
    weights[block + "attn.c_proj.bias"] = {d};
    weights[block + "mlp.c_fc.weight"] = {d, m};
    weights[block + "mlp.c_fc.bias"] = {m};
    weights[block + "mlp.c_proj.weight"] = {m, d};
    weights[block + "mlp.c_proj.bias"] = {d};
  }
  return weights;
}

struct TensorPlace {
  std::string dtype;
  Dimensions shape;
  std::uint64_t begin = 0, bytes = 0;  // in the file
};

bool read_dimensions(const Json& json, Dimensions& out) {
  if (!json.is_array() || json.size() > 8) return false;
  for (const Json& each : json) {
    if (!each.is_number_unsigned() || each.get<std::uint64_t>() >= std::uint64_t{1} << 40)
      return false;
    out.push_back(each.get<std::uint64_t>());
  }
  return true;
}

Result<TensorPlace> place_of(const SafetensorsHeader& file, const fs::path& path,
                             const std::string& name) {
  auto found = file.tensors.find(name);
  // As GPT2LMHeadModel saves it.
  if (found == file.tensors.end()) found = file.tensors.find("transformer." + name);
  if (found == file.tensors.end())
    return fail(ErrorCode::kInvalidArgument, "{} has no tensor '{}'", path.string(), name);
  const Json& tensor = *found;
  TensorPlace place;
  Dimensions offsets;
  const auto member = [&tensor](const char* key) {
    return tensor.is_object() ? tensor.value(key, Json()) : Json();
  };
  const Json dtype = member("dtype");
  if (!dtype.is_string() || !read_dimensions(member("shape"), place.shape) ||
      !read_dimensions(member("data_offsets"), offsets) || offsets.size() != 2 ||
      offsets[0] > offsets[1])
    return fail(ErrorCode::kCorrupted, "{} is damaged: the header of tensor '{}' makes no sense",
                path.string(), name);
  place.dtype = dtype.get<std::string>();
  if (place.dtype != "F32" && place.dtype != "F16" && place.dtype != "BF16")
    return fail(ErrorCode::kInvalidArgument,
                "{}: tensor '{}' is of dtype {}; F32, F16 or BF16 would be right", path.string(),
                name, place.dtype);
  std::uint64_t bytes = place.dtype == "F32" ? 4 : 2;
  for (const std::uint64_t dimension : place.shape)
    bytes = dimension != 0 && bytes > (std::uint64_t{1} << 60) / dimension ? ~std::uint64_t{0}
                                                                           : bytes * dimension;
  place.begin = file.data_begin + offsets[0];
  place.bytes = offsets[1] - offsets[0];
  if (place.bytes != bytes)
    return fail(ErrorCode::kCorrupted,
                "{} is damaged: tensor '{}' has {} bytes, its shape needs {}", path.string(), name,
                place.bytes, bytes);
  if (place.begin + place.bytes > file.file_size)
    return fail(ErrorCode::kCorrupted, "{} is truncated: tensor '{}' ends at byte {} of {}",
                path.string(), name, place.begin + place.bytes, file.file_size);
  return place;
}

// Exponent bits all ones: infinite or not a number.
template <class Word>
bool all_finite(const std::vector<char>& bytes, std::size_t size, Word exponent) {
  for (std::size_t i = 0; i + sizeof(Word) <= size; i += sizeof(Word)) {
    Word word;
    std::memcpy(&word, bytes.data() + i, sizeof word);
    if ((word & exponent) == exponent) return false;
  }
  return true;
}

Result<bool> is_finite(std::ifstream& file, const TensorPlace& place, const fs::path& path) {
  static_assert(std::endian::native == std::endian::little);
  std::vector<char> block(std::min<std::uint64_t>(place.bytes, std::uint64_t{1} << 20));
  file.seekg(static_cast<std::streamoff>(place.begin));
  for (std::uint64_t done = 0; done < place.bytes;) {
    const auto size =
        static_cast<std::size_t>(std::min<std::uint64_t>(block.size(), place.bytes - done));
    if (!file.read(block.data(), static_cast<std::streamsize>(size)))
      return fail(ErrorCode::kUnavailable, "cannot read {}", path.string());
    const bool finite = place.dtype == "F32" ? all_finite<std::uint32_t>(block, size, 0x7f800000u)
                        : place.dtype == "F16"
                            ? all_finite<std::uint16_t>(block, size, std::uint16_t{0x7c00})
                            : all_finite<std::uint16_t>(block, size, std::uint16_t{0x7f80});
    if (!finite) return false;
    done += size;
  }
  return true;
}

}  // namespace

Result<void> check_model_weights(const fs::path& folder, const ModelShape& shape) {
  const fs::path path = folder / "model.safetensors";
  auto header = read_safetensors_header(path);
  if (!header && header.error().code == ErrorCode::kNotFound)
    return fail(ErrorCode::kNotFound,
                "the folder '{}' has no model.safetensors; one, or "
                "random_weights: true, would be right",
                folder.string());
  if (!header) return fail(std::move(header.error()));
  std::ifstream file(path, std::ios::binary);
  for (const auto& [name, dimensions] : weights_of(shape)) {
    SAE_TRY(const TensorPlace place, place_of(*header, path, name));
    if (place.shape != dimensions)
      return fail(ErrorCode::kInvalidArgument,
                  "{}: tensor '{}' has the shape [{}]; [{}], as config.json says, would be right",
                  path.string(), name, fmt::join(place.shape, ", "), fmt::join(dimensions, ", "));
    SAE_TRY(const bool finite, is_finite(file, place, path));
    if (!finite)
      return fail(ErrorCode::kInvalidArgument, "{}: tensor '{}' has a value that is not finite",
                  path.string(), name);
  }
  return {};
}

Result<std::array<std::uint64_t, 2>> read_sae_shape(const fs::path& file) {
  SAE_TRY(const SafetensorsHeader header, read_safetensors_header(file));
  SAE_TRY(const TensorPlace place, place_of(header, file, "W_enc"));
  if (place.shape.size() != 2)
    return fail(ErrorCode::kInvalidArgument,
                "{}: tensor 'W_enc' has {} dimensions; [d_sae, d_in] would be right", file.string(),
                place.shape.size());
  return std::array{place.shape[0], place.shape[1]};
}

}  // namespace saesweep::sweeps
