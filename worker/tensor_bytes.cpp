#include "worker/tensor_bytes.h"

#include <ATen/ATen.h>

#include <cstring>
#include <optional>
#include <vector>

#include "core/check.h"

namespace saesweep::worker {
namespace {

std::optional<at::ScalarType> scalar_type(const std::string& dtype) {
  if (dtype == "F32") return at::kFloat;
  if (dtype == "F64") return at::kDouble;
  if (dtype == "F16") return at::kHalf;
  if (dtype == "BF16") return at::kBFloat16;
  if (dtype == "I64") return at::kLong;
  if (dtype == "U8") return at::kByte;
  return std::nullopt;
}

std::string dtype_name(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return "F32";
    case at::kDouble:
      return "F64";
    case at::kBFloat16:
      return "BF16";
    case at::kLong:
      return "I64";
    case at::kByte:
      return "U8";
    default:
      break;
  }
  SAE_CHECK(false, "a dtype that we do not write: {}", static_cast<int>(type));
  return {};
}

}  // namespace

Result<at::Tensor> to_tensor(const storage::TensorView& view, const std::string& name) {
  const auto type = scalar_type(view.dtype);
  if (!type)
    return fail(ErrorCode::kInvalidArgument, "tensor \"{}\" has dtype {}, which is not read", name,
                view.dtype);
  at::Tensor tensor = at::empty(view.shape, at::TensorOptions().dtype(*type));
  SAE_CHECK(tensor.nbytes() == view.bytes.size(), "{} bytes for {}", view.bytes.size(), name);
  if (!view.bytes.empty())
    std::memcpy(tensor.mutable_data_ptr(), view.bytes.data(), view.bytes.size());
  return tensor;
}

Result<at::Tensor> to_float_tensor(const storage::TensorView& view, const std::string& name) {
  if (view.dtype != "F32" && view.dtype != "F16" && view.dtype != "BF16")
    return fail(ErrorCode::kInvalidArgument, "tensor \"{}\" is {}; F32, F16 or BF16 would be right",
                name, view.dtype);
  SAE_TRY(at::Tensor tensor, to_tensor(view, name));
  return tensor.to(at::kFloat);
}

std::string serialize_tensors(const std::map<std::string, at::Tensor>& tensors,
                              const std::map<std::string, std::string>& metadata) {
  std::vector<storage::TensorToWrite> writes;
  for (const auto& [name, tensor] : tensors) {
    SAE_CHECK(tensor.is_contiguous() && tensor.device().is_cpu(), "{} is not contiguous", name);
    writes.push_back(
        {name, dtype_name(tensor.scalar_type()), tensor.sizes().vec(),
         std::span(static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.nbytes())});
  }
  return storage::serialize_safetensors(writes, metadata);
}

}  // namespace saesweep::worker
