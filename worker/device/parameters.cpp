#include "worker/device/parameters.h"

#include <ATen/core/Tensor.h>

#include <cmath>
#include <limits>

namespace saesweep::worker::device {
namespace {

std::array<const at::Tensor*, 4> of(const SaeTensors& tensors) {
  return {&tensors.w_enc, &tensors.b_enc, &tensors.w_dec, &tensors.b_dec};
}

}  // namespace

Result<Parameters> Parameters::allocate(Device& device, std::int64_t d_sae, std::int64_t d_in,
                                        std::int64_t d_out) {
  Parameters made;
  made.device_ = &device;
  made.d_sae_ = d_sae;
  made.d_in_ = d_in;
  made.d_out_ = d_out;
  const std::array<std::int64_t, kTensors> counts = {d_sae * d_in, d_sae, d_sae * d_out, d_out};
  for (auto* all : {&made.weights_, &made.gradients_, &made.first_, &made.second_})
    for (std::size_t i = 0; i < kTensors; ++i)
      SAE_TRY_VOID((*all)[i].reserve(device, static_cast<std::size_t>(counts[i]) * sizeof(float)));
  for (Memory* of_latents : {&made.silence_, &made.next_silence_})
    SAE_TRY_VOID(
        of_latents->reserve(device, static_cast<std::size_t>(d_sae) * sizeof(std::int64_t)));
  SAE_TRY_VOID(made.sums_.reserve(device, sizeof(StepSums)));
  return made;
}

Result<void> Parameters::write(const TrainerState& state) {
  const auto write_all = [&](const SaeTensors& tensors,
                             const std::array<Memory, kTensors>& to) -> Result<void> {
    for (std::size_t i = 0; i < kTensors; ++i)
      SAE_TRY_VOID(device_->upload(to[i].as<void>(), of(tensors)[i]->const_data_ptr(),
                                   of(tensors)[i]->nbytes()));
    return {};
  };
  SAE_TRY_VOID(write_all(state.parameters, weights_));
  SAE_TRY_VOID(write_all(state.first, first_));
  SAE_TRY_VOID(write_all(state.second, second_));
  return device_->upload(silence(), state.silence.data(),
                         state.silence.size() * sizeof(std::int64_t));
}

Result<void> Parameters::read(const TrainerState& state) const {
  const auto read_all = [&](const SaeTensors& tensors,
                            const std::array<Memory, kTensors>& from) -> Result<void> {
    for (std::size_t i = 0; i < kTensors; ++i)
      SAE_TRY_VOID(device_->download(of(tensors)[i]->mutable_data_ptr(), from[i].as<void>(),
                                     of(tensors)[i]->nbytes()));
    return {};
  };
  SAE_TRY_VOID(read_all(state.parameters, weights_));
  SAE_TRY_VOID(read_all(state.first, first_));
  SAE_TRY_VOID(read_all(state.second, second_));
  return device_->download(state.silence.data(), silence(),
                           state.silence.size() * sizeof(std::int64_t));
}

Result<void> Parameters::read_gradients(const SaeTensors& gradients) const {
  for (std::size_t i = 0; i < kTensors; ++i)
    SAE_TRY_VOID(device_->download(of(gradients)[i]->mutable_data_ptr(), gradients_[i].as<void>(),
                                   of(gradients)[i]->nbytes()));
  return {};
}

Moved Parameters::moved(std::size_t which) const {
  return {weights_[which].as<float>(), gradients_[which].as<float>(), first_[which].as<float>(),
          second_[which].as<float>()};
}

Result<void> Parameters::update(Session& session, const Update& update) {
  SAE_TRY(auto* const squares, session.scratch<double>("squares of latents", d_sae_));
  SAE_TRY_VOID(device_->launch(
      GradeLatent{w_dec(), w_dec_gradient(), w_enc_gradient(), b_enc_gradient(), d_in_, d_out_,
                  update.unit_norm, update.projection_epsilon, squares},
      d_sae_));
  SAE_TRY_VOID(device_->launch(JudgeStep{squares, d_sae_, b_dec_gradient(), d_out_,
                                         static_cast<double>(update.rows), update.clip, sums()},
                               1));
  SAE_TRY_VOID(device_->launch(MoveLatent{moved(0), moved(1), moved(2), d_in_, d_out_, update.rates,
                                          update.unit_norm, update.norm_epsilon, sums()},
                               d_sae_));
  SAE_TRY_VOID(device_->launch(MoveVector{moved(3), d_out_, update.rates, sums()},
                               blocks_of(d_out_, MoveVector::kThreads)));
  return device_->launch(KeepSilence{silence(), next_silence(), d_sae_, update.dead_after, sums()},
                         blocks_of(d_sae_, KeepSilence::kThreads));
}

AdamRates adam_rates(const sweeps::TrainingSpec& spec, const StepOrder& order) {
  const auto t = static_cast<double>(order.adam_step);
  AdamRates rates{};
  rates.beta1 = static_cast<float>(spec.adam_beta1);
  rates.beta2 = static_cast<float>(spec.adam_beta2);
  rates.epsilon = static_cast<float>(spec.adam_epsilon);
  rates.rest1 = static_cast<float>(1 - spec.adam_beta1);
  rates.rest2 = static_cast<float>(1 - spec.adam_beta2);
  rates.rate =
      static_cast<float>(order.rate) * static_cast<float>(1 / (1 - std::pow(spec.adam_beta1, t)));
  rates.root = std::sqrt(static_cast<float>(1 / (1 - std::pow(spec.adam_beta2, t))));
  return rates;
}

Result<StepFindings> Parameters::findings(std::int64_t rows) const {
  StepSums sums{};
  SAE_TRY_VOID(device_->download(&sums, this->sums(), sizeof sums));
  const auto count = static_cast<double>(rows);
  StepFindings found;
  found.reconstruction = sums.squared_error / count;
  found.optimised = sums.optimised_error / count;
  found.sparsity = sums.penalty;
  found.auxiliary = sums.auxiliary;
  found.fve = sums.variance > 0 ? 1 - sums.squared_error / sums.variance
                                : std::numeric_limits<double>::quiet_NaN();
  found.l0 = sums.active / count;
  found.finite = sums.not_finite == 0;
  found.norm = sums.norm;
  found.applied = sums.applied != 0;
  found.dead_fraction = static_cast<double>(sums.dead) / static_cast<double>(d_sae_);
  found.smallest_kept = sums.smallest;
  return found;
}

}  // namespace saesweep::worker::device
