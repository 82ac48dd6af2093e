#include "worker/executor/build.h"

#include <ATen/Version.h>
#include <fmt/core.h>
#include <torch/version.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <string>
#include <thread>

namespace saesweep::worker {
namespace {

namespace fs = std::filesystem;

bool is_there(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

Json probe_cuda() {
  std::error_code ignored;
  const fs::path here = fs::read_symlink("/proc/self/exe", ignored).parent_path();
  const bool gpu = is_there("/dev/nvidia0") || is_there("/dev/dxg");
  const bool driver = is_there("/proc/driver/nvidia/version") || is_there("/dev/dxg");
  const bool module = is_there(here / "libsaesweep_cuda.so") ||
                      is_there(here.parent_path() / "lib" / "libsaesweep_cuda.so");
  Json missing = Json::array();
  if (!gpu) missing.push_back("an NVIDIA GPU");
  if (!driver) missing.push_back("its driver");
  if (!module) missing.push_back("libsaesweep_cuda.so, which this version does not have");
  return {{"gpu", gpu}, {"driver", driver}, {"module", module}, {"missing", std::move(missing)}};
}

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
  found["cuda"] = probe_cuda();
  return found;
}

}  // namespace saesweep::worker
