// Activations that somebody else harvested, as documents: runs of consecutive rows of a tensor in
// one safetensors file or a folder of them.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <filesystem>

#include "core/digest.h"
#include "core/dtype.h"
#include "storage/formats/safetensors.h"
#include "worker/data/documents.h"

namespace saesweep::worker {
namespace {

float half_to_float(std::uint16_t half) {
  const std::uint32_t sign = std::uint32_t{half & 0x8000u} << 16;
  const std::uint32_t exponent = (half >> 10) & 31u;
  const std::uint32_t mantissa = half & 0x3ffu;
  if (exponent == 0) {
    const float value = std::ldexp(static_cast<float>(mantissa), -24);
    return sign != 0 ? -value : value;
  }
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | mantissa << 13);
  return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
}

std::vector<std::filesystem::path> files_of(const std::filesystem::path& path) {
  std::error_code error;
  if (!std::filesystem::is_directory(path, error)) return {path};
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(path, error))
    if (entry.path().extension() == ".safetensors") files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  return files;
}

}  // namespace

struct ActivationDocuments::State {
  struct Shard {
    storage::Safetensors file;
    storage::TensorView view;
    std::uint64_t first_row;
  };
  std::vector<Shard> shards;
  std::uint64_t row_count = 0;
  std::int64_t d_in = 0;
  std::vector<bool> held_out;
  std::vector<std::uint64_t> held_out_list;

  // Bytes of one row, in its stored dtype.
  std::span<const std::byte> row(std::uint64_t index, const Shard*& shard) const {
    auto after = std::upper_bound(
        shards.begin(), shards.end(), index,
        [](std::uint64_t value, const Shard& candidate) { return value < candidate.first_row; });
    shard = &*std::prev(after);
    const std::size_t row_bytes =
        shard->view.bytes.size() / static_cast<std::size_t>(shard->view.shape[0]);
    return shard->view.bytes.subspan((index - shard->first_row) * row_bytes, row_bytes);
  }
};

ActivationDocuments::ActivationDocuments() : state_(std::make_unique<State>()) {}
ActivationDocuments::~ActivationDocuments() = default;

Result<std::shared_ptr<const ActivationDocuments>> ActivationDocuments::open(
    const sweeps::DataSpec& data, double holdout) {
  std::shared_ptr<ActivationDocuments> documents(new ActivationDocuments);
  State& state = *documents->state_;
  const auto files = files_of(data.path);
  if (files.empty())
    return fail(ErrorCode::kNotFound, "data.path {}: no .safetensors file in it", data.path);
  for (const auto& path : files) {
    SAE_TRY(auto file, storage::Safetensors::open(path));
    const storage::TensorView* view = file.find(data.tensor);
    if (view == nullptr)
      return fail(ErrorCode::kInvalidArgument, "{}: no tensor \"{}\"", path.string(), data.tensor);
    if (view->shape.size() != 2 || view->shape[1] < 1)
      return fail(ErrorCode::kInvalidArgument, "{}: tensor \"{}\" is not [n, d]", path.string(),
                  data.tensor);
    if (view->dtype != "F32" && view->dtype != "F16" && view->dtype != "BF16")
      return fail(ErrorCode::kInvalidArgument,
                  "{}: tensor \"{}\" is {}; F32, F16 or BF16 would be right", path.string(),
                  data.tensor, view->dtype);
    if (state.d_in != 0 && view->shape[1] != state.d_in)
      return fail(ErrorCode::kInvalidArgument, "{}: width {} where the shard before has {}",
                  path.string(), view->shape[1], state.d_in);
    state.d_in = view->shape[1];
    if (view->shape[0] == 0) continue;
    const storage::TensorView kept = *view;
    state.shards.push_back({std::move(file), kept, state.row_count});
    state.row_count += static_cast<std::uint64_t>(kept.shape[0]);
  }
  if (state.row_count == 0)
    return fail(ErrorCode::kInvalidArgument, "{}: tensor \"{}\" has no rows", data.path,
                data.tensor);
  // A document's row bytes, as stored, decide whether it is held out.
  for (std::uint64_t document = 0; document < documents->count(); ++document) {
    const std::uint64_t first = document * sweeps::kRowsPerActivationDocument;
    std::vector<std::byte> content;
    for (std::uint64_t row = first; row < first + documents->rows(document); ++row) {
      const State::Shard* shard = nullptr;
      const auto bytes = state.row(row, shard);
      content.insert(content.end(), bytes.begin(), bytes.end());
    }
    const bool held = static_cast<double>(xxh3_64(content)) < std::ldexp(holdout, 64);
    state.held_out.push_back(held);
    if (held) state.held_out_list.push_back(document);
  }
  return std::shared_ptr<const ActivationDocuments>(std::move(documents));
}

std::uint64_t ActivationDocuments::count() const {
  return (state_->row_count + sweeps::kRowsPerActivationDocument - 1) /
         sweeps::kRowsPerActivationDocument;
}

std::uint64_t ActivationDocuments::rows(std::uint64_t document) const {
  const std::uint64_t first = document * sweeps::kRowsPerActivationDocument;
  return std::min(sweeps::kRowsPerActivationDocument, state_->row_count - first);
}

bool ActivationDocuments::held_out(std::uint64_t document) const {
  return state_->held_out[document];
}

const std::vector<std::uint64_t>& ActivationDocuments::held_out_documents() const {
  return state_->held_out_list;
}

std::int64_t ActivationDocuments::d_in() const { return state_->d_in; }

void ActivationDocuments::read(std::uint64_t document, float* out) const {
  const std::uint64_t first = document * sweeps::kRowsPerActivationDocument;
  const auto width = static_cast<std::size_t>(state_->d_in);
  for (std::uint64_t row = 0; row < rows(document); ++row) {
    const State::Shard* shard = nullptr;
    const auto bytes = state_->row(first + row, shard);
    float* target = out + row * width;
    if (shard->view.dtype == "F32") {
      std::memcpy(target, bytes.data(), width * sizeof(float));
      continue;
    }
    const bool half = shard->view.dtype == "F16";
    for (std::size_t i = 0; i < width; ++i) {
      std::uint16_t bits = 0;
      std::memcpy(&bits, bytes.data() + 2 * i, 2);
      target[i] = half ? half_to_float(bits) : from_bf16(bits);
    }
  }
}

}  // namespace saesweep::worker
