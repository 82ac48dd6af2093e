#include "worker/device/parameters.h"

#include <ATen/core/Tensor.h>

#include <limits>

namespace saesweep::worker::device {
std::vector<const at::Tensor*> Parameters::in_order(const SaeTensors& tensors) const {
  std::vector<const at::Tensor*> all = {&tensors.w_enc, &tensors.b_enc, &tensors.w_dec,
                                        &tensors.b_dec};
  for (const More& one : more_) all.push_back(&tensors.more.at(one.name));
  return all;
}

Result<std::unique_ptr<Parameters>> Parameters::allocate(Session& session, const Shape& shape,
                                                         std::vector<More> more) {
  std::unique_ptr<Parameters> made(new Parameters(session, shape, std::move(more)));
  Device& device = session.device();
  const auto [latents, d_in, d_out] = shape;
  std::vector<std::int64_t> counts = {latents * d_in, latents, latents * d_out, d_out};
  for (const More& one : made->more_) counts.push_back(one.rows * one.columns);
  for (auto* all : {&made->weights_, &made->gradients_, &made->first_, &made->second_})
    for (const std::int64_t count : counts)
      SAE_TRY_VOID(
          all->emplace_back().reserve(device, static_cast<std::size_t>(count) * sizeof(float)));
  for (Memory* of_latents : {&made->silence_, &made->next_silence_})
    SAE_TRY_VOID(
        of_latents->reserve(device, static_cast<std::size_t>(latents) * sizeof(std::int64_t)));
  SAE_TRY_VOID(made->terms_.reserve(device, sizeof(StepTerms)));
  SAE_TRY(made->place_, session.findings().take());
  return made;
}

Parameters::~Parameters() {
  if (place_ != kNone) session_->findings().give_back(place_);
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

Result<void> Parameters::update(const Update& update) {
  const auto [latents, d_in, d_out] = shape_;
  // Parts of the squared norm: of each latent, of b_dec, of each row of what else there is.
  std::int64_t parts = latents + 1;
  for (const More& one : more_) parts += one.rows;
  SAE_TRY(auto* const squares, session_->scratch<double>("squares of gradients", parts));
  SAE_TRY_VOID(device_->launch(
      GradeLatent{w_dec(), w_dec_gradient(), w_enc_gradient(), b_enc_gradient(), d_in, d_out,
                  update.unit_norm, update.projection_epsilon, squares},
      latents));
  SAE_TRY_VOID(device_->launch(SquareRow{b_dec_gradient(), d_out, d_out, squares + latents}, 1));
  double* next = squares + latents + 1;
  for (std::size_t i = 0; i < more_.size(); ++i) {
    const More& one = more_[i];
    SAE_TRY_VOID(
        device_->launch(SquareRow{more_gradient(i), one.columns, one.columns, next}, one.rows));
    next += one.rows;
  }
  SAE_TRY_VOID(device_->launch(
      JudgeStep{squares, parts, static_cast<double>(update.rows), update.clip, sums()}, 1));
  SAE_TRY_VOID(device_->launch(MoveLatent{moved(0), moved(1), moved(2), d_in, d_out, terms(),
                                          update.unit_norm, update.norm_epsilon, sums()},
                               latents));
  const auto move = [&](std::size_t which, std::int64_t count) {
    return device_->launch(MoveVector{moved(which), count, terms(), sums()},
                           blocks_of(count, MoveVector::kThreads));
  };
  SAE_TRY_VOID(move(3, d_out));
  for (std::size_t i = 0; i < more_.size(); ++i)
    SAE_TRY_VOID(move(kTensors + i, more_[i].rows * more_[i].columns));
  return device_->launch(KeepSilence{silence(), next_silence(), latents, update.dead_after, sums()},
                         blocks_of(latents, KeepSilence::kThreads));
}

Result<StepFindings> Parameters::findings(std::int64_t rows) const {
  SAE_TRY(const StepSums sums, session_->findings().read(place_));
  const auto count = static_cast<double>(rows);
  StepFindings found;
  found.reconstruction = sums.squared_error / count;
  found.optimised = sums.optimised_error / count;
  found.sparsity = sums.penalty;
  found.bent = sums.bent / count;
  found.next_bent = sums.next_bent / count;
  found.auxiliary = sums.auxiliary;
  found.fve = sums.variance > 0 ? 1 - sums.squared_error / sums.variance
                                : std::numeric_limits<double>::quiet_NaN();
  found.l0 = sums.active / count;
  found.finite = sums.not_finite == 0;
  found.norm = sums.norm;
  found.applied = sums.applied != 0;
  found.dead_fraction = static_cast<double>(sums.dead) / static_cast<double>(shape_.latents);
  found.smallest_kept = sums.smallest;
  return found;
}

}  // namespace saesweep::worker::device
