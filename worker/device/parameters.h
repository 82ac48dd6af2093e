// An SAE's parameters, gradients and moments on a device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "worker/device/session.h"
#include "worker/training/trainer_base.h"

namespace saesweep::worker::device {

class Parameters {
 public:
  struct Shape {
    std::int64_t latents, d_in, d_out;
  };
  // What only some architectures have.
  struct More {
    std::string name;
    std::int64_t rows, columns;  // of a vector one row
  };
  // Errors: kResourceExhausted.
  static Result<std::unique_ptr<Parameters>> allocate(Session& session, const Shape& shape,
                                                      std::vector<More> more = {});
  ~Parameters();
  Parameters(const Parameters&) = delete;
  Parameters& operator=(const Parameters&) = delete;

  const Shape& shape() const { return shape_; }
  Result<void> write(const TrainerState& state);
  Result<void> read(const TrainerState& state) const;
  Result<void> read_gradients(const SaeTensors& gradients) const;

  float* w_enc() const { return weight(0); }
  float* b_enc() const { return weight(1); }
  float* w_dec() const { return weight(2); }
  float* b_dec() const { return weight(3); }
  float* w_enc_gradient() const { return gradient(0); }
  float* b_enc_gradient() const { return gradient(1); }
  float* w_dec_gradient() const { return gradient(2); }
  float* b_dec_gradient() const { return gradient(3); }
  // By place in `more`.
  float* more(std::size_t which) const { return weight(kTensors + which); }
  float* more_gradient(std::size_t which) const { return gradient(kTensors + which); }
  std::int64_t* silence() const { return silence_.as<std::int64_t>(); }
  std::int64_t* next_silence() const { return next_silence_.as<std::int64_t>(); }
  StepSums* sums() const { return session_->findings().at(place_); }
  StepTerms* terms() const { return terms_.as<StepTerms>(); }

  // From gradients to the next parameters.
  struct Update {
    double clip;  // 0: none
    bool unit_norm;
    double projection_epsilon, norm_epsilon;
    std::int64_t rows, dead_after;
  };
  Result<void> update(const Update& update);
  // What the last pass or step over so many rows found; waits for it.
  Result<StepFindings> findings(std::int64_t rows) const;

 private:
  Parameters(Session& session, const Shape& shape, std::vector<More> more)
      : session_(&session), device_(&session.device()), shape_(shape), more_(std::move(more)) {}
  static constexpr std::size_t kTensors = 4;
  static constexpr auto kNone = static_cast<std::size_t>(-1);
  float* weight(std::size_t which) const { return weights_[which].as<float>(); }
  float* gradient(std::size_t which) const { return gradients_[which].as<float>(); }
  Moved moved(std::size_t which) const;
  Result<void> read_all(const std::vector<Memory>& from, const SaeTensors& tensors) const;
  // Those of the host in the order of ours.
  std::vector<const at::Tensor*> in_order(const SaeTensors& tensors) const;

  Session* session_;
  Device* device_;
  Shape shape_;
  std::vector<More> more_;
  std::vector<Memory> weights_, gradients_, first_, second_;
  Memory silence_, next_silence_, terms_;
  std::size_t place_ = kNone;  // among the session's findings
};

}  // namespace saesweep::worker::device
