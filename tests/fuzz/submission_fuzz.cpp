// What a client submits: whatever the bytes, it is refused or it is something the state can take.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "scheduler/decisions/decide.h"
#include "scheduler/service/submission.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace saesweep;
  auto submission = scheduler::parse_submission({reinterpret_cast<const char*>(data), size});
  if (!submission) return 0;
  scheduler::SweepState state;
  scheduler::Decision decision =
      scheduler::decide(state, {"", std::move(*submission)}, TimePoint{});
  for (journal::Event& event : decision.events) state.apply(event);
  if (!state.broken_invariant().empty()) std::abort();
  return 0;
}
