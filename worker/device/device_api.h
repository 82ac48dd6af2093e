// What a GPU module offers the executor: memory, copies, matrix products and the kernels of
// worker/device/kernels, all in the order in which they are asked for, and without waiting unless
// it is said; and graphs, in which many of them are asked for at once. `libsaesweep_cuda.so` is
// one; tests have another, which runs the same kernels without a GPU.
//
// Plain C, so that a module needs neither LibTorch nor this program's version of anything.
#pragma once

#include <cstddef>
#include <cstdint>

#include "worker/device/kernels/dense.h"
#include "worker/device/kernels/gated.h"
#include "worker/device/kernels/jump.h"
#include "worker/device/kernels/optimiser.h"
#include "worker/device/kernels/selection.h"
#include "worker/device/kernels/sparse.h"
#include "worker/device/kernels/step.h"
#include "worker/device/kernels/sums.h"

namespace saesweep::worker::device {

// Rises whenever the table below, a kernel's parameters or its meaning change.
inline constexpr std::uint32_t kApiVersion = 3;
inline constexpr const char* kEntryPoint = "saesweep_device_api";

#define SAE_DEVICE_KERNELS(X) \
  X(SetTerms)                 \
  X(CentreRow)                \
  X(RoundValues)              \
  X(SelectRow)                \
  X(BeginCut)                 \
  X(CountBins)                \
  X(NarrowCut)                \
  X(CountKept)                \
  X(PlaceRows)                \
  X(WriteKept)                \
  X(DecodeRow)                \
  X(DecodePrefixes)           \
  X(ClearBits)                \
  X(SetBits)                  \
  X(CountTouches)             \
  X(PlaceLatents)             \
  X(WriteTouches)             \
  X(GatherGradients)          \
  X(ReluRow)                  \
  X(ErrorRow)                 \
  X(PullRow)                  \
  X(WeighLatent)              \
  X(PullNorm)                 \
  X(BendRow)                  \
  X(GatedRow)                 \
  X(GatedColumns)             \
  X(SumDense)                 \
  X(JumpRow)                  \
  X(JumpColumns)              \
  X(PenaliseJumps)            \
  X(PullJumpNorm)             \
  X(SumColumns)               \
  X(FoldColumns)              \
  X(SquareRow)                \
  X(Variance)                 \
  X(AdvanceSilence)           \
  X(ScaleByVariance)          \
  X(SumPass)                  \
  X(GradeBias)                \
  X(GradeLatent)              \
  X(JudgeStep)                \
  X(MoveLatent)               \
  X(MoveVector)               \
  X(KeepSilence)

enum class KernelId : std::uint32_t {
#define SAE_DEVICE_ID(Kernel) k##Kernel,
  SAE_DEVICE_KERNELS(SAE_DEVICE_ID)
#undef SAE_DEVICE_ID
};

template <class Kernel>
struct IdOf;
#define SAE_DEVICE_ID(Kernel)                            \
  template <>                                            \
  struct IdOf<Kernel> {                                  \
    static constexpr KernelId kId = KernelId::k##Kernel; \
  };
SAE_DEVICE_KERNELS(SAE_DEVICE_ID)
#undef SAE_DEVICE_ID

// What a block of a GPU has, without being asked for more (CUDA programming guide, "Compute
// Capabilities").
template <class Kernel>
constexpr bool fits_a_block() {
  return Kernel::kThreads % 32 == 0 && Kernel::kThreads <= 1024 &&
         sizeof(typename Kernel::Shared) <= (48U << 10) && sizeof(Kernel) <= (4U << 10);
}
#define SAE_DEVICE_FITS(Kernel) static_assert(fits_a_block<Kernel>(), #Kernel);
SAE_DEVICE_KERNELS(SAE_DEVICE_FITS)
#undef SAE_DEVICE_FITS

// out [rows, columns] = left [rows, depth] right [depth, columns], summed in fp32.
struct Product {
  const void *left, *right;  // fp32, or bf16 with `rounded`
  float* out;
  std::int64_t rows, columns, depth;
  bool left_transposed;   // lies as [depth, rows]
  bool right_transposed;  // lies as [columns, depth]
  bool rounded;
};

// The same as BLAS wants it, which counts columns first: out^T = right^T left^T.
struct ColumnMajor {
  bool transposes_a, transposes_b;
  int m, n, k, lda, ldb, ldc;
  const void *a, *b;
  float* c;
};
inline ColumnMajor column_major(const Product& product) {
  ColumnMajor call{};
  call.transposes_a = product.right_transposed;
  call.transposes_b = product.left_transposed;
  call.m = static_cast<int>(product.columns);
  call.n = static_cast<int>(product.rows);
  call.k = static_cast<int>(product.depth);
  call.lda = call.transposes_a ? call.k : call.m;
  call.ldb = call.transposes_b ? call.n : call.k;
  call.ldc = call.m;
  call.a = product.right;
  call.b = product.left;
  call.c = product.out;
  return call;
}

struct DeviceInfo {
  char name[128];
  std::uint64_t memory_bytes, free_bytes;
  std::int32_t major, minor;  // compute capability
};

inline constexpr int kOutOfMemory = 1;

// 0 is success. What fails leaves words in the buffer that open() was given, or problem().
struct DeviceApi {
  std::uint32_t version;
  // How many devices there are; negative: `problem` says why none can be used.
  int (*count)(char* problem, std::size_t bytes);
  // A device, or nullptr. From one thread, which makes all further calls.
  void* (*open)(int index, char* problem, std::size_t bytes);
  void (*close)(void* device);
  int (*describe)(void* device, DeviceInfo* info);
  const char* (*problem)(void* device);                             // of the last call that failed
  int (*allocate)(void* device, std::size_t bytes, void** memory);  // or kOutOfMemory
  void (*release)(void* device, void* memory);  // waits for all that was asked before
  int (*clear)(void* device, void* memory, std::size_t bytes);
  // The host's memory may be reused when they return. Download waits for all that was asked before,
  // upload only where more is on its way than is kept for it.
  int (*upload)(void* device, void* to, const void* from, std::size_t bytes);
  int (*download)(void* device, void* to, const void* from, std::size_t bytes);
  int (*multiply)(void* device, const Product* product);
  // `kernel`: its parameters, as many bytes as the kernel's struct.
  int (*launch)(void* device, KernelId id, const void* kernel, std::size_t bytes,
                std::int64_t blocks);
  // From now on what is cleared, multiplied and launched is noted and not done; nothing else may be
  // asked for. The end of it returns what was noted, or nullptr.
  int (*begin_graph)(void* device);
  void* (*end_graph)(void* device);
  // All of it, in the order in which it was asked for. A graph may go while it is being replayed.
  int (*replay)(void* device, void* graph);
  void (*drop_graph)(void* device, void* graph);
};

using DeviceEntryPoint = const DeviceApi* (*)();

}  // namespace saesweep::worker::device
