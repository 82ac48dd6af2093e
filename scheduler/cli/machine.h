// The machine this program runs on: what it offers, as the kernel and the container say.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "core/json.h"
#include "core/result.h"

namespace saesweep::cli {

unsigned usable_cores();              // affinity and the container's quota, at least 1
std::uint64_t usable_memory_bytes();  // of the machine or the container, the smaller; 0: unknown
std::string cpu_name();               // "" if the kernel does not say
std::string host_name();

// {"name", "cores", "memory_bytes", "cpu", "os"} for run.json and benchmarks.
Json describe_host();

// Writes, syncs and removes a scratch file in `directory`: bytes a second that arrive on the disk.
// Errors: kResourceExhausted, kUnavailable.
Result<double> measure_disk_rate(const std::filesystem::path& directory, std::uint64_t bytes);

// "NVIDIA H100, driver 570.1" of each GPU whose driver is loaded; empty if there is none.
std::string describe_gpus();

// The program of that name in one of the directories of `search_path` ("/usr/bin:/bin").
std::optional<std::filesystem::path> find_program(const std::string& name,
                                                  const std::string& search_path);

}  // namespace saesweep::cli
