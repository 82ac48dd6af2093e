#include "worker/executor/build.h"

#include <ATen/Version.h>
#include <fmt/core.h>
#include <torch/version.h>

#include <algorithm>
#include <fstream>
#include <set>
#include <sstream>
#include <string>
#include <thread>

#include "worker/device/gpu.h"

namespace saesweep::worker {
namespace {

// What the kernel says the first core can do.
std::set<std::string> cpu_flags() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with("flags") && !line.starts_with("Features")) continue;
    std::istringstream words(line.substr(line.find(':') + 1));
    std::set<std::string> flags;
    for (std::string word; words >> word;) flags.insert(word);
    return flags;
  }
  return {};
}

}  // namespace

std::string build_text() {
  return fmt::format("{} (LibTorch {})", SAESWEEP_VERSION, TORCH_VERSION);
}

Json versions() {
  return {{"libtorch", TORCH_VERSION}, {"cpu_capability", at::get_cpu_capability()}};
}

Json probe() {
  Json found = versions();
  found["version"] = SAESWEEP_VERSION;
  found["cores"] = std::max(1U, std::thread::hardware_concurrency());
  const auto flags = cpu_flags();
  for (const auto& [name, flag] : {std::pair{"avx2", "avx2"},
                                   {"avx512", "avx512f"},
                                   {"avx512_bf16", "avx512_bf16"},
                                   {"amx_bf16", "amx_bf16"}})
    found[name] = flags.contains(flag);
  found["cuda"] = device::probe_gpus();
  return found;
}

}  // namespace saesweep::worker
