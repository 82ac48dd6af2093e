// libsaesweep_cuda.so: the kernels of worker/device on an NVIDIA GPU, on one stream, with cuBLAS
// for matrix products. Links the CUDA runtime alone; cuBLAS is loaded when a device is opened.
//
// Sums of a product may depend on the kind of GPU and the version of cuBLAS, and on nothing else:
// one stream, a workspace of our own, no atomics (cuBLAS documentation, "Results reproducibility").
// Those of fp32 are computed in fp32: TF32 has to be asked for (the same, cublasMath_t).
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <library_types.h>

#include <cstdio>
#include <cstring>
#include <string>

#include "worker/device/device_api.h"

namespace saesweep::worker::device {
namespace {

// ---- a block of threads of a GPU ----------------------------------------------------------------

struct GpuBlock {
  std::int64_t index;

  template <class Phase>
  __device__ __forceinline__ void each(const Phase& phase) {
    phase(static_cast<int>(threadIdx.x));
    __syncthreads();
  }
  __device__ __forceinline__ void add(std::uint32_t* to, std::uint32_t value) {
    atomicAdd(to, value);
  }
  __device__ __forceinline__ void bit_or(std::uint32_t* to, std::uint32_t bits) {
    atomicOr(to, bits);
  }
  __device__ __forceinline__ void least(std::uint32_t* to, std::uint32_t value) {
    atomicMin(to, value);
  }
  // Whoever writes writes the same, so that nobody has to wait.
  template <class Flag>
  __device__ __forceinline__ void mark(Flag* flag) {
    *flag = 1;
  }
};

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads) run_kernel(const Kernel kernel) {
  __shared__ typename Kernel::Shared shared;
  GpuBlock block{static_cast<std::int64_t>(blockIdx.x)};
  kernel.run(block, shared);
}

// ---- cuBLAS -------------------------------------------------------------------------------------
// The few functions and numbers of its stable C interface that are used (cublas_api.h).

constexpr int kOldest = 8;  // compute capability for which kernels are compiled (CMakeLists.txt)
constexpr int kNotTransposed = 0, kTransposed = 1;
constexpr int kSumInFloat = 68;      // CUBLAS_COMPUTE_32F
constexpr int kUsualAlgorithm = -1;  // CUBLAS_GEMM_DEFAULT
constexpr std::size_t kWorkspaceBytes = std::size_t{32} << 20;

struct Cublas {
  int (*create)(void** handle);
  int (*destroy)(void* handle);
  int (*set_stream)(void* handle, cudaStream_t stream);
  int (*set_workspace)(void* handle, void* workspace, std::size_t bytes);
  int (*gemm)(void* handle, int left, int right, int m, int n, int k, const void* alpha,
              const void* a, cudaDataType a_type, int lda, const void* b, cudaDataType b_type,
              int ldb, const void* beta, void* c, cudaDataType c_type, int ldc, int compute,
              int algorithm);
};

template <class Function>
bool find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(::dlsym(library, name));
  return function != nullptr;
}

// Never unloaded: it has threads and handles of its own.
const Cublas* load_cublas(std::string& problem) {
  static Cublas functions;
  static const bool loaded = [&problem] {
    void* library = ::dlopen("libcublas.so.13", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) library = ::dlopen("libcublas.so.12", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      const char* why = ::dlerror();
      problem = std::string("cuBLAS: ") + (why == nullptr ? "cannot be loaded" : why) +
                "; `deploy/setup.sh --with-cuda` installs it";
      return false;
    }
    const bool complete = find(library, "cublasCreate_v2", functions.create) &&
                          find(library, "cublasDestroy_v2", functions.destroy) &&
                          find(library, "cublasSetStream_v2", functions.set_stream) &&
                          find(library, "cublasSetWorkspace_v2", functions.set_workspace) &&
                          find(library, "cublasGemmEx", functions.gemm);
    if (!complete) problem = "cuBLAS: a function of version 12 or 13 is missing";
    return complete;
  }();
  if (!loaded && problem.empty()) problem = "cuBLAS cannot be loaded";
  return loaded ? &functions : nullptr;
}

// ---- a device -----------------------------------------------------------------------------------

// Memory of the host that the device copies from by itself, so that nobody waits for a copy.
struct Staging {
  static constexpr std::size_t kBytes = std::size_t{16} << 20;
  void* memory = nullptr;
  cudaEvent_t copied = nullptr;  // what it held last
};

struct Gpu {
  int index = 0;
  cudaStream_t stream = nullptr;
  Staging staging[2];
  int next_staging = 0;
  const Cublas* cublas = nullptr;
  void* handle = nullptr;
  void* workspace = nullptr;
  std::string problem;

  int check(cudaError_t error, const char* what) {
    if (error == cudaSuccess) return 0;
    problem = std::string(what) + ": " + cudaGetErrorString(error);
    cudaGetLastError();  // said here, it is not to be taken for that of a later call
    return -1;
  }
  int check_cublas(int status, const char* what) {
    if (status == 0) return 0;
    problem = std::string(what) + ": cuBLAS status " + std::to_string(status);
    return -1;
  }
};

