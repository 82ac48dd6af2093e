#include "worker/activations/chunk_client.h"

#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>
#include <vector>

#include "core/files.h"
#include "core/log.h"

namespace saesweep::worker {

using protocol::ChunkReply;
using protocol::ChunkRequest;

namespace {
// One call at a time needs one slot.
constexpr std::uint32_t kSlot = 0;
}  // namespace

Result<ChunkClient> ChunkClient::open(std::string stream, const protocol::ChunkOpened& opened,
                                      int memory, std::size_t row_bytes, ChunkTransport transport,
                                      ChunkClientOptions options) {
  if (!opened.problem().empty()) {
    return fail(ErrorCode::kInvalidArgument, "the agent refused stream {}: {}", stream,
                opened.problem());
  }
  const std::uint64_t bytes = opened.slots() * opened.slot_bytes();
  struct ::stat info {};
  if (::fstat(memory, &info) != 0) return fail(system_error(errno, "examine the chunk slots"));
  if (opened.slots() == 0 || row_bytes == 0 || opened.slot_bytes() < row_bytes ||
      static_cast<std::uint64_t>(info.st_size) < bytes) {
    return fail(ErrorCode::kInvalidArgument, "{} slots of {} bytes in {} for rows of {}",
                opened.slots(), opened.slot_bytes(), info.st_size, row_bytes);
  }
  void* const mapped = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
  if (mapped == MAP_FAILED) return fail(system_error(errno, "map the chunk slots"));

  ChunkClient client;
  client.stream_ = std::move(stream);
  client.memory_ = static_cast<std::byte*>(mapped);
  client.memory_bytes_ = bytes;
  client.slot_bytes_ = opened.slot_bytes();
  client.row_bytes_ = row_bytes;
  client.transport_ = std::move(transport);
  client.options_ = std::move(options);
  if (!client.options_.now) client.options_.now = [] { return SystemClock().now(); };
  if (!client.options_.sleep) {
    client.options_.sleep = [](Duration wait) { std::this_thread::sleep_for(wait); };
  }
  return client;
}

ChunkClient::ChunkClient(ChunkClient&& other) noexcept { *this = std::move(other); }

ChunkClient& ChunkClient::operator=(ChunkClient&& other) noexcept {
  std::swap(stream_, other.stream_);
  std::swap(memory_, other.memory_);
  std::swap(memory_bytes_, other.memory_bytes_);
  std::swap(slot_bytes_, other.slot_bytes_);
  std::swap(row_bytes_, other.row_bytes_);
  std::swap(is_full_, other.is_full_);
  std::swap(last_id_, other.last_id_);
  std::swap(transport_, other.transport_);
  std::swap(options_, other.options_);
  return *this;
}

ChunkClient::~ChunkClient() {
  if (memory_ != nullptr) ::munmap(memory_, memory_bytes_);
}

void ChunkClient::close() {
  if (const auto closed = ask(ChunkRequest::CLOSE, 0); !closed)
    log::debug("chunks.close stream={} problem={}", stream_, closed.error().message);
}

Result<ChunkReply> ChunkClient::ask(ChunkRequest::Verb verb, std::uint32_t index,
                                    std::uint32_t rows, std::span<const Beside> beside) {
  ChunkRequest request;
  request.set_id(++last_id_);
  request.set_stream(stream_);
  request.set_verb(verb);
  request.set_index(index);
  request.set_slot(kSlot);
  request.set_rows(rows);
  for (const Beside& each : beside) {
    auto& named = *request.add_beside();
    named.set_stream(each.stream->stream_);
    named.set_index(each.chunk.index);
  }
  SAE_TRY(ChunkReply reply, transport_(std::move(request)));
  if (reply.id() != last_id_ || reply.status() == ChunkReply::STATUS_UNSPECIFIED) {
    return fail(ErrorCode::kInvalidArgument, "the agent did not understand verb {} of chunk {}",
                static_cast<int>(verb), index);
  }
  return reply;
}

Result<std::optional<std::uint32_t>> ChunkClient::try_fetch(std::uint32_t index,
                                                            std::span<std::byte> out,
                                                            const HarvestChunk& harvest,
                                                            std::span<const Beside> beside) {
  SAE_TRY(const ChunkReply read, ask(ChunkRequest::READ, index));
  if (read.status() == ChunkReply::OK) {
    const std::size_t bytes = read.rows() * row_bytes_;
    if (bytes <= slot_bytes_ && bytes <= out.size()) {
      std::memcpy(out.data(), memory_ + kSlot * slot_bytes_, bytes);
      return read.rows();
    }
    log::warn("chunks.too_large stream={} index={} rows={}", stream_, index, read.rows());
    return harvest_and_write(index, out, harvest, false);
  }
  // What the cache has no room for is not worth a deeper pass.
  std::vector<Beside> wanted;
  for (const Beside& each : beside)
    if (!each.stream->is_full_) wanted.push_back(each);
  SAE_TRY(const ChunkReply claim, ask(ChunkRequest::CLAIM, index, 0, wanted));
  if (claim.status() != ChunkReply::OK) return std::nullopt;
  std::vector<Beside> granted;
  for (const std::uint32_t position : claim.granted())
    if (position < wanted.size()) granted.push_back(wanted[position]);
  return harvest_and_write(index, out, harvest, true, granted);
}

Result<std::optional<std::uint32_t>> ChunkClient::fetch_within(Duration most, std::uint32_t index,
                                                               std::span<std::byte> out,
                                                               const HarvestChunk& harvest,
                                                               const std::function<bool()>& stop,
                                                               std::span<const Beside> beside) {
  const TimePoint deadline = options_.now() + most;
  Duration wait = options_.first_wait;
  for (;;) {
    SAE_TRY(const auto rows, try_fetch(index, out, harvest, beside));
    if (rows) return rows;
    if (stop && stop()) {
      return fail(ErrorCode::kUnavailable, "stopped while waiting for chunk {}", index);
    }
    const TimePoint now = options_.now();
    if (now >= deadline) return std::nullopt;
    options_.sleep(std::min(wait, deadline - now));
    wait = std::min(2 * wait, options_.longest_wait);
  }
}

Result<std::uint32_t> ChunkClient::fetch(std::uint32_t index, std::span<std::byte> out,
                                         const HarvestChunk& harvest,
                                         const std::function<bool()>& stop,
                                         std::span<const Beside> beside) {
  SAE_TRY(const auto rows, fetch_within(options_.patience, index, out, harvest, stop, beside));
  if (rows) return *rows;
  log::warn("chunks.waited_in_vain stream={} index={}", stream_, index);
  return harvest_and_write(index, out, harvest, false);
}

Result<void> ChunkClient::write(std::uint32_t index, std::span<const std::byte> bytes,
                                std::uint32_t rows) {
  std::memcpy(memory_ + kSlot * slot_bytes_, bytes.data(), rows * row_bytes_);
  SAE_TRY(const ChunkReply written, ask(ChunkRequest::WRITE, index, rows));
  is_full_ = written.status() == ChunkReply::FULL;
  return {};
}

Result<std::uint32_t> ChunkClient::harvest_and_write(std::uint32_t index, std::span<std::byte> out,
                                                     const HarvestChunk& harvest, bool claimed,
                                                     std::span<const Beside> beside) {
  std::vector<std::vector<std::byte>> bytes;
  std::vector<ChunkOrder> orders;
  for (const Beside& each : beside) {
    orders.push_back({each.chunk, bytes.emplace_back(each.stream->slot_bytes_)});
  }
  auto rows = harvest(out, orders);
  const bool is_whole = rows && *rows * row_bytes_ <= std::min(slot_bytes_, out.size());
  if (is_whole) {
    SAE_TRY_VOID(write(index, out, *rows));
  } else if (claimed) {
    // Somebody else may have more luck, now rather than when the claim runs out. If the agent is
    // gone too, its death is heard elsewhere; what the harvest says comes first.
    (void)ask(ChunkRequest::RELEASE, index);
  }
  for (std::size_t i = 0; i < beside.size(); ++i) {
    ChunkClient& stream = *beside[i].stream;
    if (rows && orders[i].rows * stream.row_bytes_ <= stream.slot_bytes_) {
      SAE_TRY_VOID(stream.write(orders[i].chunk.index, bytes[i], orders[i].rows));
    } else {
      (void)stream.ask(ChunkRequest::RELEASE, orders[i].chunk.index);
    }
  }
  return rows;
}

}  // namespace saesweep::worker
