// Kernels on the emulated device, whose blocks have threads of their own (block_threads.h).
#pragma once

#include <dlfcn.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "tests/worker/device/block_threads.h"
#include "worker/device/device.h"

namespace saesweep::worker::device {

class Kernels : public testing::Test {
 protected:
  Kernels() {
    device_ = std::move(*Device::open(**load_module(EMULATED_GPU), 0));
    emulate(!emulation::kWatchesRaces, emulation::Order::kShuffled);
  }
  ~Kernels() override { emulate(false, emulation::Order::kForwards); }

  template <class... Arguments>
  static void call(const char* name, Arguments... arguments) {
    void* module = ::dlopen(EMULATED_GPU, RTLD_NOW | RTLD_NOLOAD);
    reinterpret_cast<void (*)(Arguments...)>(::dlsym(module, name))(arguments...);
  }
  static void emulate(bool has_threads, emulation::Order order) {
    call("saesweep_emulate", has_threads, static_cast<int>(order));
  }

  template <class T>
  T* put(const std::vector<T>& values) {
    T* memory = room<T>(values.size());
    EXPECT_TRUE(device_->upload(memory, values.data(), values.size() * sizeof(T)));
    return memory;
  }
  template <class T>
  T* room(std::size_t count) {
    memories_.emplace_back();
    EXPECT_TRUE(memories_.back().reserve(*device_, std::max<std::size_t>(1, count) * sizeof(T)));
    return memories_.back().as<T>();
  }
  template <class T>
  T* zeros(std::size_t count) {
    return put(std::vector<T>(count, T{}));
  }
  template <class T>
  std::vector<T> get(const T* memory, std::size_t count) {
    std::vector<T> values(count);
    EXPECT_TRUE(device_->download(values.data(), memory, count * sizeof(T)));
    return values;
  }
  CodeLists lists(std::int64_t rows, std::int64_t entries) {
    const auto count = static_cast<std::size_t>(rows), all = static_cast<std::size_t>(entries);
    return {room<std::int64_t>(count), room<std::int32_t>(count), room<std::int32_t>(all),
            room<float>(all), room<float>(all)};
  }

  std::unique_ptr<Device> device_;
  std::vector<Memory> memories_;
};

}  // namespace saesweep::worker::device
