#include "worker/device/parameters.h"

#include <ATen/core/Tensor.h>

#include <cmath>
#include <limits>

namespace saesweep::worker::device {
std::vector<const at::Tensor*> Parameters::in_order(const SaeTensors& tensors) const {
  std::vector<const at::Tensor*> all = {&tensors.w_enc, &tensors.b_enc, &tensors.w_dec,
                                        &tensors.b_dec};
  for (const std::string& name : more_) all.push_back(&tensors.more.at(name));
  return all;
}

Result<Parameters> Parameters::allocate(Device& device, std::int64_t d_sae, std::int64_t d_in,
                                        std::vector<std::string> more) {
  Parameters made;
  made.device_ = &device;
  made.d_sae_ = d_sae;
  made.d_in_ = d_in;
  made.more_ = std::move(more);
  std::vector<std::int64_t> counts = {d_sae * d_in, d_sae, d_sae * d_in, d_in};
  counts.resize(kTensors + made.more_.size(), d_sae);
  for (auto* all : {&made.weights_, &made.gradients_, &made.first_, &made.second_})
    for (const std::int64_t count : counts)
      SAE_TRY_VOID(
          all->emplace_back().reserve(device, static_cast<std::size_t>(count) * sizeof(float)));
  for (Memory* of_latents : {&made.silence_, &made.next_silence_})
    SAE_TRY_VOID(
        of_latents->reserve(device, static_cast<std::size_t>(d_sae) * sizeof(std::int64_t)));
  SAE_TRY_VOID(made.sums_.reserve(device, sizeof(StepSums)));
  return made;
}

Result<void> Parameters::write(const TrainerState& state) {
  const auto write_all = [&](const SaeTensors& tensors,
                             const std::vector<Memory>& to) -> Result<void> {
    const auto from = in_order(tensors);
    for (std::size_t i = 0; i < to.size(); ++i)
      SAE_TRY_VOID(device_->upload(to[i].as<void>(), from[i]->const_data_ptr(), from[i]->nbytes()));
    return {};
  };
  SAE_TRY_VOID(write_all(state.parameters, weights_));
  SAE_TRY_VOID(write_all(state.first, first_));
  SAE_TRY_VOID(write_all(state.second, second_));
  return device_->upload(silence(), state.silence.data(),
                         state.silence.size() * sizeof(std::int64_t));
}

Result<void> Parameters::read_all(const std::vector<Memory>& from,
                                  const SaeTensors& tensors) const {
  const auto to = in_order(tensors);
  for (std::size_t i = 0; i < from.size(); ++i)
    SAE_TRY_VOID(device_->download(to[i]->mutable_data_ptr(), from[i].as<void>(), to[i]->nbytes()));
  return {};
}

Result<void> Parameters::read(const TrainerState& state) const {
  SAE_TRY_VOID(read_all(weights_, state.parameters));
  SAE_TRY_VOID(read_all(first_, state.first));
  SAE_TRY_VOID(read_all(second_, state.second));
  return device_->download(state.silence.data(), silence(),
                           state.silence.size() * sizeof(std::int64_t));
}

Result<void> Parameters::read_gradients(const SaeTensors& gradients) const {
  return read_all(gradients_, gradients);
}

Moved Parameters::moved(std::size_t which) const {
  return {weights_[which].as<float>(), gradients_[which].as<float>(), first_[which].as<float>(),
          second_[which].as<float>()};
}

Result<void> Parameters::update(Session& session, const Update& update) {
  SAE_TRY(auto* const squares, session.scratch<double>("squares of latents", d_sae_));
  SAE_TRY_VOID(device_->launch(
      GradeLatent{w_dec(), w_dec_gradient(), w_enc_gradient(), b_enc_gradient(), d_in_, d_in_,
                  update.unit_norm, update.projection_epsilon, squares},
      d_sae_));
  JudgeStep judge{};
  judge.squares = squares;
  judge.latents = d_sae_;
  judge.bias_gradient = b_dec_gradient();
  judge.width = d_in_;
  for (std::size_t i = 0; i < more_.size(); ++i) judge.more[i] = more_gradient(i);
  judge.rows = static_cast<double>(update.rows);
  judge.clip = update.clip;
  judge.sums = sums();
  SAE_TRY_VOID(device_->launch(judge, 1));
  SAE_TRY_VOID(device_->launch(MoveLatent{moved(0), moved(1), moved(2), d_in_, d_in_, update.rates,
                                          update.unit_norm, update.norm_epsilon, sums()},
                               d_sae_));
  SAE_TRY_VOID(device_->launch(MoveVector{moved(3), d_in_, update.rates, sums()},
                               blocks_of(d_in_, MoveVector::kThreads)));
  for (std::size_t i = 0; i < more_.size(); ++i)
    SAE_TRY_VOID(device_->launch(MoveVector{moved(kTensors + i), d_sae_, update.rates, sums()},
                                 blocks_of(d_sae_, MoveVector::kThreads)));
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
