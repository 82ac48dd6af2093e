#include "storage/activation_cache.h"

#include <fcntl.h>
#include <rocksdb/db.h>
#include <rocksdb/filter_policy.h>
#include <rocksdb/table.h>
#include <rocksdb/write_batch.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "core/check.h"
#include "core/files.h"
#include "core/log.h"
#include "storage/rocksdb_wall.h"

namespace saesweep::storage {
namespace {

constexpr std::size_t kMaxStreamName = 128;
constexpr std::string_view kUsePrefix = "use/";
// What RocksDB adds to a chunk: key, index entry, filter bits.
constexpr std::uint64_t kEntryOverhead = 64;

// A cache has no log: a chunk lost in a crash is harvested again.
rocksdb::WriteOptions unlogged() {
  rocksdb::WriteOptions options;
  options.disableWAL = true;
  return options;
}

// Whether files of `directory` can be opened past the page cache (tmpfs of older kernels cannot).
bool can_open_direct(const std::filesystem::path& directory) {
  const auto probe = directory / fmt::format("direct-io-probe.{}", ::getpid());
  const int file = ::open(probe.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_DIRECT, 0600);
  if (file >= 0) ::close(file);
  ::unlink(probe.c_str());
  return file >= 0;
}

rocksdb::Options database_options(const CacheOptions& options, bool direct_io) {
  rocksdb::Options out;
  out.create_if_missing = true;
  out.info_log = make_logger();
  out.max_open_files = 512;  // a soft limit of 1024 descriptors is common
  out.skip_stats_update_on_db_open = true;
  out.wal_recovery_mode = rocksdb::WALRecoveryMode::kPointInTimeRecovery;
  out.bytes_per_sync = std::uint64_t{8} << 20;
  out.use_direct_reads = direct_io;
  out.use_direct_io_for_flush_and_compaction = direct_io;
  out.writable_file_max_buffer_size = std::size_t{1} << 20;

  // Chosen with `bench cache`, puts of 1 MiB: two buffers and one flush at a time reach 0.25 of a
  // raw file, four and two 0.4, and 0.55 without the 16 MB/s to which RocksDB slows a writer when
  // only one buffer is left. At none left it waits anyway.
  out.write_buffer_size = options.write_buffer_bytes;
  out.max_write_buffer_number = 4;
  out.max_background_flushes = 2;
  out.delayed_write_rate = std::uint64_t{1} << 34;
  out.compression = rocksdb::kNoCompression;
  // Keys are written once, so merging files would only write everything again.
  out.disable_auto_compactions = true;
  out.level0_file_num_compaction_trigger = 1 << 30;
  out.level0_slowdown_writes_trigger = 1 << 30;
  out.level0_stop_writes_trigger = 1 << 30;

  rocksdb::BlockBasedTableOptions table;
  table.no_block_cache = true;  // a pass reads each chunk once; memory has better uses
  table.block_size = std::size_t{16} << 10;
  table.filter_policy.reset(rocksdb::NewBloomFilterPolicy(10));
  table.checksum = rocksdb::kXXH3;
  out.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  return out;
}

std::string encode_use(std::uint64_t use) {
  std::string bytes(8, '\0');
  for (int i = 0; i < 8; ++i) bytes[static_cast<std::size_t>(i)] = char(use >> (56 - 8 * i) & 0xff);
  return bytes;
}

std::uint64_t decode_use(const std::string& bytes) {
  std::uint64_t use = 0;
  for (const char c : bytes) use = use << 8 | static_cast<unsigned char>(c);
  return use;
}

}  // namespace

struct ActivationCache::Stream {
  std::string name;
  // Made by the first put, so that pinning needs no disk. Set once; dropped only while unpinned.
  std::atomic<rocksdb::ColumnFamilyHandle*> family{nullptr};
  std::uint64_t bytes = 0;     // under State::mutex
  std::uint64_t last_use = 0;  // under State::mutex; larger is later
  unsigned pins = 0;           // under State::mutex
};

struct ActivationCache::State {
  std::filesystem::path directory;
  CacheOptions options;
  rocksdb::ColumnFamilyOptions family_options;
  std::unique_ptr<rocksdb::DB> db;
  rocksdb::ColumnFamilyHandle* default_family = nullptr;

