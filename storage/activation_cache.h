// Activation chunks on local disk: what the subject model computed at one hook point, kept so that
// every trial of a cohort trains on the same rows without running the model again.
//
// A chunk never changes: putting a whole chunk again keeps the first. A put may be lost in a crash,
// never torn: a chunk that reads back is the one that was put, or it is kCorrupted and the next put
// replaces it. A lost chunk is harvested again, so nothing here is worth refusing to start for.
//
// On disk one RocksDB, without a write-ahead log: a column family per stream, named by the stream,
// with an entry per chunk (bytes: chunk_codec.h); the default family holds `use/<stream>` -> u64
// big-endian, which only orders eviction. Going over the budget drops the whole family of the least
// recently used stream that nobody has pinned; a stream larger than the budget keeps what fits.
//
// Thread-safe. Deals in bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/result.h"
#include "storage/chunk_codec.h"

namespace saesweep::storage {

struct CacheOptions {
  // The file system keeps this much free; near it, puts are refused as if the disk were full, so
  // that a cache never takes the space a journal or a checkpoint needs.
  std::uint64_t min_free_bytes = std::uint64_t{256} << 20;
  // Chunks are collected to files of this size. Up to four are in memory while writing.
  std::uint64_t write_buffer_bytes = std::uint64_t{32} << 20;
  bool direct_io = true;  // where the file system can
};

struct CacheStats {
  std::uint64_t hits = 0, misses = 0, corrupt = 0;
  std::uint64_t bytes = 0;          // held now, of all streams
  std::uint64_t streams = 0;        // that have chunks
  std::uint64_t evicted_bytes = 0;  // since open
  std::uint64_t refused_puts = 0;   // budget or disk full
};

class ActivationCache {
 public:
  static constexpr std::uint64_t kUnlimited = ~std::uint64_t{0};

  // Creates the cache if the directory holds none; one process at a time. What is there beyond the
  // budget is evicted at once. A cache damaged beyond opening is emptied, with a warning.
  // Errors: kUnavailable while another process holds it or if the disk cannot be written;
  // kResourceExhausted if the disk is full.
  static Result<ActivationCache> open(const std::filesystem::path& directory,
                                      std::uint64_t budget_bytes = kUnlimited,
                                      CacheOptions options = {});
  ActivationCache(ActivationCache&&) noexcept;
  ActivationCache& operator=(ActivationCache&&) noexcept;
  ~ActivationCache();

  // A stream in use: it is not evicted while a pin of it lives. The cache outlives its pins.
  class Pin;
  // `stream` is a digest or another short name. Pinning an unknown stream writes nothing.
  // Errors: kInvalidArgument for an empty or overlong name.
  Result<Pin> pin(std::string_view stream);

  // Copies chunk `index` into the front of `out`.
  // Errors: kNotFound; kCorrupted, after which a put replaces the chunk; kInvalidArgument if `out`
  // is too small; kUnavailable if the disk fails.
  Result<ChunkShape> get(const Pin& pin, std::uint32_t index, std::span<std::byte> out);

  // Whether get() would find it whole.
  bool has(const Pin& pin, std::uint32_t index) const;

  // values.size() must be shape.bytes(). Never waits for a full disk.
  // Errors: kResourceExhausted if budget or disk are full: go on without; kUnavailable.
  Result<void> put(const Pin& pin, std::uint32_t index, ChunkShape shape,
                   std::span<const std::byte> values);

  // Takes effect at once: unpinned streams beyond it are dropped.
  void set_budget(std::uint64_t budget_bytes);
  // Makes what was put durable. Closing does it too.
  Result<void> flush();
  CacheStats stats() const;
  // Streams that have chunks, with the bytes held of each; the largest `most` of them first.
  std::vector<std::pair<std::string, std::uint64_t>> largest_streams(std::size_t most) const;

 private:
  struct Stream;
  struct State;  // keeps RocksDB out of every file that includes this one
  explicit ActivationCache(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

class ActivationCache::Pin {
 public:
  Pin(Pin&&) noexcept;
  Pin& operator=(Pin&&) noexcept;
  ~Pin();
  const std::string& stream() const;

 private:
  friend class ActivationCache;
  Pin(State* state, Stream* stream) : state_(state), stream_(stream) {}
  void release();
  State* state_;  // nullptr once moved from
  Stream* stream_;
};

}  // namespace saesweep::storage
