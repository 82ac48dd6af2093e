// What a trainer writes: checkpoints, the finished dictionary, its configuration, its curve.
//
// A checkpoint is a folder:
//   weights.safetensors  W_enc, b_enc, W_dec, b_dec and the architecture's own (fp32, as trained)
//   optim.safetensors    m/ and v/ of each, silence (I64 [d_sae]: tokens since a latent last fired)
//   manifest.json        schema, spec (SHA-256 of what determines its bytes), step, counters,
//                        curve, the architecture's own state, SHA-256 of both files; held_out, the
//                        curve of held-out rows, where there is one
#include <ATen/ATen.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "core/check.h"
#include "core/digest.h"
#include "core/files.h"
#include "storage/formats/safetensors.h"
#include "sweeps/recipes.h"
#include "sweeps/values.h"
#include "worker/tensor_bytes.h"
#include "worker/training/trainer_base.h"

namespace saesweep::worker {
namespace {

namespace fs = std::filesystem;
constexpr int kSchema = 1;

std::map<std::string, at::Tensor> named(const SaeTensors& tensors, const std::string& prefix) {
  std::map<std::string, at::Tensor> all = {{prefix + "W_enc", tensors.w_enc},
                                           {prefix + "b_enc", tensors.b_enc},
                                           {prefix + "W_dec", tensors.w_dec},
                                           {prefix + "b_dec", tensors.b_dec}};
  for (const auto& [name, tensor] : tensors.more) all.emplace(prefix + name, tensor);
  return all;
}

Result<void> read_into(const storage::Safetensors& file, const std::string& prefix,
                       SaeTensors& tensors, const fs::path& path) {
  for (auto& [name, tensor] : named(tensors, prefix)) {
    const auto* view = file.find(name);
    if (view == nullptr || view->dtype != "F32" || view->shape != tensor.sizes().vec())
      return fail(ErrorCode::kCorrupted, "{}: no tensor {} of the right shape", path.string(),
                  name);
    std::memcpy(tensor.mutable_data_ptr(), view->bytes.data(), view->bytes.size());
  }
  return {};
}

// Numbers that are not finite are null in JSON.
double number(const Json& value) {
  return value.is_number() ? value.get<double>() : std::numeric_limits<double>::quiet_NaN();
}

// False if these are not rows of n.
template <std::size_t n>
bool read_points(const Json& rows, std::vector<std::array<double, n>>& points) {
  if (!rows.is_array()) return false;
  for (const Json& row : rows) {
    if (!row.is_array() || row.size() != n) return false;
    std::array<double, n>& point = points.emplace_back();
    for (std::size_t i = 0; i < n; ++i) point[i] = number(row[i]);
  }
  return true;
}

std::string spec_digest(const sweeps::TrainingSpec& spec, const std::vector<RowPart>& parts) {
  Json json{{"training", spec.identity_json()}, {"d_in", parts.front().width}};
  if (parts.size() > 1) json["d_in"] = Json::array();
  if (parts.size() > 1)
    for (const RowPart& part : parts) json["d_in"].push_back(part.width);
  return sha256(canonical_json(json)).hex();
}

Json factors_of(const std::vector<RowPart>& parts) {
  Json factors = Json::array();
  for (const RowPart& part : parts) factors.push_back(part.norm_factor);
  return factors;
}

// Norms of the rows, 1 for a row of zeros: what folding multiplies with.
at::Tensor decoder_norms(const at::Tensor& w_dec) {
  const at::Tensor norms = w_dec.to(at::kDouble).square().sum(1).sqrt();  // [d_sae]
  return at::where(norms.gt(0), norms, at::ones_like(norms));
}

Result<std::string> read_checked(const fs::path& path, const Json& manifest) {
  SAE_TRY(std::string bytes, read_file(path));
  const std::string name = path.filename().string();
  const Json& digests = manifest.at("sha256");
  if (!digests.contains(name) || digests[name] != sha256(bytes).hex())
    return fail(ErrorCode::kCorrupted, "{} is not what its manifest says", path.string());
  return bytes;
}

}  // namespace

Result<void> TrainerBase::save(const fs::path& directory) const {
  const fs::path fresh = directory.string() + ".tmp-" + std::to_string(::getpid());
  std::error_code ignored;
  fs::remove_all(fresh, ignored);
  SAE_TRY_VOID(make_directories(fresh));
  SAE_TRY_VOID(fetch());

  const std::string weights = serialize_tensors(named(parameters_, ""));
  auto moments = named(first_, "m/");
  moments.merge(named(second_, "v/"));
  at::Tensor silence = at::empty({d_sae()}, at::kLong);
  std::memcpy(silence.mutable_data_ptr(), silence_.data(), silence_.size() * sizeof(std::int64_t));
  moments.emplace("silence", silence);
  const std::string optimiser = serialize_tensors(moments);

  Json manifest{{"schema", kSchema},
                {"spec", spec_digest(spec_, parts_)},
                {"step", step_},
                {"adam_steps", adam_steps_},
                {"skipped", skipped_},
                {"skipped_in_row", skipped_in_row_},
                {"norm_factor", norm_factor_},
                {"curve", curve_},
                {"sums", sums_},
                {"summed", summed_},
                {"state", state()},
                {"sha256",
                 {{"weights.safetensors", sha256(weights).hex()},
                  {"optim.safetensors", sha256(optimiser).hex()}}}};
  if (parts_.size() > 1) manifest["norm_factors"] = factors_of(parts_);
  if (controller_) manifest["controller"] = controller_->state();
  if (!held_out_.empty()) manifest["held_out"] = held_out_;
  SAE_TRY_VOID(write_file_atomically(fresh / "weights.safetensors", weights));
  SAE_TRY_VOID(write_file_atomically(fresh / "optim.safetensors", optimiser));
  SAE_TRY_VOID(write_file_atomically(fresh / "manifest.json", canonical_json(manifest)));
  std::error_code failed;
  fs::rename(fresh, directory, failed);
  if (failed) {
    // The same step was saved before: the same bytes are there.
    const bool there = fs::exists(directory / "manifest.json", ignored);
    fs::remove_all(fresh, ignored);
    if (!there) return fail(system_error(failed.value(), "rename to " + directory.string()));
    return {};
  }
  return sync_directory(directory.parent_path());
}

Result<void> TrainerBase::restore(const fs::path& directory) {
  SAE_TRY(const std::string text, read_file(directory / "manifest.json", 256 << 20));
  SAE_TRY(const Json manifest, parse_json(text));
  const auto corrupted = [&](std::string_view what) {
    return fail(ErrorCode::kCorrupted, "{}: {}", (directory / "manifest.json").string(), what);
  };
  if (!manifest.is_object() || !manifest.contains("schema") || manifest["schema"] != kSchema ||
      !manifest.contains("sha256") || !manifest["sha256"].is_object())
    return corrupted("no manifest of this version");
  if (manifest.value("spec", "") != spec_digest(spec_, parts_))
    return fail(ErrorCode::kInvalidArgument, "{} is a checkpoint of another trial",
                directory.string());
  SAE_TRY(std::string weight_bytes, read_checked(directory / "weights.safetensors", manifest));
  SAE_TRY(std::string optimiser_bytes, read_checked(directory / "optim.safetensors", manifest));
  SAE_TRY(const auto weights, storage::Safetensors::parse(std::move(weight_bytes)));
  SAE_TRY(const auto optimiser, storage::Safetensors::parse(std::move(optimiser_bytes)));

  for (const char* key : {"step", "adam_steps", "skipped", "skipped_in_row", "summed"})
    if (!manifest.contains(key) || !manifest[key].is_number_unsigned()) return corrupted(key);
  if (manifest["step"].get<std::uint64_t>() > spec_.steps()) return corrupted("step past the end");
  const Json curve = manifest.value("curve", Json::array());
  const Json sums = manifest.value("sums", Json::array());
  if (!curve.is_array() || !sums.is_array() || sums.size() != sums_.size())
    return corrupted("curve");
  const Json factors = manifest.value("norm_factors", Json::array());
  if (parts_.size() > 1 && (!factors.is_array() || factors.size() != parts_.size()))
    return corrupted("norm_factors");
  std::optional<L0Controller> controller = controller_;
  if (controller) SAE_TRY_VOID(controller->set_state(manifest.value("controller", Json())));
  std::vector<std::array<double, 8>> points;
  if (!read_points(curve, points)) return corrupted("curve");
  std::vector<std::array<double, 6>> held_out;
  if (!read_points(manifest.value("held_out", Json::array()), held_out))
    return corrupted("held_out");
  const auto* silence = optimiser.find("silence");
  if (silence == nullptr || silence->dtype != "I64" ||
      silence->bytes.size() != silence_.size() * sizeof(std::int64_t))
    return corrupted("silence");
  SAE_TRY_VOID(read_into(weights, "", parameters_, directory / "weights.safetensors"));
  SAE_TRY_VOID(read_into(optimiser, "m/", first_, directory / "optim.safetensors"));
  SAE_TRY_VOID(read_into(optimiser, "v/", second_, directory / "optim.safetensors"));
  SAE_TRY_VOID(set_state(manifest.value("state", Json::object())));
  std::memcpy(silence_.data(), silence->bytes.data(), silence->bytes.size());
  step_ = manifest["step"].get<std::uint64_t>();
  adam_steps_ = manifest["adam_steps"].get<std::uint64_t>();
  skipped_ = manifest["skipped"].get<std::uint64_t>();
  skipped_in_row_ = manifest["skipped_in_row"].get<std::uint64_t>();
  norm_factor_ = parts_.front().norm_factor = number(manifest.value("norm_factor", Json()));
  for (std::size_t i = 1; i < parts_.size(); ++i) parts_[i].norm_factor = number(factors[i]);
  controller_ = controller;
  curve_ = std::move(points);
  held_out_ = std::move(held_out);
  for (std::size_t i = 0; i < sums_.size(); ++i) sums_[i] = number(sums[i]);
  summed_ = manifest["summed"].get<std::uint64_t>();
  engine_is_behind_ = true;
  engine_is_ahead_ = false;
  return {};
}

at::Tensor TrainerBase::folded(const at::Tensor& of_latents) const {
  const at::Tensor raw = (of_latents.to(at::kDouble) / norm_factor_).to(at::kFloat);
  if (!folds_decoder_norms()) return raw;
  return (raw.to(at::kDouble) * decoder_norms(parameters_.w_dec)).to(at::kFloat);
}

Sae TrainerBase::sae() const {
  SAE_CHECK(!engine_is_ahead_, "step {}: the trainer is not settled", step_);
  Sae sae;
  sae.name = sweeps::to_string(spec_.architecture);
  sae.w_enc = parameters_.w_enc.clone();
  sae.w_dec = parameters_.w_dec.clone();
  // Raw rows instead of rows times the factor: f shrinks by it, W_enc and W_dec stay.
  sae.b_enc = folded(parameters_.b_enc);
  sae.b_dec = (parameters_.b_dec.to(at::kDouble) / norm_factor_).to(at::kFloat);
  if (folds_decoder_norms()) {
    const at::Tensor safe = decoder_norms(sae.w_dec);
    sae.w_dec = (sae.w_dec.to(at::kDouble) / safe.unsqueeze(1)).to(at::kFloat);
    sae.w_enc = (sae.w_enc.to(at::kDouble) * safe.unsqueeze(1)).to(at::kFloat);
  }
  finish_sae(sae);
  return sae;
}

at::Tensor TrainerBase::fold_parts(Sae& sae) const {
  sae.apply_b_dec_to_input = false;
  sae.sources = std::ssize(parts_);
  const std::int64_t width = parts_.front().width;
  at::Tensor w_enc = parameters_.w_enc.to(at::kDouble, /*non_blocking=*/false, /*copy=*/true);
  at::Tensor w_dec = parameters_.w_dec.to(at::kDouble, false, true);
  at::Tensor b_dec = parameters_.b_dec.to(at::kDouble, false, true);
  for (std::int64_t part = 0; part < sae.sources; ++part) {
    const double factor = parts_[static_cast<std::size_t>(part)].norm_factor;
    const std::int64_t column = part * width;
    w_enc.narrow(1, column, width).mul_(factor);
    w_dec.narrow(1, column, width).div_(factor);
    b_dec.narrow(0, column, width).div_(factor);
  }
  const at::Tensor sums = w_dec.view({d_sae(), -1, width}).square().sum(2).sqrt().sum(1);
  const at::Tensor norms = at::where(sums.gt(0), sums, at::ones_like(sums));
  sae.w_enc = (w_enc * norms.unsqueeze(1)).to(at::kFloat);
  sae.b_enc = (parameters_.b_enc.to(at::kDouble) * norms).to(at::kFloat);
  sae.w_dec = (w_dec / norms.unsqueeze(1)).to(at::kFloat);
  sae.b_dec = b_dec.to(at::kFloat);
  return norms;
}

void TrainerBase::describe_parts(Json& config) const {
  config["apply_b_dec_to_input"] = false;
  config["d_in"] = parts_.front().width;
  config.erase("normalization_factor");
  for (const RowPart& part : parts_) config["normalization_factors"].push_back(part.norm_factor);
}

Json TrainerBase::config() const {
  Json parameters = spec_.to_json();
  for (const char* key : {"architecture", "recipe", "init_path", "device", "eval_every"})
    parameters.erase(key);
  return {{"architecture", sweeps::to_string(spec_.architecture)},
          {"parameters", parameters},
          {"recipe", spec_.recipe},
          {"recipe_hash", sweeps::recipe_hash(spec_.recipe, spec_.architecture)},
          {"d_in", d_in_},
          {"steps", step_},
          {"tokens", position()},
          {"apply_b_dec_to_input", true},
          {"normalization_factor", norm_factor_},
          {"threshold_calibrated", false}};
}

std::string TrainerBase::curve_csv() const {
  std::string text = "step,tokens,loss,mse,fve,l0,dead_fraction,grad_norm";
  if (!held_out_.empty())
    text += ",heldout_loss,heldout_mse,heldout_fve,heldout_l0,heldout_dead_fraction";
  const auto add_cell = [&text](double value) {
    if (text.back() != '\n') text += ',';
    if (std::isfinite(value)) text += sweeps::shortest(value);
  };
  auto looked = held_out_.begin();
  for (const auto& point : curve_) {
    text += '\n';
    for (const double value : point) add_cell(value);
    if (held_out_.empty()) continue;
    const bool here = looked != held_out_.end() && (*looked)[0] == point[0];
    for (std::size_t i = 1; i < held_out_[0].size(); ++i)
      add_cell(here ? (*looked)[i] : std::numeric_limits<double>::quiet_NaN());
    if (here) ++looked;
  }
  return text + '\n';
}

Json TrainerBase::summary() const {
  Json json{{"tokens", position()}, {"steps", step_}, {"skipped_steps", skipped_}};
  if (controller_) json["l1_factor"] = controller_->factor();
  if (!curve_.empty()) {
    const auto& last = curve_.back();
    const std::array<const char*, 8> names = {
        "", "", "loss_train", "mse_train", "fve_train", "l0_train", "dead_fraction", "grad_norm"};
    for (std::size_t i = 2; i < last.size(); ++i)
      if (std::isfinite(last[i])) json[names[i]] = last[i];
  }
  if (!held_out_.empty()) {
    const auto& last = held_out_.back();
    const std::array<const char*, 6> names = {
        "", "loss_heldout", "mse_heldout", "fve_heldout", "l0_heldout", "dead_fraction_heldout"};
    for (std::size_t i = 1; i < last.size(); ++i)
      if (std::isfinite(last[i])) json[names[i]] = last[i];
  }
  return json;
}

}  // namespace saesweep::worker
