#include "worker/device/device.h"

#include <dlfcn.h>

#include <array>
#include <system_error>

#include "core/check.h"

namespace saesweep::worker::device {

Result<const DeviceApi*> load_module(const std::filesystem::path& file) {
  std::error_code ignored;
  if (!std::filesystem::exists(file, ignored))
    return fail(ErrorCode::kNotFound, "{} is not there", file.string());
  // Stays loaded until the end: drivers do not like to be unloaded.
  void* library = ::dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* why = ::dlerror();  // NOLINT(concurrency-mt-unsafe): each thread has its own
    return fail(ErrorCode::kUnavailable, "{}", why == nullptr ? "it cannot be loaded" : why);
  }
  const auto entry = reinterpret_cast<DeviceEntryPoint>(::dlsym(library, kEntryPoint));
  if (entry == nullptr)
    return fail(ErrorCode::kUnavailable, "{} has no {}", file.string(), kEntryPoint);
  const DeviceApi* api = entry();
  if (api->version != kApiVersion)
    return fail(ErrorCode::kUnavailable, "{} is of version {}; this program needs {}",
                file.string(), api->version, kApiVersion);
  return api;
}

Result<int> count_devices(const DeviceApi& api) {
  std::array<char, 256> problem{};
  const int count = api.count(problem.data(), problem.size());
  if (count < 0) return fail(ErrorCode::kUnavailable, "{}", problem.data());
  return count;
}

Result<std::unique_ptr<Device>> Device::open(const DeviceApi& api, int index) {
  std::array<char, 512> problem{};
  void* device = api.open(index, problem.data(), problem.size());
  if (device == nullptr) return fail(ErrorCode::kUnavailable, "GPU {}: {}", index, problem.data());
  return std::unique_ptr<Device>(new Device(api, device));
}

Device::~Device() { api_->close(device_); }

Result<void> Device::checked(int status) {
  if (status == 0) return {};
  if (!notes_) broken_ = true;
  return fail(ErrorCode::kUnavailable, "GPU: {}", api_->problem(device_));
}

Result<DeviceInfo> Device::info() {
  DeviceInfo info{};
  SAE_TRY_VOID(checked(api_->describe(device_, &info)));
  return info;
}

Result<void> Device::clear(void* memory, std::size_t bytes) {
  return checked(api_->clear(device_, memory, bytes));
}

Result<void> Device::upload(void* to, const void* from, std::size_t bytes) {
  return checked(api_->upload(device_, to, from, bytes));
}

Result<void> Device::download(void* to, const void* from, std::size_t bytes) {
  return checked(api_->download(device_, to, from, bytes));
}

Result<void> Device::multiply(const Product& product) {
  return checked(api_->multiply(device_, &product));
}

Result<void> Device::begin_graph() {
  if (api_->begin_graph(device_) != 0)
    return fail(ErrorCode::kUnavailable, "GPU: {}", api_->problem(device_));
  notes_ = true;
  return {};
}

Result<Graph> Device::end_graph() {
  notes_ = false;
  void* const graph = api_->end_graph(device_);
  if (graph == nullptr) return fail(ErrorCode::kUnavailable, "GPU: {}", api_->problem(device_));
  return Graph(*this, graph);
}

Result<void> Device::replay(const Graph& graph) {
  return checked(api_->replay(device_, graph.graph_));
}

void Graph::drop() {
  if (graph_ != nullptr) device_->api_->drop_graph(device_->device_, graph_);
  graph_ = nullptr;
}

Result<void> Memory::reserve(Device& device, std::size_t bytes) {
  if (bytes <= bytes_) return {};
  SAE_CHECK(!device.notes_, "{} bytes are asked for while work is noted", bytes);
  release();
  const int status = device.api_->allocate(device.device_, bytes, &memory_);
  if (status == kOutOfMemory)
    return fail(ErrorCode::kResourceExhausted, "out of GPU memory: {} bytes: {}", bytes,
                device.api_->problem(device.device_));
  SAE_TRY_VOID(device.checked(status));
  device_ = &device;
  bytes_ = bytes;
  return {};
}

void Memory::release() {
  if (memory_ != nullptr) device_->api_->release(device_->device_, memory_);
  memory_ = nullptr;
  bytes_ = 0;
}

}  // namespace saesweep::worker::device
