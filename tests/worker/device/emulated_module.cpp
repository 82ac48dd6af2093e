// The kernels of worker/device on this machine: a module like libsaesweep_cuda.so, for tests.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "tests/worker/device/block_threads.h"
#include "worker/device/device_api.h"

namespace saesweep::worker::device {
namespace {

using emulation::BlockThreads, emulation::Order, emulation::Places;

// Blocks whose threads are such, or whose phases are loops over threads, which is much faster.
bool has_threads = false;
Order order = Order::kForwards;
// A device that takes no notes.
bool refuses_graphs = false;
// One that is good for nothing any more.
bool has_failed = false;
// How often the host waited, asked for work by itself, and had what was noted replayed.
struct Calls {
  std::uint64_t waits, asked, replays;
} calls{};

struct Atomics {
  static void add(std::uint32_t* to, std::uint32_t value) {
    std::atomic_ref(*to).fetch_add(value, std::memory_order_relaxed);
  }
  static void bit_or(std::uint32_t* to, std::uint32_t bits) {
    std::atomic_ref(*to).fetch_or(bits, std::memory_order_relaxed);
  }
  static void least(std::uint32_t* to, std::uint32_t value) {
    std::atomic_ref there(*to);
    std::uint32_t old = there.load(std::memory_order_relaxed);
    while (value < old && !there.compare_exchange_weak(old, value, std::memory_order_relaxed)) {
    }
  }
  template <class Flag>
  static void mark(Flag* flag) {
    std::atomic_ref(*flag).store(1, std::memory_order_relaxed);
  }
};

// A block as one of its threads sees it.
struct ThreadOfBlock : Atomics {
  std::int64_t index;
  int thread;
  BlockThreads* others;

  template <class Phase>
  void each(const Phase& phase) {
    static char place;  // one for each phase
    phase(thread);
    others->meet(&place);
  }
};

// A block of which all threads share what stands between phases.
struct LoopedBlock : Atomics {
  std::int64_t index;
  bool backwards;
  int threads;

