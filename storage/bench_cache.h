// What the activation cache costs against a plain file on the same disk, in the same run.
#pragma once

#include <cstdint>
#include <filesystem>

#include "core/json.h"
#include "core/result.h"
#include "storage/activation_cache.h"

namespace saesweep::storage {

struct CacheBench {
  std::filesystem::path directory;  // scratch; what is written there is removed again
  std::uint64_t bytes = std::uint64_t{512} << 20;
  std::uint32_t chunk_bytes = std::uint32_t{1} << 20;
  unsigned rounds = 5;
  CacheOptions options = {};
};

// Each round writes and reads `bytes` in chunks, through the cache and to a raw file opened with
// O_DIRECT, taking turns in who goes first. Writing ends when the bytes are on the disk; reading is
// cold (direct, or after the page cache was dropped) and goes through the chunks in a shuffled
// order, as a training pass does. The cache also verifies every chunk and copies it to the caller.
//
//   {"write_ratio", "read_ratio": median over rounds of cache / raw,
//    "write_MBps", "read_MBps": medians of the cache,
//    "baseline": {"name", "write_MBps", "read_MBps"}, "ratio": read_ratio,
//    "bytes", "chunk_bytes", "rounds", "rocksdb"}
//
// Errors: kInvalidArgument; kResourceExhausted if the disk is full; kUnavailable.
Result<Json> bench_cache(const CacheBench& bench);

}  // namespace saesweep::storage
