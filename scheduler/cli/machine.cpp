#include "scheduler/cli/machine.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <fstream>
#include <thread>
#include <vector>

#include "core/files.h"

namespace saesweep::cli {
namespace {

namespace fs = std::filesystem;

// Files of /proc and /sys say they are empty, so read_file() does not serve.
std::string first_line(const fs::path& path) {
  std::ifstream stream(path);
  std::string line;
  std::getline(stream, line);
  return line;
}

// The value after "key :" in a file of such lines.
std::string field(const fs::path& path, std::string_view key) {
  std::ifstream stream(path);
  for (std::string line; std::getline(stream, line);) {
    if (!line.starts_with(key)) continue;
    const std::size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    const std::size_t from = line.find_first_not_of(" \t", colon + 1);
    return from == std::string::npos ? std::string() : line.substr(from);
  }
  return {};
}

std::optional<std::uint64_t> leading_number(std::string_view text) {
  std::uint64_t value = 0;
  const auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (problem != std::errc() || end == text.data()) return std::nullopt;
  return value;
}

}  // namespace

unsigned usable_cores() {
  unsigned cores = std::max(1u, std::thread::hardware_concurrency());
  cpu_set_t set;
  if (::sched_getaffinity(0, sizeof set, &set) == 0)
    cores = std::max(1u, static_cast<unsigned>(CPU_COUNT(&set)));
  // "max 100000" or "150000 100000": microseconds of CPU a period.
  const std::string quota = first_line("/sys/fs/cgroup/cpu.max");
  const auto allowed = leading_number(quota);
  const std::size_t space = quota.find(' ');
  if (allowed && space != std::string::npos)
    if (const auto period = leading_number(std::string_view(quota).substr(space + 1));
        period && *period > 0)
      cores = std::clamp(static_cast<unsigned>((*allowed + *period - 1) / *period), 1u, cores);
  return cores;
}

std::uint64_t usable_memory_bytes() {
  std::uint64_t bytes = 0;
  struct sysinfo info {};
  if (::sysinfo(&info) == 0) bytes = std::uint64_t{info.totalram} * info.mem_unit;
  if (const auto limit = leading_number(first_line("/sys/fs/cgroup/memory.max")))
    bytes = bytes == 0 ? *limit : std::min(bytes, *limit);
  return bytes;
}

std::string cpu_name() { return field("/proc/cpuinfo", "model name"); }

std::string host_name() {
  utsname names{};
  return ::uname(&names) == 0 ? names.nodename : "";
}

Json describe_host() {
  utsname names{};
  Json host{{"name", host_name()},
            {"cores", usable_cores()},
            {"memory_bytes", usable_memory_bytes()},
            {"cpu", cpu_name()}};
  if (::uname(&names) == 0) host["os"] = fmt::format("{} {}", names.sysname, names.release);
  return host;
}

Result<double> measure_disk_rate(const fs::path& directory, std::uint64_t bytes) {
  std::string name = (directory / ".saesweep-disk-XXXXXX").string();
  const int file = ::mkostemp(name.data(), O_CLOEXEC);
  if (file < 0) return fail(system_error(errno, fmt::format("create {}", name)));
  ::unlink(name.c_str());  // gone with the descriptor, even after a crash
  // Not zeros, which some disks store for nothing.
  std::vector<char> block(std::size_t{1} << 20);
  std::uint32_t word = 1;
  for (char& byte : block) {
    word = word * 1664525u + 1013904223u;
    byte = static_cast<char>(word >> 24);
  }
  const auto start = std::chrono::steady_clock::now();
  std::uint64_t written = 0;
  int problem = 0;
  while (written < bytes && problem == 0) {
    const ssize_t put = ::write(file, block.data(), block.size());
    if (put < 0 && errno != EINTR) problem = errno;
    if (put > 0) written += static_cast<std::uint64_t>(put);
  }
  if (problem == 0 && ::fdatasync(file) != 0) problem = errno;
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  ::close(file);
  if (problem != 0) return fail(system_error(problem, fmt::format("write {}", name)));
  return static_cast<double>(written) / std::max(took.count(), 1e-6);
}

std::string describe_gpus() {
  std::string found;
  std::error_code error;
  // The kernel driver lists each GPU it drives.
  for (const auto& gpu : fs::directory_iterator("/proc/driver/nvidia/gpus", error)) {
    const std::string model = field(gpu.path() / "information", "Model");
    found += fmt::format("{}{}", found.empty() ? "" : ", ", model.empty() ? "NVIDIA GPU" : model);
  }
  return found;
}

std::optional<fs::path> find_program(const std::string& name, const std::string& search_path) {
  for (std::size_t from = 0; from <= search_path.size();) {
    const std::size_t colon = std::min(search_path.find(':', from), search_path.size());
    const fs::path candidate = fs::path(search_path.substr(from, colon - from)) / name;
    if (colon > from && ::access(candidate.c_str(), X_OK) == 0) return candidate;
    from = colon + 1;
  }
  return std::nullopt;
}

}  // namespace saesweep::cli
