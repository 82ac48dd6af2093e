// safetensors: a JSON header and raw little-endian tensors, the format this field exchanges.
//   u64 header length N | N bytes of JSON, padded with spaces so that 8 + N is a multiple of 8 |
//   data
// Source: the format page of huggingface/safetensors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/result.h"

namespace saesweep::storage {

struct TensorView {
  std::string dtype;  // "F32", "BF16", "F16", "I64", "U8", ...
  std::vector<std::int64_t> shape;
  std::span<const std::byte> bytes;  // row-major
};

// A file mapped read-only, or bytes in memory; views live as long as this does.
class Safetensors {
 public:
  // Errors: kNotFound; kCorrupted for a header that is too long, is no JSON, repeats a name, names
  // an unknown dtype, or whose offsets overlap, leave holes, leave the file or disagree with the
  // shape.
  static Result<Safetensors> open(const std::filesystem::path& path);
  static Result<Safetensors> parse(std::string bytes);

  Safetensors(Safetensors&&) noexcept;
  Safetensors& operator=(Safetensors&&) noexcept;
  ~Safetensors();

  const std::map<std::string, TensorView>& tensors() const;
  const std::map<std::string, std::string>& metadata() const;
  const TensorView* find(const std::string& name) const;  // nullptr if absent

 private:
  struct State;
  explicit Safetensors(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

struct TensorToWrite {
  std::string name;
  std::string dtype;
  std::vector<std::int64_t> shape;
  std::span<const std::byte> bytes;
};

// Tensors in the order given (the data follows it); metadata always has {"format": "pt"}. The same
// input gives the same bytes.
std::string serialize_safetensors(std::span<const TensorToWrite> tensors,
                                  const std::map<std::string, std::string>& metadata = {});

}  // namespace saesweep::storage
