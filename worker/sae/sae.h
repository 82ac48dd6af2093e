// A trained dictionary as others use it: raw activations in, codes and reconstruction out.
// Normalisation is folded in; sae.safetensors + config.json hold exactly this.
//
// A transcoder reads the activations of one hook and predicts those of another. A crosscoder reads
// those of several hooks, side by side in a row, and reconstructs them all.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "core/json.h"
#include "core/result.h"
#include "sweeps/spec.h"

namespace saesweep::worker {

struct Sae {
  // How codes are selected from z = (x - b_dec) W_enc^T + b_enc (without the subtraction if
  // !apply_b_dec_to_input; without b_enc if gated).
  enum class Selection {
    kRelu,       // relu(z)
    kTopK,       // the k largest of relu(z) of each row; ties: lowest index
    kThreshold,  // relu(z) where z > threshold (BatchTopK at inference: one value for all latents)
    kGated,      // relu(exp(r_mag) z + b_mag) where z + b_gate > 0
    kLinear,     // z itself: signed codes of the identity and PCA baselines
    kIdentity,   // f = x, x_hat = x; no tensors
  };
  std::string name;  // arch or baseline name
  Selection selection = Selection::kRelu;
  std::int64_t k = 0;  // kTopK
  bool apply_b_dec_to_input = true;
  bool predicts = false;            // a transcoder
  std::int64_t sources = 1;         // of a crosscoder the hooks of a row, d_in() / sources each
  at::Tensor w_enc;                 // [d_sae, d_in] fp32
  at::Tensor b_enc;                 // [d_sae], not of kGated
  at::Tensor w_dec;                 // [d_sae, d_out], row i is atom i
  at::Tensor b_dec;                 // [d_out]
  at::Tensor w_skip;                // [d_out, d_in], skip_transcoder only
  at::Tensor threshold;             // [d_sae], kThreshold only
  at::Tensor r_mag, b_gate, b_mag;  // [d_sae], kGated only

  std::int64_t d_in() const;   // values it reads of a row
  std::int64_t d_out() const;  // values it reconstructs or predicts
  std::int64_t d_sae() const;
  // x: [rows, d_in] -> [rows, d_sae]; rows are independent of each other
  at::Tensor encode(const at::Tensor& x) const;
  // f: [rows, d_sae] -> [rows, d_out]; without what a skip_transcoder takes from x
  at::Tensor decode(const at::Tensor& f) const;
  // decode(f) with it; x is what f was encoded from.
  at::Tensor reconstruct(const at::Tensor& x, const at::Tensor& f) const;
};

// sae.safetensors, fp32: W_enc, W_dec, b_dec and b_enc, with threshold where there is one; r_mag,
// b_gate, b_mag in place of b_enc if gated; W_skip of a skip_transcoder; of a crosscoder W_enc and
// W_dec are [sources, d_sae, d_in], b_dec [sources, d_in]. `config` is config.json.
// Errors: kNotFound; kCorrupted; kInvalidArgument naming the tensor.
Result<Sae> load_sae(const std::filesystem::path& safetensors, const Json& config);
// The bytes of sae.safetensors.
std::string serialize_sae(const Sae& sae);

}  // namespace saesweep::worker
