// Which instructions the inner loops of training use: the best this machine has, or what a test
// forces. Chosen once a process, so that one kind of machine always gives the same bytes.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace saesweep::worker::products {

// In rising order.
enum class Isa : std::uint8_t {
  kPlain,       // what any compiler makes of the loops
  kAvx2,        // with FMA
  kAvx512,      //
  kAvx512Bf16,  // products of bf16 pairs, summed in fp32
  kAmx,         // of tiles of them
};
std::string_view to_string(Isa isa);

Isa best_isa();
Isa current_isa();
std::vector<Isa> runnable_isas();  // on this machine, in rising order

// Forces a set of instructions while it lives; for tests, while no product runs.
class ForcedIsa {
 public:
  explicit ForcedIsa(Isa isa);  // runnable here
  ~ForcedIsa();
  ForcedIsa(const ForcedIsa&) = delete;
  ForcedIsa& operator=(const ForcedIsa&) = delete;

 private:
  Isa before_;
};

}  // namespace saesweep::worker::products
