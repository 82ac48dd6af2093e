#include "worker/activations/cached_stream.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>

#include "core/check.h"
#include "core/log.h"

namespace saesweep::worker {
namespace {

constexpr std::uint64_t kNormRows = std::uint64_t{1} << 18;  // rows the norm factor is measured on

}  // namespace

CachedStream::CachedStream(sweeps::StreamSpec spec, std::unique_ptr<Harvester> harvester,
                           ChunkPlan plan, FetchChunk fetch, StreamEvents events)
    : spec_(std::move(spec)),
      harvester_(std::move(harvester)),
      plan_(std::move(plan)),
      fetch_(std::move(fetch)),
      events_(std::move(events)),
      order_(1, 0, "none") {
  for (const std::int64_t width : harvester_->widths()) parts_.push_back({.width = width});
}

Result<std::unique_ptr<CachedStream>> CachedStream::open(const sweeps::StreamSpec& spec,
                                                         std::unique_ptr<Harvester> harvester,
                                                         FetchChunk fetch, StreamEvents events) {
  SAE_TRY(ChunkPlan plan, ChunkPlan::make(spec, harvester->documents(), harvester->d_in()));
  std::unique_ptr<CachedStream> stream(new CachedStream(spec, std::move(harvester), std::move(plan),
                                                        std::move(fetch), std::move(events)));
  if (spec.normalize != sweeps::Normalize::kNone) SAE_TRY_VOID(stream->measure_norm_factors());
  return stream;
}

Result<void> CachedStream::load_group(std::uint64_t pass, std::uint64_t group) {
  const std::size_t row_bytes = static_cast<std::size_t>(d_in()) * size_of(spec_.dtype);
  const std::uint64_t rows = plan_.rows_of_group(group);
  loaded_ = false;
  try {
    group_.resize(plan_.group_rows() * row_bytes);
    chunk_.resize(plan_.max_chunk_rows() * row_bytes);
  } catch (const std::bad_alloc&) {
    return fail(ErrorCode::kResourceExhausted,
                "out of memory for {} rows of a shuffle group; a smaller activations.shuffle_rows "
                "would fit",
                plan_.group_rows());
  }
  std::uint64_t done = 0;
  for (const ChunkPlan::Piece& piece : plan_.pieces_of_group(pass, group)) {
    if (events_.stop && events_.stop()) return fail(ErrorCode::kUnavailable, "stopping");
    const auto harvest = [&](std::span<std::byte> out) -> Result<std::uint32_t> {
      SAE_TRY(const std::uint32_t harvested, harvester_->harvest(plan_, piece.chunk, out));
      if (events_.harvested) events_.harvested(harvested);
      return harvested;
    };
    auto fetched = fetch_ ? fetch_(piece.chunk, chunk_, harvest) : harvest(std::span(chunk_));
    // What a cache holds is not ours to trust.
    if (fetch_ && fetched && *fetched < piece.first + piece.count) {
      log::warn("stream.short_chunk index={} rows={} needed={}", piece.chunk, *fetched,
                piece.first + piece.count);
      fetched = harvest(std::span(chunk_));
    }
    if (!fetched) return fail(fetched.error());
    SAE_CHECK(piece.first + piece.count <= *fetched, "chunk {} has {} rows, {} are needed",
              piece.chunk, *fetched, piece.first + piece.count);
    std::memcpy(group_.data() + done * row_bytes, chunk_.data() + piece.first * row_bytes,
                piece.count * row_bytes);
    done += piece.count;
    if (events_.loading) events_.loading(done, rows);
  }
  SAE_CHECK(done == rows, "group {} joined {} of {} rows", group, done, rows);
  order_ = plan_.order_of_group(pass, group);
  loaded_pass_ = pass;
  loaded_group_ = group;
  loaded_ = true;
  return {};
}

void CachedStream::copy_rows(std::uint64_t offset, std::uint64_t count, float* out) const {
  const auto width = static_cast<std::size_t>(d_in());
  const std::size_t row_bytes = width * size_of(spec_.dtype);
  for (std::uint64_t i = 0; i < count; ++i) {
    const std::uint64_t row = plan_.permutes_rows() ? order_(offset + i) : offset + i;
    const std::byte* bytes = group_.data() + row * row_bytes;
    float* target = out + i * width;
    if (spec_.dtype == DType::kFloat32) {
      std::memcpy(target, bytes, row_bytes);
      continue;
    }
    for (std::size_t j = 0; j < width; ++j) {
      std::uint16_t bits = 0;
      std::memcpy(&bits, bytes + 2 * j, 2);
      target[j] = from_bf16(bits);
    }
  }
}

Result<void> CachedStream::read(std::uint64_t first, std::uint64_t count, float* out) {
  const auto width = static_cast<std::size_t>(d_in());
  std::uint64_t done = 0;
  while (done < count) {
    const std::uint64_t pass = (first + done) / plan_.rows();
    const std::uint64_t local = (first + done) % plan_.rows();
    const std::uint64_t group = local / plan_.group_rows();
    const std::uint64_t offset = local % plan_.group_rows();
    if (!loaded_ || loaded_pass_ != pass || loaded_group_ != group)
      SAE_TRY_VOID(load_group(pass, group));
    const std::uint64_t here = std::min(count - done, plan_.rows_of_group(group) - offset);
    copy_rows(offset, here, out + done * width);
    done += here;
  }
  if (!is_scaled()) return {};
  for (std::uint64_t row = 0; row < count; ++row)
    for (const RowPart& part : parts_) {
      const auto factor = static_cast<float>(part.norm_factor);
      for (std::int64_t j = 0; j < part.width; ++j) *out++ *= factor;
    }
  return {};
}

bool CachedStream::is_scaled() const {
  return std::ranges::any_of(parts_, [](const RowPart& part) { return part.norm_factor != 1; });
}

Result<void> CachedStream::measure_norm_factors() {
  const std::uint64_t rows = std::min(kNormRows, plan_.rows());
  const auto width = static_cast<std::size_t>(d_in());
  constexpr std::uint64_t kBlock = 1024;
  std::vector<float> block(kBlock * width);
  std::vector<double> sums(parts_.size(), 0);  // of |x|^2 or |x|
  for (std::uint64_t first = 0; first < rows; first += kBlock) {
    const std::uint64_t count = std::min(kBlock, rows - first);
    SAE_TRY_VOID(read(first, count, block.data()));
    const float* values = block.data();
    for (std::uint64_t row = 0; row < count; ++row)
      for (std::size_t part = 0; part < parts_.size(); ++part) {
        double square = 0;
        for (std::int64_t j = 0; j < parts_[part].width; ++j, ++values)
          square += static_cast<double>(*values) * *values;
        sums[part] +=
            spec_.normalize == sweeps::Normalize::kUnitMeanSquare ? square : std::sqrt(square);
      }
  }
  for (std::size_t part = 0; part < parts_.size(); ++part) {
    const double mean = sums[part] / static_cast<double>(rows);
    if (!(mean > 0) || !std::isfinite(mean))
      return fail(ErrorCode::kInvalidArgument,
                  "activations.normalize: the mean norm of the first {} rows{} is {}", rows,
                  parts_.size() > 1 ? " of " + spec_.hooks()[part] : "", mean);
    parts_[part].norm_factor = spec_.normalize == sweeps::Normalize::kUnitMeanSquare
                                   ? 1 / std::sqrt(mean)
                                   : std::sqrt(static_cast<double>(parts_[part].width)) / mean;
  }
  return {};
}

}  // namespace saesweep::worker
