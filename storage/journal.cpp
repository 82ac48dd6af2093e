#include "storage/journal.h"

#include <rocksdb/db.h>
#include <rocksdb/slice_transform.h>
#include <rocksdb/table.h>
#include <rocksdb/utilities/checkpoint.h>
#include <rocksdb/write_batch.h>
#include <sys/vfs.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <map>
#include <utility>

#include "core/check.h"
#include "core/files.h"
#include "core/log.h"
#include "storage/rocksdb_wall.h"

namespace saesweep::storage {
namespace {

constexpr std::string_view kVersionKey = "saesweep.journal_version";
constexpr std::string_view kWhat = "journal";
// A reader beside a writer may find a file gone between reading the list of files and opening it.
constexpr int kReadOnlyAttempts = 5;

rocksdb::Options database_options() {
  rocksdb::Options out;
  out.create_if_missing = true;
  out.create_missing_column_families = true;
  out.info_log = make_logger();
  out.max_background_jobs = 2;
  // A torn end is a commit that was never acknowledged. The default mode would also drop what
  // follows damage in the middle, acknowledged or not.
  out.wal_recovery_mode = rocksdb::WALRecoveryMode::kTolerateCorruptedTailRecords;
  out.manual_wal_flush = false;  // together with synced writes it is reported unsafe
  out.recycle_log_file_num = 0;  // recycled logs cannot tell a torn end from old records
  out.track_and_verify_wals_in_manifest = false;  // false alarms in RocksDB 7.8
  out.force_consistency_checks = true;
  out.paranoid_checks = true;
  out.atomic_flush = true;
  // Room for bursts: what is rewritten soon is not flushed first. Opening reads the log again.
  out.write_buffer_size = std::size_t{64} << 20;
  out.max_total_wal_size = std::uint64_t{192} << 20;
  out.compression = rocksdb::kLZ4Compression;
  out.bottommost_compression = rocksdb::kZSTD;
  rocksdb::BlockBasedTableOptions table;
  table.checksum = rocksdb::kXXH3;
  out.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  return out;
}

Result<void> refuse_network_file_system(const std::filesystem::path& directory) {
  struct ::statfs info {};
  if (::statfs(directory.c_str(), &info) != 0) {
    return fail(system_error(errno, fmt::format("examine {}", directory.string())));
  }
  const auto name = network_file_system(static_cast<std::uint64_t>(info.f_type));
  if (!name.empty()) {
    return fail(ErrorCode::kInvalidArgument,
                "the journal {} lies on {}, whose locks cannot be relied on: choose a local disk, "
                "or allow it explicitly",
                directory.string(), name);
  }
  return {};
}

}  // namespace

std::string_view network_file_system(std::uint64_t magic) {
  // Source: linux/magic.h and statfs(2); GPFS, Lustre and BeeGFS from their own headers.
  struct Known {
    std::uint32_t magic;
    std::string_view name;
  };
  static constexpr std::array kKnown = {
      Known{0x6969, "NFS"},        Known{0x0BD00BD0, "Lustre"}, Known{0x47504653, "GPFS"},
      Known{0x19830326, "BeeGFS"}, Known{0x65735546, "FUSE"},   Known{0xFF534D42, "CIFS"},
      Known{0xFE534D42, "SMB"},    Known{0x517B, "SMB"},        Known{0x00C36400, "Ceph"},
      Known{0x5346414F, "AFS"},    Known{0x01021997, "9P"},
  };
  // f_type is signed and 32 bits wide on some machines.
  for (const Known& known : kKnown) {
    if (known.magic == static_cast<std::uint32_t>(magic)) return known.name;
  }
  return {};
}

struct Journal::State {
  std::filesystem::path directory;
  JournalOptions options;
  std::unique_ptr<rocksdb::DB> db;
  std::map<std::string, rocksdb::ColumnFamilyHandle*, std::less<>> families;
  bool writable = false;            // what the database is open for now
  std::atomic<bool> failed{false};  // a commit failed since it was opened

