// Words that the tests of this room share: small chunks, small rows, other processes, small disks.
#pragma once

#include <fcntl.h>
#include <spawn.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "core/philox.h"
#include "storage/activation_cache.h"
#include "storage/journal.h"

namespace saesweep::storage {

inline constexpr std::uint64_t kPlenty = std::uint64_t{1} << 30;
inline constexpr ChunkShape kShape{.rows = 64, .d_in = 512, .dtype = DType::kBFloat16};  // 64 KiB
// A file for every 16 chunks, and no distance to a full disk.
inline constexpr CacheOptions kSmallBuffers{.min_free_bytes = 0, .write_buffer_bytes = 1 << 20};

using Values = std::vector<std::byte>;

// The values of chunk `index`: like no other's.
inline Values values_of(std::uint32_t index, ChunkShape shape = kShape) {
  Rng rng(1, "test.cache", index);
  Values values(shape.bytes());
  for (std::size_t i = 0; i + 8 <= values.size(); i += 8) {
    const std::uint64_t bits = rng.next_u64();
    std::memcpy(&values[i], &bits, 8);
  }
  return values;
}

// Batch `i` of a journal: the same number in two families, so that a torn batch would show.
inline std::vector<JournalWrite> rows_of(std::uint64_t i) {
  const std::string key = fmt::format("{:08}", i);
  return {{"a", key, std::string(100, 'a')}, {"b", key, "b"}, {"a", "last", key}};
}

// A process that says when it is ready, and dies with this object at the latest.
class Child {
 public:
  explicit Child(std::vector<std::string> arguments) {
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) != 0) std::abort();
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
    std::vector<char*> argv = {const_cast<char*>(SAESWEEP_CRASH_CHILD)};
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    if (::posix_spawn(&pid_, argv[0], &actions, nullptr, argv.data(), environ) != 0) std::abort();
    posix_spawn_file_actions_destroy(&actions);
    ::close(ends[1]);
    said_ = ends[0];
  }
  ~Child() {
    kill();
    ::close(said_);
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  pid_t pid() const { return pid_; }
  // How many bytes it said until `count` came or it ended.
  std::uint64_t wait_for(std::uint64_t count) {
    char byte;
    std::uint64_t heard = 0;
    while (heard < count && ::read(said_, &byte, 1) == 1) ++heard;
    return heard;
  }
  void kill() {
    if (pid_ == 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = 0;
  }

 private:
  pid_t pid_ = 0;
  int said_ = -1;
};

// A small file system of its own; without the right to mount, `mounted` is false.
struct SmallDisk {
  std::filesystem::path path;
  bool mounted = false;
  SmallDisk(const std::filesystem::path& at, const char* data) : path(at) {
    std::filesystem::create_directories(path);
    mounted = ::mount("tmpfs", path.c_str(), "tmpfs", 0, data) == 0;
  }
  ~SmallDisk() {
    if (mounted) ::umount2(path.c_str(), MNT_DETACH);
  }
  SmallDisk(const SmallDisk&) = delete;
  SmallDisk& operator=(const SmallDisk&) = delete;
};

}  // namespace saesweep::storage
