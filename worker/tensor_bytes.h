// Between at::Tensor and the bytes of safetensors files.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>

#include "core/result.h"
#include "storage/formats/safetensors.h"

namespace saesweep::worker {

// A copy of the view as fp32 (from F32, F16 or BF16). Errors: kInvalidArgument for another dtype.
Result<at::Tensor> to_float_tensor(const storage::TensorView& view, const std::string& name);
// A copy with its own dtype (F32, F64, I64, U8, BF16).
Result<at::Tensor> to_tensor(const storage::TensorView& view, const std::string& name);
// safetensors bytes of contiguous CPU tensors (F32, F64, I64, U8, BF16), in name order.
std::string serialize_tensors(const std::map<std::string, at::Tensor>& tensors,
                              const std::map<std::string, std::string>& metadata = {});

}  // namespace saesweep::worker
