// The wall around RocksDB: its statuses as our errors, its slices as our spans. Only for .cpp files
// of this room.
#pragma once

#include <rocksdb/env.h>
#include <rocksdb/slice.h>
#include <rocksdb/status.h>

#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>
#include <string_view>

#include "core/result.h"

namespace saesweep::storage {

// `what` names the act and the place. A full disk or quota is kResourceExhausted, a lock held by
// another is kUnavailable, damaged data kCorrupted; any other trouble with a disk kUnavailable.
Error to_error(const rocksdb::Status& status, std::string_view what);

// True if opening failed because the database is open elsewhere.
bool is_lock_held(const rocksdb::Status& status);

// The error of opening `directory`: names the process that holds the lock, where it can be known.
Error open_error(const rocksdb::Status& status, const std::filesystem::path& directory,
                 std::string_view what);

// RocksDB's own log lines, errors as warnings of ours. Not its LOG file: where the library
// is built with assertions (Debian 12), a line that does not fit a full disk aborts the process.
std::shared_ptr<rocksdb::Logger> make_logger();

inline rocksdb::Slice slice_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}
inline std::span<const std::byte> bytes_of(const rocksdb::Slice& slice) {
  return {reinterpret_cast<const std::byte*>(slice.data()), slice.size()};
}

}  // namespace saesweep::storage