  ~State() { close(); }
  void close();
  Result<void> open_for(bool writing);
  Result<void> check_version(bool writing);
  // nullptr for a family that this read-only journal does not have.
  rocksdb::ColumnFamilyHandle* family(std::string_view name) const;
};

void Journal::State::close() {
  if (!db) return;
  for (const auto& [name, family] : families) db->DestroyColumnFamilyHandle(family);
  families.clear();
  if (const auto status = db->Close(); !status.ok()) {
    // Nothing is lost: every commit is in the write-ahead log.
    log::warn("journal.close directory={} problem=\"{}\"", directory.string(), status.ToString());
  }
  db.reset();
}

Result<void> Journal::State::open_for(bool writing) {
  const rocksdb::Options all = database_options();
  std::vector<std::string> names;
  auto status = rocksdb::DB::ListColumnFamilies(all, directory.string(), &names);
  const bool exists = std::filesystem::exists(directory / "CURRENT");
  if (!status.ok() && exists) return fail(open_error(status, directory, kWhat));
  if (!exists && !writing) {
    return fail(ErrorCode::kNotFound, "there is no journal in {}", directory.string());
  }
  // Families of a later program must be opened too, and those not there yet are created.
  if (names.empty()) names = {rocksdb::kDefaultColumnFamilyName};
  if (writing) {
    for (const auto& name : options.families) {
      if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
    }
  }
  std::vector<rocksdb::ColumnFamilyDescriptor> descriptors;
  descriptors.reserve(names.size());
  for (const auto& name : names) {
    rocksdb::ColumnFamilyOptions family(all);
    // The next key goes where the last one went.
    if (std::ranges::count(options.appended, name) > 0)
      family.memtable_insert_with_hint_prefix_extractor.reset(rocksdb::NewCappedPrefixTransform(1));
    descriptors.emplace_back(name, family);
  }
  std::vector<rocksdb::ColumnFamilyHandle*> handles;
  rocksdb::DB* opened = nullptr;
  status = writing ? rocksdb::DB::Open(all, directory.string(), descriptors, &handles, &opened)
                   : rocksdb::DB::OpenForReadOnly(all, directory.string(), descriptors, &handles,
                                                  &opened);
  if (!status.ok()) return fail(open_error(status, directory, kWhat));
  db.reset(opened);
  for (std::size_t i = 0; i < names.size(); ++i) families.emplace(names[i], handles[i]);
  writable = writing;
  failed = false;
  if (auto checked = check_version(writing); !checked) {
    close();
    return checked;
  }
  return {};
}

Result<void> Journal::State::check_version(bool writing) {
  const std::string ours = std::to_string(options.version);
  std::string theirs;
  auto status = db->Get({}, families.at(rocksdb::kDefaultColumnFamilyName),
                        rocksdb::Slice(kVersionKey.data(), kVersionKey.size()), &theirs);
  if (status.IsNotFound() && writing) {
    rocksdb::WriteOptions synced;
    synced.sync = true;
    status = db->Put(synced, families.at(rocksdb::kDefaultColumnFamilyName),
                     rocksdb::Slice(kVersionKey.data(), kVersionKey.size()), ours);
    theirs = ours;
  }
  if (status.IsNotFound())
    theirs = "none";  // a writer is just creating it
  else if (!status.ok())
    return fail(open_error(status, directory, kWhat));
  if (theirs != ours) {
    return fail(ErrorCode::kInvalidArgument,
                "the journal {} has format version {}, this program reads version {}",
                directory.string(), theirs, ours);
  }
  return {};
}

rocksdb::ColumnFamilyHandle* Journal::State::family(std::string_view name) const {
  const auto found = families.find(name);
  if (found != families.end()) return found->second;
  SAE_CHECK(!writable, "no family '{}' was named at opening", name);
  return nullptr;
}

Journal::Journal(std::unique_ptr<State> state) : state_(std::move(state)) {}
Journal::Journal(Journal&&) noexcept = default;
Journal& Journal::operator=(Journal&&) noexcept = default;
Journal::~Journal() = default;

Result<Journal> Journal::open(const std::filesystem::path& directory, JournalOptions options) {
  auto state = std::make_unique<State>();
  state->directory = directory;
  state->options = std::move(options);
  const bool writing = !state->options.read_only;
  if (writing) {
    SAE_TRY_VOID(make_directories(directory));
    // A reader does no harm wherever it reads.
    if (!state->options.allow_network_file_system) {
      SAE_TRY_VOID(refuse_network_file_system(directory));
    }
  }
  Result<void> opened = state->open_for(writing);
  for (int attempt = 1; !writing && !opened && attempt < kReadOnlyAttempts; ++attempt) {
    if (opened.error().code == ErrorCode::kInvalidArgument) break;
    if (!std::filesystem::exists(directory / "CURRENT")) break;
    opened = state->open_for(writing);
  }
  if (!opened) return fail(std::move(opened.error()));
  return Journal(std::move(state));
}

Result<void> Journal::commit(std::span<const JournalWrite> batch) {
  if (state_->options.read_only) {
    return fail(ErrorCode::kInvalidArgument, "the journal {} is open read-only",
                state_->directory.string());
  }
  if (state_->failed || !state_->writable) {
    return fail(ErrorCode::kUnavailable,
                "the journal {} takes no commits since one failed; it must be reopened",
                state_->directory.string());
  }
  rocksdb::WriteBatch writes;
  for (const JournalWrite& write : batch) {
    auto* const family = state_->family(write.family);
    // Only running out of memory could fail here.
    const auto status = write.value ? writes.Put(family, write.key, *write.value)
                                    : writes.Delete(family, write.key);
    if (!status.ok()) return fail(to_error(status, "collect a commit"));
  }
  rocksdb::WriteOptions synced;
  synced.sync = true;
  if (const auto status = state_->db->Write(synced, &writes); !status.ok()) {
    state_->failed = true;
    return fail(
        to_error(status, fmt::format("commit to the journal {}", state_->directory.string())));
  }
  return {};
}

Result<void> Journal::reopen() {
  state_->close();
  auto opened = state_->open_for(!state_->options.read_only);
  if (!opened && !state_->options.read_only) {
    if (auto readable = state_->open_for(false); !readable) {
      log::error("journal.unreadable problem=\"{}\"", readable.error().message);
    }
  }
  return opened;
}

Result<std::string> Journal::get(std::string_view family, std::string_view key) const {
  if (!state_->db) return fail(ErrorCode::kUnavailable, "the journal is closed");
  auto* const handle = state_->family(family);
  std::string value;
  const auto status =
      handle == nullptr
          ? rocksdb::Status::NotFound("no such family")
          : state_->db->Get({}, handle, rocksdb::Slice(key.data(), key.size()), &value);
  if (!status.ok()) return fail(to_error(status, fmt::format("row '{}' of {}", key, family)));
  return value;
}

Result<void> Journal::scan(std::string_view family, std::string_view prefix, const Visit& visit,
                           std::string_view from) const {
  if (!state_->db) return fail(ErrorCode::kUnavailable, "the journal is closed");
  auto* const handle = state_->family(family);
  if (handle == nullptr) return {};
  const std::string_view first = std::max(from, prefix);
  const std::unique_ptr<rocksdb::Iterator> row(state_->db->NewIterator({}, handle));
  for (row->Seek(rocksdb::Slice(first.data(), first.size())); row->Valid(); row->Next()) {
    if (!row->key().starts_with(rocksdb::Slice(prefix.data(), prefix.size()))) break;
    if (!visit({row->key().data(), row->key().size()},
               {row->value().data(), row->value().size()})) {
      return {};
    }
  }
  if (!row->status().ok()) return fail(to_error(row->status(), fmt::format("scan {}", family)));
  return {};
}

Result<void> Journal::backup(const std::filesystem::path& directory) const {
  rocksdb::Checkpoint* made = nullptr;
  if (!state_->db) return fail(ErrorCode::kUnavailable, "the journal is closed");
  auto status = rocksdb::Checkpoint::Create(state_->db.get(), &made);
  const std::unique_ptr<rocksdb::Checkpoint> checkpoint(made);
  if (status.ok()) status = checkpoint->CreateCheckpoint(directory.string());
  if (!status.ok()) {
    return fail(to_error(status, fmt::format("back the journal up to {}", directory.string())));
  }
  return {};
}

}  // namespace saesweep::storage
