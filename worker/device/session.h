// A GPU and the trials of one stream that train on it: each batch is uploaded once, what a step
// needs beside parameters and moments is shared, since the device does steps one after another, and
// what steps found is read for all of them at once.
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

// What steps find, of all engines of a session side by side: the host waits for the device once
// for all of them.
class Findings {
 public:
  explicit Findings(Device& device) : device_(&device) {}  // outlives this

  // A place, which stays where it is until it is given back. Errors: kResourceExhausted.
  Result<std::size_t> take();
  void give_back(std::size_t place) { taken_[place] = false; }
  StepSums* at(std::size_t place) const {
    return slabs_[place / kSlab].as<StepSums>() + place % kSlab;
  }
  // Something was asked for that changes them.
  void expect() { are_here_ = false; }
  // Of all that was asked for. Errors: kUnavailable.
  Result<StepSums> read(std::size_t place);

 private:
  static constexpr std::size_t kSlab = 64;
  Device* device_;
  std::vector<Memory> slabs_;
  std::vector<bool> taken_;
  std::vector<StepSums> here_;
  bool are_here_ = false;
};

class Session final : public StepEngines {
 public:
  explicit Session(Device& device)
      : device_(&device), findings_(device) {}  // outlives this and its engines

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
    SAE_TRY_VOID(reserve(memory, static_cast<std::size_t>(count) * sizeof(T)));
    return memory.template as<T>();
  }
  // Grows whenever memory that is shared has moved: what was noted before is of no use then.
  std::uint64_t moves() const { return moves_; }
  Findings& findings() { return findings_; }

  // Sums over rows of each column, into `out`.
  Result<void> sum_columns(const float* matrix, const float* weights, std::int64_t rows,
                           std::int64_t columns, std::int64_t stride, double* out);
  // Of the last pass: which latents were active.
  Result<void> read_fired(std::int64_t latents, std::vector<char>& fired);
  // Squared distance of rows from their mean, in all.
  Result<void> variance(const float* matrix, std::int64_t rows, std::int64_t columns,
                        std::int64_t stride, double* out);

 private:
  struct Uploaded {
    Memory values, variance;
    std::uint64_t first = 0;
    std::int64_t count = 0;  // 0: nothing
  };
  Result<Rows> upload(const at::Tensor& x, Uploaded& into);
  Result<void> reserve(Memory& memory, std::size_t bytes);

  Device* device_;
  std::map<std::string, Memory> scratch_;
  Uploaded stream_, other_;
  Findings findings_;
  std::uint64_t moves_ = 0;
};

// Blocks of so many each.
inline std::int64_t blocks_of(std::int64_t count, std::int64_t each) {
  return (count + each - 1) / each;
}

}  // namespace saesweep::worker::device
