#include "storage/bench_cache.h"

#include <fcntl.h>
#include <rocksdb/version.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <memory>
#include <vector>

#include "core/files.h"
#include "core/philox.h"

namespace saesweep::storage {
namespace {

constexpr std::size_t kAlignment = 4096;  // of memory, offsets and sizes under O_DIRECT

struct FreeBuffer {
  void operator()(std::byte* buffer) const { std::free(buffer); }
};
using AlignedBuffer = std::unique_ptr<std::byte[], FreeBuffer>;

AlignedBuffer aligned_buffer(std::size_t bytes) {
  return AlignedBuffer(static_cast<std::byte*>(std::aligned_alloc(kAlignment, bytes)));
}

// The raw file: direct where the file system can, else buffered and synced.
class RawFile {
 public:
  explicit RawFile(std::filesystem::path path) : path_(std::move(path)) {}
  ~RawFile() {
    if (file_ >= 0) ::close(file_);
    ::unlink(path_.c_str());
  }
  RawFile(const RawFile&) = delete;
  RawFile& operator=(const RawFile&) = delete;

  Result<void> create() {
    ::unlink(path_.c_str());
    const int flags = O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC;
    file_ = ::open(path_.c_str(), flags | O_DIRECT, 0600);
    direct_ = file_ >= 0;
    if (!direct_) file_ = ::open(path_.c_str(), flags, 0600);
    if (file_ < 0) return error("create");
    return {};
  }
  Result<void> write(std::uint64_t offset, const std::byte* from, std::size_t bytes) {
    if (::pwrite(file_, from, bytes, static_cast<off_t>(offset)) != static_cast<ssize_t>(bytes)) {
      return error("write");
    }
    return {};
  }
  Result<void> read(std::uint64_t offset, std::byte* to, std::size_t bytes) {
    if (::pread(file_, to, bytes, static_cast<off_t>(offset)) != static_cast<ssize_t>(bytes)) {
      return error("read");
    }
    return {};
  }
  Result<void> sync() {
    if (::fdatasync(file_) != 0) return error("sync");
    return {};
  }
  void forget_pages() { ::posix_fadvise(file_, 0, 0, POSIX_FADV_DONTNEED); }
  bool direct() const { return direct_; }

 private:
  tl::unexpected<Error> error(std::string_view act) const {
    return fail(system_error(errno, fmt::format("{} {}", act, path_.string())));
  }