Gpu& gpu_of(void* device) { return *static_cast<Gpu*>(device); }

void say(const std::string& text, char* problem, std::size_t bytes) {
  if (bytes > 0) std::snprintf(problem, bytes, "%s", text.c_str());
}

int count(char* problem, std::size_t bytes) {
  int devices = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&devices); error != cudaSuccess) {
    say(cudaGetErrorString(error), problem, bytes);
    return -1;
  }
  return devices;
}

void close(void* device) {
  Gpu& gpu = gpu_of(device);
  if (gpu.stream != nullptr) cudaStreamSynchronize(gpu.stream);
  if (gpu.handle != nullptr) gpu.cublas->destroy(gpu.handle);
  if (gpu.workspace != nullptr) cudaFree(gpu.workspace);
  for (Staging& staging : gpu.staging) {
    if (staging.copied != nullptr) cudaEventDestroy(staging.copied);
    if (staging.memory != nullptr) cudaFreeHost(staging.memory);
  }
  if (gpu.stream != nullptr) cudaStreamDestroy(gpu.stream);
  delete &gpu;
}

int prepare(Gpu& gpu) {
  int major = 0;
  if (gpu.check(cudaSetDevice(gpu.index), "choosing the GPU") != 0 ||
      gpu.check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, gpu.index),
                "properties") != 0)
    return -1;
  if (major < kOldest) {
    gpu.problem = "of compute capability " + std::to_string(major) + ".x; " +
                  std::to_string(kOldest) + ".0 or newer would be right";
    return -1;
  }
  gpu.cublas = load_cublas(gpu.problem);
  if (gpu.cublas == nullptr) return -1;
  if (gpu.check(cudaStreamCreateWithFlags(&gpu.stream, cudaStreamNonBlocking), "a stream") != 0 ||
      gpu.check(cudaMalloc(&gpu.workspace, kWorkspaceBytes), "a workspace") != 0)
    return -1;
  for (Staging& staging : gpu.staging)
    if (gpu.check(cudaMallocHost(&staging.memory, Staging::kBytes), "memory of the host") != 0 ||
        gpu.check(cudaEventCreateWithFlags(&staging.copied, cudaEventDisableTiming), "an event") !=
            0)
      return -1;
  // The stream first: setting it takes the workspace away.
  return gpu.check_cublas(gpu.cublas->create(&gpu.handle), "cublasCreate") != 0 ||
                 gpu.check_cublas(gpu.cublas->set_stream(gpu.handle, gpu.stream),
                                  "cublasSetStream") != 0 ||
                 gpu.check_cublas(
                     gpu.cublas->set_workspace(gpu.handle, gpu.workspace, kWorkspaceBytes),
                     "cublasSetWorkspace") != 0
             ? -1
             : 0;
}

void* open(int index, char* problem, std::size_t bytes) {
  auto* gpu = new Gpu;
  gpu->index = index;
  if (prepare(*gpu) == 0) return gpu;
  say(gpu->problem, problem, bytes);
  close(gpu);
  return nullptr;
}

int describe(void* device, DeviceInfo* info) {
  Gpu& gpu = gpu_of(device);
  cudaDeviceProp properties;
  std::size_t free = 0, total = 0;
  if (gpu.check(cudaGetDeviceProperties(&properties, gpu.index), "properties") != 0 ||
      gpu.check(cudaMemGetInfo(&free, &total), "memory") != 0)
    return -1;
  std::snprintf(info->name, sizeof info->name, "%.*s", static_cast<int>(sizeof info->name) - 1,
                properties.name);
  info->memory_bytes = total;
  info->free_bytes = free;
  info->major = properties.major;
  info->minor = properties.minor;
  return 0;
}

const char* problem_of(void* device) { return gpu_of(device).problem.c_str(); }

int allocate(void* device, std::size_t bytes, void** memory) {
  const cudaError_t error = cudaMalloc(memory, bytes);
  return gpu_of(device).check(error, "memory") == 0 ? 0
         : error == cudaErrorMemoryAllocation       ? kOutOfMemory
                                                    : -1;
}

void release(void* device, void* memory) {
  cudaStreamSynchronize(gpu_of(device).stream);  // who frees memory may have asked for work with it
  cudaFree(memory);
}

int clear(void* device, void* memory, std::size_t bytes) {
  Gpu& gpu = gpu_of(device);
  return gpu.check(cudaMemsetAsync(memory, 0, bytes, gpu.stream), "clearing");
}

