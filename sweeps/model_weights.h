// Weights that planning looks at before anything starts: a model's and an SAE's to start from.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>

#include "core/result.h"
#include "sweeps/model_shapes.h"

namespace saesweep::sweeps {

// That folder/model.safetensors holds the weights of a GPT-2 of this shape, whole and finite. Reads
// the file once, a block at a time.
// Errors: kNotFound; kUnavailable; kCorrupted: no safetensors, truncated; kInvalidArgument: a
// tensor that is missing, of another shape or dtype, or has a value that is not finite.
Result<void> check_model_weights(const std::filesystem::path& folder, const ModelShape& shape);

// [d_sae, d_in] of the SAE in a file that `init` names.
// Errors: kNotFound; kUnavailable; kCorrupted; kInvalidArgument: no W_enc of two dimensions.
Result<std::array<std::uint64_t, 2>> read_sae_shape(const std::filesystem::path& file);

}  // namespace saesweep::sweeps