  std::filesystem::path path_;
  int file_ = -1;
  bool direct_ = false;
};

// MB/s of what `work` does with `bytes`.
Result<double> rate(std::uint64_t bytes, const std::function<Result<void>()>& work) {
  const auto begin = std::chrono::steady_clock::now();
  SAE_TRY_VOID(work());
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
  return static_cast<double>(bytes) / 1e6 / took.count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

struct Rates {
  std::vector<double> write, read;
};

class Bench {
 public:
  Bench(const CacheBench& bench, std::uint32_t chunks)
      : bench_(bench),
        chunks_(chunks),
        shape_{chunks == 0 ? 0 : bench.chunk_bytes / 1024, 512, DType::kBFloat16},
        buffer_(aligned_buffer(bench.chunk_bytes)) {
    Rng rng(0, "bench.cache");
    for (std::size_t i = 0; i < bench.chunk_bytes; ++i) {
      buffer_[i] = static_cast<std::byte>(rng.next_u32());
    }
  }

  Result<void> raw_round(unsigned round, Rates& rates, bool& direct) {
    RawFile file(bench_.directory / "raw");
    SAE_TRY_VOID(file.create());
    direct = file.direct();
    const auto write = rate(bytes(), [&]() -> Result<void> {
      for (std::uint32_t i = 0; i < chunks_; ++i) {
        SAE_TRY_VOID(file.write(offset(i), stamped(i), bench_.chunk_bytes));
      }
      return file.sync();
    });
    if (!write) return fail(write.error());
    file.forget_pages();
    const Permutation order(chunks_, round, "bench.cache.order");
    const auto read = rate(bytes(), [&]() -> Result<void> {
      for (std::uint32_t i = 0; i < chunks_; ++i) {
        SAE_TRY_VOID(file.read(offset(order(i)), buffer_.get(), bench_.chunk_bytes));
      }
      return {};
    });
    if (!read) return fail(read.error());
    rates.write.push_back(*write);
    rates.read.push_back(*read);
    return {};
  }

  Result<void> cache_round(unsigned round, Rates& rates) {
    const auto directory = bench_.directory / "cache";
    std::error_code ignored;
    std::filesystem::remove_all(directory, ignored);
    {
      SAE_TRY(ActivationCache cache,
              ActivationCache::open(directory, ActivationCache::kUnlimited, bench_.options));
      SAE_TRY(const auto pin, cache.pin("bench"));
      const auto write = rate(bytes(), [&]() -> Result<void> {
        for (std::uint32_t i = 0; i < chunks_; ++i) {
          SAE_TRY_VOID(cache.put(pin, i, shape_, {stamped(i), bench_.chunk_bytes}));
        }
        return cache.flush();
      });
      if (!write) return fail(write.error());
      rates.write.push_back(*write);
    }
    forget_pages(directory);
    {
      SAE_TRY(ActivationCache cache,
              ActivationCache::open(directory, ActivationCache::kUnlimited, bench_.options));
      SAE_TRY(const auto pin, cache.pin("bench"));
      const Permutation order(chunks_, round, "bench.cache.order");
      const auto read = rate(bytes(), [&]() -> Result<void> {
        for (std::uint32_t i = 0; i < chunks_; ++i) {
          const auto chunk = cache.get(pin, static_cast<std::uint32_t>(order(i)),
                                       {buffer_.get(), bench_.chunk_bytes});
          if (!chunk) return fail(chunk.error());
        }
        return {};
      });
      if (!read) return fail(read.error());
      rates.read.push_back(*read);
    }
    std::filesystem::remove_all(directory, ignored);
    return {};
  }

 private:
  std::uint64_t bytes() const { return std::uint64_t{chunks_} * bench_.chunk_bytes; }
  std::uint64_t offset(std::uint64_t index) const { return index * bench_.chunk_bytes; }
  // The buffer with the index in its first bytes: no two chunks are alike.
  const std::byte* stamped(std::uint32_t index) {
    for (std::size_t i = 0; i < 4; ++i) buffer_[i] = static_cast<std::byte>(index >> (8 * i));
    return buffer_.get();
  }
  // For file systems without direct I/O.
  static void forget_pages(const std::filesystem::path& directory) {
    std::error_code ignored;
    for (const auto& entry : std::filesystem::directory_iterator(directory, ignored)) {
      const int file = ::open(entry.path().c_str(), O_RDONLY | O_CLOEXEC);
      if (file < 0) continue;
      ::posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
      ::close(file);
    }
  }

  const CacheBench& bench_;
  const std::uint32_t chunks_;
  const ChunkShape shape_;
  AlignedBuffer buffer_;
};

}  // namespace

Result<Json> bench_cache(const CacheBench& bench) {
  if (bench.chunk_bytes == 0 || bench.chunk_bytes % kAlignment != 0 ||
      bench.bytes < bench.chunk_bytes || bench.bytes / bench.chunk_bytes > UINT32_MAX ||
      bench.rounds == 0) {
    return fail(ErrorCode::kInvalidArgument,
                "bench cache: {} bytes in chunks of {} ({} rounds): chunks are multiples of {}",
                bench.bytes, bench.chunk_bytes, bench.rounds, kAlignment);
  }
  SAE_TRY_VOID(make_directories(bench.directory));
  Bench run(bench, static_cast<std::uint32_t>(bench.bytes / bench.chunk_bytes));
  Rates raw, cache;
  bool direct = false;
  for (unsigned round = 0; round < bench.rounds; ++round) {
    if (round % 2 == 0) SAE_TRY_VOID(run.raw_round(round, raw, direct));
    SAE_TRY_VOID(run.cache_round(round, cache));
    if (round % 2 == 1) SAE_TRY_VOID(run.raw_round(round, raw, direct));
  }
  const auto ratio = [](const std::vector<double>& ours, const std::vector<double>& theirs) {
    std::vector<double> ratios;
    for (std::size_t i = 0; i < ours.size(); ++i) ratios.push_back(ours[i] / theirs[i]);
    return median(ratios);
  };
  const double read_ratio = ratio(cache.read, raw.read);
  return Json{
      {"write_ratio", ratio(cache.write, raw.write)},
      {"read_ratio", read_ratio},
      {"ratio", read_ratio},
      {"write_MBps", median(cache.write)},
      {"read_MBps", median(cache.read)},
      {"baseline",
       {{"name", direct ? "raw file, O_DIRECT" : "raw file, buffered"},
        {"write_MBps", median(raw.write)},
        {"read_MBps", median(raw.read)}}},
      {"bytes", bench.bytes / bench.chunk_bytes * bench.chunk_bytes},
      {"chunk_bytes", bench.chunk_bytes},
      {"rounds", bench.rounds},
      {"rocksdb", fmt::format("{}.{}.{}", ROCKSDB_MAJOR, ROCKSDB_MINOR, ROCKSDB_PATCH)},
  };
}

}  // namespace saesweep::storage
