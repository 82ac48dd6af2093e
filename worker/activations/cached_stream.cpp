#include "worker/activations/cached_stream.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <exception>
#include <map>
#include <new>
#include <utility>

#include "core/check.h"
#include "core/log.h"
#include "core/thread.h"
#include "worker/activations/row_filter.h"
#include "worker/parallel/thread_pool.h"

namespace saesweep::worker {
namespace {

constexpr std::uint64_t kNormRows = std::uint64_t{1} << 18;  // rows the norm factor is measured on
// Chunks that others harvest are left for later, so many of them. When there is no other, the first
// of them is waited for a while, and then they are all looked at again: another may have been given
// up. In the end it is waited for as long as it takes.
constexpr std::size_t kMostLeft = 4;
constexpr Duration kFirstWait = std::chrono::milliseconds(2),
                   kLongestWait = std::chrono::seconds(4);

std::size_t row_bytes_of(const sweeps::StreamSpec& spec, const Harvester& harvester) {
  return static_cast<std::size_t>(harvester.d_in()) * size_of(spec.dtype);
}

// A whole chunk, from the cache or harvested; adds what was harvested to `harvested`.
// Nothing if somebody else still harvests it after `most`.
Result<std::optional<std::uint32_t>> bring_chunk(const ChunkPlan& plan, std::uint32_t index,
                                                 Harvester& harvester, const FetchChunk& fetch,
                                                 std::span<std::byte> out, std::uint64_t least_rows,
                                                 std::uint64_t& harvested, Duration most) {
  const auto harvest = [&](std::span<std::byte> into,
                           std::span<ChunkOrder> beside) -> Result<std::uint32_t> {
    SAE_TRY(const std::uint32_t rows, harvester.harvest(plan, index, into, beside));
    harvested += rows;
    return rows;
  };
  if (!fetch) return harvest(out, {});
  SAE_TRY(const auto rows, fetch(index, out, harvest, most));
  if (!rows || *rows >= least_rows) return rows;
  // What a cache holds is not ours to trust.
  log::warn("stream.short_chunk index={} rows={} needed={}", index, *rows, least_rows);
  return harvest(out, {});
}

// The plan of a stream with filters, for which rows of chunks are counted as they come.
Result<ChunkPlan> plan_filtered(const sweeps::StreamSpec& spec, Harvester& harvester,
                                const FetchChunk& fetch, const StreamEvents& events) {
  std::vector<std::byte> bytes;
  std::uint64_t counted = 0, by_token = 0;
  const auto rows_of = [&](const ChunkPlan& plan, std::uint32_t chunk) -> Result<std::uint64_t> {
    std::uint64_t least = 0;
    for (const std::uint64_t document : plan.documents_of(chunk)) least += harvester.rows(document);
    if (!harvester.drops_by_norm()) return least;
    if (events.stop && events.stop()) return fail(ErrorCode::kUnavailable, "stopping");
    try {
      bytes.resize(plan.max_chunk_rows() * row_bytes_of(spec, harvester));
    } catch (const std::bad_alloc&) {
      return fail(ErrorCode::kResourceExhausted, "out of memory for a chunk");
    }
    std::uint64_t harvested = 0;
    SAE_TRY(const auto brought,
            bring_chunk(plan, chunk, harvester, fetch, bytes, 0, harvested, kPatiently));
    SAE_CHECK(brought, "chunk {} was waited for and did not come", chunk);
    const std::uint32_t rows = *brought;
    if (events.harvested && harvested > 0) events.harvested(harvested);
    by_token += least;
    counted += rows;
    if (events.loading) events.loading(std::min(counted, spec.tokens), spec.tokens);
    return rows;
  };
  SAE_TRY(ChunkPlan plan, ChunkPlan::make(spec, harvester.documents(), harvester.d_in(), rows_of));
  warn_of_long_rows(spec, by_token, counted);
  return plan;
}

}  // namespace

CachedStream::CachedStream(sweeps::StreamSpec spec, std::unique_ptr<Harvester> harvester,
                           FetchChunk fetch, StreamEvents events, ChunkPlan plan)
    : spec_(std::move(spec)),
      harvester_(std::move(harvester)),
      fetch_(std::move(fetch)),
      events_(std::move(events)),
      plan_(std::move(plan)),
      order_(1, 0, "none") {
  for (const std::int64_t width : harvester_->widths()) parts_.push_back({.width = width});
}

CachedStream::~CachedStream() { stop_ahead(); }

Result<std::unique_ptr<CachedStream>> CachedStream::open(const sweeps::StreamSpec& spec,
                                                         std::unique_ptr<Harvester> harvester,
                                                         FetchChunk fetch, StreamEvents events) {
  SAE_TRY(ChunkPlan plan, spec.filters.any()
                              ? plan_filtered(spec, *harvester, fetch, events)
                              : ChunkPlan::make(spec, harvester->documents(), harvester->d_in()));
  std::unique_ptr<CachedStream> stream(new CachedStream(
      spec, std::move(harvester), std::move(fetch), std::move(events), std::move(plan)));
  if (spec.normalize != sweeps::Normalize::kNone) SAE_TRY_VOID(stream->measure_norm_factors());
  return stream;
}

std::size_t CachedStream::row_bytes() const { return row_bytes_of(spec_, *harvester_); }

// ---- groups -------------------------------------------------------------------------------------

Result<void> CachedStream::begin(Group& group, std::uint64_t pass, std::uint64_t index) {
  group.pieces.clear();
  try {
    group.rows.resize(plan_.group_rows() * row_bytes());
  } catch (const std::bad_alloc&) {
    return fail(ErrorCode::kResourceExhausted,
                "out of memory for {} rows of a shuffle group; a smaller activations.shuffle_rows "
                "would fit",
                plan_.group_rows());
  }
  group.pass = pass;
  group.index = index;
  group.done = 0;
  group.pieces = plan_.pieces_of_group(pass, index);
  group.starts.clear();
  group.missing.clear();
  std::uint64_t row = 0;
  for (const ChunkPlan::Piece& piece : group.pieces) {
    group.missing.insert(group.starts.size());
    group.starts.push_back(row);
    row += piece.count;
  }
  return {};
}

Result<std::uint64_t> CachedStream::bring_piece(Group& group) {
  // Executors that read the same chunks harvest one each, and none looks on.
  for (Duration wait = kFirstWait;; wait *= 2) {
    std::size_t left = 0;
    for (const std::size_t number : group.missing) {
      if (left++ == kMostLeft) break;
      SAE_TRY(const auto harvested, bring_piece(group, number, Duration::zero()));
      if (harvested) return *harvested;
    }
    const Duration most = wait > kLongestWait ? kPatiently : wait;
    SAE_TRY(const auto harvested, bring_piece(group, *group.missing.begin(), most));
    if (harvested) return *harvested;
  }
}

Result<std::optional<std::uint64_t>> CachedStream::bring_piece(Group& group, std::size_t number,
                                                               Duration most) {
  const ChunkPlan::Piece& piece = group.pieces[number];
  const std::uint64_t needed = piece.first + piece.count;
  std::uint64_t harvested = 0;
  if (chunk_.index != piece.chunk || chunk_.rows < needed) {
    chunk_.rows = 0;
    try {
      chunk_.bytes.resize(plan_.max_chunk_rows() * row_bytes());
    } catch (const std::bad_alloc&) {
      return fail(ErrorCode::kResourceExhausted, "out of memory for a chunk");
    }
    SAE_TRY(const auto rows, bring_chunk(plan_, piece.chunk, *harvester_, fetch_, chunk_.bytes,
                                         needed, harvested, most));
    if (!rows) return std::nullopt;
    chunk_.rows = *rows;
    chunk_.index = piece.chunk;
  }
  SAE_CHECK(needed <= chunk_.rows, "chunk {} has {} rows, {} are needed", piece.chunk, chunk_.rows,
            needed);
  std::memcpy(group.rows.data() + group.starts[number] * row_bytes(),
              chunk_.bytes.data() + piece.first * row_bytes(), piece.count * row_bytes());
  group.done += piece.count;
  group.missing.erase(number);
  return harvested;
}

Result<void> CachedStream::load(std::uint64_t pass, std::uint64_t index) {
  shown_ = false;
  stop_ahead();
  if (ahead_.is_of(pass, index)) {
    std::swap(loaded_, ahead_);
    ahead_.pieces.clear();
  } else if (!loaded_.is_of(pass, index)) {
    SAE_TRY_VOID(begin(loaded_, pass, index));
  }
  while (!loaded_.is_complete()) {
    if (events_.stop && events_.stop()) return fail(ErrorCode::kUnavailable, "stopping");
    SAE_TRY(const std::uint64_t harvested, bring_piece(loaded_));
    if (events_.harvested && harvested > 0) events_.harvested(harvested);
    if (events_.loading) events_.loading(loaded_.done, plan_.rows_of_group(index));
  }
  SAE_CHECK(loaded_.done == plan_.rows_of_group(index), "group {} joined {} of {} rows", index,
            loaded_.done, plan_.rows_of_group(index));
  return {};
}

Result<void> CachedStream::show(std::uint64_t pass, std::uint64_t index) {
  if (!shown_ || shown_pass_ != pass || shown_index_ != index) {
    const bool whole_stream = plan_.groups() == 1 && loaded_.is_complete();
    if (!whole_stream && !(loaded_.is_complete() && loaded_.is_of(pass, index)))
      SAE_TRY_VOID(load(pass, index));
    places_.clear();
    if (loaded_.pass != pass) {
      std::map<std::uint32_t, std::uint64_t> at;
      for (std::size_t i = 0; i < loaded_.pieces.size(); ++i)
        at[loaded_.pieces[i].chunk] = loaded_.starts[i];
      std::uint64_t row = 0;
      for (const ChunkPlan::Piece& piece : plan_.pieces_of_group(pass, index)) {
        places_.push_back({row, at.at(piece.chunk)});
        row += piece.count;
      }
    }
    order_ = plan_.order_of_group(pass, index);
    shown_pass_ = pass;
    shown_index_ = index;
    shown_ = true;
  }
  start_ahead();
  return {};
}

// ---- the next group, beside the one that is read ------------------------------------------------

void CachedStream::start_ahead() {
  const std::uint64_t end =
      shown_pass_ * plan_.rows() +
      std::min(plan_.rows(), (shown_index_ + 1) * plan_.group_rows());  // of the shown group
  if (end >= ahead_until_ || plan_.groups() == 1 || ahead_thread_.joinable()) return;
  const bool last = shown_index_ + 1 == plan_.groups();
  const std::uint64_t pass = shown_pass_ + (last ? 1 : 0), index = last ? 0 : shown_index_ + 1;
  if (!ahead_.is_of(pass, index)) {
    if (const auto begun = begin(ahead_, pass, index); !begun) {
      log::warn("stream.not_ahead problem={}", begun.error().message);
      ahead_until_ = 0;
      return;
    }
  }
  ahead_thread_ = run_thread("chunks ahead", [this](const std::stop_token& stop) {
    ThreadPool::alone([&] {
      while (!ahead_.is_complete() && !stop.stop_requested()) {
        // Who reads meets the same problem, and it is theirs to say.
        const auto harvested = bring_piece(ahead_);
        if (!harvested) return;
        harvested_ahead_ += *harvested;
      }
    });
  });
}

void CachedStream::stop_ahead() {
  if (!ahead_thread_.joinable()) return;
  ahead_thread_.request_stop();
  ahead_thread_.join();
  count_harvested_ahead();
}

void CachedStream::count_harvested_ahead() {
  if (const std::uint64_t rows = harvested_ahead_.exchange(0); rows > 0 && events_.harvested)
    events_.harvested(rows);
}

// ---- reading ------------------------------------------------------------------------------------

void CachedStream::copy_rows(std::uint64_t offset, std::uint64_t count, float* out) const {
  const auto width = static_cast<std::size_t>(d_in());
  const std::size_t bytes_of_row = width * size_of(spec_.dtype);
  for (std::uint64_t i = 0; i < count; ++i) {
    std::uint64_t row = plan_.permutes_rows() ? order_(offset + i) : offset + i;
    if (!places_.empty()) {
      const auto after = std::ranges::upper_bound(places_, row, {}, &Place::joined);
      const Place& place = *std::prev(after);
      row = place.loaded + (row - place.joined);
    }
    const std::byte* bytes = loaded_.rows.data() + row * bytes_of_row;
    float* target = out + i * width;
    if (spec_.dtype == DType::kFloat32) {
      std::memcpy(target, bytes, bytes_of_row);
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
  count_harvested_ahead();
  std::uint64_t done = 0;
  while (done < count) {
    const std::uint64_t pass = (first + done) / plan_.rows();
    const std::uint64_t local = (first + done) % plan_.rows();
    const std::uint64_t group = local / plan_.group_rows();
    const std::uint64_t offset = local % plan_.group_rows();
    SAE_TRY_VOID(show(pass, group));
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
