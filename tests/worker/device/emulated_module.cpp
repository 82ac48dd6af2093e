// The kernels of worker/device on this machine: what a GPU's threads do at once is done one after
// another here, phase by phase. A module like libsaesweep_cuda.so, for tests.
#include <ATen/ATen.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "worker/device/device_api.h"

namespace saesweep::worker::device {
namespace {

// The order of blocks, and of threads between two meetings, which a GPU does not promise.
bool backwards = false;
// A device that takes no notes.
bool refuses_graphs = false;
// How often the host waited, asked for work by itself, and had what was noted replayed.
struct Calls {
  std::uint64_t waits, asked, replays;
} calls{};

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

using Work = std::function<int()>;

struct Emulated {
  std::string problem;
  std::vector<Work>* notes = nullptr;  // work goes there, and is not done

  // What is noted holds its parameters as they are now, as a graph does.
  int ask(Work work) {
    if (notes == nullptr) {
      ++calls.asked;
      return work();
    }
    notes->push_back(std::move(work));
    return 0;
  }
  bool is_noting() {
    if (notes != nullptr) problem = "not while work is noted";
    return notes != nullptr;
  }
};

Emulated& gpu_of(void* device) { return *static_cast<Emulated*>(device); }

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
const char* problem_of(void* device) { return gpu_of(device).problem.c_str(); }
void* allocate(void* device, std::size_t bytes) {
  if (gpu_of(device).is_noting()) return nullptr;
  constexpr std::size_t kMost = std::size_t{1} << 32;
  if (bytes > kMost) {
    gpu_of(device).problem = "more than there is";
    return nullptr;
  }
  // Not zero, as on a GPU.
  void* memory = std::malloc(bytes);
  std::memset(memory, 0xa5, bytes);
  return memory;
}
void release(void*, void* memory) { std::free(memory); }
int clear(void* device, void* memory, std::size_t bytes) {
  return gpu_of(device).ask([=] {
    std::memset(memory, 0, bytes);
    return 0;
  });
}
int upload(void* device, void* to, const void* from, std::size_t bytes) {
  if (gpu_of(device).is_noting()) return -1;
  std::memcpy(to, from, bytes);
  return 0;
}
int download(void* device, void* to, const void* from, std::size_t bytes) {
  if (gpu_of(device).is_noting()) return -1;
  ++calls.waits;
  std::memcpy(to, from, bytes);
  return 0;
}

int begin_graph(void* device) {
  Emulated& gpu = gpu_of(device);
  if (refuses_graphs) gpu.problem = "no notes are taken here";
  if (refuses_graphs || gpu.is_noting()) return -1;
  gpu.notes = new std::vector<Work>;
  return 0;
}
void* end_graph(void* device) { return std::exchange(gpu_of(device).notes, nullptr); }
int replay(void* device, void* graph) {
  if (gpu_of(device).is_noting()) return -1;
  ++calls.replays;
  for (const Work& work : *static_cast<std::vector<Work>*>(graph))
    if (work() != 0) return -1;
  return 0;
}
void drop_graph(void*, void* graph) { delete static_cast<std::vector<Work>*>(graph); }

// As BLAS is called: columns lie together.
int run_product(const Product* product) {
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

int multiply(void* device, const Product* product) {
  return gpu_of(device).ask([copy = *product] { return run_product(&copy); });
}

int run(KernelId id, const void* parameters, std::size_t bytes, std::int64_t blocks) {
  switch (id) {
#define SAE_DEVICE_RUN(Kernel) \
  case KernelId::k##Kernel:    \
    return run_kernel<Kernel>(parameters, bytes, blocks);
    SAE_DEVICE_KERNELS(SAE_DEVICE_RUN)
#undef SAE_DEVICE_RUN
  }
  return -1;
}

int launch(void* device, KernelId id, const void* parameters, std::size_t bytes,
           std::int64_t blocks) {
  const auto* first = static_cast<const std::byte*>(parameters);
  return gpu_of(device).ask([=, copy = std::vector<std::byte>(first, first + bytes)] {
    return run(id, copy.data(), copy.size(), blocks);
  });
}

}  // namespace
}  // namespace saesweep::worker::device

extern "C" void saesweep_emulate_backwards(bool backwards) {
  saesweep::worker::device::backwards = backwards;
}

extern "C" void saesweep_emulate_without_graphs(bool without) {
  saesweep::worker::device::refuses_graphs = without;
}

extern "C" void saesweep_emulated_calls(std::uint64_t* waits, std::uint64_t* asked,
                                        std::uint64_t* replays) {
  const auto& calls = saesweep::worker::device::calls;
  *waits = calls.waits;
  *asked = calls.asked;
  *replays = calls.replays;
}

extern "C" const saesweep::worker::device::DeviceApi* saesweep_device_api() {
  namespace device = saesweep::worker::device;
  static const device::DeviceApi api = {
      device::kApiVersion, device::count,       device::open,      device::close,
      device::describe,    device::problem_of,  device::allocate,  device::release,
      device::clear,       device::upload,      device::download,  device::multiply,
      device::launch,      device::begin_graph, device::end_graph, device::replay,
      device::drop_graph};
  return &api;
}
