// The kernels of worker/device on this machine: what a GPU's threads do at once is done one after
// another here, phase by phase. A module like libsaesweep_cuda.so, for tests.
#include <ATen/ATen.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "worker/device/device_api.h"

namespace saesweep::worker::device {
namespace {

// The order of blocks, and of threads between two meetings, which a GPU does not promise.
bool backwards = false;

struct EmulatedBlock {
  std::int64_t index;
  int threads;

  template <class Phase>
  void each(const Phase& phase) {
    for (int i = 0; i < threads; ++i) phase(backwards ? threads - 1 - i : i);
  }
  static void add(std::uint32_t* to, std::uint32_t value) { *to += value; }
  static void bit_or(std::uint32_t* to, std::uint32_t bits) { *to |= bits; }
  static void least(std::uint32_t* to, std::uint32_t value) { *to = std::min(*to, value); }
};

template <class Kernel>
int run_kernel(const void* parameters, std::size_t bytes, std::int64_t blocks) {
  if (bytes != sizeof(Kernel)) return -1;
  Kernel kernel;
  std::memcpy(&kernel, parameters, sizeof kernel);
  // Nothing may be expected of it: on a GPU it holds what the block before left.
  typename Kernel::Shared shared;
  std::memset(static_cast<void*>(&shared), 0xa5, sizeof shared);
  for (std::int64_t index = 0; index < blocks; ++index) {
    EmulatedBlock block{backwards ? blocks - 1 - index : index, Kernel::kThreads};
    kernel.run(block, shared);
  }
  return 0;
}

struct Emulated {
  std::string problem;
};

int count(char*, std::size_t) { return 1; }
void* open(int index, char* problem, std::size_t bytes) {
  if (index == 0) return new Emulated;
  std::snprintf(problem, bytes, "there is one device");
  return nullptr;
}
void close(void* device) { delete static_cast<Emulated*>(device); }
int describe(void*, DeviceInfo* info) {
  *info = {};
  std::snprintf(info->name, sizeof info->name, "emulated");
  info->memory_bytes = info->free_bytes = std::uint64_t{1} << 32;
  return 0;
}
const char* problem_of(void* device) { return static_cast<Emulated*>(device)->problem.c_str(); }
void* allocate(void* device, std::size_t bytes) {
  constexpr std::size_t kMost = std::size_t{1} << 32;
  if (bytes > kMost) {
    static_cast<Emulated*>(device)->problem = "more than there is";
    return nullptr;
  }
  // Not zero, as on a GPU.
  void* memory = std::malloc(bytes);
  std::memset(memory, 0xa5, bytes);
  return memory;
}
void release(void*, void* memory) { std::free(memory); }
int clear(void*, void* memory, std::size_t bytes) {
  std::memset(memory, 0, bytes);
  return 0;
}
int copy(void*, void* to, const void* from, std::size_t bytes) {
  std::memcpy(to, from, bytes);
  return 0;
}
// As BLAS is called: columns lie together.
int multiply(void*, const Product* product) {
  const ColumnMajor call = column_major(*product);
  const auto matrix = [&](const void* values, std::int64_t rows, std::int64_t columns, int ld,
                          bool transposes) {
    const at::Tensor as_it_lies =
        at::from_blob(const_cast<void*>(values),
                      transposes ? at::IntArrayRef{columns, rows} : at::IntArrayRef{rows, columns},
                      {1, ld}, product->rounded ? at::kBFloat16 : at::kFloat);
    return (transposes ? as_it_lies.t() : as_it_lies).to(at::kFloat);
  };
  at::from_blob(call.c, {call.m, call.n}, {1, call.ldc}, at::kFloat)
      .copy_(at::mm(matrix(call.a, call.m, call.k, call.lda, call.transposes_a),
                    matrix(call.b, call.k, call.n, call.ldb, call.transposes_b)));
  return 0;
}

int launch(void* device, KernelId id, const void* parameters, std::size_t bytes,
           std::int64_t blocks) {
  switch (id) {
#define SAE_DEVICE_RUN(Kernel) \
  case KernelId::k##Kernel:    \
    return run_kernel<Kernel>(parameters, bytes, blocks);
    SAE_DEVICE_KERNELS(SAE_DEVICE_RUN)
#undef SAE_DEVICE_RUN
  }
  static_cast<Emulated*>(device)->problem = "no such kernel";
  return -1;
}

}  // namespace
}  // namespace saesweep::worker::device

extern "C" void saesweep_emulate_backwards(bool backwards) {
  saesweep::worker::device::backwards = backwards;
}

extern "C" const saesweep::worker::device::DeviceApi* saesweep_device_api() {
  namespace device = saesweep::worker::device;
  static const device::DeviceApi api = {
      device::kApiVersion, device::count,    device::open,    device::close, device::describe,
      device::problem_of,  device::allocate, device::release, device::clear, device::copy,
      device::copy,        device::multiply, device::launch};
  return &api;
}
