// A GPU as trainers use it: memory that frees itself, copies, products, kernels, graphs. What it
// does comes from a module (device_api.h) that is loaded from a file.
//
// One thread. An error means that the device cannot be relied on any more, except for running out
// of memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>

#include "core/result.h"
#include "worker/device/device_api.h"

namespace saesweep::worker::device {

// The table of a module that stays loaded. Errors: kNotFound (no such file); kUnavailable (the file
// cannot be loaded, or is of another version), with the reason.
Result<const DeviceApi*> load_module(const std::filesystem::path& file);

// How many devices the module sees. Errors: kUnavailable: none can be used, with the reason.
Result<int> count_devices(const DeviceApi& api);

class Graph;

class Device {
 public:
  // Errors: kUnavailable.
  static Result<std::unique_ptr<Device>> open(const DeviceApi& api, int index);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  Result<DeviceInfo> info();
  Result<void> clear(void* memory, std::size_t bytes);
  Result<void> upload(void* to, const void* from, std::size_t bytes);
  Result<void> download(void* to, const void* from, std::size_t bytes);
  Result<void> multiply(const Product& product);
  template <class Kernel>
  Result<void> launch(const Kernel& kernel, std::int64_t blocks) {
    return checked(api_->launch(device_, IdOf<Kernel>::kId, &kernel, sizeof kernel, blocks));
  }
  // What `body` asks for, noted instead of done. Only clear(), multiply() and launch() may be asked
  // for. Errors: those of `body`; kUnavailable: the device takes no note of such a thing, but can
  // be relied on as before.
  template <class Body>
  Result<Graph> note(const Body& body);
  Result<void> replay(const Graph& graph);
  // Something failed that was not for want of memory.
  bool is_broken() const { return broken_; }

 private:
  friend class Memory;
  friend class Graph;
  Device(const DeviceApi& api, void* device) : api_(&api), device_(device) {}
  Result<void> checked(int status);
  Result<void> begin_graph();
  Result<Graph> end_graph();

  const DeviceApi* api_;
  void* device_;
  bool broken_ = false;
  bool notes_ = false;
};

// Work of a device, which outlives it.
class Graph {
 public:
  Graph() = default;
  ~Graph() { drop(); }
  Graph(Graph&& other) noexcept { *this = std::move(other); }
  Graph& operator=(Graph&& other) noexcept {
    drop();
    device_ = std::exchange(other.device_, nullptr);
    graph_ = std::exchange(other.graph_, nullptr);
    return *this;
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

 private:
  friend class Device;
  Graph(Device& device, void* graph) : device_(&device), graph_(graph) {}
  void drop();
  Device* device_ = nullptr;
  void* graph_ = nullptr;
};

template <class Body>
Result<Graph> Device::note(const Body& body) {
  SAE_TRY_VOID(begin_graph());
  const Result<void> asked = body();
  auto graph = end_graph();
  if (!asked) return fail(asked.error());
  return graph;
}

// Bytes on a device, which outlives them.
class Memory {
 public:
  Memory() = default;
  ~Memory() { release(); }
  Memory(Memory&& other) noexcept { *this = std::move(other); }
  Memory& operator=(Memory&& other) noexcept {
    release();
    device_ = std::exchange(other.device_, nullptr);
    memory_ = std::exchange(other.memory_, nullptr);
    bytes_ = std::exchange(other.bytes_, 0);
    return *this;
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  // At least so many bytes; what was there may be gone. Errors: kResourceExhausted;
  // kUnavailable.
  Result<void> reserve(Device& device, std::size_t bytes);
  template <class T>
  T* as() const {
    return static_cast<T*>(memory_);
  }
  std::size_t bytes() const { return bytes_; }

 private:
  void release();
  Device* device_ = nullptr;
  void* memory_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace saesweep::worker::device
