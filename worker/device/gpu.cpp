#include "worker/device/gpu.h"

#include <filesystem>
#include <system_error>
#include <vector>

namespace saesweep::worker::device {
namespace {

namespace fs = std::filesystem;

constexpr const char* kModule = "libsaesweep_cuda.so";

// Where it is, or where it would be.
fs::path module_file() {
  std::error_code ignored;
  const fs::path here = fs::read_symlink("/proc/self/exe", ignored).parent_path();
  fs::path installed = here.parent_path() / SAESWEEP_LIBRARY_DIR / "saesweep" / kModule;
  return fs::exists(installed, ignored) ? installed : here / kModule;
}

struct Found {
  const DeviceApi* api;
  int devices;
};

Result<Found> find_devices() {
  const auto api = load_module(module_file());
  if (!api && api.error().code == ErrorCode::kNotFound)
    return fail(ErrorCode::kUnavailable,
                "{}: deploy/setup.sh installs the compiler for it, and then `make` builds it",
                api.error().message);
  if (!api) return fail(api.error());
  const auto devices = count_devices(**api);
  if (!devices)
    return fail(ErrorCode::kUnavailable, "an NVIDIA GPU with its driver ({})",
                devices.error().message);
  if (*devices == 0) return fail(ErrorCode::kUnavailable, "an NVIDIA GPU");
  return Found{*api, *devices};
}

}  // namespace

Result<Device*> Gpu::open() {
  if (device_ == nullptr) {
    const auto found = find_devices();
    if (!found)
      return fail(ErrorCode::kUnavailable, "device cuda is missing something: {}",
                  found.error().message);
    SAE_TRY(device_,
            Device::open(*found->api,
                         static_cast<int>(slot_ % static_cast<std::uint32_t>(found->devices))));
  }
  return device_.get();
}

Json probe_gpus() {
  std::error_code ignored;
  Json seen{{"module", fs::exists(module_file(), ignored)},
            {"devices", Json::array()},
            {"missing", Json::array()}};
  const auto found = find_devices();
  if (!found) {
    seen["missing"].push_back(found.error().message);
    return seen;
  }
  for (int index = 0; index < found->devices; ++index) {
    const auto device = Device::open(*found->api, index);
    const Result<DeviceInfo> info = device ? (*device)->info() : fail(device.error());
    if (info)
      seen["devices"].push_back({{"name", info->name}, {"memory_bytes", info->memory_bytes}});
    else
      seen["missing"].push_back(info.error().message);
  }
  return seen;
}

}  // namespace saesweep::worker::device
