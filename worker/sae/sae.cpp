#include "worker/sae/sae.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <vector>

#include "core/check.h"
#include "storage/formats/safetensors.h"
#include "worker/tensor_bytes.h"

namespace saesweep::worker {
namespace {

// Keeps the k largest positive entries of each row; ties go to the lowest index.
void keep_top_k(at::Tensor& codes, std::int64_t k) {
  const std::int64_t rows = codes.size(0), width = codes.size(1);
  if (k >= width) return;
  float* values = codes.mutable_data_ptr<float>();
  std::vector<std::int64_t> order;
  for (std::int64_t row = 0; row < rows; ++row) {
    float* z = values + row * width;
    order.clear();
    for (std::int64_t i = 0; i < width; ++i)
      if (z[i] > 0) order.push_back(i);
    if (static_cast<std::int64_t>(order.size()) <= k) continue;
    const auto better = [z](std::int64_t a, std::int64_t b) {
      return z[a] > z[b] || (z[a] == z[b] && a < b);
    };
    std::nth_element(order.begin(), order.begin() + k, order.end(), better);
    for (auto it = order.begin() + k; it != order.end(); ++it) z[*it] = 0;
  }
}

bool all_finite(const at::Tensor& tensor) {
  const float* values = tensor.const_data_ptr<float>();
  return std::all_of(values, values + tensor.numel(), [](float v) { return std::isfinite(v); });
}

}  // namespace

std::int64_t Sae::d_in() const { return w_dec.defined() ? w_dec.size(1) : 0; }
std::int64_t Sae::d_sae() const { return w_dec.defined() ? w_dec.size(0) : 0; }

at::Tensor Sae::encode(const at::Tensor& x) const {
  if (selection == Selection::kIdentity) return x;
  const at::Tensor centred = apply_b_dec_to_input ? x - b_dec : x;
  at::Tensor z = at::addmm(b_enc, centred, w_enc.t());  // [rows, d_sae]
  if (selection == Selection::kLinear) return z;
  if (selection == Selection::kThreshold) {
    z.clamp_min_(0);
    return z.mul_(z.gt(threshold));
  }
  z.clamp_min_(0);
  if (selection == Selection::kTopK) keep_top_k(z, k);
  return z;
}

at::Tensor Sae::decode(const at::Tensor& f) const {
  if (selection == Selection::kIdentity) return f;
  return at::addmm(b_dec, f, w_dec);
}

Result<Sae> load_sae(const std::filesystem::path& safetensors, const Json& config) {
  SAE_TRY(const auto file, storage::Safetensors::open(safetensors));
  Sae sae;
  if (!config.is_object() || !config.contains("architecture") ||
      !config["architecture"].is_string())
    return fail(ErrorCode::kInvalidArgument, "{}: its config.json names no architecture",
                safetensors.string());
  sae.name = config["architecture"].get<std::string>();
  sae.apply_b_dec_to_input = config.value("apply_b_dec_to_input", true);

  std::map<std::string, at::Tensor> tensors;
  for (const char* name : {"W_enc", "b_enc", "W_dec", "b_dec"}) {
    const auto* view = file.find(name);
    if (view == nullptr)
      return fail(ErrorCode::kInvalidArgument, "{}: no tensor {}", safetensors.string(), name);
    SAE_TRY(tensors[name], to_float_tensor(*view, name));
  }
  if (tensors["W_enc"].dim() != 2 || tensors["W_enc"].size(0) < 1 || tensors["W_enc"].size(1) < 1)
    return fail(ErrorCode::kInvalidArgument, "{}: W_enc is not [d_sae, d_in]",
                safetensors.string());
  const std::int64_t width = tensors["W_enc"].size(0), d_in = tensors["W_enc"].size(1);
  const std::map<std::string, std::vector<std::int64_t>> shapes = {
      {"W_enc", {width, d_in}}, {"b_enc", {width}}, {"W_dec", {width, d_in}}, {"b_dec", {d_in}}};
  if (const auto* view = file.find("threshold")) {
    SAE_TRY(sae.threshold, to_float_tensor(*view, "threshold"));
    if (sae.threshold.sizes() != at::IntArrayRef({width}))
      return fail(ErrorCode::kInvalidArgument, "{}: threshold is not [{}]", safetensors.string(),
                  width);
    if (!all_finite(sae.threshold))
      return fail(ErrorCode::kInvalidArgument, "{}: threshold has a value that is not finite",
                  safetensors.string());
  }
  for (const auto& [name, shape] : shapes) {
    const at::Tensor& tensor = tensors[name];
    if (tensor.sizes() != at::IntArrayRef(shape))
      return fail(ErrorCode::kInvalidArgument, "{}: {} has the wrong shape beside W_enc [{}, {}]",
                  safetensors.string(), name, width, d_in);
    if (!all_finite(tensor))
      return fail(ErrorCode::kInvalidArgument, "{}: {} has a value that is not finite",
                  safetensors.string(), name);
  }
  sae.w_enc = tensors["W_enc"];
  sae.b_enc = tensors["b_enc"];
  sae.w_dec = tensors["W_dec"];
  sae.b_dec = tensors["b_dec"];

  if (sae.name == "topk") {
    const Json parameters = config.value("parameters", Json::object());
    if (!parameters.contains("k") || !parameters["k"].is_number_integer() ||
        parameters["k"].get<std::int64_t>() < 1 || parameters["k"].get<std::int64_t>() > width)
      return fail(ErrorCode::kInvalidArgument,
                  "{}: parameters.k of its config.json is not in 1..{}", safetensors.string(),
                  width);
    sae.selection = Sae::Selection::kTopK;
    sae.k = parameters["k"].get<std::int64_t>();
  } else if (sae.threshold.defined()) {
    sae.selection = Sae::Selection::kThreshold;
  } else if (sae.name == "batchtopk") {
    return fail(ErrorCode::kInvalidArgument, "{}: a batchtopk SAE without a tensor threshold",
                safetensors.string());
  } else {
    sae.selection = Sae::Selection::kRelu;
  }
  return sae;
}

std::string serialize_sae(const Sae& sae) {
  SAE_CHECK(sae.w_enc.defined(), "an SAE without tensors");
  std::map<std::string, at::Tensor> tensors = {{"W_enc", sae.w_enc.contiguous()},
                                               {"b_enc", sae.b_enc.contiguous()},
                                               {"W_dec", sae.w_dec.contiguous()},
                                               {"b_dec", sae.b_dec.contiguous()}};
  if (sae.threshold.defined()) tensors["threshold"] = sae.threshold.contiguous();
  return serialize_tensors(tensors);
}

}  // namespace saesweep::worker
