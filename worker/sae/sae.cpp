#include "worker/sae/sae.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <string_view>
#include <utility>
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

bool is_gated(std::string_view architecture) {
  return architecture == "gated" || architecture == "gated_p_anneal";
}

// Architectures that select by it once they are trained.
bool needs_threshold(std::string_view architecture) {
  return architecture == "batchtopk" || architecture == "matryoshka" ||
         architecture == "jumprelu" || architecture == "batchtopk_crosscoder" ||
         architecture == "jumprelu_transcoder";
}

bool is_crosscoder(std::string_view name) {
  const auto architecture = sweeps::parse_architecture(name);
  return architecture && sweeps::is_crosscoder(*architecture);
}
bool is_transcoder(std::string_view name) {
  const auto architecture = sweeps::parse_architecture(name);
  return architecture && sweeps::is_transcoder(*architecture);
}

}  // namespace

std::int64_t Sae::d_in() const { return w_enc.defined() ? w_enc.size(1) : 0; }
std::int64_t Sae::d_out() const { return w_dec.defined() ? w_dec.size(1) : 0; }
std::int64_t Sae::d_sae() const { return w_dec.defined() ? w_dec.size(0) : 0; }

at::Tensor Sae::encode(const at::Tensor& x) const {
  if (selection == Selection::kIdentity) return x;
  const at::Tensor centred = apply_b_dec_to_input ? x - b_dec : x;
  if (selection == Selection::kGated) {
    const at::Tensor u = at::mm(centred, w_enc.t());
    return (u * r_mag.exp()).add_(b_mag).clamp_min_(0).mul_((u + b_gate).gt(0));
  }
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

at::Tensor Sae::reconstruct(const at::Tensor& x, const at::Tensor& f) const {
  const at::Tensor decoded = decode(f);
  return w_skip.defined() ? at::addmm(decoded, x, w_skip.t()) : decoded;
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

  const bool gated = is_gated(sae.name), crosses = is_crosscoder(sae.name);
  sae.predicts = is_transcoder(sae.name);
  const auto at = safetensors.string();
  const auto* encoder = file.find("W_enc");
  const std::size_t dimensions = crosses ? 3 : 2;
  if (encoder != nullptr &&
      (encoder->shape.size() != dimensions ||
       std::any_of(encoder->shape.begin(), encoder->shape.end(), [](auto n) { return n < 1; })))
    return fail(ErrorCode::kInvalidArgument, "{}: W_enc is not [{}d_sae, d_in]", at,
                crosses ? "sources, " : "");
  const std::int64_t width = encoder == nullptr ? 0 : encoder->shape[dimensions - 2];
  const std::int64_t d_in = encoder == nullptr ? 0 : encoder->shape[dimensions - 1];
  std::int64_t d_out = d_in;
  if (const auto* decoder = file.find("W_dec"); sae.predicts && decoder != nullptr) {
    if (decoder->shape.size() != 2 || decoder->shape[1] < 1)
      return fail(ErrorCode::kInvalidArgument, "{}: W_dec is not [d_sae, d_out]", at);
    d_out = decoder->shape[1];
  }
  struct Wanted {
    const char* name;
    at::Tensor* tensor;
    std::vector<std::int64_t> shape;
  };
  std::vector<Wanted> wanted = {{"W_enc", &sae.w_enc, {width, d_in}},
                                {"W_dec", &sae.w_dec, {width, d_out}},
                                {"b_dec", &sae.b_dec, {d_out}}};
  if (crosses && encoder != nullptr) {
    sae.sources = encoder->shape[0];
    for (Wanted& each : wanted) each.shape.insert(each.shape.begin(), sae.sources);
  }
  if (sae.name == "skip_transcoder") wanted.push_back({"W_skip", &sae.w_skip, {d_out, d_in}});
  if (gated)
    wanted.insert(wanted.end(), {{"r_mag", &sae.r_mag, {width}},
                                 {"b_gate", &sae.b_gate, {width}},
                                 {"b_mag", &sae.b_mag, {width}}});
  else
    wanted.push_back({"b_enc", &sae.b_enc, {width}});
  if (file.find("threshold") != nullptr || needs_threshold(sae.name))
    wanted.push_back({"threshold", &sae.threshold, {width}});
  for (const Wanted& each : wanted) {
    const auto* view = file.find(each.name);
    if (view == nullptr)
      return fail(ErrorCode::kInvalidArgument, "{}: no tensor {}, which a {} SAE has", at,
                  each.name, sae.name);
    SAE_TRY(*each.tensor, to_float_tensor(*view, each.name));
    if (each.tensor->sizes() != at::IntArrayRef(each.shape))
      return fail(ErrorCode::kInvalidArgument, "{}: {} has the wrong shape beside W_enc [{}, {}]",
                  at, each.name, width, d_in);
    if (!all_finite(*each.tensor))
      return fail(ErrorCode::kInvalidArgument, "{}: {} has a value that is not finite", at,
                  each.name);
  }

  if (crosses) {
    for (at::Tensor* weights : {&sae.w_enc, &sae.w_dec})
      *weights = weights->permute({1, 0, 2}).reshape({width, sae.sources * d_in}).contiguous();
    sae.b_dec = sae.b_dec.reshape({-1});
  }

  if (sae.name == "topk" || (sae.predicts && !sae.threshold.defined())) {
    const Json parameters = config.value("parameters", Json::object());
    if (!parameters.contains("k") || !parameters["k"].is_number_integer() ||
        parameters["k"].get<std::int64_t>() < 1 || parameters["k"].get<std::int64_t>() > width)
      return fail(ErrorCode::kInvalidArgument,
                  "{}: parameters.k of its config.json is not in 1..{}", safetensors.string(),
                  width);
    sae.selection = Sae::Selection::kTopK;
    sae.k = parameters["k"].get<std::int64_t>();
  } else if (gated) {
    sae.selection = Sae::Selection::kGated;
  } else if (sae.threshold.defined()) {
    sae.selection = Sae::Selection::kThreshold;
  } else {
    sae.selection = Sae::Selection::kRelu;
  }
  return sae;
}

std::string serialize_sae(const Sae& sae) {
  SAE_CHECK(sae.w_enc.defined(), "an SAE without tensors");
  std::map<std::string, at::Tensor> tensors;
  for (const auto& [name, tensor] : {std::pair<const char*, const at::Tensor&>{"W_enc", sae.w_enc},
                                     {"b_enc", sae.b_enc},
                                     {"W_dec", sae.w_dec},
                                     {"b_dec", sae.b_dec},
                                     {"W_skip", sae.w_skip},
                                     {"threshold", sae.threshold},
                                     {"r_mag", sae.r_mag},
                                     {"b_gate", sae.b_gate},
                                     {"b_mag", sae.b_mag}})
    if (tensor.defined()) tensors[name] = tensor.contiguous();
  if (is_crosscoder(sae.name)) {
    const std::int64_t d_in = sae.d_in() / sae.sources;
    for (const char* name : {"W_enc", "W_dec"})
      tensors[name] =
          tensors[name].view({sae.d_sae(), sae.sources, d_in}).permute({1, 0, 2}).contiguous();
    tensors["b_dec"] = tensors["b_dec"].view({sae.sources, d_in});
  }
  return serialize_tensors(tensors);
}

}  // namespace saesweep::worker