int upload(void* device, void* to, const void* from, std::size_t bytes) {
  Gpu& gpu = gpu_of(device);
  for (std::size_t at = 0; at < bytes; at += Staging::kBytes) {
    Staging& staging = gpu.staging[gpu.next_staging];
    gpu.next_staging = 1 - gpu.next_staging;
    const std::size_t piece = bytes - at < Staging::kBytes ? bytes - at : Staging::kBytes;
    // An event that was never recorded is done.
    if (gpu.check(cudaEventSynchronize(staging.copied), "upload") != 0) return -1;
    std::memcpy(staging.memory, static_cast<const char*>(from) + at, piece);
    if (gpu.check(cudaMemcpyAsync(static_cast<char*>(to) + at, staging.memory, piece,
                                  cudaMemcpyHostToDevice, gpu.stream),
                  "upload") != 0 ||
        gpu.check(cudaEventRecord(staging.copied, gpu.stream), "upload") != 0)
      return -1;
  }
  return 0;
}

int download(void* device, void* to, const void* from, std::size_t bytes) {
  Gpu& gpu = gpu_of(device);
  if (gpu.check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, gpu.stream), "download") !=
      0)
    return -1;
  return gpu.check(cudaStreamSynchronize(gpu.stream), "download");
}

int multiply(void* device, const Product* product) {
  Gpu& gpu = gpu_of(device);
  const float one = 1, zero = 0;
  const cudaDataType type = product->rounded ? CUDA_R_16BF : CUDA_R_32F;
  const ColumnMajor call = column_major(*product);
  return gpu.check_cublas(
      gpu.cublas->gemm(gpu.handle, call.transposes_a ? kTransposed : kNotTransposed,
                       call.transposes_b ? kTransposed : kNotTransposed, call.m, call.n, call.k,
                       &one, call.a, type, call.lda, call.b, type, call.ldb, &zero, call.c,
                       CUDA_R_32F, call.ldc, kSumInFloat, kUsualAlgorithm),
      "a matrix product");
}

constexpr std::int64_t kMostBlocks = 0x7fffffff;  // of a grid

template <class Kernel>
int launch_kernel(Gpu& gpu, const void* parameters, std::size_t bytes, std::int64_t blocks,
                  const char* name) {
  if (bytes != sizeof(Kernel)) {
    gpu.problem = std::string(name) + ": parameters of another size";
    return -1;
  }
  Kernel kernel;
  std::memcpy(&kernel, parameters, sizeof kernel);
  if (blocks > kMostBlocks) {
    gpu.problem = std::string(name) + ": " + std::to_string(blocks) + " blocks";
    return -1;
  }
  cudaLaunchConfig_t how{};
  how.gridDim = static_cast<unsigned>(blocks);
  how.blockDim = Kernel::kThreads;
  how.stream = gpu.stream;
  return gpu.check(cudaLaunchKernelEx(&how, run_kernel<Kernel>, kernel), name);
}

int launch(void* device, KernelId id, const void* parameters, std::size_t bytes,
           std::int64_t blocks) {
  Gpu& gpu = gpu_of(device);
  if (blocks == 0) return 0;
  switch (id) {
#define SAE_DEVICE_LAUNCH(Kernel) \
  case KernelId::k##Kernel:       \
    return launch_kernel<Kernel>(gpu, parameters, bytes, blocks, #Kernel);
    SAE_DEVICE_KERNELS(SAE_DEVICE_LAUNCH)
#undef SAE_DEVICE_LAUNCH
  }
  gpu.problem = "a kernel that this module does not have";
  return -1;
}

// cuBLAS may be noted, too: its workspace is ours, so it allocates nothing (cuBLAS documentation,
// "CUDA Graphs Support"). Calls of other threads are none of our business.
int begin_graph(void* device) {
  Gpu& gpu = gpu_of(device);
  return gpu.check(cudaStreamBeginCapture(gpu.stream, cudaStreamCaptureModeThreadLocal), "a graph");
}

void* end_graph(void* device) {
  Gpu& gpu = gpu_of(device);
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t whole = nullptr;
  const int ended = gpu.check(cudaStreamEndCapture(gpu.stream, &graph), "a graph");
  if (ended == 0 && gpu.check(cudaGraphInstantiate(&whole, graph, 0), "a graph") != 0)
    whole = nullptr;
  if (graph != nullptr) cudaGraphDestroy(graph);
  return whole;
}

int replay(void* device, void* graph) {
  Gpu& gpu = gpu_of(device);
  return gpu.check(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), gpu.stream), "a graph");
}

void drop_graph(void* device, void* graph) {
  cudaStreamSynchronize(gpu_of(device).stream);  // it may be running
  cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph));
}

}  // namespace
}  // namespace saesweep::worker::device

extern "C" __attribute__((visibility("default"))) const saesweep::worker::device::DeviceApi*
saesweep_device_api() {
  using namespace saesweep::worker::device;  // NOLINT(google-build-using-namespace): one table
  static const DeviceApi api = {kApiVersion, count,       open,      close,  describe,  problem_of,
                                allocate,    release,     clear,     upload, download,  multiply,
                                launch,      begin_graph, end_graph, replay, drop_graph};
  return &api;
}