  mutable std::mutex mutex;
  std::map<std::string, std::unique_ptr<Stream>, std::less<>> streams;  // under mutex
  std::uint64_t total = 0;          // under mutex: sum of Stream::bytes
  std::uint64_t budget = 0;         // under mutex
  std::uint64_t uses = 0;           // under mutex: the clock of last_use
  std::uint64_t evicted_bytes = 0;  // under mutex

  std::mutex putting;         // one put at a time; taken before mutex
  rocksdb::WriteBatch batch;  // under putting; keeps its memory between puts

  std::atomic<std::uint64_t> hits{0}, misses{0}, corrupt{0}, refused_puts{0};

  ~State();
  Result<void> open();
  Result<ChunkShape> read(const Stream& stream, std::uint32_t index, std::span<std::byte>* out);
  Result<void> write(Stream& stream, std::uint32_t index, ChunkShape shape,
                     std::span<const std::byte> values);
  void remember_use(Stream& stream);    // with mutex held
  Stream* oldest_unpinned();            // with mutex held
  bool evict(Stream& stream);           // with mutex held
  bool make_room(std::uint64_t bytes);  // with putting held
  bool disk_has(std::uint64_t bytes) const;
};

ActivationCache::State::~State() {
  if (!db) return;
  for (auto& [name, stream] : streams) {
    if (auto* family = stream->family.load()) db->DestroyColumnFamilyHandle(family);
  }
  if (default_family) db->DestroyColumnFamilyHandle(default_family);
  // Flushes what was put. If that fails, it is lost: the next run harvests it again.
  if (const auto status = db->Close(); !status.ok()) {
    log::warn("cache.close directory={} problem=\"{}\"", directory.string(), status.ToString());
  }
}

Result<void> ActivationCache::State::open() {
  SAE_TRY_VOID(make_directories(directory));
  const rocksdb::Options all =
      database_options(options, options.direct_io && can_open_direct(directory));
  family_options = rocksdb::ColumnFamilyOptions(all);

  std::vector<std::string> names;
  auto status = rocksdb::DB::ListColumnFamilies(all, directory.string(), &names);
  if (status.IsCorruption()) return fail(open_error(status, directory, "activation cache"));
  if (names.empty()) names = {rocksdb::kDefaultColumnFamilyName};  // none yet
  std::vector<rocksdb::ColumnFamilyDescriptor> families;
  families.reserve(names.size());
  for (const auto& name : names) families.emplace_back(name, family_options);
  std::vector<rocksdb::ColumnFamilyHandle*> handles;
  rocksdb::DB* opened = nullptr;
  status = rocksdb::DB::Open(all, directory.string(), families, &handles, &opened);
  if (!status.ok()) return fail(open_error(status, directory, "activation cache"));
  db.reset(opened);

  for (rocksdb::ColumnFamilyHandle* handle : handles) {
    if (handle->GetName() == rocksdb::kDefaultColumnFamilyName) default_family = handle;
  }
  for (rocksdb::ColumnFamilyHandle* handle : handles) {
    if (handle == default_family) continue;
    auto stream = std::make_unique<Stream>();
    stream->name = handle->GetName();
    stream->family = handle;
    db->GetIntProperty(handle, rocksdb::DB::Properties::kTotalSstFilesSize, &stream->bytes);
    std::string use;
    if (db->Get({}, default_family, std::string(kUsePrefix) + stream->name, &use).ok()) {
      stream->last_use = decode_use(use);
    }
    uses = std::max(uses, stream->last_use);
    total += stream->bytes;
    streams.emplace(stream->name, std::move(stream));
  }
  return {};
}

// Verifies the chunk and, if `out` is given, copies it there.
Result<ChunkShape> ActivationCache::State::read(const Stream& stream, std::uint32_t index,
                                                std::span<std::byte>* out) {
  auto* const family = stream.family.load(std::memory_order_acquire);
  if (family == nullptr) return fail(ErrorCode::kNotFound, "no stream {}", stream.name);
  rocksdb::ReadOptions reading;
  reading.fill_cache = false;
  // The value's own checksum is verified below; RocksDB's over the same bytes would be a second
  // pass.
  reading.verify_checksums = false;
  rocksdb::PinnableSlice value;
  const auto status = db->Get(reading, family, slice_of(encode_chunk_key(index)), &value);
  if (!status.ok()) {
    return fail(to_error(status, fmt::format("chunk {} of {}", index, stream.name)));
  }
  SAE_TRY(const DecodedChunk chunk, decode_chunk(index, bytes_of(value)));
  if (out != nullptr) {
    if (out->size() < chunk.values.size()) {
      return fail(ErrorCode::kInvalidArgument, "chunk {} of {}: {} bytes for {}", index,
                  stream.name, out->size(), chunk.values.size());
    }
    if (!chunk.values.empty()) {
      std::memcpy(out->data(), chunk.values.data(), chunk.values.size());
    }
  }
  return chunk.shape;
}

// After a full disk RocksDB takes writes again by itself, some seconds after there is room.
Result<void> ActivationCache::State::write(Stream& stream, std::uint32_t index, ChunkShape shape,
                                           std::span<const std::byte> values) {
  const auto what = [&] { return fmt::format("put chunk {} of {}", index, stream.name); };
  if (stream.family.load() == nullptr) {
    rocksdb::ColumnFamilyHandle* family = nullptr;
    const auto status = db->CreateColumnFamily(family_options, stream.name, &family);
    if (!status.ok()) return fail(to_error(status, what()));
    stream.family.store(family, std::memory_order_release);
  }
  const auto key = encode_chunk_key(index);
  const auto header = encode_chunk_header(index, shape, values);
  const rocksdb::Slice key_slice = slice_of(key);
  const rocksdb::Slice value_slices[] = {slice_of(header), slice_of(values)};
  batch.Clear();
  auto status = batch.Put(stream.family.load(), rocksdb::SliceParts(&key_slice, 1),
                          rocksdb::SliceParts(value_slices, 2));
  if (status.ok()) status = db->Write(unlogged(), &batch);
  if (!status.ok()) return fail(to_error(status, what()));
  return {};
}

void ActivationCache::State::remember_use(Stream& stream) {
  stream.last_use = ++uses;
  // Only orders eviction: if it cannot be written, a restart forgets it.
  const auto status = db->Put(unlogged(), default_family, std::string(kUsePrefix) + stream.name,
                              encode_use(stream.last_use));
  if (!status.ok()) log::debug("cache.use problem=\"{}\"", status.ToString());
}

ActivationCache::Stream* ActivationCache::State::oldest_unpinned() {
  Stream* oldest = nullptr;
  for (auto& [name, stream] : streams) {
    if (stream->pins > 0 || stream->family.load() == nullptr) continue;
    if (oldest == nullptr || stream->last_use < oldest->last_use) oldest = stream.get();
  }
  return oldest;
}

bool ActivationCache::State::evict(Stream& stream) {
  SAE_CHECK(stream.pins == 0, "{} pins on {}", stream.pins, stream.name);
  auto* const family = stream.family.load();
  if (const auto status = db->DropColumnFamily(family); !status.ok()) {
    log::warn("cache.evict stream={} problem=\"{}\"", stream.name, status.ToString());
    return false;
  }
  db->DestroyColumnFamilyHandle(family);  // and with it the files
  db->Delete(unlogged(), default_family, std::string(kUsePrefix) + stream.name)
      .PermitUncheckedError();
  log::info("cache.evict stream={} bytes={}", stream.name, stream.bytes);
  total -= stream.bytes;
  evicted_bytes += stream.bytes;
  streams.erase(streams.find(stream.name));
  return true;
}

bool ActivationCache::State::disk_has(std::uint64_t bytes) const {
  struct ::statvfs disk {};
  if (::statvfs(directory.c_str(), &disk) != 0) return true;  // let the write itself find out
  return std::uint64_t{disk.f_bavail} * disk.f_frsize >= bytes;
}

bool ActivationCache::State::make_room(std::uint64_t bytes) {
  const std::lock_guard lock(mutex);
  std::uint64_t kept = 0;  // what no eviction can free
  for (const auto& [name, stream] : streams) kept += stream->pins > 0 ? stream->bytes : 0;
  if (bytes > budget || kept > budget - bytes) return false;
  while (total > budget - bytes) {
    Stream* const oldest = oldest_unpinned();
    if (oldest == nullptr || !evict(*oldest)) return false;
  }
  while (!disk_has(options.min_free_bytes + bytes)) {
    Stream* const oldest = oldest_unpinned();
    if (oldest == nullptr || !evict(*oldest)) return false;
  }
  return true;
}

ActivationCache::ActivationCache(std::unique_ptr<State> state) : state_(std::move(state)) {}
ActivationCache::ActivationCache(ActivationCache&&) noexcept = default;
ActivationCache& ActivationCache::operator=(ActivationCache&&) noexcept = default;
ActivationCache::~ActivationCache() = default;

Result<ActivationCache> ActivationCache::open(const std::filesystem::path& directory,
                                              std::uint64_t budget_bytes, CacheOptions options) {
  const auto attempt = [&]() -> Result<std::unique_ptr<State>> {
    auto state = std::make_unique<State>();
    state->directory = directory;
    state->options = options;
    state->budget = budget_bytes;
    SAE_TRY_VOID(state->open());
    return state;
  };
  auto state = attempt();
  if (!state && state.error().code == ErrorCode::kCorrupted) {
    log::warn("cache.emptied directory={} problem=\"{}\"", directory.string(),
              state.error().message);
    if (const auto status = rocksdb::DestroyDB(directory.string(), {}); !status.ok()) {
      return fail(open_error(status, directory, "activation cache"));
    }
    state = attempt();
  }
  if (!state) return fail(std::move(state.error()));
  ActivationCache cache(std::move(*state));
  cache.set_budget(budget_bytes);
  return cache;
}

Result<ActivationCache::Pin> ActivationCache::pin(std::string_view stream) {
  if (stream.empty() || stream.size() > kMaxStreamName ||
      stream == rocksdb::kDefaultColumnFamilyName) {
    return fail(ErrorCode::kInvalidArgument, "'{}' is no name for a stream", stream);
  }
  const std::lock_guard lock(state_->mutex);
  auto found = state_->streams.find(stream);
  if (found == state_->streams.end()) {
    auto fresh = std::make_unique<Stream>();
    fresh->name = stream;
    found = state_->streams.emplace(fresh->name, std::move(fresh)).first;
  }
  Stream& pinned = *found->second;
  ++pinned.pins;
  if (pinned.family.load() != nullptr) state_->remember_use(pinned);
  return Pin(state_.get(), &pinned);
}

Result<ChunkShape> ActivationCache::get(const Pin& pin, std::uint32_t index,
                                        std::span<std::byte> out) {
  SAE_CHECK(pin.state_ == state_.get(), "a pin of another cache, or moved from");
  auto shape = state_->read(*pin.stream_, index, &out);
  if (shape) {
    ++state_->hits;
  } else if (shape.error().code == ErrorCode::kNotFound) {
    ++state_->misses;
  } else if (shape.error().code == ErrorCode::kCorrupted) {
    ++state_->corrupt;
    log::warn("cache.corrupt stream={} problem=\"{}\"", pin.stream(), shape.error().message);
  }
  return shape;
}

bool ActivationCache::has(const Pin& pin, std::uint32_t index) const {
  SAE_CHECK(pin.state_ == state_.get(), "a pin of another cache, or moved from");
  return state_->read(*pin.stream_, index, nullptr).has_value();
}

Result<void> ActivationCache::put(const Pin& pin, std::uint32_t index, ChunkShape shape,
                                  std::span<const std::byte> values) {
  SAE_CHECK(pin.state_ == state_.get(), "a pin of another cache, or moved from");
  SAE_CHECK(values.size() == shape.bytes(), "{} bytes for {} rows of {}", values.size(), shape.rows,
            shape.d_in);
  const std::lock_guard lock(state_->putting);
  // For an absent key the filter in memory answers.
  if (const auto there = state_->read(*pin.stream_, index, nullptr); there && *there == shape) {
    return {};
  }
  const std::uint64_t bytes = values.size() + kChunkHeaderBytes + kEntryOverhead;
  if (!state_->make_room(bytes)) {
    ++state_->refused_puts;
    return fail(ErrorCode::kResourceExhausted, "no room for chunk {} of {} ({} bytes) in {}", index,
                pin.stream(), bytes, state_->directory.string());
  }
  if (auto written = state_->write(*pin.stream_, index, shape, values); !written) {
    ++state_->refused_puts;
    return written;
  }
  const std::lock_guard counting(state_->mutex);
  if (pin.stream_->bytes == 0) state_->remember_use(*pin.stream_);
  pin.stream_->bytes += bytes;
  state_->total += bytes;
  return {};
}

void ActivationCache::set_budget(std::uint64_t budget_bytes) {
  const std::lock_guard putting(state_->putting);
  const std::lock_guard lock(state_->mutex);
  state_->budget = budget_bytes;
  while (state_->total > budget_bytes) {
    Stream* const oldest = state_->oldest_unpinned();
    if (oldest == nullptr || !state_->evict(*oldest)) return;
  }
}

Result<void> ActivationCache::flush() {
  const std::lock_guard putting(state_->putting);
  std::vector<rocksdb::ColumnFamilyHandle*> families = {state_->default_family};
  {
    const std::lock_guard lock(state_->mutex);
    for (auto& [name, stream] : state_->streams) {
      if (auto* family = stream->family.load()) families.push_back(family);
    }
  }
  const auto status = state_->db->Flush({}, families);
  if (!status.ok()) return fail(to_error(status, "flush the activation cache"));
  return {};
}

CacheStats ActivationCache::stats() const {
  CacheStats stats;
  stats.hits = state_->hits;
  stats.misses = state_->misses;
  stats.corrupt = state_->corrupt;
  stats.refused_puts = state_->refused_puts;
  const std::lock_guard lock(state_->mutex);
  stats.bytes = state_->total;
  stats.evicted_bytes = state_->evicted_bytes;
  for (const auto& [name, stream] : state_->streams) {
    stats.streams += stream->family.load() != nullptr ? 1 : 0;
  }
  return stats;
}

std::vector<std::pair<std::string, std::uint64_t>> ActivationCache::largest_streams(
    std::size_t most) const {
  std::vector<std::pair<std::string, std::uint64_t>> held;
  {
    const std::lock_guard lock(state_->mutex);
    for (const auto& [name, stream] : state_->streams)
      if (stream->bytes > 0) held.emplace_back(stream->name, stream->bytes);
  }
  std::ranges::sort(held, [](const auto& a, const auto& b) {
    return std::pair(b.second, a.first) < std::pair(a.second, b.first);
  });
  held.resize(std::min(held.size(), most));
  return held;
}

ActivationCache::Pin::Pin(Pin&& other) noexcept
    : state_(std::exchange(other.state_, nullptr)), stream_(other.stream_) {}

ActivationCache::Pin& ActivationCache::Pin::operator=(Pin&& other) noexcept {
  if (this != &other) {
    release();
    state_ = std::exchange(other.state_, nullptr);
    stream_ = other.stream_;
  }
  return *this;
}

ActivationCache::Pin::~Pin() { release(); }

const std::string& ActivationCache::Pin::stream() const { return stream_->name; }

void ActivationCache::Pin::release() {
  if (state_ == nullptr) return;
  const std::lock_guard lock(state_->mutex);
  SAE_CHECK(stream_->pins > 0, "{} is not pinned", stream_->name);
  --stream_->pins;
  if (stream_->family.load() != nullptr) {
    state_->remember_use(*stream_);
  } else if (stream_->pins == 0) {
    state_->streams.erase(state_->streams.find(stream_->name));  // nothing was ever stored
  }
  state_ = nullptr;
}

}  // namespace saesweep::storage
