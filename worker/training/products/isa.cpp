#include "worker/training/products/isa.h"

#include <algorithm>
#include <atomic>

#include "core/check.h"

namespace saesweep::worker::products {
namespace {

Isa detect() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl"))
    return __builtin_cpu_supports("avx512bf16") ? Isa::kAvx512Bf16 : Isa::kAvx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::kAvx2;
#endif
  return Isa::kPlain;
}

std::atomic<Isa>& chosen() {
  static std::atomic<Isa> isa{best_isa()};
  return isa;
}

}  // namespace

std::string_view to_string(Isa isa) {
  switch (isa) {
    case Isa::kPlain:
      return "plain";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx512Bf16:
      return "avx512_bf16";
  }
  return "";
}

Isa best_isa() {
  static const Isa best = detect();
  return best;
}

Isa current_isa() { return chosen().load(std::memory_order_relaxed); }

std::vector<Isa> runnable_isas() {
  std::vector<Isa> isas;
  for (const Isa isa : {Isa::kPlain, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16})
    if (isa <= best_isa()) isas.push_back(isa);
  return isas;
}

ForcedIsa::ForcedIsa(Isa isa) : before_(current_isa()) {
  SAE_CHECK(isa <= best_isa(), "{} on a machine with {}", to_string(isa), to_string(best_isa()));
  chosen().store(isa);
}
ForcedIsa::~ForcedIsa() { chosen().store(before_); }

}  // namespace saesweep::worker::products
