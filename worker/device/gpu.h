// The GPU of an executor, opened when a trial first asks for one. The module that drives it lies
// beside the program, or where an installation puts it.
#pragma once

#include <cstdint>
#include <memory>

#include "core/json.h"
#include "core/result.h"
#include "worker/device/device.h"

namespace saesweep::worker::device {

class Gpu {
 public:
  // Executors of neighbouring slots take turns at the GPUs of a machine.
  explicit Gpu(std::uint32_t slot = 0) : slot_(slot) {}

  // Errors: kUnavailable: what is missing, and how to get it.
  Result<Device*> open();
  // It failed and no process that has used it gets it back: somebody else must go on.
  bool is_broken() const { return device_ != nullptr && device_->is_broken(); }

 private:
  std::uint32_t slot_;
  std::unique_ptr<Device> device_;
};

// What there is: {"module": true, "devices": [{"name", "memory_bytes"}], "missing": ["..."]}; a
// device stands there only if it can be used.
Json probe_gpus();

}  // namespace saesweep::worker::device