  template <class Phase>
  void each(const Phase& phase) {
    for (int i = 0; i < threads; ++i) phase(backwards ? threads - 1 - i : i);
  }
};

template <class Kernel>
std::string run_kernel(BlockThreads& threads, const void* parameters, std::size_t bytes,
                       std::int64_t blocks) {
  if (bytes != sizeof(Kernel)) return "parameters of another size";
  Kernel kernel;
  std::memcpy(&kernel, parameters, sizeof kernel);
  // Nothing may be expected of it: on a GPU it holds what another block left.
  std::vector<typename Kernel::Shared> shared(static_cast<std::size_t>(has_threads ? blocks : 1));
  std::memset(static_cast<void*>(shared.data()), 0xa5, shared.size() * sizeof shared[0]);
  if (has_threads)
    return threads.launch(blocks, Kernel::kThreads, order, [&](std::int64_t index, int thread) {
      ThreadOfBlock block{{}, index, thread, &threads};
      kernel.run(block, shared[static_cast<std::size_t>(index)]);
    });
  const Places places(order, blocks);
  for (std::int64_t i = 0; i < blocks; ++i) {
    LoopedBlock block{{}, places[i], order == Order::kBackwards, Kernel::kThreads};
    kernel.run(block, shared.front());
  }
  return {};
}

using Work = std::function<int()>;

struct Emulated {
  std::string problem;
  BlockThreads threads;
  std::vector<Work>* notes = nullptr;  // work goes there, and is not done
  bool is_spoilt = false;

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
    spoil();
    return notes != nullptr;
  }
  // What would have to wait makes notes worthless.
  void spoil() {
    if (notes == nullptr) return;
    problem = "not while work is noted";
    is_spoilt = true;
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
int allocate(void* device, std::size_t bytes, void** memory) {
  if (gpu_of(device).is_noting()) return -1;
  if (has_failed) gpu_of(device).problem = "it has failed";
  if (has_failed) return -1;
  constexpr std::size_t kMost = std::size_t{1} << 32;
  if (bytes > kMost) gpu_of(device).problem = "more than there is";
  if (bytes > kMost) return kOutOfMemory;
  // Not zero, as on a GPU.
  *memory = std::malloc(bytes);
  std::memset(*memory, 0xa5, bytes);
  return 0;
}
void release(void* device, void* memory) {
  gpu_of(device).spoil();
  std::free(memory);
}
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
void* end_graph(void* device) {
  Emulated& gpu = gpu_of(device);
  std::vector<Work>* notes = std::exchange(gpu.notes, nullptr);
  if (std::exchange(gpu.is_spoilt, false)) delete std::exchange(notes, nullptr);
  return notes;
}
int replay(void* device, void* graph) {
  if (gpu_of(device).is_noting()) return -1;
  ++calls.replays;
  for (const Work& work : *static_cast<std::vector<Work>*>(graph))
    if (work() != 0) return -1;
  return 0;
}
void drop_graph(void* device, void* graph) {
  gpu_of(device).spoil();
  delete static_cast<std::vector<Work>*>(graph);
}

// As BLAS is called: columns lie together.
int run_product(const Product& product) {
  const ColumnMajor call = column_major(product);
  const auto value = [&](const void* values, std::int64_t at) {
    if (!product.rounded) return static_cast<const float*>(values)[at];
    return float_of(std::uint32_t{static_cast<const std::uint16_t*>(values)[at]} << 16);
  };
  const std::int64_t a_row = call.transposes_a ? call.lda : 1,
                     a_k = call.transposes_a ? 1 : call.lda;
  const std::int64_t b_k = call.transposes_b ? call.ldb : 1,
                     b_column = call.transposes_b ? 1 : call.ldb;
  for (std::int64_t column = 0; column < call.n; ++column)
    for (std::int64_t row = 0; row < call.m; ++row) {
      float sum = 0;
      for (std::int64_t k = 0; k < call.k; ++k)
        sum += value(call.a, row * a_row + k * a_k) * value(call.b, k * b_k + column * b_column);
      call.c[column * call.ldc + row] = sum;
    }
  return 0;
}

int multiply(void* device, const Product* product) {
  return gpu_of(device).ask([copy = *product] { return run_product(copy); });
}

std::string run(BlockThreads& threads, KernelId id, const void* parameters, std::size_t bytes,
                std::int64_t blocks) {
  switch (id) {
#define SAE_DEVICE_RUN(Kernel) \
  case KernelId::k##Kernel:    \
    return run_kernel<Kernel>(threads, parameters, bytes, blocks);
    SAE_DEVICE_KERNELS(SAE_DEVICE_RUN)
#undef SAE_DEVICE_RUN
  }
  return "a kernel that is not here";
}

int launch(void* device, KernelId id, const void* parameters, std::size_t bytes,
           std::int64_t blocks) {
  Emulated& gpu = gpu_of(device);
  const auto* first = static_cast<const std::byte*>(parameters);
  return gpu.ask([=, &gpu, copy = std::vector<std::byte>(first, first + bytes)] {
    const std::string problem = run(gpu.threads, id, copy.data(), copy.size(), blocks);
    if (!problem.empty()) gpu.problem = problem;
    return problem.empty() ? 0 : -1;
  });
}

}  // namespace
}  // namespace saesweep::worker::device

// order: an emulation::Order.
extern "C" void saesweep_emulate(bool has_threads, int order) {
  namespace device = saesweep::worker::device;
  device::has_threads = has_threads;
  device::order = device::Order{static_cast<std::uint8_t>(order)};
}

extern "C" void saesweep_emulate_without_graphs(bool without) {
  saesweep::worker::device::refuses_graphs = without;
}

extern "C" void saesweep_emulate_failure(bool has_failed) {
  saesweep::worker::device::has_failed = has_failed;
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
