// The scheduler's memory: batches of rows that are on the disk, whole and in order, once `commit`
// returns. Knows families, keys and bytes; what they mean is the caller's.
//
// On disk one RocksDB with a column family per family of rows. The default family holds
// `saesweep.journal_version` -> the format version as a decimal number; another version is refused.
// One process writes; others may open read-only at the same time and see what was committed before
// they opened.
//
// Thread-safe, except `reopen`, which nothing else may run beside.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"

namespace saesweep::storage {

// One row of a batch. Without a value the row is deleted.
struct JournalWrite {
  std::string family;
  std::string key;
  std::optional<std::string> value;
};

struct JournalOptions {
  std::vector<std::string> families;  // created where missing; "default" is the journal's own
  std::vector<std::string> appended;  // of these: keys only rise, which makes writing cheaper
  std::uint32_t version = 1;          // of what the caller writes
  bool read_only = false;
  // Locks and syncs of shared file systems have corrupted databases like this one.
  bool allow_network_file_system = false;
};

class Journal {
 public:
  // Errors: kInvalidArgument if it was written by another version (the message names both) or lies
  // on a network file system; kUnavailable while another process writes it, which the message
  // names, or if the disk fails; kResourceExhausted if the disk is full; kCorrupted if it is
  // damaged beyond the torn end that a crash leaves; kNotFound if read_only and there is none.
  static Result<Journal> open(const std::filesystem::path& directory, JournalOptions options);
  Journal(Journal&&) noexcept;
  Journal& operator=(Journal&&) noexcept;
  ~Journal();

  // Makes all of the batch durable, or none of it. After an error nothing more is committed until
  // `reopen` succeeds; reading goes on. A batch that failed may yet prove durable after reopening
  // or a crash, so commit the same batch again before any other: twice is once.
  // Errors: kResourceExhausted if the disk is full; kUnavailable; kInvalidArgument if read-only.
  Result<void> commit(std::span<const JournalWrite> batch);

  // Closes and opens the database anew: the way back after a failed commit. If it cannot be written
  // yet, reading goes on from what is there.
  // Errors: as for open.
  Result<void> reopen();

  // Errors: kNotFound; kCorrupted; kUnavailable.
  Result<std::string> get(std::string_view family, std::string_view key) const;

  // Calls `visit` for the rows whose keys begin with `prefix`, in the order of their keys, as they
  // were when the scan began, until it returns false. `from`: skips the keys before this one.
  // Errors: kCorrupted; kUnavailable.
  using Visit = std::function<bool(std::string_view key, std::string_view value)>;
  Result<void> scan(std::string_view family, std::string_view prefix, const Visit& visit,
                    std::string_view from = {}) const;

  // Copies the journal, as of now, into a directory that does not exist yet (files are hard links
  // where possible).
  Result<void> backup(const std::filesystem::path& directory) const;

 private:
  struct State;
  explicit Journal(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// What statfs(2) calls `magic`, if it is a file system shared over a network; empty otherwise.
std::string_view network_file_system(std::uint64_t magic);

}  // namespace saesweep::storage
