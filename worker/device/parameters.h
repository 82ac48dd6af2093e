// An SAE's parameters, gradients and moments on a device.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "worker/device/session.h"
#include "worker/training/trainer_base.h"

namespace saesweep::worker::device {

class Parameters {
 public:
  // Errors: kResourceExhausted.
  // `more`: names of parameters that have a value a latent, besides b_enc.
  static Result<Parameters> allocate(Device& device, std::int64_t d_sae, std::int64_t d_in,
                                     std::vector<std::string> more = {});

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
  StepSums* sums() const { return sums_.as<StepSums>(); }

  // From gradients to the next parameters.
  struct Update {
    AdamRates rates;
    double clip;  // 0: none
    bool unit_norm;
    double projection_epsilon, norm_epsilon;
    std::int64_t rows, dead_after;
  };
  Result<void> update(Session& session, const Update& update);
  // What the last pass or step over so many rows found.
  Result<StepFindings> findings(std::int64_t rows) const;

 private:
  static constexpr std::size_t kTensors = 4;
  float* weight(std::size_t which) const { return weights_[which].as<float>(); }
  float* gradient(std::size_t which) const { return gradients_[which].as<float>(); }
  Moved moved(std::size_t which) const;
  Result<void> read_all(const std::vector<Memory>& from, const SaeTensors& tensors) const;
  // Those of the host in the order of ours.
  std::vector<const at::Tensor*> in_order(const SaeTensors& tensors) const;

  Device* device_ = nullptr;
  std::int64_t d_sae_ = 0, d_in_ = 0;
  std::vector<std::string> more_;
  std::vector<Memory> weights_, gradients_, first_, second_;
  Memory silence_, next_silence_, sums_;
};

// As torch.optim.Adam applies them; `step` from 1.
AdamRates adam_rates(const sweeps::TrainingSpec& spec, const StepOrder& order);

}  // namespace saesweep::worker::device
