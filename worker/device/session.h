// A GPU and the trials of one stream that train on it: each batch is uploaded once, and what a step
// needs beside parameters and moments is shared, since steps are done one after another.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "worker/device/device.h"
#include "worker/training/step_engine.h"

namespace saesweep::worker::device {

// Rows on the device.
struct Rows {
  const float* values;  // [rows, width]
  std::int64_t count, width;
  const double* variance;  // squared distance from their mean, in all
};

class Session final : public StepEngines {
 public:
  explicit Session(Device& device) : device_(&device) {}  // outlives this and its engines

  Result<std::unique_ptr<StepEngine>> make(const sweeps::TrainingSpec& spec,
                                           const std::vector<RowPart>& parts) override;

  Device& device() { return *device_; }
  // Rows of the stream from `first` on, which are the same however often they are asked for.
  Result<Rows> stream_rows(const at::Tensor& x, std::uint64_t first);
  // Any others.
  Result<Rows> other_rows(const at::Tensor& x);
  // Memory that lasts until somebody asks for it again, by what it is for.
  template <class T>
  Result<T*> scratch(const std::string& purpose, std::int64_t count) {
    Memory& memory = scratch_[purpose];
    SAE_TRY_VOID(memory.reserve(*device_, static_cast<std::size_t>(count) * sizeof(T)));
    return memory.template as<T>();
  }

  // Sums over rows of each column, into `out`.
  Result<void> sum_columns(const float* matrix, const float* weights, std::int64_t rows,
                           std::int64_t columns, std::int64_t stride, double* out);
  // Of the last pass: which latents were active.
  Result<void> read_fired(std::int64_t latents, std::vector<char>& fired);
  // Squared distance of rows from their mean, in all.
  Result<void> variance(const float* matrix, std::int64_t rows, std::int64_t columns, double* out);

 private:
  struct Uploaded {
    Memory values, variance;
    std::uint64_t first = 0;
    std::int64_t count = 0;  // 0: nothing
  };
  Result<Rows> upload(const at::Tensor& x, Uploaded& into);

  Device* device_;
  std::map<std::string, Memory> scratch_;
  Uploaded stream_, other_;
};

// Blocks of so many each.
inline std::int64_t blocks_of(std::int64_t count, std::int64_t each) {
  return (count + each - 1) / each;
}

}  // namespace saesweep::worker::device
